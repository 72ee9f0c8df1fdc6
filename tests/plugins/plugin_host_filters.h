// What is IterativeFilters' own of the checks of plugin_host_v2.h and plugin_host_v3.h.
#pragma once

#include "plugin_host.h"

namespace {

constexpr const char* kFilters = "IterativeFilters";

// x, filters and filtered; `parts` are 4, or 7 without shared taps.
std::vector<PluginTensorDesc> filters_tensors(int64_t parts = 4, DataType type = DataType::kHALF,
                                              TensorFormat format = TensorFormat::kLINEAR) {
    const PluginTensorDesc x = tensor({2, 13, 9, 16}, type, format);
    return {x, tensor({2, parts * 13, 9, 16}, type, format), x};
}

// Calls with shared taps that must be refused.
std::vector<std::vector<PluginTensorDesc>> wrong_filters() {
    std::vector<std::vector<PluginTensorDesc>> result(8, filters_tensors());
    result[0][1] = tensor({2, 7 * 13, 9, 16});
    result[1][1] = tensor({1, 4 * 13, 9, 16});
    result[2][1] = tensor({2, 4 * 13, 9, 15});
    result[3][0] = tensor({2, 13, 9});
    result[4][1] = tensor({2, 4 * 13, 0, 16});
    result[5][1] = tensor({2, 4 * 13, 9, 16}, DataType::kFLOAT);
    result[6][0] = tensor({2, 13, 9, 16}, DataType::kHALF, TensorFormat::kHWC8);
    result[7][0] = tensor({2, 13, 9, 16}, DataType::kINT32);
    result[7][1] = tensor({2, 4 * 13, 9, 16}, DataType::kINT32);
    return result;
}

void check_filters_formats(const Supports& supports) {
    std::set<Combination> expected;
    const TensorFormat linear = TensorFormat::kLINEAR, hwc8 = TensorFormat::kHWC8;
    for (const auto& each :
         {pair(DataType::kFLOAT, linear), pair(DataType::kHALF, linear), pair(DataType::kHALF, hwc8)}) {
        expected.insert({each, each, each});
    }
    CHECK(combinations(supports, 3) == expected);
}

// The output's shape from those of the two inputs; false if refused. The attribute is `shared`.
using FiltersShape = std::function<bool(const std::vector<DimsExprs>&, DimsExprs&)>;
void check_filters_shapes(const FiltersShape& shape, bool shared) {
    const auto list = [](const Shape& a, const Shape& b) {
        return std::vector<DimsExprs>{a.expressions, b.expressions};
    };
    const Shape x({1, 128, 90, 160}), filters({1, shared ? 512 : 896, 90, 160});
    const Shape dynamic({1, 128, -1, -1}), dynamic_filters({1, shared ? 512 : 896, -1, -1});
    DimsExprs output;
    for (const auto& given : {list(x, filters), list(dynamic, dynamic_filters), list(dynamic, filters)}) {
        CHECK(shape(given, output));
        CHECK(output.nbDims == 4 && std::memcmp(output.d, given[0].d, 4 * sizeof output.d[0]) == 0);
    }
    for (const auto& given : {list(x, Shape({1, 511, 90, 160})), list(x, Shape({2, 512, 90, 160})),
                              list(x, Shape({1, shared ? 896 : 512, 90, 160})), list(x, Shape({1, 512, 90, 161})),
                              list(dynamic, Shape({1, shared ? 896 : 512, -1, -1})), list(x, Shape({1, 512, 160}))}) {
        CHECK(!shape(given, output));
    }
}

// What a call hands on to launch(), which plugin_launch.cpp writes into `filtered`.
template <typename Plugin>
void check_filters_recorded(Plugin& plugin, bool shared) {
    static char memory[64];
    const auto number = [](const void* address) { return reinterpret_cast<int64_t>(address); };
    for (const auto& [type, format] : {std::pair{DataType::kHALF, TensorFormat::kLINEAR},
                                       {DataType::kHALF, TensorFormat::kHWC8},
                                       {DataType::kFLOAT, TensorFormat::kLINEAR}}) {
        const auto tensors = filters_tensors(shared ? 4 : 7, type, format);
        int64_t record[11] = {};
        const void* const in[2] = {memory + 1, memory + 2};
        void* out[1] = {record};
        CHECK(plugin.enqueue(tensors.data(), tensors.data() + 2, in, out, nullptr,
                             reinterpret_cast<cudaStream_t>(memory + 3)) == 719);
        const bool half = type == DataType::kHALF;
        const std::vector<int64_t> expected{2, 13, 9, 16, shared, half, format == TensorFormat::kHWC8, number(in[0]),
                                            number(in[1]), number(out[0]), number(memory + 3)};
        CHECK(std::vector<int64_t>(record, record + 11) == expected);
    }
}

template <typename Plugin>
void check_filters_refused(Plugin& plugin) {
    const void* in[2] = {};
    void* out[1] = {};
    for (const auto& tensors : wrong_filters()) {
        CHECK(plugin.enqueue(tensors.data(), tensors.data() + 2, in, out, nullptr, nullptr) != 0);
    }
}

}  // namespace
