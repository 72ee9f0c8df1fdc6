// The ops as plugins of TensorRT 8.6: IPluginV2DynamicExt over each op's launcher.
// Exports getPluginCreators and setLoggerFinder, which TensorRT's plugin registry looks for in a library it loads.
#include "ops.h"

#include <new>

namespace {

using namespace nvinfer1;

// What an engine keeps of a plugin, byte for byte.
template <typename Op>
struct Serialised {
    uint32_t magic;
    int32_t revision;
    int32_t attributes[mtu::kAttributeCount<Op>];
};

// Namespaces are a handful of characters, given by whoever registers the creator.
class Name {
public:
    void set(const char* text) noexcept { std::snprintf(text_, sizeof text_, "%s", text == nullptr ? "" : text); }
    const char* get() const noexcept { return text_; }

private:
    char text_[1024] = "mtu";
};

template <typename Op>
class Plugin final : public IPluginV2DynamicExt {
public:
    Plugin(const int32_t* attributes, const char* name_space) noexcept : kept_(attributes) {
        namespace_.set(name_space);
    }

    IPluginV2DynamicExt* clone() const noexcept override {
        return new (std::nothrow) Plugin(kept_.values(), namespace_.get());
    }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    void destroy() noexcept override { delete this; }

    AsciiChar const* getPluginType() const noexcept override { return Op::kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return Op::kVersion; }
    void setPluginNamespace(AsciiChar const* text) noexcept override { namespace_.set(text); }
    AsciiChar const* getPluginNamespace() const noexcept override { return namespace_.get(); }

    int32_t getNbOutputs() const noexcept override { return mtu::kOutputCount<Op>; }

    DataType getOutputDataType(int32_t index, DataType const* inputs, int32_t) const noexcept override {
        return Op::output_type(index, inputs);
    }

    DimsExprs getOutputDimensions(int32_t index, DimsExprs const* inputs, int32_t input_count,
                                  IExprBuilder&) noexcept override {
        DimsExprs outputs[mtu::kOutputCount<Op>]{};
        if (!Op::output_shapes(kept_.values(), inputs, input_count, outputs)) {
            outputs[index].nbDims = -1;
        }
        return outputs[index];
    }

    bool supportsFormatCombination(int32_t pos, PluginTensorDesc const* tensors, int32_t, int32_t) noexcept override {
        return Op::supports(pos, [tensors](int32_t i) -> const PluginTensorDesc& { return tensors[i]; });
    }

    // Cannot refuse anything: enqueue does, in the build too.
    void configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                         int32_t) noexcept override {}

    size_t getWorkspaceSize(PluginTensorDesc const* in, int32_t, PluginTensorDesc const*,
                            int32_t) const noexcept override {
        return mtu::workspace_of<Op>(kept_.values(), in);
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return mtu::run<Op>(kept_.values(), in, inputs, outputs, workspace, stream);
    }

    size_t getSerializationSize() const noexcept override { return sizeof(Serialised<Op>); }
    void serialize(void* buffer) const noexcept override {
        Serialised<Op> content{Op::kMagic, Op::kRevision, {}};
        std::memcpy(content.attributes, kept_.values(), sizeof content.attributes);
        std::memcpy(buffer, &content, sizeof content);
    }

private:
    const mtu::Fields<Op> kept_;
    Name namespace_;
};

template <typename Op>
class Creator final : public IPluginCreator {
public:
    IPluginV2* createPlugin(AsciiChar const*, PluginFieldCollection const* fields) noexcept override {
        return make(fields, false);
    }

    IPluginV2* deserializePlugin(AsciiChar const*, void const* data, size_t size) noexcept override {
        Serialised<Op> content{};
        if (data != nullptr && size == sizeof content) {
            std::memcpy(&content, data, sizeof content);
        }
        if (content.magic != Op::kMagic) {
            mtu::say(Op::kName, "the engine holds no plugin of this kind (%zu bytes): build it again", size);
            return nullptr;
        }
        const mtu::Fields<Op> fields(content.attributes, content.revision);
        return make(fields.collection(), true);
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return mtu::field_names<Op>(); }
    AsciiChar const* getPluginName() const noexcept override { return Op::kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return Op::kVersion; }
    void setPluginNamespace(AsciiChar const* text) noexcept override { namespace_.set(text); }
    AsciiChar const* getPluginNamespace() const noexcept override { return namespace_.get(); }

private:
    IPluginV2* make(PluginFieldCollection const* fields, bool serialised) noexcept {
        int32_t values[mtu::Fields<Op>::kCount];
        const bool read = mtu::read_fields<Op>(fields, serialised, values);
        return read ? new (std::nothrow) Plugin<Op>(values, namespace_.get()) : nullptr;
    }

    Name namespace_;
};

template <typename Op>
Creator<Op> creator;

template <typename... Each>
IPluginCreator* const* creators(mtu::List<Each...>, int32_t& count) {
    static IPluginCreator* const all[] = {&creator<Each>...};
    count = sizeof...(Each);
    return all;
}

}  // namespace

extern "C" [[gnu::visibility("default")]] IPluginCreator* const* getPluginCreators(int32_t& count) {
    return creators(mtu::Ops(), count);
}

extern "C" [[gnu::visibility("default")]] void setLoggerFinder(ILoggerFinder*) {}
