// What plugin_host_v2.h and plugin_host_v3.h share: stand-ins for what TensorRT hands over, checks of what comes back.
#pragma once

#include "launch.h"

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

constexpr int32_t kTensors = 5;

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

std::vector<PluginTensorDesc> inputs(int64_t h, int64_t w, int64_t channels = 52, DataType type = DataType::kHALF) {
    return {tensor({1, channels, h, w}, type), tensor({1, channels, h, w}, type),
            tensor({1, 26, 4 * h, 4 * w}, type)};
}

// Inputs, then outputs.
std::vector<PluginTensorDesc> all(std::vector<PluginTensorDesc> given) {
    given.push_back(given[2]);
    given.push_back(tensor({given[0].dims.d[0], given[0].dims.d[2], given[0].dims.d[3]}, DataType::kINT32));
    return given;
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
void search(const Supports& supports, int32_t pos, std::array<Described, kTensors>& tensors, Combination& chosen,
            std::set<Combination>& found) {
    if (pos == kTensors) {
        found.insert(chosen);
        return;
    }
    for (int32_t type = 0; type <= 6; ++type) {
        for (int32_t format = 0; format <= 12; ++format) {
            plain(tensors[pos]).type = static_cast<DataType>(type);
            plain(tensors[pos]).format = static_cast<TensorFormat>(format);
            // Those that follow are garbage, and must not matter.
            for (int32_t later = pos + 1; later < kTensors; ++later) {
                std::memset(&tensors[later], type % 2 == 0 ? 0 : 0x5A, sizeof tensors[later]);
            }
            if (supports(pos, tensors.data())) {
                chosen.emplace_back(type, format);
                search(supports, pos + 1, tensors, chosen, found);
                chosen.pop_back();
            }
        }
    }
}

void check_formats(const Supports& supports) {
    const auto number = [](auto value) { return static_cast<int32_t>(value); };
    const int32_t linear = number(TensorFormat::kLINEAR), hwc8 = number(TensorFormat::kHWC8);
    const int32_t half = number(DataType::kHALF), single = number(DataType::kFLOAT);
    const std::pair<int32_t, int32_t> index{number(DataType::kINT32), linear};
    std::set<Combination> expected;
    for (int32_t motion : {half, single}) {
        for (int32_t detail : {half, single}) {
            expected.insert({{motion, linear}, {motion, linear}, {detail, linear}, {detail, linear}, index});
        }
    }
    expected.insert({{half, hwc8}, {half, hwc8}, {half, hwc8}, {half, hwc8}, index});
    std::array<Described, kTensors> tensors{};
    Combination chosen;
    std::set<Combination> found;
    search(supports, 0, tensors, chosen, found);
    CHECK(found == expected);
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

// Everything that makes no plugin. `create` returns whether it made one.
void check_bad_fields(const std::function<bool(const PluginFieldCollection*)>& create) {
    Fields fields;
    CHECK(create(nullptr) && create(fields.get()));
    CHECK(create(Fields().add("scale", 2).get()));
    for (const auto& [name, value] : std::vector<std::pair<const char*, int32_t>>{{"max_displacement", 0},
                                                                                  {"max_displacement", -1},
                                                                                  {"max_displacement", 1000000},
                                                                                  {"pool_size", 4},
                                                                                  {"pool_size", 0},
                                                                                  {"scale", 0},
                                                                                  {"scale", -4},
                                                                                  {"revision", 0},
                                                                                  {"radius", 10}}) {
        CHECK(!create(Fields().add(name, value).get()));
    }
    Fields bad = Fields().add("scale", 4);
    bad.list[0].type = PluginFieldType::kFLOAT32;
    CHECK(!create(bad.get()));
    bad.list[0].type = PluginFieldType::kINT32;
    bad.list[0].length = 2;
    CHECK(!create(bad.get()));
    bad.list[0].length = 1;
    bad.list[0].data = nullptr;
    CHECK(!create(bad.get()));
}

// Shapes that differ from motion's in one way each; index 0 is right.
std::vector<std::vector<PluginTensorDesc>> shapes() {
    std::vector<std::vector<PluginTensorDesc>> result(10, inputs(9, 16));
    result[1][1] = tensor({1, 52, 9, 17});
    result[2][1] = tensor({1, 51, 9, 16});
    result[3][2] = tensor({1, 26, 36, 63});
    result[4][2] = tensor({2, 26, 36, 64});
    result[5][0] = tensor({1, 52, 9});
    result[6][2] = tensor({1, 26, 0, 64});
    result[7][1] = tensor({1, 52, 9, 16}, DataType::kFLOAT);
    result[8][2] = tensor({1, 26, 36, 64}, DataType::kINT32);
    result[9][2] = tensor({1, 26, 36, 64}, DataType::kHALF, TensorFormat::kHWC8);
    return result;
}

// Output shapes of the three inputs; false if refused.
using OutputShapes = std::function<bool(const std::vector<DimsExprs>&, DimsExprs (&)[2])>;
void check_output_shapes(const OutputShapes& output_shapes) {
    const auto list = [](const Shape& a, const Shape& b, const Shape& c) {
        return std::vector<DimsExprs>{a.expressions, b.expressions, c.expressions};
    };
    const Shape motion({1, 52, 90, 160}), detail({1, 26, 360, 640});
    const Shape dynamic({1, 52, -1, -1}), dynamic_detail({1, 26, -1, -1});
    DimsExprs outputs[2];
    for (const auto& given : {list(motion, motion, detail), list(dynamic, dynamic, dynamic_detail),
                              list(dynamic, motion, detail), list(motion, dynamic, dynamic_detail)}) {
        CHECK(output_shapes(given, outputs));
        CHECK(outputs[0].nbDims == 4 && std::memcmp(outputs[0].d, given[2].d, 4 * sizeof outputs[0].d[0]) == 0);
        CHECK(outputs[1].nbDims == 3 && outputs[1].d[0] == given[0].d[0] && outputs[1].d[1] == given[0].d[2] &&
              outputs[1].d[2] == given[0].d[3]);
    }
    for (const auto& given :
         {list(motion, Shape({1, 52, 90, 161}), detail), list(motion, Shape({1, 51, 90, 160}), detail),
          list(motion, motion, Shape({1, 26, 361, 640})), list(motion, motion, Shape({2, 26, 360, 640})),
          list(dynamic, dynamic, Shape({3, 26, -1, -1})), list(motion, motion, Shape({1, 26, 640}))}) {
        CHECK(!output_shapes(given, outputs));
    }
}

void check_workspace(const std::function<size_t(const std::vector<PluginTensorDesc>&)>& workspace) {
    const size_t small = workspace(inputs(90, 160)), large = workspace(inputs(180, 320));
    CHECK(small > 0 && large > small);
    CHECK(workspace(inputs(1, 1)) <= small);
}

// A call that must be refused before it touches the GPU.
template <typename Plugin>
void check_enqueue(Plugin& plugin) {
    const void* in[3] = {};
    void* out[2] = {};
    const auto cases = shapes();
    for (size_t i = 1; i < cases.size(); ++i) {
        const auto tensors = all(cases[i]);
        CHECK(plugin.enqueue(tensors.data(), tensors.data() + 3, in, out, nullptr, nullptr) != 0);
    }
}

// What a call hands on to launch(), which plugin_launch.cpp writes into `warped`. The attributes are 3, 7 and 2.
template <typename Plugin>
void check_recorded(Plugin& plugin) {
    static char memory[1024];
    const DataType half = DataType::kHALF, single = DataType::kFLOAT;
    const TensorFormat linear = TensorFormat::kLINEAR, hwc8 = TensorFormat::kHWC8;
    const auto number = [](const void* address) { return reinterpret_cast<int64_t>(address); };
    for (const auto& [motion, detail, format] :
         {std::tuple{half, half, hwc8}, {half, half, linear}, {half, single, linear}, {single, half, linear}}) {
        const PluginTensorDesc map = tensor({2, 13, 9, 16}, motion, format);
        const auto tensors = all({map, map, tensor({2, 5, 18, 32}, detail, format)});
        int64_t record[19] = {};
        const char* const in[3] = {memory + 1, memory + 2, memory + 3};
        void* out[2] = {record, memory + 4};
        for (int32_t offset : {0, 128}) {
            CHECK(plugin.enqueue(tensors.data(), tensors.data() + 3, reinterpret_cast<const void* const*>(in), out,
                                 memory + offset, reinterpret_cast<cudaStream_t>(memory + 5)) == 719);
            const int64_t layout = format == hwc8;
            const std::vector<int64_t> expected{2, 13, 9, 16, 5, 3, 7, 2,
                                                motion == half, detail == half, layout, layout,
                                                number(in[0]), number(in[1]), number(in[2]), number(out[0]),
                                                number(out[1]), number(memory + offset),
                                                number(memory + 5)};
            CHECK(std::vector<int64_t>(record, record + 19) == expected);
        }
    }
}

template <typename Creator>
void check_identity(Creator& creator) {
    CHECK(std::strcmp(creator.getPluginName(), "CorrelationArgmaxWarp") == 0);
    CHECK(std::strcmp(creator.getPluginVersion(), "1") == 0);
    CHECK(std::strcmp(creator.getPluginNamespace(), "mtu") == 0);
    std::set<std::string> names;
    for (int32_t i = 0; i < creator.getFieldNames()->nbFields; ++i) {
        CHECK(creator.getFieldNames()->fields[i].type == PluginFieldType::kINT32);
        names.insert(creator.getFieldNames()->fields[i].name);
    }
    CHECK(names == (std::set<std::string>{"max_displacement", "pool_size", "scale"}));
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
