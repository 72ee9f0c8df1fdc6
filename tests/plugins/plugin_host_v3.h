// The checks of plugin_host.cpp for TensorRT 10 and later.
#pragma once

#include "plugin_host.h"

namespace {

int32_t value_of(const PluginFieldCollection& collection, const char* name) {
    for (int32_t i = 0; i < collection.nbFields; ++i) {
        const PluginField& field = collection.fields[i];
        if (std::strcmp(field.name, name) == 0) {
            CHECK(field.type == PluginFieldType::kINT32 && field.length == 1);
            return *static_cast<const int32_t*>(field.data);
        }
    }
    CHECK(!"a field with this name");
    return 0;
}

std::vector<Described> described(const std::vector<PluginTensorDesc>& tensors) {
    std::vector<Described> result;
    for (const PluginTensorDesc& each : tensors) {
        result.push_back(described(each));
    }
    return result;
}

template <typename Capability>
Capability& capability(IPluginV3& plugin, PluginCapabilityType type, const char* kind) {
    auto* found = static_cast<Capability*>(plugin.getCapabilityInterface(type));
    CHECK(found != nullptr && std::strcmp(found->getInterfaceInfo().kind, kind) == 0);
    return *found;
}
IPluginV3OneBuild& build(IPluginV3& plugin) {
    return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD, "PLUGIN_V3ONE_BUILD");
}
IPluginV3OneRuntime& runtime(IPluginV3& plugin) {
    return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME, "PLUGIN_V3ONE_RUNTIME");
}

void check_serialised(IPluginV3& plugin, int32_t max_displacement, int32_t pool_size, int32_t scale) {
    const PluginFieldCollection& fields = *runtime(plugin).getFieldsToSerialize();
    CHECK(fields.nbFields == 4);
    CHECK(value_of(fields, "max_displacement") == max_displacement);
    CHECK(value_of(fields, "pool_size") == pool_size);
    CHECK(value_of(fields, "scale") == scale);
    CHECK(value_of(fields, "revision") == mtu::kKernelRevision);
}

IPluginCreatorV3One& creator_of(void* library) {
    symbol<void(ILoggerFinder*)>(library, "setLoggerFinder")(nullptr);
    int32_t count = 0;
    auto* const* creators = symbol<IPluginCreatorInterface* const*(int32_t&)>(library, "getCreators")(count);
    CHECK(count == 1);
    CHECK(std::strcmp(creators[0]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0);
    return *static_cast<IPluginCreatorV3One*>(creators[0]);
}

void check_recorded(void* library) {
    Fields fields = Fields().add("max_displacement", 3).add("pool_size", 7).add("scale", 2);
    IPluginV3* plugin = creator_of(library).createPlugin("node", fields.get(), TensorRTPhase::kBUILD);
    const auto tensors = described(all(inputs(9, 16)));
    CHECK(build(*plugin).getWorkspaceSize(tensors.data(), 3, tensors.data() + 3, 2) == 16);
    check_recorded(runtime(*plugin));
    delete plugin;
}

void check_library(void* library) {
    IPluginCreatorV3One& creator = creator_of(library);
    check_identity(creator);

    const auto create = [&](const PluginFieldCollection* fields, TensorRTPhase phase) {
        return creator.createPlugin("node", fields, phase);
    };
    check_bad_fields([&](const PluginFieldCollection* fields) {
        IPluginV3* made = create(fields, TensorRTPhase::kBUILD);
        const bool works = made != nullptr;
        delete made;
        return works;
    });

    // Defaults; a clone that outlives its original; an engine's round trip.
    IPluginV3* original = create(nullptr, TensorRTPhase::kBUILD);
    check_serialised(*original, 10, 5, 4);
    delete original;
    original = create(Fields().add("max_displacement", 3).add("pool_size", 7).add("scale", 2).get(),
                      TensorRTPhase::kBUILD);
    IPluginV3* plugin = original->clone();
    IPluginV3* attached = runtime(*plugin).attachToContext(nullptr);
    CHECK(plugin != nullptr && attached != nullptr && attached != plugin);
    CHECK(runtime(*plugin).getFieldsToSerialize() == runtime(*plugin).getFieldsToSerialize());
    CHECK(runtime(*plugin).getFieldsToSerialize()->fields[0].data !=
          runtime(*original).getFieldsToSerialize()->fields[0].data);
    const std::string id = build(*original).getTimingCacheID();
    CHECK(build(*plugin).getTimingCacheID() == id && build(*plugin).getTimingCacheID() != id.c_str());
    CHECK(id.find("revision " + std::to_string(mtu::kKernelRevision)) != std::string::npos);
    delete original;
    check_serialised(*plugin, 3, 7, 2);
    check_serialised(*attached, 3, 7, 2);
    IPluginV3* restored = create(runtime(*plugin).getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
    CHECK(restored != nullptr);
    delete plugin;
    delete attached;
    check_serialised(*restored, 3, 7, 2);
    delete restored;
    const auto refused = [&](Fields& fields) { return create(fields.get(), TensorRTPhase::kRUNTIME) == nullptr; };
    CHECK(refused(Fields().add("max_displacement", 10).add("pool_size", 5).add("scale", 4)));
    CHECK(refused(Fields().add("max_displacement", 10).add("pool_size", 5).add("revision", mtu::kKernelRevision)));
    CHECK(refused(Fields().add("max_displacement", 10).add("pool_size", 5).add("scale", 4).add(
        "revision", mtu::kKernelRevision + 1)));

    // What a builder asks.
    plugin = create(nullptr, TensorRTPhase::kBUILD);
    auto& core = capability<IPluginV3OneCore>(*plugin, PluginCapabilityType::kCORE, "PLUGIN_V3ONE_CORE");
    CHECK(std::strcmp(core.getPluginName(), creator.getPluginName()) == 0);
    CHECK(std::strcmp(core.getPluginVersion(), creator.getPluginVersion()) == 0);
    CHECK(std::strcmp(core.getPluginNamespace(), creator.getPluginNamespace()) == 0);
    auto& b = build(*plugin);
    CHECK(b.getNbOutputs() == 2);
    const auto types = [&](DataType motion, DataType motion_prev, DataType detail) {
        const DataType in[3] = {motion, motion_prev, detail};
        DataType out[2] = {DataType::kBOOL, DataType::kBOOL};
        const bool accepted = b.getOutputDataTypes(out, 2, in, 3) == 0;
        CHECK(!accepted || (out[0] == detail && out[1] == DataType::kINT32));
        return accepted;
    };
    const DataType half = DataType::kHALF, single = DataType::kFLOAT;
    CHECK(types(half, half, half) && types(half, half, single) && types(single, single, half));
    CHECK(!types(half, single, half) && !types(half, half, DataType::kINT32) && !types(DataType::kINT8, half, half));
    check_output_shapes([&](const std::vector<DimsExprs>& given, DimsExprs(&out)[2]) {
        Builder builder;
        return b.getOutputShapes(given.data(), 3, nullptr, 0, out, 2, builder) == 0;
    });
    check_formats([&](int32_t pos, const Described* tensors) {
        return b.supportsFormatCombination(pos, tensors, 3, 2);
    });
    const auto configured = [&](const std::vector<PluginTensorDesc>& given) {
        const auto tensors = described(all(given));
        return b.configurePlugin(tensors.data(), 3, tensors.data() + 3, 2) == 0;
    };
    CHECK(configured(inputs(180, 320)) && configured(inputs(180, 320, 52, single)));
    CHECK(!configured(inputs(180, 320, 1000000)) && !configured(inputs(0, 320)));
    check_workspace([&](const std::vector<PluginTensorDesc>& given) {
        const auto tensors = described(all(given));
        return b.getWorkspaceSize(tensors.data(), 3, tensors.data() + 3, 2);
    });
    const auto cases = shapes();
    for (size_t i = 0; i < cases.size(); ++i) {
        const auto tensors = all(cases[i]);
        CHECK((runtime(*plugin).onShapeChange(tensors.data(), 3, tensors.data() + 3, 2) == 0) == (i == 0));
    }
    check_enqueue(runtime(*plugin));
    delete plugin;
}

void check_opened(void* tensorrt, const char* path) {
    IPluginRegistry& registry = *symbol<IPluginRegistry*()>(tensorrt, "getPluginRegistry")();
    CHECK(registry.getCreator("CorrelationArgmaxWarp", "1", "mtu") == nullptr);
    int32_t before = 0, after = 0;
    registry.getAllCreators(&before);
    for (int32_t i = 0; i < 2; ++i) {
        void* opened = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        CHECK(opened != nullptr && dlclose(opened) == 0);
        CHECK(dlopen(path, RTLD_NOW | RTLD_NOLOAD) == nullptr);  // so that it is opened anew
    }
    auto* found = registry.getCreator("CorrelationArgmaxWarp", "1", "mtu");
    registry.getAllCreators(&after);
    CHECK(found != nullptr && after == before + 1);
    IPluginV3* plugin = static_cast<IPluginCreatorV3One*>(found)->createPlugin("node", nullptr, TensorRTPhase::kBUILD);
    CHECK(plugin != nullptr);
    delete plugin;
}

void check_registry(IPluginRegistry& registry, const char* path) {
    CHECK(registry.loadLibrary(path) != nullptr);
    auto* found = registry.getCreator("CorrelationArgmaxWarp", "1", "mtu");
    CHECK(found != nullptr);
    IPluginV3* plugin = static_cast<IPluginCreatorV3One*>(found)->createPlugin("node", nullptr, TensorRTPhase::kBUILD);
    CHECK(plugin != nullptr);
    delete plugin;
}

}  // namespace
