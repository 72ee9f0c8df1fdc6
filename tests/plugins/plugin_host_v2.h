// The checks of plugin_host.cpp for TensorRT 8.6.
#pragma once

#include "plugin_host_filters.h"
#include "plugin_host_warp.h"

namespace {

std::vector<char> serialised(const IPluginV2& plugin) {
    std::vector<char> result(plugin.getSerializationSize() + 8, 'x');
    plugin.serialize(result.data());
    CHECK(std::string(result.end() - 8, result.end()) == "xxxxxxxx");
    result.resize(result.size() - 8);
    return result;
}

IPluginCreator& creator_of(void* library, const char* name) {
    symbol<void(ILoggerFinder*)>(library, "setLoggerFinder")(nullptr);
    int32_t count = 0;
    auto* const* creators = symbol<IPluginCreator* const*(int32_t&)>(library, "getPluginCreators")(count);
    CHECK(count == 2);
    for (int32_t i = 0; i < count; ++i) {
        if (std::strcmp(creators[i]->getPluginName(), name) == 0) {
            return *creators[i];
        }
    }
    CHECK(!"a creator of this name");
    std::abort();
}

void check_recorded(void* library) {
    Fields fields = Fields().add("max_displacement", 3).add("pool_size", 7).add("scale", 2);
    auto* plugin = static_cast<IPluginV2DynamicExt*>(creator_of(library, kWarp).createPlugin("node", fields.get()));
    const auto tensors = all(inputs(9, 16));
    CHECK(plugin->getWorkspaceSize(tensors.data(), 3, tensors.data() + 3, 2) == 16);
    check_recorded(*plugin);
    plugin->destroy();
    for (int32_t shared : {0, 1}) {
        Fields given = Fields().add("shared_taps", shared);
        plugin = static_cast<IPluginV2DynamicExt*>(creator_of(library, kFilters).createPlugin("node", given.get()));
        check_filters_recorded(*plugin, shared);
        plugin->destroy();
    }
}

void check_filters(void* library) {
    IPluginCreator& creator = creator_of(library, kFilters);
    check_identity(creator, kFilters, {"shared_taps"});
    const Create create = [&](const PluginFieldCollection* fields) {
        IPluginV2* made = creator.createPlugin("node", fields);
        if (made != nullptr) {
            made->destroy();
        }
        return made != nullptr;
    };
    check_bad_fields(create, "shared_taps", 0);
    CHECK(!create(Fields().add("shared_taps", 2).get()) && !create(Fields().add("shared_taps", -1).get()));
    for (int32_t shared : {0, 1}) {
        Fields fields = Fields().add("shared_taps", shared);
        IPluginV2* original = creator.createPlugin("node", shared ? nullptr : fields.get());
        const auto bytes = serialised(*original);
        original->destroy();
        auto* plugin = static_cast<IPluginV2DynamicExt*>(creator.deserializePlugin("node", bytes.data(), bytes.size()));
        CHECK(plugin != nullptr && serialised(*plugin) == bytes && plugin->getNbOutputs() == 1);
        const DataType types[2] = {DataType::kHALF, DataType::kHALF};
        CHECK(plugin->getOutputDataType(0, types, 2) == DataType::kHALF);
        check_filters_formats([&](int32_t pos, const Described* tensors) {
            return plugin->supportsFormatCombination(pos, tensors, 2, 1);
        });
        check_filters_shapes([&](const std::vector<DimsExprs>& given, DimsExprs& out) {
            Builder builder;
            out = plugin->getOutputDimensions(0, given.data(), 2, builder);
            return out.nbDims != -1;
        }, shared);
        const auto right = filters_tensors(shared ? 4 : 7);
        CHECK(plugin->getWorkspaceSize(right.data(), 2, right.data() + 2, 1) == 0);
        if (shared) {
            check_filters_refused(*plugin);
        }
        plugin->destroy();
    }
}

void check_library(void* library) {
    IPluginCreator& creator = creator_of(library, kWarp);
    check_identity(creator, kWarp, {"max_displacement", "pool_size", "scale"});

    const auto create = [&](const PluginFieldCollection* fields) {
        return static_cast<IPluginV2DynamicExt*>(creator.createPlugin("node", fields));
    };
    const Create works = [&](const PluginFieldCollection* fields) {
        IPluginV2* made = create(fields);
        if (made != nullptr) {
            made->destroy();
        }
        return made != nullptr;
    };
    check_bad_fields(works, "scale", 2);
    check_values(works);

    // Defaults; a clone that outlives its original and keeps its namespace; an engine's round trip.
    IPluginV2DynamicExt* original = create(nullptr);
    const auto defaults = serialised(*original);
    original->destroy();
    original = create(Fields().add("max_displacement", 10).add("pool_size", 5).add("scale", 4).get());
    CHECK(serialised(*original) == defaults);
    original->destroy();
    original = create(Fields().add("max_displacement", 3).add("pool_size", 7).add("scale", 2).get());
    original->setPluginNamespace("elsewhere");
    IPluginV2DynamicExt* plugin = original->clone();
    original->destroy();
    const auto bytes = serialised(*plugin);
    CHECK(bytes != defaults && std::strcmp(plugin->getPluginNamespace(), "elsewhere") == 0);
    plugin->destroy();
    IPluginV2* restored = creator.deserializePlugin("node", bytes.data(), bytes.size());
    CHECK(restored != nullptr && serialised(*restored) == bytes);
    CHECK(std::strcmp(restored->getPluginNamespace(), "mtu") == 0);
    restored->destroy();
    CHECK(creator.deserializePlugin("node", bytes.data(), bytes.size() - 1) == nullptr);
    CHECK(creator.deserializePlugin("node", nullptr, 0) == nullptr);
    for (size_t i = 0; i < 8; i += 4) {  // the mark, then the revision
        auto changed = bytes;
        changed[i] = static_cast<char>(changed[i] + 1);
        CHECK(creator.deserializePlugin("node", changed.data(), changed.size()) == nullptr);
    }

    // What a builder asks.
    plugin = create(nullptr);
    CHECK(std::strcmp(plugin->getPluginType(), creator.getPluginName()) == 0);
    CHECK(std::strcmp(plugin->getPluginVersion(), creator.getPluginVersion()) == 0);
    CHECK(std::strcmp(plugin->getPluginNamespace(), creator.getPluginNamespace()) == 0);
    CHECK(plugin->initialize() == 0 && plugin->getNbOutputs() == 2);
    const DataType types[3] = {DataType::kFLOAT, DataType::kFLOAT, DataType::kFLOAT};
    CHECK(plugin->getOutputDataType(0, types, 3) == DataType::kFLOAT);
    CHECK(plugin->getOutputDataType(1, types, 3) == DataType::kINT32);
    check_output_shapes([&](const std::vector<DimsExprs>& given, DimsExprs(&out)[2]) {
        Builder builder;
        for (int32_t i = 0; i < 2; ++i) {
            out[i] = plugin->getOutputDimensions(i, given.data(), 3, builder);
        }
        CHECK((out[0].nbDims == -1) == (out[1].nbDims == -1));
        return out[0].nbDims != -1;
    });
    check_formats([&](int32_t pos, const Described* tensors) {
        return plugin->supportsFormatCombination(pos, tensors, 3, 2);
    });
    check_workspace([&](const std::vector<PluginTensorDesc>& given) {
        const auto tensors = all(given);
        return plugin->getWorkspaceSize(tensors.data(), 3, tensors.data() + 3, 2);
    });
    check_enqueue(*plugin);
    plugin->terminate();
    plugin->destroy();
}

void check_registry(IPluginRegistry& registry, const char* path) {
    CHECK(registry.loadLibrary(path) != nullptr);
    for (const char* name : {kWarp, kFilters}) {
        IPluginCreator* found = registry.getPluginCreator(name, "1", "mtu");
        CHECK(found != nullptr);
        IPluginV2* plugin = found->createPlugin("node", nullptr);
        CHECK(plugin != nullptr);
        plugin->destroy();
    }
}

}  // namespace
