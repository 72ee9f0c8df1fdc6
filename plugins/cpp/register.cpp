// Registers the plugins when this library is opened, for programs that open a file and ask no registry to load it:
// Triton, DeepStream, Polygraphy. They are in the library beside this one. For TensorRT 10 and later, and TensorRT-RTX
// with headers of TensorRT 11. C++17; needs no TensorRT library: it asks the one in the process.
#include "ops.h"

#include <dlfcn.h>

#include <climits>
#include <cstdlib>
#include <cstring>

#define MTU_TEXT_OF(text) #text
#define MTU_TEXT(macro) MTU_TEXT_OF(macro)
#define MTU_MAJOR MTU_TEXT(NV_TENSORRT_MAJOR)

namespace {

// The names of all ops, for what is said.
template <typename... Each>
const char* names_of(mtu::List<Each...>) {
    static mtu::Text names;
    const char* between = "";
    ((names.add("%s%s", between, Each::kName), between = ", "), ...);
    return names.get();
}
const char* names() { return names_of(mtu::Ops()); }

template <typename... Each>
bool all_known(mtu::List<Each...>, nvinfer1::IPluginRegistry& registry) {
    return ((registry.getCreator(Each::kName, Each::kVersion, mtu::kNamespace) != nullptr) && ...);
}

constexpr char kPlugin[] = "libmtu_plugin_trt" MTU_MAJOR ".so";

// Where a registry may be. It is asked for by the library's name, never by that of the symbol alone: the name tells the
// major version, whose headers say where a registry has its functions; and a TensorRT loaded RTLD_LOCAL, as in Python,
// has no symbols that are seen from here.
constexpr const char* kTensorRT[] = {
    "libnvinfer.so." MTU_MAJOR,
    "libnvinfer_lean.so." MTU_MAJOR,
#if NV_TENSORRT_MAJOR == 11
    "libtensorrt_rtx.so.1",
#define MTU_NEEDED "TensorRT 11 or TensorRT-RTX"
#else
#define MTU_NEEDED "TensorRT " MTU_MAJOR
#endif
};

// The path of the library with the plugins, or false with the reason said.
bool plugin_path(char (&path)[PATH_MAX + sizeof kPlugin]) {
    Dl_info self{};
    if (dladdr(kPlugin, &self) == 0 || realpath(self.dli_fname, path) == nullptr) {
        mtu::say(names(), "not registered: %s is looked for beside this library, which cannot be found", kPlugin);
        return false;
    }
    std::strcpy(std::strrchr(path, '/') + 1, kPlugin);
    return true;
}

// In the registry of `library`, whose name is `name`, unless the plugins are there already. Says why it fails.
void register_in(void* library, const char* name) {
    const auto version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
    const auto get_registry = reinterpret_cast<nvinfer1::IPluginRegistry* (*)()>(dlsym(library, "getPluginRegistry"));
    // TensorRT-RTX 1.7.1 says 10701, TensorRT 10.16.1 says 101601. RTX takes plugins, as TensorRT 11 does, since 1.7.
    if (version == nullptr || version() < 10700 || get_registry == nullptr) {
        mtu::say(names(), "not registered: this %s takes no plugins", name);
        return;
    }
    nvinfer1::IPluginRegistry& registry = *get_registry();
    const auto known = [&] { return all_known(mtu::Ops(), registry); };
    char path[PATH_MAX + sizeof kPlugin];
    if (known() || !plugin_path(path)) {
        return;
    }
    void* const plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);  // says why it fails, which the registry does not
    if (plugin == nullptr) {
        mtu::say(names(), "not registered: %s", dlerror());
        return;
    }
    registry.loadLibrary(path);
    if (!known()) {
        mtu::say(names(), "not registered: %s refuses %s", name, path);
    }
    dlclose(plugin);  // the registry holds it now
}

// Every TensorRT in the process; none is closed, so that the plugins' registry stays.
[[gnu::constructor]] void register_plugins() {
    bool found = false;
    for (const char* name : kTensorRT) {
        if (void* const library = dlopen(name, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD)) {
            register_in(library, name);
            found = true;
        }
    }
    // None yet: the first that lies where programs find their libraries, as the program will load it, too.
    for (const char* name : kTensorRT) {
        void* const library = found ? nullptr : dlopen(name, RTLD_LAZY | RTLD_LOCAL);
        if (library != nullptr) {
            register_in(library, name);
            found = true;
        }
    }
    if (!found) {
        mtu::say(names(),
                 "not registered: no " MTU_NEEDED " is in this process or where libraries are looked for: open this"
                 " library after TensorRT, or add TensorRT's directory to LD_LIBRARY_PATH");
    }
}

}  // namespace
