// The op for the C++ plugin: see ../../cpp/plugin.h for what each member is.
#pragma once

#include "../../cpp/plugin.h"
#include "../cuda/launch.h"

namespace mtu {

struct CorrelationArgmaxWarp {
    static constexpr const char* kName = "CorrelationArgmaxWarp";
    static constexpr const char* kVersion = "1";
    static constexpr uint32_t kMagic = 0x5741434D;  // "MCAW"
    static constexpr int32_t kRevision = correlation_argmax_warp::kKernelRevision;
    static constexpr Attribute kAttributes[] = {{"max_displacement", 10}, {"pool_size", 5}, {"scale", 4}};
    static constexpr const char* kInputs[] = {"motion", "motion_prev", "detail_prev"};
    static constexpr const char* kOutputs[] = {"warped", "displacement"};

    using Problem = correlation_argmax_warp::Problem;
    using Tensor = nvinfer1::PluginTensorDesc;
    using DataType = nvinfer1::DataType;
    using TensorFormat = nvinfer1::TensorFormat;

    // With the smallest sizes there are: what is refused then is the attributes' fault.
    static const char* check(const int32_t* attributes) noexcept {
        return correlation_argmax_warp::check(Problem{1, 1, 1, 1, 1, attributes[0], attributes[1], attributes[2],
                                                      Type::kFloat, Type::kFloat, Layout::kLinear, Layout::kLinear});
    }

    // Either everything is linear, in any mix of fp32 and fp16, or everything but the displacement is fp16 in HWC8.
    template <typename At>
    static bool supports(int32_t pos, const At& at) noexcept {
        const Tensor& tensor = at(pos);
        const auto like = [&](int32_t i) { return tensor.type == at(i).type && tensor.format == at(i).format; };
        switch (pos) {
            case 0: return is_offered(tensor);
            case 1: return like(0);
            case 2: return is_offered(tensor) && tensor.format == at(0).format;
            case 3: return like(2);
            case 4: return tensor.type == DataType::kINT32 && tensor.format == TensorFormat::kLINEAR;
            default: return false;
        }
    }

    static bool types_fit(const Tensor* inputs) noexcept {
        const auto at = [&](int32_t i) -> const Tensor& { return inputs[i]; };
        if (supports(0, at) && supports(1, at) && supports(2, at)) {
            return true;
        }
        say(kName,
            "motion and motion_prev must both be fp32 or both fp16, detail_prev fp32 or fp16, all linear or all HWC8; "
            "got %s",
            listed(inputs, 3).get());
        return false;
    }

    static DataType output_type(int32_t index, const DataType* inputs) noexcept {
        return index == 0 ? inputs[2] : DataType::kINT32;
    }

    // That of detail_prev; batch, height and width of motion. Sizes that are not constant are compared when they are
    // known, in enqueue.
    static bool output_shapes(const int32_t* attributes, const nvinfer1::DimsExprs* inputs, int32_t count,
                              nvinfer1::DimsExprs* outputs) noexcept {
        if (count != 3 || inputs[0].nbDims != 4 || inputs[1].nbDims != 4 || inputs[2].nbDims != 4) {
            say(kName, "it takes three inputs of the shape [batch, channels, height, width]");
            return false;
        }
        const auto differs = [&](int32_t tensor, int32_t axis, int64_t times) {
            return differ(inputs, tensor, axis, times);
        };
        const int64_t scale = attributes[2];
        if (differs(1, 0, 1) || differs(1, 1, 1) || differs(1, 2, 1) || differs(1, 3, 1) || differs(2, 0, 1) ||
            differs(2, 2, scale) || differs(2, 3, scale)) {
            say(kName,
                "motion and motion_prev must have one shape, detail_prev the same batch and %d times the height and "
                "width",
                static_cast<int>(scale));
            return false;
        }
        outputs[0] = inputs[2];
        outputs[1].nbDims = 3;
        outputs[1].d[0] = inputs[0].d[0];
        outputs[1].d[1] = inputs[0].d[2];
        outputs[1].d[2] = inputs[0].d[3];
        return true;
    }

    static bool problem(const int32_t* attributes, const Tensor* inputs, bool exact, Problem& result) noexcept {
        const auto refused = [&](const char* reason) {
            refuse<CorrelationArgmaxWarp>(reason, inputs);
            return false;
        };
        if (!sizes_fit<CorrelationArgmaxWarp>(inputs, 4, "[batch, channels, height, width]") || !types_fit(inputs)) {
            return false;
        }
        const auto& m = inputs[0].dims.d;
        const auto& p = inputs[1].dims.d;
        const auto& d = inputs[2].dims.d;
        const int64_t scale = attributes[2];
        if (exact && (m[0] != p[0] || m[1] != p[1] || m[2] != p[2] || m[3] != p[3])) {
            return refused("motion and motion_prev must have one shape");
        }
        if (exact && (d[0] != m[0] || d[2] != scale * m[2] || d[3] != scale * m[3])) {
            return refused("detail_prev must have motion's batch, and scale times its height and width");
        }
        const auto size = [](auto value) { return static_cast<int32_t>(value); };
        result = Problem{size(m[0]),         size(m[1]),         size(m[2]),           size(m[3]),
                         size(d[1]),         attributes[0],      attributes[1],        attributes[2],
                         type_of(inputs[0]), type_of(inputs[2]), layout_of(inputs[0]), layout_of(inputs[2])};
        const char* reason = correlation_argmax_warp::check(result);
        return reason == nullptr || refused(reason);
    }

    static std::size_t workspace_bytes(const Problem& problem) noexcept {
        return correlation_argmax_warp::workspace_bytes(problem);
    }

    static int launch(const Problem& problem, const void* const* inputs, void* const* outputs, void* workspace,
                      cudaStream_t stream) noexcept {
        return correlation_argmax_warp::launch(problem, inputs[0], inputs[1], inputs[2], outputs[0],
                                               static_cast<int32_t*>(outputs[1]), workspace, stream);
    }
};

}  // namespace mtu
