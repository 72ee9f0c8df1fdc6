// The op for the C++ plugin: see ../../cpp/plugin.h for what each member is.
#pragma once

#include "../../cpp/plugin.h"
#include "../cuda/launch.h"

namespace mtu {

struct IterativeFilters {
    static constexpr const char* kName = "IterativeFilters";
    static constexpr const char* kVersion = "1";
    static constexpr uint32_t kMagic = 0x4C464954;  // "TIFL"
    static constexpr int32_t kRevision = iterative_filters::kKernelRevision;
    static constexpr Attribute kAttributes[] = {{"shared_taps", 1}};
    static constexpr const char* kInputs[] = {"x", "filters"};
    static constexpr const char* kOutputs[] = {"filtered"};

    using Problem = iterative_filters::Problem;
    using Tensor = nvinfer1::PluginTensorDesc;
    using DataType = nvinfer1::DataType;

    // With the smallest sizes there are: what is refused then is the attribute's fault.
    static const char* check(const int32_t* attributes) noexcept {
        return iterative_filters::check(Problem{1, 1, 1, 1, attributes[0], Type::kFloat, Layout::kLinear});
    }

    // All tensors are alike.
    template <typename At>
    static bool supports(int32_t pos, const At& at) noexcept {
        return is_offered(at(pos)) && at(pos).type == at(0).type && at(pos).format == at(0).format;
    }

    static bool types_fit(const Tensor* inputs) noexcept {
        const auto at = [&](int32_t i) -> const Tensor& { return inputs[i]; };
        if (supports(0, at) && supports(1, at)) {
            return true;
        }
        say(kName, "x and filters must both be fp32 or both fp16, both linear or both HWC8; got %s",
            listed(inputs, 2).get());
        return false;
    }

    static DataType output_type(int32_t, const DataType* inputs) noexcept { return inputs[0]; }

    // That of x. Sizes that are not constant are compared when they are known, in enqueue.
    static bool output_shapes(const int32_t* attributes, const nvinfer1::DimsExprs* inputs, int32_t count,
                              nvinfer1::DimsExprs* outputs) noexcept {
        if (count != 2 || inputs[0].nbDims != 4 || inputs[1].nbDims != 4) {
            say(kName, "it takes two inputs of the shape [batch, channels, height, width]");
            return false;
        }
        for (int32_t axis = 0; axis < 4; ++axis) {
            if (differ(inputs, 1, axis, axis == 1 ? parts(attributes) : 1)) {
                say(kName, "filters must have the batch, height and width of x, and %d times its channels",
                    static_cast<int>(parts(attributes)));
                return false;
            }
        }
        outputs[0] = inputs[0];
        return true;
    }

    static bool problem(const int32_t* attributes, const Tensor* inputs, bool exact, Problem& result) noexcept {
        const auto refused = [&](const char* reason) {
            refuse<IterativeFilters>(reason, inputs);
            return false;
        };
        if (!sizes_fit<IterativeFilters>(inputs, 4, "[batch, channels, height, width]") || !types_fit(inputs)) {
            return false;
        }
        const auto& x = inputs[0].dims.d;
        const auto& f = inputs[1].dims.d;
        if (exact && (f[0] != x[0] || f[1] != parts(attributes) * x[1] || f[2] != x[2] || f[3] != x[3])) {
            return refused(attributes[0] ? "filters must be as x, with 4 times its channels"
                                         : "filters must be as x, with 7 times its channels");
        }
        const auto size = [](auto value) { return static_cast<int32_t>(value); };
        result = Problem{size(x[0]),    size(x[1]),      size(x[2]),       size(x[3]),
                         attributes[0], type_of(inputs[0]), layout_of(inputs[0])};
        const char* reason = iterative_filters::check(result);
        return reason == nullptr || refused(reason);
    }

    static std::size_t workspace_bytes(const Problem&) noexcept { return 0; }

    static int launch(const Problem& problem, const void* const* inputs, void* const* outputs, void*,
                      cudaStream_t stream) noexcept {
        return iterative_filters::launch(problem, inputs[0], inputs[1], outputs[0], stream);
    }

private:
    // Blocks of filters: three taps, or three and three, and the bias.
    static int64_t parts(const int32_t* attributes) noexcept { return attributes[0] ? 4 : 7; }
};

}  // namespace mtu
