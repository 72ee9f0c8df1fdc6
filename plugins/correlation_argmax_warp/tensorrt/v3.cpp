// The op as a plugin of TensorRT 10 and later and of TensorRT-RTX 1.7: IPluginV3 over the launcher in ../cuda.
// Exports getCreators and setLoggerFinder, which TensorRT's plugin registry looks for in a library it loads.
#include "adapter.h"

#include <new>

namespace {

using namespace nvinfer1;

class Plugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
public:
    explicit Plugin(const mtu::Attributes& attributes) noexcept : attributes_(attributes) {
        std::snprintf(summary_, sizeof summary_, "max_displacement %d pool_size %d scale %d revision %d",
                      static_cast<int>(attributes_.max_displacement), static_cast<int>(attributes_.pool_size),
                      static_cast<int>(attributes_.scale), static_cast<int>(revision_));
    }
    // fields_ points into the object: a copy is made from the attributes alone.
    Plugin(const Plugin&) = delete;
    Plugin& operator=(const Plugin&) = delete;

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override { return new (std::nothrow) Plugin(attributes_); }

    AsciiChar const* getPluginName() const noexcept override { return mtu::kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return mtu::kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return mtu::kNamespace; }

    int32_t getNbOutputs() const noexcept override { return mtu::kOutputs; }

    int32_t getOutputDataTypes(DataType* outputs, int32_t output_count, const DataType* inputs,
                               int32_t input_count) const noexcept override {
        if (input_count != mtu::kInputs || output_count != mtu::kOutputs) {
            mtu::say("it has %d inputs and %d outputs; it must have %d and %d", static_cast<int>(input_count),
                     static_cast<int>(output_count), static_cast<int>(mtu::kInputs), static_cast<int>(mtu::kOutputs));
            return 1;
        }
        PluginTensorDesc tensors[mtu::kInputs]{};
        for (int32_t i = 0; i < mtu::kInputs; ++i) {
            tensors[i].type = inputs[i];
            tensors[i].format = TensorFormat::kLINEAR;
        }
        if (!mtu::types_fit(tensors[0], tensors[1], tensors[2])) {
            return 1;
        }
        outputs[0] = inputs[2];
        outputs[1] = DataType::kINT32;
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t input_count, DimsExprs const*, int32_t, DimsExprs* outputs,
                            int32_t output_count, IExprBuilder&) noexcept override {
        if (output_count != mtu::kOutputs) {
            return 1;
        }
        return mtu::output_shapes(attributes_, inputs, input_count, outputs[0], outputs[1]) ? 0 : 1;
    }

    bool supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* tensors, int32_t,
                                   int32_t) noexcept override {
        return mtu::supports(pos, [tensors](int32_t i) -> const PluginTensorDesc& { return tensors[i].desc; });
    }

    int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) noexcept override {
        mtu::Problem largest;
        return at_most(in, largest) ? 0 : 1;
    }

    size_t getWorkspaceSize(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const*,
                            int32_t) const noexcept override {
        mtu::Problem largest;
        return at_most(in, largest) ? mtu::workspace_bytes(largest) : 0;
    }

    char const* getTimingCacheID() noexcept override { return summary_; }
    char const* getMetadataString() noexcept override { return summary_; }

    int32_t onShapeChange(PluginTensorDesc const* in, int32_t, PluginTensorDesc const*, int32_t) noexcept override {
        mtu::Problem problem;
        return mtu::to_problem(attributes_, in[0], in[1], in[2], true, problem) ? 0 : 1;
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return mtu::run(attributes_, in, inputs, outputs, workspace, stream);
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &collection_; }

private:
    bool at_most(DynamicPluginTensorDesc const* in, mtu::Problem& largest) const noexcept {
        PluginTensorDesc bounds[mtu::kInputs];
        for (int32_t i = 0; i < mtu::kInputs; ++i) {
            bounds[i] = in[i].desc;
            bounds[i].dims = in[i].max;
        }
        return mtu::to_problem(attributes_, bounds[0], bounds[1], bounds[2], false, largest);
    }

    const mtu::Attributes attributes_;
    const int32_t revision_ = mtu::kKernelRevision;
    const PluginField fields_[4] = {
        PluginField("max_displacement", &attributes_.max_displacement, PluginFieldType::kINT32, 1),
        PluginField("pool_size", &attributes_.pool_size, PluginFieldType::kINT32, 1),
        PluginField("scale", &attributes_.scale, PluginFieldType::kINT32, 1),
        PluginField("revision", &revision_, PluginFieldType::kINT32, 1)};
    const PluginFieldCollection collection_{4, fields_};
    char summary_[96];
};

class Creator final : public IPluginCreatorV3One {
public:
    IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* fields,
                            TensorRTPhase phase) noexcept override {
        mtu::Attributes attributes;
        if (!mtu::read_fields(fields, phase == TensorRTPhase::kRUNTIME, attributes)) {
            return nullptr;
        }
        return new (std::nothrow) Plugin(attributes);
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return mtu::field_names(); }
    AsciiChar const* getPluginName() const noexcept override { return mtu::kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return mtu::kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return mtu::kNamespace; }
};

}  // namespace

extern "C" [[gnu::visibility("default")]] IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static Creator creator;
    static IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

extern "C" [[gnu::visibility("default")]] void setLoggerFinder(ILoggerFinder*) {}
