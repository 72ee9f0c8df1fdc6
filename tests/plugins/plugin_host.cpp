// Loads a plugin library and calls what a TensorRT builder and runtime would call, without GPU. conftest.py
// compiles it against the headers the library was built with and reads what it says on stderr.
//
//   plugin_host LIBRARY [TENSORRT_LIBRARY]    the registry of that TensorRT loads the library too
//   plugin_host LIBRARY --recorded            the library was linked with plugin_launch.cpp: what arrives there
//   plugin_host REGISTER --opened TENSORRT_LIBRARY    opening libmtu_plugin_trt<major>_register.so registers, and once
#include <NvInferRuntime.h>

#if NV_TENSORRT_MAJOR >= 10
#include "plugin_host_v3.h"
#else
#include "plugin_host_v2.h"
#endif

int main(int argc, char** argv) {
#if NV_TENSORRT_MAJOR >= 10
    if (argc == 4) {
        void* tensorrt = dlopen(argv[3], RTLD_NOW | RTLD_LOCAL);
        CHECK(std::strcmp(argv[2], "--opened") == 0 && tensorrt != nullptr);
        check_opened(tensorrt, argv[1]);
        std::printf("all well\n");
        return 0;
    }
#endif
    CHECK(argc == 2 || argc == 3);
    void* library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        std::printf("%s\n", dlerror());
        return 1;
    }
    if (argc == 3 && std::strcmp(argv[2], "--recorded") == 0) {
        check_recorded(library);
    } else {
        check_library(library);
        check_filters(library);
    }
    if (argc == 3 && argv[2][0] != '-') {
        void* tensorrt = dlopen(argv[2], RTLD_NOW | RTLD_LOCAL);
        if (tensorrt == nullptr) {
            std::printf("%s\n", dlerror());
            return 1;
        }
        check_registry(*symbol<IPluginRegistry*()>(tensorrt, "getPluginRegistry")(), argv[1]);
    }
    std::printf("all well\n");
    return 0;
}
