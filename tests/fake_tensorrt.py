"""A stand-in for the Python module `tensorrt` of a given version, for machines without a GPU. Nothing here is a test.

It knows what is known of the versions and no more: which names exist, how each version's parser treats the
op's node with and without plugin and function, and whether types are the graph's own. It builds nothing.
"""

from __future__ import annotations

import enum
import json
import types
from typing import Any

import onnx

from mtu.plugins.op import DOMAIN, OPS, find_op
from mtu.runtime.tensorrt_library import Library, MessageLog, version_numbers


class DataType(enum.Enum):
    FLOAT, HALF, INT32, UINT8, INT64, BOOL = range(6)


ONNX_TYPES = {1: DataType.FLOAT, 10: DataType.HALF, 6: DataType.INT32, 2: DataType.UINT8, 7: DataType.INT64}


class LayerType(enum.Enum):
    CONVOLUTION, DECONVOLUTION, CONSTANT, PLUGIN_V2, PLUGIN_V3, OTHER = range(6)


class Logger(MessageLog):
    pass


def identity(op: str) -> tuple[str, str, str]:
    """Of the creator of an op's plugin."""
    return op, str(find_op(op).version), DOMAIN


def names(kind: str, *members: str) -> Any:
    return enum.IntEnum(kind, [(name, number) for number, name in enumerate(members)])


class Tensor:
    def __init__(self, name: str, dtype: DataType) -> None:
        self.name, self.dtype = name, dtype


class Layer:
    def __init__(self, name: str, kind: LayerType, output: str, dtype: DataType) -> None:
        self.name, self.type, self._output = name, kind, Tensor(output, dtype)
        self.num_outputs = 1
        self.precision: DataType | None = None
        self.output_types: dict[int, DataType] = {}

    def get_output(self, index: int) -> Tensor:
        return self._output

    def set_output_type(self, index: int, dtype: DataType) -> None:
        self.output_types[index] = dtype


class Registry:
    def __init__(self, modern: bool) -> None:
        self.creators: set[tuple[str, str, str]] = set()
        self.loadable: set[str] = set()
        """Names of files that are plugin libraries for this version."""
        setattr(self, "get_creator" if modern else "get_plugin_creator", self._find)
        if modern:
            self.register_creator = self._register

    def _find(self, name: str, version: str, namespace: str) -> object | None:
        return object() if (name, version, namespace) in self.creators else None

    def _register(self, creator: Any, namespace: str) -> bool:
        self.creators.add((creator.name, creator.plugin_version, namespace))
        return True

    def load_library(self, path: str) -> object | None:
        if path.rsplit("/", 1)[-1] not in self.loadable:
            return None
        self.creators |= {identity(op) for op in OPS}
        return object()


class FakeTensorRT(types.SimpleNamespace):
    """The module. What was asked of it is in `networks`, `configs` and `models`."""

    def __init__(self, version: str) -> None:
        super().__init__()
        numbers = version_numbers(version)
        old, ten = numbers < (10,), (10,) <= numbers < (11,)
        self.__version__ = version
        self.numbers = numbers
        self.networks: list[Any] = []
        self.configs: list[Any] = []
        self.models: list[onnx.ModelProto] = []
        self.plan: bytes | None = b"plan"
        self.failure = "out of luck"
        self.loads = True
        self.inspected = ["Half", "Half", "Float", "Int32"]
        self.registry = Registry(not old)
        self.DataType, self.LayerType = DataType, LayerType
        flags = (["EXPLICIT_BATCH"] if old or ten else []) + ([] if old else ["STRONGLY_TYPED"])
        self.NetworkDefinitionCreationFlag = names("Flag", *flags)
        flags = ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"] if old or ten else []
        self.BuilderFlag = names("BuilderFlag", "TF32", "VERSION_COMPATIBLE", *flags)
        sources = ["CUBLAS", "CUBLAS_LT", "CUDNN"] if old or ten else []
        self.TacticSource = names("TacticSource", *sources, "EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
        self.MemoryPoolType = names("Pool", "WORKSPACE")
        self.ProfilingVerbosity = names("Verbosity", "LAYER_NAMES_ONLY", "DETAILED")
        self.LayerInformationFormat = names("Format", "JSON")
        levels = ["NONE", "AMPERE_PLUS"] + ([] if old else ["SAME_COMPUTE_CAPABILITY"])
        self.HardwareCompatibilityLevel = names("Level", *levels)
        if not old:
            for name in ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime"):
                setattr(self, name, type(name, (), {}))
            self.IPluginCreatorV3One = type("IPluginCreatorV3One", (), {})
            self.IProgressMonitor = type("IProgressMonitor", (), {})
            self.PluginField = lambda name, data, kind: (name, data, kind)
            self.PluginFieldCollection = list
            self.PluginFieldType = names("FieldType", "INT32")
            self.TensorFormat = names("TensorFormat", "LINEAR", "HWC8")
        self.library = Library("tensorrt", self, version, Logger())

    def get_plugin_registry(self) -> Registry:
        return self.registry

    def Builder(self, logger: Any) -> Any:
        def create_network(flags: int) -> Any:
            network = types.SimpleNamespace(flags=flags, inputs=[], outputs=[], layers=[])
            network.get_input = lambda index: network.inputs[index]
            network.get_output = lambda index: network.outputs[index]
            network.get_layer = lambda index: network.layers[index]
            self.networks.append(network)
            return network

        def build(network: Any, config: Any) -> bytes | None:
            if self.plan is None:
                logger.record("ERROR", f"[x.cpp::y::1] {self.failure}")
                return None
            return self.plan + bytes([len(self.configs)])

        return types.SimpleNamespace(
            create_network=create_network,
            create_builder_config=lambda: self._config(),
            create_optimization_profile=lambda: Profile(),
            build_serialized_network=build,
        )

    def _config(self) -> Any:
        config = types.SimpleNamespace(set=set(), cleared=set(), pools={}, profiles=[], cache=None)
        config.set_flag = config.set.add
        config.clear_flag = config.cleared.add
        config.set_memory_pool_limit = config.pools.__setitem__
        config.add_optimization_profile = config.profiles.append
        config.tactic_sources = None
        config.get_tactic_sources = lambda: (1 << len(self.TacticSource)) - 1
        config.set_tactic_sources = lambda mask: setattr(config, "tactic_sources", mask)
        config.create_timing_cache = lambda content: content
        config.set_timing_cache = lambda cache, ignore: setattr(config, "cache", cache)
        config.get_timing_cache = lambda: types.SimpleNamespace(serialize=lambda: (config.cache or b"") + b"timed,")
        self.configs.append(config)
        return config

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        return types.SimpleNamespace(parse=lambda content: self._parse(network, logger, content))

    def _parse(self, network: Any, logger: Any, content: bytes) -> bool:
        model = onnx.load_model_from_string(content)
        self.models.append(model)
        typed = self.numbers >= (11,) or bool(
            hasattr(self.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
            and network.flags >> self.NetworkDefinitionCreationFlag.STRONGLY_TYPED & 1
        )
        half = {tensor.name for tensor in model.graph.initializer if tensor.data_type == 10}
        plain = DataType.HALF if typed and half else DataType.FLOAT
        functions = {function.name for function in model.functions}
        plugin = LayerType.PLUGIN_V2 if self.numbers < (10,) else LayerType.PLUGIN_V3
        for node in model.graph.node:
            kinds = {"Conv": LayerType.CONVOLUTION, "ConvTranspose": LayerType.DECONVOLUTION}
            kind = kinds.get(node.op_type, LayerType.OTHER)
            dtype = plain
            if node.op_type in kinds and node.input[1] not in half:
                dtype = DataType.FLOAT
            if node.op_type in OPS:
                known = identity(node.op_type) in self.registry.creators
                function_wins = node.op_type in functions and ((10,) <= self.numbers < (10, 7) or not known)
                if function_wins and self.numbers >= (10,):
                    kind = LayerType.OTHER
                elif known:
                    kind = plugin
                else:
                    logger.record("ERROR", "Plugin not found, are the plugin name, version, and namespace correct?")
                    return False
            network.layers.append(Layer(node.name, kind, node.output[0], dtype))
        for values, tensors in ((model.graph.input, network.inputs), (model.graph.output, network.outputs)):
            tensors += [Tensor(value.name, ONNX_TYPES[value.type.tensor_type.elem_type]) for value in values]
        network.num_inputs, network.num_outputs = len(network.inputs), len(network.outputs)
        network.num_layers = len(network.layers)
        return True

    def Runtime(self, logger: Any) -> Any:
        layers = [{"Name": str(i), "Outputs": [{"Format/Datatype": kind}]} for i, kind in enumerate(self.inspected)]
        inspector = types.SimpleNamespace(get_engine_information=lambda form: json.dumps({"Layers": layers}))
        engine = types.SimpleNamespace(create_engine_inspector=lambda: inspector)
        setattr(engine, "device_memory_size" if self.numbers < (10,) else "device_memory_size_v2", 12345)

        def deserialize(plan: bytes) -> Any:
            if not self.loads:
                logger.record("ERROR", "Serialization assertion failed")
            return engine if self.loads else None

        return types.SimpleNamespace(deserialize_cuda_engine=deserialize)


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes
