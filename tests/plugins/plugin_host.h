// What plugin_host_v2.h and plugin_host_v3.h share: stand-ins for what TensorRT hands over, checks of what comes back.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <set>
#include <string>
#include <tuple>
#include <vector>

using namespace nvinfer1;

#define CHECK(condition)                                                      \
    do {                                                                      \
        if (!(condition)) {                                                   \
            std::printf("line %d: %s does not hold\n", __LINE__, #condition); \
            std::exit(1);                                                     \
        }                                                                     \
    } while (false)

namespace {

// A dimension of a network under construction: a number, or not known yet.
class Size final : public IDimensionExpr, private apiv::VDimensionExpr {
public:
    explicit Size(int64_t value) : value_(value) { mImpl = this; }

private:
#if NV_TENSORRT_MAJOR >= 10
    using Value = int64_t;
    bool isSizeTensor() const override { return false; }
#else
    using Value = int32_t;
#endif
    bool isConstant() const override { return value_ >= 0; }
    Value getConstantValue() const override { return static_cast<Value>(value_ >= 0 ? value_ : INT32_MIN); }

    int64_t value_;
};

class Builder final : public IExprBuilder {};

struct Shape {
    explicit Shape(std::initializer_list<int64_t> sizes) {
        expressions.nbDims = 0;
        for (int64_t size : sizes) {
            expressions.d[expressions.nbDims++] = new Size(size);  // the process ends soon
        }
    }
    DimsExprs expressions{};
};

PluginTensorDesc tensor(std::initializer_list<int64_t> sizes, DataType type = DataType::kHALF,
                        TensorFormat format = TensorFormat::kLINEAR) {
    PluginTensorDesc result{};
    for (int64_t size : sizes) {
        result.dims.d[result.dims.nbDims++] = static_cast<std::remove_reference_t<decltype(result.dims.d[0])>>(size);
    }
    result.type = type;
    result.format = format;
    result.scale = 1;
    return result;
}

#if NV_TENSORRT_MAJOR >= 10
using Described = DynamicPluginTensorDesc;
Described described(const PluginTensorDesc& desc) {
    Described result{};
    result.desc = desc;
    for (int32_t i = 2; i < desc.dims.nbDims; ++i) {
        result.desc.dims.d[i] = -1;
    }
    result.min = result.opt = result.max = desc.dims;
    return result;
}
PluginTensorDesc& plain(Described& tensor) { return tensor.desc; }
#else
using Described = PluginTensorDesc;
PluginTensorDesc& plain(Described& tensor) { return tensor; }
#endif

// The combinations that TensorRT would find: position by position, over all types and formats.
using Combination = std::vector<std::pair<int32_t, int32_t>>;
using Supports = std::function<bool(int32_t, const Described*)>;
void search(const Supports& supports, size_t pos, std::vector<Described>& tensors, Combination& chosen,
            std::set<Combination>& found) {
    if (pos == tensors.size()) {
        found.insert(chosen);
        return;
    }
    for (int32_t type = 0; type <= 6; ++type) {
        for (int32_t format = 0; format <= 12; ++format) {
            plain(tensors[pos]).type = static_cast<DataType>(type);
            plain(tensors[pos]).format = static_cast<TensorFormat>(format);
            // Those that follow are garbage, and must not matter.
            for (size_t later = pos + 1; later < tensors.size(); ++later) {
                std::memset(&tensors[later], type % 2 == 0 ? 0 : 0x5A, sizeof tensors[later]);
            }
            if (supports(static_cast<int32_t>(pos), tensors.data())) {
                chosen.emplace_back(type, format);
                search(supports, pos + 1, tensors, chosen, found);
                chosen.pop_back();
            }
        }
    }
}

std::set<Combination> combinations(const Supports& supports, size_t count) {
    std::vector<Described> tensors(count);
    Combination chosen;
    std::set<Combination> found;
    search(supports, 0, tensors, chosen, found);
    return found;
}

std::pair<int32_t, int32_t> pair(DataType type, TensorFormat format) {
    return {static_cast<int32_t>(type), static_cast<int32_t>(format)};
}

struct Fields {
    Fields& add(const char* name, int32_t value) {
        values.push_back(new int32_t(value));
        list.emplace_back(name, values.back(), PluginFieldType::kINT32, 1);
        return *this;
    }
    const PluginFieldCollection* get() {
        collection.nbFields = static_cast<int32_t>(list.size());
        collection.fields = list.data();
        return &collection;
    }
    std::vector<int32_t*> values;
    std::vector<PluginField> list;
    PluginFieldCollection collection{};
};

// A field of the right name that is no integer. `create` returns whether it made a plugin.
using Create = std::function<bool(const PluginFieldCollection*)>;
void check_bad_fields(const Create& create, const char* name, int32_t value) {
    Fields fields;
    CHECK(create(nullptr) && create(fields.get()));
    CHECK(create(Fields().add(name, value).get()));
    CHECK(!create(Fields().add("revision", 0).get()) && !create(Fields().add("radius", 10).get()));
    Fields bad = Fields().add(name, value);
    bad.list[0].type = PluginFieldType::kFLOAT32;
    CHECK(!create(bad.get()));
    bad.list[0].type = PluginFieldType::kINT32;
    bad.list[0].length = 2;
    CHECK(!create(bad.get()));
    bad.list[0].length = 1;
    bad.list[0].data = nullptr;
    CHECK(!create(bad.get()));
}

template <typename Creator>
void check_identity(Creator& creator, const char* name, const std::set<std::string>& attributes) {
    CHECK(std::strcmp(creator.getPluginName(), name) == 0);
    CHECK(std::strcmp(creator.getPluginVersion(), "1") == 0);
    CHECK(std::strcmp(creator.getPluginNamespace(), "mtu") == 0);
    std::set<std::string> names;
    for (int32_t i = 0; i < creator.getFieldNames()->nbFields; ++i) {
        CHECK(creator.getFieldNames()->fields[i].type == PluginFieldType::kINT32);
        names.insert(creator.getFieldNames()->fields[i].name);
    }
    CHECK(names == attributes);
}

template <typename Function>
Function* symbol(void* library, const char* name) {
    auto* found = reinterpret_cast<Function*>(dlsym(library, name));
    if (found == nullptr) {
        std::printf("%s\n", dlerror());
        std::exit(1);
    }
    return found;
}

}  // namespace
