// What is CorrelationArgmaxWarp's own of the checks of plugin_host_v2.h and plugin_host_v3.h.
#pragma once

#include "correlation_argmax_warp/cuda/launch.h"
#include "plugin_host.h"

namespace {

constexpr const char* kWarp = "CorrelationArgmaxWarp";
constexpr int32_t kRevision = mtu::correlation_argmax_warp::kKernelRevision;

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
    CHECK(combinations(supports, 5) == expected);
}

void check_values(const Create& create) {
    for (const auto& [name, value] : std::vector<std::pair<const char*, int32_t>>{{"max_displacement", 0},
                                                                                  {"max_displacement", -1},
                                                                                  {"max_displacement", 1000000},
                                                                                  {"pool_size", 4},
                                                                                  {"pool_size", 0},
                                                                                  {"scale", 0},
                                                                                  {"scale", -4}}) {
        CHECK(!create(Fields().add(name, value).get()));
    }
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

}  // namespace
