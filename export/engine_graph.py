"""One graph of a bundle becomes one serialised engine. Imports onnx; the library is an argument.

Everything that differs between TensorRT 8.6, 10, 11 and TensorRT-RTX is in here, decided by what the library has rather
than by its number:

- The precision is in the graph, and the network strongly typed, wherever the library can be told so. TensorRT 8.6
  cannot: there the fp32 graph is built with the FP16 flag and its inputs and outputs are made half. What is to stay
  fp32 is said layer by layer, and the builder told to obey.
- With the plugins, the graph goes in without the ops' functions: TensorRT 10.0 to 10.6 would take the function instead,
  and later versions would where the plugin is missing, without a word. Without plugins the functions are inlined: 8.6
  knows no functions, and a plugin that the process has registered cannot get in.
- TF32 is off: an fp32 engine is to be fp32, and the op's function matches in fp32.
- Kernels of cuBLAS and cuDNN are off where the library could take some: an engine must not need more than it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import inliner

from mtu.core.errors import InvalidInputError
from mtu.core.interface import STREAMS, Graph
from mtu.export.engine_options import BuildOptions, Target
from mtu.plugins.op import DOMAIN, OPS
from mtu.runtime.tensorrt_library import Library, one_line


@dataclass(frozen=True)
class PreparedGraph:
    """A graph as the library is to see it."""

    graph: Graph
    """Of the engine's interface."""
    model: onnx.ModelProto
    """From `prepare`."""
    is_half: bool
    """Whether the engine is fp16; TensorRT 8.6 gets an fp32 model all the same."""
    has_int8: bool
    kept_nodes: frozenset[str]
    """The names of the nodes that compute in fp32 in an fp16 engine, by `precision.fp32_nodes`."""


@dataclass(frozen=True)
class BuiltGraph:
    """One serialised engine and what was seen on the way."""

    plan: bytes
    half: float
    """Share of fp16 among the layers with floating-point outputs."""
    plugins: int
    """Plugin layers."""
    timing_cache: bytes
    """Empty where the library has none."""


def prepare(model: onnx.ModelProto, plugins: Collection[str]) -> onnx.ModelProto:
    """The graph, of one stream, with bare nodes of the ops that are plugins, and without any of the others."""
    for value in (*model.graph.input, *model.graph.output):
        if (axes := value.type.tensor_type.shape.dim) and axes[0].dim_param == STREAMS:
            axes[0].dim_value = 1
    for function in list(model.functions):
        if function.name in plugins:
            model.functions.remove(function)
    return inliner.inline_local_functions(model) if model.functions else model


def plugin_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of the custom ops."""
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in OPS]


class Messages:
    """What the library says during a build, with its answer to why a build failed."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    def take(self, severity: str, text: str) -> None:
        """Called by the library, from any thread; must not raise, since nothing there catches."""
        self.all.append((severity, text))

    def plugin_errors(self) -> list[str]:
        """Errors of our own plugin. TensorRT goes on after some of them and gives a wrong engine."""
        return [text for severity, text in self.all if severity == "ERROR" and text.startswith(tuple(OPS))]

    def reason(self) -> str:
        """The most telling error, on one line."""
        errors = [text for severity, text in self.all if "ERROR" in severity]
        # Without a GPU, TensorRT-RTX reports the missing driver and goes on; the parser frames its reason.
        telling = [text for text in errors if "cudaError 35" not in text and "node ---" not in text]
        return one_line((self.plugin_errors() or telling[-1:] or errors[-1:] or ["no reason given"])[0])


def build_graph(
    prepared: PreparedGraph,
    target: Target,
    options: BuildOptions,
    messages: Messages,
    monitor: Any,
    timing_cache: bytes | None,
) -> BuiltGraph:
    """Builds one engine; `monitor` is an IProgressMonitor or None.

    Raises InvalidInputError if the library cannot read the graph, the network is not what was asked for, or the build
    fails.
    """
    library, graph, is_typed = target.library, prepared.graph, target.is_strongly_typed
    trt, name = library.module, graph.name
    builder = trt.Builder(library.logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, library.logger)  # owns weights of the network: must live as long
    if not parser.parse(prepared.model.SerializeToString()):
        raise InvalidInputError(
            f"{library.name} {library.version} cannot read {name}.onnx: {messages.reason()};"
            " export the model again, or try another version"
        )
    if prepared.is_half and not is_typed:
        _make_tensors_half(trt, network, graph)
        _keep_layers(trt, network, prepared.kept_nodes)
    _check_tensors(trt, network, graph)
    plugins = _check_plugins(network, prepared)
    share = _half_share(trt, network)
    if prepared.is_half and is_typed:
        _check_convolutions(trt, network, prepared)
    config = builder.create_builder_config()
    _configure(config, target, options)
    if not is_typed:
        _set_precision(trt, config, prepared)
    if monitor is not None:
        config.progress_monitor = monitor
    profile = builder.create_optimization_profile()
    for each in graph.inputs:
        sizes = (options.profile.min, options.profile.opt, options.profile.max)
        profile.set_shape(each.tensor.name, *(each.tensor.at(size.height, size.width) for size in sizes))
    config.add_optimization_profile(profile)
    if timing_cache is not None:
        config.set_timing_cache(config.create_timing_cache(timing_cache), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None or messages.plugin_errors():
        reason = messages.reason()
        memory = any(word in reason.lower() for word in ("memory", "workspace", "tactic", "implementation"))
        hint = "free or allow more device memory (--workspace), or use smaller frames" if memory else "see --verbose"
        raise InvalidInputError(f"{library.name} {library.version} could not build {name}.engine: {reason}; {hint}")
    cache = bytes(config.get_timing_cache().serialize()) if timing_cache is not None else b""
    return BuiltGraph(plan=bytes(plan), half=share, plugins=plugins, timing_cache=cache)


def _network_flags(trt: Any) -> int:
    known = trt.NetworkDefinitionCreationFlag
    return sum(1 << int(getattr(known, name)) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(known, name))


def _layers(network: Any) -> Iterable[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def _tensors(network: Any) -> list[Any]:
    """Inputs and outputs."""
    return [network.get_input(i) for i in range(network.num_inputs)] + [
        network.get_output(i) for i in range(network.num_outputs)
    ]


def _make_tensors_half(trt: Any, network: Any, graph: Graph) -> None:
    for tensor in _tensors(network):
        if graph.tensors[tensor.name].dtype == "float16":
            tensor.dtype = trt.DataType.HALF


def _keep_layers(trt: Any, network: Any, kept_nodes: frozenset[str]) -> None:
    outer = {network.get_output(i).name for i in range(network.num_outputs)}
    for layer in _layers(network):
        if layer.name in kept_nodes and not layer.type.name.startswith("PLUGIN"):
            layer.precision = trt.DataType.FLOAT
            for index in range(layer.num_outputs):
                if layer.get_output(index).name not in outer:  # states, which stay half
                    layer.set_output_type(index, trt.DataType.FLOAT)


def _check_tensors(trt: Any, network: Any, graph: Graph) -> None:
    names = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16", trt.DataType.INT32: "int32"}
    names[trt.DataType.UINT8] = "uint8"
    types = {tensor.name: names.get(tensor.dtype, str(tensor.dtype)) for tensor in _tensors(network)}
    expected = {name: tensor.dtype for name, tensor in graph.tensors.items()}
    if types != expected:
        raise InvalidInputError(
            f"{graph.name}.onnx has the tensors {types}, its description says {expected}: export the model again"
        )


def _check_plugins(network: Any, prepared: PreparedGraph) -> int:
    """How many layers are plugins; raises InvalidInputError if they are not exactly where the graph has custom ops."""
    found = {layer.name for layer in _layers(network) if layer.type.name.startswith("PLUGIN")}
    nodes = plugin_nodes(prepared.model)
    if found != {node.name for node in nodes}:
        raise InvalidInputError(
            f"{prepared.graph.name}.onnx: the plugin {', '.join(sorted({node.op_type for node in nodes}))} should be"
            f" {sorted(node.name for node in nodes)}, the library made it {sorted(found)};"
            " use --no-plugin, and please report this"
        )
    return len(found)


def _half_share(trt: Any, network: Any) -> float:
    kinds = []
    for layer in _layers(network):
        types = {layer.get_output(i).dtype for i in range(layer.num_outputs)}
        if layer.type != trt.LayerType.CONSTANT and types & {trt.DataType.FLOAT, trt.DataType.HALF}:
            kinds.append(trt.DataType.FLOAT not in types)
    return sum(kinds) / max(1, len(kinds))


def _check_convolutions(trt: Any, network: Any, prepared: PreparedGraph) -> None:
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    types = {layer.name: layer.get_output(0).dtype for layer in _layers(network) if layer.type in kinds}
    kept = prepared.kept_nodes
    right = sum(kind == (trt.DataType.FLOAT if name in kept else trt.DataType.HALF) for name, kind in types.items())
    if right < len(types):
        raise InvalidInputError(
            f"{prepared.graph.name}.onnx: only {right} of {len(types)} convolutions have the precision in the network"
            " that they are to have: export the model again"
        )


def _configure(config: Any, target: Target, options: BuildOptions) -> None:
    library, trt = target.library, target.library.module
    config.clear_flag(trt.BuilderFlag.TF32)
    _without_other_libraries(trt, config)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.hardware_compatibility_level != "none":
        name = options.hardware_compatibility_level.replace("-", "_").upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if library.is_rtx:  # its wheel has no lean runtime to put in
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if library.is_rtx:
        config.num_compute_capabilities = len(target.capabilities)
        for index, capability in enumerate(target.capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), index)


def _set_precision(trt: Any, config: Any, prepared: PreparedGraph) -> None:
    """For TensorRT 8.6, whose networks have no types of their own."""
    if prepared.is_half:
        config.set_flag(trt.BuilderFlag.FP16)
        if prepared.kept_nodes:
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    if prepared.has_int8:
        config.set_flag(trt.BuilderFlag.INT8)


def _without_other_libraries(trt: Any, config: Any) -> None:
    """TensorRT 8.6 and 10 take kernels of cuBLAS and cuDNN where they are told to, or find them; an engine with those
    does not load where they are missing. Later ones and TensorRT-RTX know no such sources."""
    sources = getattr(trt, "TacticSource", None)
    others = [getattr(sources, name) for name in ("CUBLAS", "CUBLAS_LT", "CUDNN") if hasattr(sources, name)]
    if others:
        config.set_tactic_sources(config.get_tactic_sources() & ~sum(1 << int(source) for source in others))


def inspect(library: Library, plan: bytes, graph: str) -> tuple[float, int]:
    """Loads an engine on the GPU: share of fp16 among its floating-point layers, bytes of device memory to run it.

    Raises InvalidInputError if it does not load.
    """
    trt = library.module
    runtime = trt.Runtime(library.logger)
    if hasattr(runtime, "engine_host_code_allowed"):
        runtime.engine_host_code_allowed = True  # of a version-compatible engine, built a moment ago
    library.logger.forget()
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise InvalidInputError(
            f"{library.name} {library.version} built {graph}.engine and cannot load it: {library.logger.last_error()}"
        )
    memory = int(getattr(engine, "device_memory_size_v2", 0) or getattr(engine, "device_memory_size", 0))
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return inspected_half_share(text), memory


def inspected_half_share(text: str) -> float:
    """The share of fp16 among the layers with floating-point outputs in an engine inspector's JSON."""
    kinds = []
    for layer in json.loads(text)["Layers"]:
        outputs = layer.get("Outputs", []) if isinstance(layer, dict) else []
        formats = " ".join(str(output.get("Format/Datatype", "")) for output in outputs).lower()
        if any(word in formats for word in ("fp16", "half", "fp32", "float")):
            kinds.append("fp32" not in formats and "float" not in formats)
    return sum(kinds) / max(1, len(kinds))
