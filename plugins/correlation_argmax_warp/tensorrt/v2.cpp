// The op as a plugin of TensorRT 8.6: IPluginV2DynamicExt over the launcher in ../cuda.
// Exports getPluginCreators and setLoggerFinder, which TensorRT's plugin registry looks for in a library it loads.
#include "adapter.h"

#include <new>

namespace {

using namespace nvinfer1;

// What an engine keeps of the plugin, byte for byte.
struct Serialised {
    uint32_t magic;
    int32_t revision;
    mtu::Attributes attributes;
};
static_assert(sizeof(Serialised) == 20, "fixed width, no padding");
constexpr uint32_t kMagic = 0x5741434D;  // "MCAW"

// Namespaces are a handful of characters, given by whoever registers the creator.
class Name {
public:
    void set(const char* text) noexcept { std::snprintf(text_, sizeof text_, "%s", text == nullptr ? "" : text); }
    const char* get() const noexcept { return text_; }

private:
    char text_[1024] = "mtu";
};

class Plugin final : public IPluginV2DynamicExt {
public:
    Plugin(const mtu::Attributes& attributes, const char* name_space) noexcept : attributes_(attributes) {
        namespace_.set(name_space);
    }

    IPluginV2DynamicExt* clone() const noexcept override {
        return new (std::nothrow) Plugin(attributes_, namespace_.get());
    }
    int32_t initialize() noexcept override { return 0; }
    void terminate() noexcept override {}
    void destroy() noexcept override { delete this; }

    AsciiChar const* getPluginType() const noexcept override { return mtu::kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return mtu::kVersion; }
    void setPluginNamespace(AsciiChar const* text) noexcept override { namespace_.set(text); }
    AsciiChar const* getPluginNamespace() const noexcept override { return namespace_.get(); }

    int32_t getNbOutputs() const noexcept override { return mtu::kOutputs; }

    DataType getOutputDataType(int32_t index, DataType const* inputs, int32_t) const noexcept override {
        return index == 0 ? inputs[2] : DataType::kINT32;
    }

    DimsExprs getOutputDimensions(int32_t index, DimsExprs const* inputs, int32_t input_count,
                                  IExprBuilder&) noexcept override {
        DimsExprs outputs[mtu::kOutputs]{};
        if (!mtu::output_shapes(attributes_, inputs, input_count, outputs[0], outputs[1])) {
            DimsExprs invalid{};
            invalid.nbDims = -1;
            return invalid;
        }
        return outputs[index == 0 ? 0 : 1];
    }

    bool supportsFormatCombination(int32_t pos, PluginTensorDesc const* tensors, int32_t, int32_t) noexcept override {
        return mtu::supports(pos, [tensors](int32_t i) -> const PluginTensorDesc& { return tensors[i]; });
    }

    // Cannot refuse anything: enqueue does, in the build too.
    void configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                         int32_t) noexcept override {}

    size_t getWorkspaceSize(PluginTensorDesc const* in, int32_t, PluginTensorDesc const*,
                            int32_t) const noexcept override {
        mtu::Problem largest;
        const bool possible = mtu::to_problem(attributes_, in[0], in[1], in[2], false, largest);
        return possible ? mtu::workspace_bytes(largest) : 0;
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs,
                    void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return mtu::run(attributes_, in, inputs, outputs, workspace, stream);
    }

    size_t getSerializationSize() const noexcept override { return sizeof(Serialised); }
    void serialize(void* buffer) const noexcept override {
        const Serialised content{kMagic, mtu::kKernelRevision, attributes_};
        std::memcpy(buffer, &content, sizeof content);
    }

private:
    const mtu::Attributes attributes_;
    Name namespace_;
};

class Creator final : public IPluginCreator {
public:
    IPluginV2* createPlugin(AsciiChar const*, PluginFieldCollection const* fields) noexcept override {
        mtu::Attributes attributes;
        if (!mtu::read_fields(fields, false, attributes)) {
            return nullptr;
        }
        return new (std::nothrow) Plugin(attributes, namespace_.get());
    }

    IPluginV2* deserializePlugin(AsciiChar const*, void const* data, size_t size) noexcept override {
        Serialised content{};
        if (data != nullptr && size == sizeof content) {
            std::memcpy(&content, data, sizeof content);
        }
        if (content.magic != kMagic) {
            mtu::say("the engine holds no plugin of this kind (%zu bytes): build it again", size);
            return nullptr;
        }
        const PluginField fields[] = {
            PluginField("max_displacement", &content.attributes.max_displacement, PluginFieldType::kINT32, 1),
            PluginField("pool_size", &content.attributes.pool_size, PluginFieldType::kINT32, 1),
            PluginField("scale", &content.attributes.scale, PluginFieldType::kINT32, 1),
            PluginField("revision", &content.revision, PluginFieldType::kINT32, 1)};
        const PluginFieldCollection collection{4, fields};
        mtu::Attributes attributes;
        if (!mtu::read_fields(&collection, true, attributes)) {
            return nullptr;
        }
        return new (std::nothrow) Plugin(attributes, namespace_.get());
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return mtu::field_names(); }
    AsciiChar const* getPluginName() const noexcept override { return mtu::kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return mtu::kVersion; }
    void setPluginNamespace(AsciiChar const* text) noexcept override { namespace_.set(text); }
    AsciiChar const* getPluginNamespace() const noexcept override { return namespace_.get(); }

private:
    Name namespace_;
};

}  // namespace

extern "C" [[gnu::visibility("default")]] IPluginCreator* const* getPluginCreators(int32_t& count) {
    static Creator creator;
    static IPluginCreator* const creators[] = {&creator};
    count = 1;
    return creators;
}

extern "C" [[gnu::visibility("default")]] void setLoggerFinder(ILoggerFinder*) {}
