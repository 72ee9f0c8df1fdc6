// What the plugins of all ops share, for TensorRT 8.6 (v2.cpp) and for 10 and later (v3.cpp): messages, fields, a call.
// An op is a struct of static members, in tensorrt/adapter.h of its folder. C++17; needs no TensorRT library.
//
//   kName, kVersion, kMagic          who it is; the last begins what an engine of 8.6 keeps of it
//   kRevision                        of kernel, workspace and what an engine keeps
//   kAttributes, kInputs, kOutputs   names and defaults of the attributes; names of the tensors
//   Problem                          one call, for the launcher
//   check(attributes)                a reason against the attributes alone, or nullptr
//   supports(pos, at)                whether tensor `pos`, inputs first, may have the type and format that it has in
//                                    `at(pos)`, given those before it
//   types_fit(inputs)                the same for all inputs, with the reason said
//   output_type(index, inputs)       from the types of the inputs
//   output_shapes(attributes, inputs, count, outputs)    false, with the reason said, if known sizes contradict
//   problem(attributes, inputs, exact, result)           false, with the reason said, if the kernel cannot do it.
//                                    Without `exact` the sizes are bounds, which need not fit each other
//   workspace_bytes(problem), launch(problem, inputs, outputs, workspace, stream)
//
// `attributes` are the values, in the order of kAttributes.
#pragma once

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <limits>

#include "../cuda/problem.h"

namespace mtu {

constexpr const char* kNamespace = "mtu";

// All are 32-bit integers.
struct Attribute {
    const char* name;
    int32_t initial;
};

template <typename Op>
constexpr int32_t kAttributeCount = static_cast<int32_t>(std::size(Op::kAttributes));
template <typename Op>
constexpr int32_t kInputCount = static_cast<int32_t>(std::size(Op::kInputs));
template <typename Op>
constexpr int32_t kOutputCount = static_cast<int32_t>(std::size(Op::kOutputs));

// A text that grows; what does not fit is left out.
class Text {
public:
    [[gnu::format(printf, 2, 3)]] Text& add(const char* format, ...) noexcept {
        std::va_list arguments;
        va_start(arguments, format);
        const int size = std::vsnprintf(text_ + used_, sizeof text_ - used_, format, arguments);
        va_end(arguments);
        used_ = std::min(used_ + static_cast<std::size_t>(std::max(size, 0)), sizeof text_ - 1);
        return *this;
    }
    const char* get() const noexcept { return text_; }

private:
    char text_[512] = "";
    std::size_t used_ = 0;
};

// Says on stderr why something of the op is refused. TensorRT's own logger is left alone: ILoggerFinder differs between
// majors, and a library of one that logs through another calls the wrong function.
[[gnu::format(printf, 2, 3)]] inline void say(const char* op, const char* format, ...) noexcept {
    char text[512];
    std::va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    std::fprintf(stderr, "[mtu] %s: %s\n", op, text);
}

// The values of the attributes of a plugin and the fields in which an engine keeps them, `revision` last. The fields
// point into the object, so it is not copied.
template <typename Op>
class Fields {
public:
    static constexpr int32_t kCount = kAttributeCount<Op> + 1;

    explicit Fields(const int32_t* attributes = nullptr, int32_t revision = Op::kRevision) noexcept {
        for (int32_t i = 0; i < kCount; ++i) {
            values_[i] = i == kCount - 1 ? revision : attributes == nullptr ? Op::kAttributes[i].initial : attributes[i];
            fields_[i] = nvinfer1::PluginField(name(i), &values_[i], nvinfer1::PluginFieldType::kINT32, 1);
            summary_.add("%s%s %d", i == 0 ? "" : " ", name(i), static_cast<int>(values_[i]));
        }
    }
    Fields(const Fields&) = delete;
    Fields& operator=(const Fields&) = delete;

    static const char* name(int32_t i) noexcept { return i < kCount - 1 ? Op::kAttributes[i].name : "revision"; }
    const int32_t* values() const noexcept { return values_; }
    const nvinfer1::PluginFieldCollection* collection() const noexcept { return &collection_; }
    // Without the revision: what a parser passes on.
    const nvinfer1::PluginFieldCollection* names() const noexcept { return &names_; }
    const char* summary() const noexcept { return summary_.get(); }

private:
    int32_t values_[kCount] = {};
    nvinfer1::PluginField fields_[kCount];
    nvinfer1::PluginFieldCollection collection_{kCount, fields_}, names_{kCount - 1, fields_};
    Text summary_;
};

// The fields a plugin is made of. Those of a node may be absent and have defaults; those that an engine serialised are
// all there, `revision` among them. False, with the reason said, for anything else.
template <typename Op>
bool read_fields(const nvinfer1::PluginFieldCollection* given, bool serialised,
                 int32_t (&values)[Fields<Op>::kCount]) noexcept {
    constexpr int32_t kCount = Fields<Op>::kCount;
    bool seen[kCount] = {};
    values[kCount - 1] = Op::kRevision;
    for (int32_t i = 0; i < kCount - 1; ++i) {
        values[i] = Op::kAttributes[i].initial;
    }
    const int32_t count = given == nullptr || given->fields == nullptr ? 0 : given->nbFields;
    for (int32_t i = 0; i < count; ++i) {
        const nvinfer1::PluginField& field = given->fields[i];
        int32_t match = 0;
        while (match < kCount && (field.name == nullptr || std::strcmp(field.name, Fields<Op>::name(match)) != 0)) {
            ++match;
        }
        if (match == kCount) {
            Text known;
            for (int32_t k = 0; k < kCount - 1; ++k) {
                known.add("%s%s", k == 0 ? "" : k == kCount - 2 ? " and " : ", ", Op::kAttributes[k].name);
            }
            say(Op::kName, "unknown attribute '%s'; it has %s", field.name ? field.name : "", known.get());
            return false;
        }
        if (field.type != nvinfer1::PluginFieldType::kINT32 || field.length != 1 || field.data == nullptr) {
            say(Op::kName, "attribute %s has type %d and length %d; it must be one 32-bit integer",
                Fields<Op>::name(match), static_cast<int>(field.type), static_cast<int>(field.length));
            return false;
        }
        std::memcpy(&values[match], field.data, sizeof values[match]);
        seen[match] = true;
    }
    for (int32_t i = 0; i < kCount; ++i) {
        if (serialised && !seen[i]) {
            say(Op::kName, "the engine holds no %s: it was built with another release; build it again",
                Fields<Op>::name(i));
            return false;
        }
    }
    if (values[kCount - 1] != Op::kRevision) {
        say(Op::kName,
            "the engine was built with kernel revision %d, this library has revision %d: build the engine again",
            static_cast<int>(values[kCount - 1]), static_cast<int>(Op::kRevision));
        return false;
    }
    if (const char* reason = Op::check(values)) {
        Text got;
        for (int32_t i = 0; i < kCount - 1; ++i) {
            got.add("%s%s %d", i == 0 ? "" : ", ", Op::kAttributes[i].name, static_cast<int>(values[i]));
        }
        say(Op::kName, "%s; got %s", reason, got.get());
        return false;
    }
    return true;
}

// What getFieldNames() returns.
template <typename Op>
const nvinfer1::PluginFieldCollection* field_names() noexcept {
    static const Fields<Op> defaults;
    return defaults.names();
}

// The reason, and the sizes of the inputs.
template <typename Op>
void refuse(const char* reason, const nvinfer1::PluginTensorDesc* inputs) noexcept {
    Text got;
    for (int32_t i = 0; i < kInputCount<Op>; ++i) {
        got.add("%s%s ", i == 0 ? "" : ", ", Op::kInputs[i]);
        const nvinfer1::Dims& dims = inputs[i].dims;
        for (int32_t k = 0; k < dims.nbDims; ++k) {
            got.add("%s%lld", k == 0 ? "" : "x", static_cast<long long>(dims.d[k]));
        }
    }
    say(Op::kName, "%s; got %s", reason, got.get());
}

// Whether all inputs have `rank` sizes that fit an int; false with the reason said.
template <typename Op>
bool sizes_fit(const nvinfer1::PluginTensorDesc* inputs, int32_t rank, const char* shape) noexcept {
    for (int32_t i = 0; i < kInputCount<Op>; ++i) {
        if (inputs[i].dims.nbDims != rank) {
            refuse<Op>(Text().add("inputs must be %s", shape).get(), inputs);
            return false;
        }
        for (int32_t k = 0; k < rank; ++k) {
            if (inputs[i].dims.d[k] < 1 || inputs[i].dims.d[k] > std::numeric_limits<int32_t>::max()) {
                refuse<Op>("sizes must be between 1 and 2147483647", inputs);
                return false;
            }
        }
    }
    return true;
}

// Whether the tensor has one of the types and layouts of kernels: linear fp32 or fp16, or fp16 in HWC8.
inline bool is_offered(const nvinfer1::PluginTensorDesc& tensor) noexcept {
    using nvinfer1::DataType;
    using nvinfer1::TensorFormat;
    return (tensor.format == TensorFormat::kLINEAR &&
            (tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF)) ||
           (tensor.format == TensorFormat::kHWC8 && tensor.type == DataType::kHALF);
}

inline Type type_of(const nvinfer1::PluginTensorDesc& tensor) noexcept {
    return tensor.type == nvinfer1::DataType::kHALF ? Type::kHalf : Type::kFloat;
}

inline Layout layout_of(const nvinfer1::PluginTensorDesc& tensor) noexcept {
    return tensor.format == nvinfer1::TensorFormat::kHWC8 ? Layout::kHwc8 : Layout::kLinear;
}

// "types 0, 1 and formats 0, 2" of tensors, by the numbers of DataType and TensorFormat: 0 is fp32 and 1 fp16; 0 is
// linear and 2 HWC8.
inline Text listed(const nvinfer1::PluginTensorDesc* tensors, int32_t count) noexcept {
    Text text;
    for (int32_t i = 0; i < count; ++i) {
        text.add("%s%d", i == 0 ? "types " : ", ", static_cast<int>(tensors[i].type));
    }
    for (int32_t i = 0; i < count; ++i) {
        text.add("%s%d", i == 0 ? " and formats " : ", ", static_cast<int>(tensors[i].format));
    }
    return text;
}

// Whether the size of an input is known not to be `times` that of the first.
inline bool differ(const nvinfer1::DimsExprs* inputs, int32_t tensor, int32_t axis, int64_t times) noexcept {
    const nvinfer1::IDimensionExpr& a = *inputs[0].d[axis];
    const nvinfer1::IDimensionExpr& b = *inputs[tensor].d[axis];
    return a.isConstant() && b.isConstant() && times * a.getConstantValue() != b.getConstantValue();
}

// Bytes of the workspace for these sizes, or bounds of them; 0, with the reason said, if the kernel cannot do it.
template <typename Op>
std::size_t workspace_of(const int32_t* attributes, const nvinfer1::PluginTensorDesc* inputs) noexcept {
    typename Op::Problem largest;
    return Op::problem(attributes, inputs, false, largest) ? Op::workspace_bytes(largest) : 0;
}

// One call of the op on `stream`; 0, or not, with the reason said. Keeps nothing, so it may run in several threads.
template <typename Op>
int32_t run(const int32_t* attributes, const nvinfer1::PluginTensorDesc* described, const void* const* inputs,
            void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    typename Op::Problem problem;
    if (!Op::problem(attributes, described, true, problem)) {
        return 1;
    }
    const int status = Op::launch(problem, inputs, outputs, workspace, stream);
    if (status != 0) {
        say(Op::kName, "the kernel could not be launched: %s", cudaGetErrorString(static_cast<cudaError_t>(status)));
    }
    return status;
}

}  // namespace mtu
