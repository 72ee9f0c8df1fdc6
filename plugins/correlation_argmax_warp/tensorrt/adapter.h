// What the adapters to TensorRT 8.6 (v2.cpp) and to 10 and later (v3.cpp) share: identity, attributes, formats, sizes.
// C++17; includes TensorRT's and CUDA's headers, needs no TensorRT library.
#pragma once

#include "launch.h"

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>

namespace mtu {

constexpr const char* kName = "CorrelationArgmaxWarp";
constexpr const char* kVersion = "1";
constexpr const char* kNamespace = "mtu";

// motion, motion_prev, detail_prev; warped, displacement.
constexpr int32_t kInputs = 3;
constexpr int32_t kOutputs = 2;

struct Attributes {
    int32_t max_displacement = 10;
    int32_t pool_size = 5;
    int32_t scale = 4;
};

// Says on stderr why something is refused. TensorRT's own logger is left alone: ILoggerFinder differs between majors,
// and a library of one that logs through another calls the wrong function.
[[gnu::format(printf, 1, 2)]] inline void say(const char* format, ...) noexcept {
    char text[512];
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    std::fprintf(stderr, "[mtu] %s: %s\n", kName, text);
}

// The fields a plugin is made of. Those of a node may be absent and have defaults; those that an engine serialised are
// all there, `revision` among them. False, with the reason said, for anything else.
inline bool read_fields(const nvinfer1::PluginFieldCollection* given, bool serialised, Attributes& result) noexcept {
    struct Field {
        const char* name;
        int32_t value;
        bool seen;
    };
    const Attributes defaults;
    Field known[] = {{"max_displacement", defaults.max_displacement, false},
                     {"pool_size", defaults.pool_size, false},
                     {"scale", defaults.scale, false},
                     {"revision", kKernelRevision, false}};
    const int32_t count = given == nullptr || given->fields == nullptr ? 0 : given->nbFields;
    for (int32_t i = 0; i < count; ++i) {
        const nvinfer1::PluginField& field = given->fields[i];
        Field* match = nullptr;
        for (Field& candidate : known) {
            if (field.name != nullptr && std::strcmp(field.name, candidate.name) == 0) {
                match = &candidate;
            }
        }
        if (match == nullptr) {
            say("unknown attribute '%s'; it has max_displacement, pool_size and scale", field.name ? field.name : "");
            return false;
        }
        if (field.type != nvinfer1::PluginFieldType::kINT32 || field.length != 1 || field.data == nullptr) {
            say("attribute %s has type %d and length %d; it must be one 32-bit integer", match->name,
                static_cast<int>(field.type), static_cast<int>(field.length));
            return false;
        }
        std::memcpy(&match->value, field.data, sizeof match->value);
        match->seen = true;
    }
    for (const Field& field : known) {
        if (serialised && !field.seen) {
            say("the engine holds no %s: it was built with another release; build it again", field.name);
            return false;
        }
    }
    if (known[3].value != kKernelRevision) {
        say("the engine was built with kernel revision %d, this library has revision %d: build the engine again",
            static_cast<int>(known[3].value), static_cast<int>(kKernelRevision));
        return false;
    }
    result = Attributes{known[0].value, known[1].value, known[2].value};
    // The smallest sizes there are: what is refused now is the attributes' fault.
    const char* reason = check(Problem{1, 1, 1, 1, 1, result.max_displacement, result.pool_size, result.scale,
                                       Type::kFloat, Type::kFloat, Layout::kLinear, Layout::kLinear});
    if (reason != nullptr) {
        say("%s; got max_displacement %d, pool_size %d, scale %d", reason, static_cast<int>(result.max_displacement),
            static_cast<int>(result.pool_size), static_cast<int>(result.scale));
        return false;
    }
    return true;
}

// What getFieldNames() returns: the attributes that a parser passes on.
inline const nvinfer1::PluginFieldCollection* field_names() noexcept {
    using nvinfer1::PluginField;
    using nvinfer1::PluginFieldType;
    static const PluginField fields[] = {PluginField("max_displacement", nullptr, PluginFieldType::kINT32, 1),
                                         PluginField("pool_size", nullptr, PluginFieldType::kINT32, 1),
                                         PluginField("scale", nullptr, PluginFieldType::kINT32, 1)};
    static const nvinfer1::PluginFieldCollection collection{3, fields};
    return &collection;
}

// Whether the tensor `pos`, inputs first, may have this type and format, given those before it. Either everything is
// linear, in any mix of fp32 and fp16, or everything but the displacement is fp16 in HWC8. `at(i)` describes tensor i.
template <typename At>
bool supports(int32_t pos, const At& at) noexcept {
    using nvinfer1::DataType;
    using nvinfer1::TensorFormat;
    const nvinfer1::PluginTensorDesc& tensor = at(pos);
    const auto like = [&](int32_t other) { return tensor.type == at(other).type && tensor.format == at(other).format; };
    const bool linear = tensor.format == TensorFormat::kLINEAR &&
                        (tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF);
    const bool hwc8 = tensor.format == TensorFormat::kHWC8 && tensor.type == DataType::kHALF;
    switch (pos) {
        case 0: return linear || hwc8;
        case 1: return like(0);
        case 2: return (linear || hwc8) && tensor.format == at(0).format;
        case 3: return like(2);
        case 4: return tensor.type == DataType::kINT32 && tensor.format == TensorFormat::kLINEAR;
        default: return false;
    }
}

// The reason, and the sizes of the inputs.
inline void refuse(const char* reason, const nvinfer1::PluginTensorDesc* const (&inputs)[kInputs]) noexcept {
    char text[kInputs][128] = {};
    for (int32_t i = 0; i < kInputs; ++i) {
        const nvinfer1::Dims& dims = inputs[i]->dims;
        std::size_t used = 0;
        for (int32_t k = 0; k < dims.nbDims && used < sizeof text[i]; ++k) {
            used += std::snprintf(text[i] + used, sizeof text[i] - used, "%s%lld", k == 0 ? "" : "x",
                                  static_cast<long long>(dims.d[k]));
        }
    }
    say("%s; got motion %s, motion_prev %s, detail_prev %s", reason, text[0], text[1], text[2]);
}

// Whether the inputs' types and formats go together; false with the reason said.
inline bool types_fit(const nvinfer1::PluginTensorDesc& motion, const nvinfer1::PluginTensorDesc& motion_prev,
                      const nvinfer1::PluginTensorDesc& detail) noexcept {
    const nvinfer1::PluginTensorDesc* const inputs[kInputs] = {&motion, &motion_prev, &detail};
    const auto at = [&](int32_t i) -> const nvinfer1::PluginTensorDesc& { return *inputs[i]; };
    if (supports(0, at) && supports(1, at) && supports(2, at)) {
        return true;
    }
    // The numbers are those of DataType and TensorFormat: 0 is fp32 and 1 fp16; 0 is linear and 2 HWC8.
    say("motion and motion_prev must both be fp32 or both fp16, detail_prev fp32 or fp16, all linear or all HWC8; got "
        "types %d, %d, %d and formats %d, %d, %d",
        static_cast<int>(motion.type), static_cast<int>(motion_prev.type), static_cast<int>(detail.type),
        static_cast<int>(motion.format), static_cast<int>(motion_prev.format), static_cast<int>(detail.format));
    return false;
}

// The problem that these inputs pose, or false with the reason said. Sizes that `exact` inputs must share are compared;
// upper bounds of dynamic sizes need not fit each other.
inline bool to_problem(const Attributes& attributes, const nvinfer1::PluginTensorDesc& motion,
                       const nvinfer1::PluginTensorDesc& motion_prev, const nvinfer1::PluginTensorDesc& detail,
                       bool exact, Problem& problem) noexcept {
    const nvinfer1::PluginTensorDesc* const inputs[kInputs] = {&motion, &motion_prev, &detail};
    for (int32_t i = 0; i < kInputs; ++i) {
        if (inputs[i]->dims.nbDims != 4) {
            refuse("inputs must be [batch, channels, height, width]", inputs);
            return false;
        }
        for (int32_t k = 0; k < 4; ++k) {
            const int64_t size = inputs[i]->dims.d[k];
            if (size < 1 || size > std::numeric_limits<int32_t>::max()) {
                refuse("sizes must be between 1 and 2147483647", inputs);
                return false;
            }
        }
    }
    if (!types_fit(motion, motion_prev, detail)) {
        return false;
    }
    if (exact) {
        const auto& m = motion.dims.d;
        const auto& p = motion_prev.dims.d;
        const auto& d = detail.dims.d;
        if (m[0] != p[0] || m[1] != p[1] || m[2] != p[2] || m[3] != p[3]) {
            refuse("motion and motion_prev must have one shape", inputs);
            return false;
        }
        const int64_t scale = attributes.scale;
        if (d[0] != m[0] || d[2] != scale * m[2] || d[3] != scale * m[3]) {
            refuse("detail_prev must have motion's batch, and scale times its height and width", inputs);
            return false;
        }
    }
    const auto type = [](const nvinfer1::PluginTensorDesc& tensor) {
        return tensor.type == nvinfer1::DataType::kHALF ? Type::kHalf : Type::kFloat;
    };
    const auto layout = [](const nvinfer1::PluginTensorDesc& tensor) {
        return tensor.format == nvinfer1::TensorFormat::kHWC8 ? Layout::kHwc8 : Layout::kLinear;
    };
    problem.batch = static_cast<int32_t>(motion.dims.d[0]);
    problem.motion_channels = static_cast<int32_t>(motion.dims.d[1]);
    problem.height = static_cast<int32_t>(motion.dims.d[2]);
    problem.width = static_cast<int32_t>(motion.dims.d[3]);
    problem.detail_channels = static_cast<int32_t>(detail.dims.d[1]);
    problem.max_displacement = attributes.max_displacement;
    problem.pool_size = attributes.pool_size;
    problem.scale = attributes.scale;
    problem.motion_type = type(motion);
    problem.detail_type = type(detail);
    problem.motion_layout = layout(motion);
    problem.detail_layout = layout(detail);
    if (const char* reason = check(problem)) {
        refuse(reason, inputs);
        return false;
    }
    return true;
}

// Output shapes: that of detail_prev; batch, height and width of motion. False, with the reason said, if constant sizes
// contradict each other. Sizes that are not constant are compared when they are known, in enqueue.
inline bool output_shapes(const Attributes& attributes, const nvinfer1::DimsExprs* inputs, int32_t input_count,
                          nvinfer1::DimsExprs& warped, nvinfer1::DimsExprs& displacement) noexcept {
    if (input_count != kInputs || inputs[0].nbDims != 4 || inputs[1].nbDims != 4 || inputs[2].nbDims != 4) {
        say("it takes three inputs of the shape [batch, channels, height, width]");
        return false;
    }
    const auto differ = [&](int32_t tensor, int32_t axis, int64_t times) {
        const nvinfer1::IDimensionExpr& a = *inputs[0].d[axis];
        const nvinfer1::IDimensionExpr& b = *inputs[tensor].d[axis];
        return a.isConstant() && b.isConstant() && times * a.getConstantValue() != b.getConstantValue();
    };
    const int64_t scale = attributes.scale;
    if (differ(1, 0, 1) || differ(1, 1, 1) || differ(1, 2, 1) || differ(1, 3, 1) || differ(2, 0, 1) ||
        differ(2, 2, scale) || differ(2, 3, scale)) {
        say("motion and motion_prev must have one shape, detail_prev the same batch and %d times the height and width",
            static_cast<int>(scale));
        return false;
    }
    warped = inputs[2];
    displacement.nbDims = 3;
    displacement.d[0] = inputs[0].d[0];
    displacement.d[1] = inputs[0].d[2];
    displacement.d[2] = inputs[0].d[3];
    return true;
}

// One call of the op on `stream`; 0, or not, with the reason said. Keeps nothing, so it may run in several threads.
inline int32_t run(const Attributes& attributes, const nvinfer1::PluginTensorDesc* described, const void* const* inputs,
                   void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    Problem problem;
    if (!to_problem(attributes, described[0], described[1], described[2], true, problem)) {
        return 1;
    }
    const int status = launch(problem, inputs[0], inputs[1], inputs[2], outputs[0], static_cast<int32_t*>(outputs[1]),
                              workspace, stream);
    if (status != 0) {
        say("the kernel could not be launched: %s", cudaGetErrorString(static_cast<cudaError_t>(status)));
    }
    return status;
}

}  // namespace mtu
