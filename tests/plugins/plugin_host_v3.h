// The checks of plugin_host.cpp for TensorRT 10 and later.
#pragma once

#include "plugin_host_filters.h"
#include "plugin_host_warp.h"

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
    CHECK(value_of(fields, "revision") == kRevision);
}

IPluginCreatorV3One& creator_of(void* library, const char* name) {
    symbol<void(ILoggerFinder*)>(library, "setLoggerFinder")(nullptr);
    int32_t count = 0;
    auto* const* creators = symbol<IPluginCreatorInterface* const*(int32_t&)>(library, "getCreators")(count);
    CHECK(count == 2);
    for (int32_t i = 0; i < count; ++i) {
        CHECK(std::strcmp(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0);
        auto& creator = *static_cast<IPluginCreatorV3One*>(creators[i]);
        if (std::strcmp(creator.getPluginName(), name) == 0) {
            return creator;
        }
    }
    CHECK(!"a creator of this name");
    std::abort();
}

void check_recorded(void* library) {
    Fields fields = Fields().add("max_displacement", 3).add("pool_size", 7).add("scale", 2);
    IPluginV3* plugin = creator_of(library, kWarp).createPlugin("node", fields.get(), TensorRTPhase::kBUILD);
    const auto tensors = described(all(inputs(9, 16)));
    CHECK(build(*plugin).getWorkspaceSize(tensors.data(), 3, tensors.data() + 3, 2) == 16);
    check_recorded(runtime(*plugin));
    delete plugin;
    for (int32_t shared : {0, 1}) {
        Fields given = Fields().add("shared_taps", shared);
        plugin = creator_of(library, kFilters).createPlugin("node", given.get(), TensorRTPhase::kBUILD);
        const auto three = described(filters_tensors(shared ? 4 : 7));
        CHECK(build(*plugin).getWorkspaceSize(three.data(), 2, three.data() + 2, 1) == 0);
        check_filters_recorded(runtime(*plugin), shared);
        delete plugin;
    }
}

void check_filters(void* library) {
    IPluginCreatorV3One& creator = creator_of(library, kFilters);
    check_identity(creator, kFilters, {"shared_taps"});
    const Create create = [&](const PluginFieldCollection* fields) {
        IPluginV3* made = creator.createPlugin("node", fields, TensorRTPhase::kBUILD);
        const bool works = made != nullptr;
        delete made;
        return works;
    };
    check_bad_fields(create, "shared_taps", 0);
    CHECK(!create(Fields().add("shared_taps", 2).get()) && !create(Fields().add("shared_taps", -1).get()));
    for (int32_t shared : {0, 1}) {
        Fields fields = Fields().add("shared_taps", shared);
        IPluginV3* original = creator.createPlugin("node", shared ? nullptr : fields.get(), TensorRTPhase::kBUILD);
        IPluginV3* plugin = creator.createPlugin("node", runtime(*original).getFieldsToSerialize(),
                                                 TensorRTPhase::kRUNTIME);
        delete original;
        CHECK(value_of(*runtime(*plugin).getFieldsToSerialize(), "shared_taps") == shared);
        auto& b = build(*plugin);
        CHECK(b.getNbOutputs() == 1);
        for (DataType type : {DataType::kFLOAT, DataType::kHALF, DataType::kINT32}) {
            const DataType in[2] = {type, type}, other[2] = {type, DataType::kINT8};
            DataType out[1] = {DataType::kBOOL};
            CHECK((b.getOutputDataTypes(out, 1, in, 2) == 0) == (type != DataType::kINT32));
            CHECK(type == DataType::kINT32 || out[0] == type);
            CHECK(b.getOutputDataTypes(out, 1, other, 2) != 0 && b.getOutputDataTypes(out, 1, in, 1) != 0);
        }
        check_filters_formats([&](int32_t pos, const Described* tensors) {
            return b.supportsFormatCombination(pos, tensors, 2, 1);
        });
        check_filters_shapes([&](const std::vector<DimsExprs>& given, DimsExprs& out) {
            Builder builder;
            return b.getOutputShapes(given.data(), 2, nullptr, 0, &out, 1, builder) == 0;
        }, shared);
        const auto right = filters_tensors(shared ? 4 : 7);
        const auto bounds = described(right);
        CHECK(b.configurePlugin(bounds.data(), 2, bounds.data() + 2, 1) == 0);
        CHECK(b.getWorkspaceSize(bounds.data(), 2, bounds.data() + 2, 1) == 0);
        CHECK(runtime(*plugin).onShapeChange(right.data(), 2, right.data() + 2, 1) == 0);
        if (shared) {
            check_filters_refused(runtime(*plugin));
        }
        delete plugin;
    }
}

void check_library(void* library) {
    IPluginCreatorV3One& creator = creator_of(library, kWarp);
    check_identity(creator, kWarp, {"max_displacement", "pool_size", "scale"});

    const auto create = [&](const PluginFieldCollection* fields, TensorRTPhase phase) {
        return creator.createPlugin("node", fields, phase);
    };
    const Create works = [&](const PluginFieldCollection* fields) {
        IPluginV3* made = create(fields, TensorRTPhase::kBUILD);
        const bool works = made != nullptr;
        delete made;
        return works;
    };
    check_bad_fields(works, "scale", 2);
    check_values(works);

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
    CHECK(id.find("revision " + std::to_string(kRevision)) != std::string::npos);
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
    CHECK(refused(Fields().add("max_displacement", 10).add("pool_size", 5).add("revision", kRevision)));
    CHECK(refused(Fields().add("max_displacement", 10).add("pool_size", 5).add("scale", 4).add(
        "revision", kRevision + 1)));

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

void check_creators(IPluginRegistry& registry) {
    for (const char* name : {kWarp, kFilters}) {
        auto* found = registry.getCreator(name, "1", "mtu");
        CHECK(found != nullptr);
        auto& creator = *static_cast<IPluginCreatorV3One*>(found);
        IPluginV3* plugin = creator.createPlugin("node", nullptr, TensorRTPhase::kBUILD);
        CHECK(plugin != nullptr);
        delete plugin;
    }
}

void check_opened(void* tensorrt, const char* path) {
    IPluginRegistry& registry = *symbol<IPluginRegistry*()>(tensorrt, "getPluginRegistry")();
    int32_t before = 0, after = 0;
    registry.getAllCreators(&before);
    for (const char* name : {kWarp, kFilters}) {
        CHECK(registry.getCreator(name, "1", "mtu") == nullptr);
    }
    for (int32_t i = 0; i < 2; ++i) {
        void* opened = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        CHECK(opened != nullptr && dlclose(opened) == 0);
        CHECK(dlopen(path, RTLD_NOW | RTLD_NOLOAD) == nullptr);  // so that it is opened anew
    }
    registry.getAllCreators(&after);
    CHECK(after == before + 2);
    check_creators(registry);
}

void check_registry(IPluginRegistry& registry, const char* path) {
    CHECK(registry.loadLibrary(path) != nullptr);
    check_creators(registry);
}

}  // namespace
