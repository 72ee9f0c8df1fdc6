// The ops as plugins of TensorRT 10 and later and of TensorRT-RTX 1.7: IPluginV3 over each op's launcher.
// Exports getCreators and setLoggerFinder, which TensorRT's plugin registry looks for in a library it loads.
#include "ops.h"

#include <new>

namespace {

using namespace nvinfer1;

template <typename Op>
class Plugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    explicit Plugin(const int32_t* attributes) noexcept : kept_(attributes) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(kept_.values()); }

    AsciiChar const* getPluginName() const noexcept override { return Op::kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return Op::kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return mtu::kNamespace; }

    int32_t getNbOutputs() const noexcept override { return kOutputs; }

    int32_t getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                               int32_t input_count) const noexcept override {
        if (input_count != kInputs || output_count != kOutputs) {
            mtu::say(Op::kName, "it has %d inputs and %d outputs; it must have %d and %d",
                     static_cast<int>(input_count), static_cast<int>(output_count), static_cast<int>(kInputs),
                     static_cast<int>(kOutputs));
            return 1;
        }
        PluginTensorDesc tensors[kInputs]{};
        for (int32_t i = 0; i < kInputs; ++i) {
            tensors[i].type = inputs[i];
            tensors[i].format = TensorFormat::kLINEAR;
        }
        if (!Op::types_fit(tensors)) {
            return 1;
        }
        for (int32_t i = 0; i < kOutputs; ++i) {
            outputs[i] = Op::output_type(i, inputs);
        }
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t input_count, DimsExprs const*, int32_t, DimsExprs* outputs,
                            int32_t output_count, IExprBuilder&) noexcept override {
        return output_count == kOutputs && Op::output_shapes(kept_.values(), inputs, input_count, outputs) ? 0 : 1;
    }

    bool supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* tensors, int32_t,
                                   int32_t) noexcept override {
        return Op::supports(pos, [tensors](int32_t i) -> const PluginTensorDesc& { return tensors[i].desc; });
    }

    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) noexcept override {
        typename Op::Problem largest;
        return Op::problem(kept_.values(), Bounds(in).tensors, false, largest) ? 0 : 1;
    }

    size_t getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) const noexcept override {
        return mtu::workspace_of<Op>(kept_.values(), Bounds(in).tensors);
    }

    char const* getTimingCacheID() noexcept override { return kept_.summary(); }
    char const* getMetadataString() noexcept override { return kept_.summary(); }

    int32_t onShapeChange(PluginTensorDesc const* in, int32_t, PluginTensorDesc const*, int32_t) noexcept override {
        typename Op::Problem problem;
        return Op::problem(kept_.values(), in, true, problem) ? 0 : 1;
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return mtu::run<Op>(kept_.values(), in, inputs, outputs, workspace, stream);
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return kept_.collection(); }

private:
    static constexpr int32_t kInputs = mtu::kInputCount<Op>, kOutputs = mtu::kOutputCount<Op>;

    // The inputs at their largest.
    struct Bounds {
        explicit Bounds(DynamicPluginTensorDesc const* in) noexcept {
            for (int32_t i = 0; i < kInputs; ++i) {
                tensors[i] = in[i].desc;
                tensors[i].dims = in[i].max;
            }
        }
        PluginTensorDesc tensors[kInputs];
    };

    const mtu::Fields<Op> kept_;
};

template <typename Op>
class Creator final : public IPluginCreatorV3One {
public:
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* fields,
                            TensorRTPhase phase) noexcept override {
        int32_t values[mtu::Fields<Op>::kCount];
        const bool read = mtu::read_fields<Op>(fields, phase == TensorRTPhase::kRUNTIME, values);
        return read ? new (std::nothrow) Plugin<Op>(values) : nullptr;
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return mtu::field_names<Op>(); }
    AsciiChar const* getPluginName() const noexcept override { return Op::kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return Op::kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return mtu::kNamespace; }
};

template <typename Op>
Creator<Op> creator;

template <typename... Each>
IPluginCreatorInterface* const* creators(mtu::List<Each...>, int32_t& count) {
    static IPluginCreatorInterface* const all[] = {&creator<Each>...};
    count = sizeof...(Each);
    return all;
}

}  // namespace

extern "C" [[gnu::visibility("default")]] IPluginCreatorInterface* const* getCreators(int32_t& count) {
    return creators(mtu::Ops(), count);
}

extern "C" [[gnu::visibility("default")]] void setLoggerFinder(ILoggerFinder*) {}
