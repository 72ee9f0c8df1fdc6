"""One graph of a bundle becomes one serialised engine. Imports onnx; the library is an argument.

Everything that differs between TensorRT 8.6, 10, 11 and TensorRT-RTX is in here, decided by what the library has rather
than by its number:

- The precision is in the graph, and the network strongly typed, wherever the library can be told so. TensorRT 8.6
  cannot: there the fp32 graph is built with the FP16 flag and the states are made half at the border. What is to stay
  fp32 is said layer by layer, and the builder told to obey.
- With the plugin, the graph goes in without the op's function: TensorRT 10.0 to 10.6 would take the function instead,
  and later versions would where the plugin is missing, without a word. Without the plugin the function is inlined: 8.6
  knows no functions, and a plugin that the process has registered cannot get in.
- TF32 is off: an fp32 engine is to be fp32, and the op's function matches in fp32.
- Kernels of cuBLAS and cuDNN are off where the library could take some: an engine must not need more than it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, inliner, shape_inference

from mtu.core.errors import InvalidInputError
from mtu.core.interface import GRAPHS, GraphName, Interface
from mtu.export.engine import BuildOptions
from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.op import DOMAIN, OPS
from mtu.runtime.bundle import Bundle
from mtu.runtime.engine import Sizes
from mtu.runtime.tensorrt_library import Library, one_line


@dataclass(frozen=True)
class BuiltGraph:
    """One serialised engine and what was seen on the way."""

    plan: bytes
    layers: int
    """Of the network that was built."""
    half: float
    """Share of fp16 among the layers with floating-point outputs."""
    plugins: int
    """Plugin layers."""
    timing_cache: bytes
    """Empty where the library has none."""


def load_graphs(bundle: Bundle) -> tuple[Interface, dict[GraphName, onnx.ModelProto]]:
    """The two models of a bundle; raises InvalidInputError if one is broken or they are of different models."""
    models: dict[GraphName, onnx.ModelProto] = {}
    interfaces = []
    for graph in GRAPHS:
        path = bundle.graph(graph)
        try:
            model = onnx.load_model_from_string(path.read_bytes())
        except (DecodeError, ValueError):
            raise InvalidInputError(f"{path} is no ONNX file, or is damaged: export the model again") from None
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        interfaces.append(Interface.from_metadata(metadata, graph, str(path)))
        models[graph] = model
    if interfaces[0] != interfaces[1]:
        raise InvalidInputError(
            f"model {bundle.directory}: first.onnx and step.onnx are of different models; export it again"
        )
    return interfaces[0], models


def prepare(model: onnx.ModelProto, *, plugin: bool) -> onnx.ModelProto:
    """The graph as the library is to see it: with bare plugin nodes, or without any."""
    if not plugin:
        return inliner.inline_local_functions(model) if model.functions else model
    del model.functions[:]
    return model


def plugin_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of the custom op."""
    return [node for node in model.graph.node if node.domain == DOMAIN and node.op_type in OPS]


def estimate_memory(model: onnx.ModelProto, interface: Interface, graph: GraphName, sizes: Sizes) -> int:
    """Bytes that weights, inputs, outputs and the tensors alive at one time take, if no layers are fused.

    `model` still has the op's function, or has it inlined.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    specs = {spec.name: spec for spec in (*interface.inputs(graph), *interface.outputs)}
    for value in (*fixed.graph.input, *fixed.graph.output):
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, specs[value.name].at(sizes.height, sizes.width), strict=True):
            dim.dim_value = size
    known = {}
    found = shape_inference.infer_shapes(fixed).graph
    for value in (*found.value_info, *found.input, *found.output):
        tensor = value.type.tensor_type
        item = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize if tensor.elem_type else 0
        known[value.name] = int(np.prod([dim.dim_value for dim in tensor.shape.dim], dtype=np.float64)) * item
    last_use = {name: index for index, node in enumerate(found.node) for name in node.input}
    outer = {value.name for value in (*found.input, *found.output)}
    alive = peak = 0
    for index, node in enumerate(found.node):
        alive += sum(known.get(name, 0) for name in node.output if name not in outer)
        peak = max(peak, alive)
        ended = {name for name in (*node.input, *node.output) if last_use.get(name, index) == index}
        produced = ended - outer - {tensor.name for tensor in found.initializer}
        alive -= sum(known.get(name, 0) for name in produced)
    weights = sum(len(tensor.raw_data) for tensor in found.initializer)
    return weights + sum(known[name] for name in outer) + peak


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
    library: Library,
    model: onnx.ModelProto,
    interface: Interface,
    graph: GraphName,
    options: BuildOptions,
    *,
    kept_nodes: frozenset[str],
    capabilities: Sequence[str],
    timing_cache: bytes | None,
    monitor: Any,
    messages: Messages,
) -> BuiltGraph:
    """Builds one engine. `model` is from `prepare`, `interface` the engine's, `monitor` an IProgressMonitor or None.

    `kept_nodes` are the names of the nodes that compute in fp32 in an fp16 engine, by `precision.fp32_nodes`.
    Raises InvalidInputError if the library cannot read the graph, the network is not what was asked for, or the build
    fails.
    """
    trt = library.module
    builder = trt.Builder(library.logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, library.logger)  # owns weights of the network: must live as long
    if not parser.parse(model.SerializeToString()):
        raise InvalidInputError(
            f"{library.name} {library.version} cannot read {graph}.onnx: {messages.reason()};"
            " export the model again, or try another version"
        )
    half = interface.state_dtype == "float16"
    if half and not _strongly_typed(trt):
        _half_states(trt, network, interface)
        _keep_layers(trt, network, kept_nodes)
    _check_tensors(trt, network, interface, graph)
    plugins = _check_plugins(network, model, graph)
    share = _half_share(trt, network)
    if half and _strongly_typed(trt):
        _check_convolutions(trt, network, kept_nodes, graph)
    config = builder.create_builder_config()
    int8, keeps = bool(interface.int8_layers), bool(kept_nodes)
    _configure(library, config, options, half=half, int8=int8, keeps=keeps, capabilities=capabilities)
    if monitor is not None:
        config.progress_monitor = monitor
    profile = builder.create_optimization_profile()
    for spec in interface.inputs(graph):
        sizes = (options.profile.min, options.profile.opt, options.profile.max)
        profile.set_shape(spec.name, *(spec.at(size.height, size.width) for size in sizes))
    config.add_optimization_profile(profile)
    if timing_cache is not None:
        config.set_timing_cache(config.create_timing_cache(timing_cache), False)
    plan = builder.build_serialized_network(network, config)
    if plan is None or messages.plugin_errors():
        reason = messages.reason()
        memory = any(word in reason.lower() for word in ("memory", "workspace", "tactic", "implementation"))
        hint = "free or allow more device memory (--workspace), or use smaller frames" if memory else "see --verbose"
        raise InvalidInputError(f"{library.name} {library.version} could not build {graph}.engine: {reason}; {hint}")
    cache = bytes(config.get_timing_cache().serialize()) if timing_cache is not None else b""
    return BuiltGraph(bytes(plan), network.num_layers, share, plugins, cache)


def _network_flags(trt: Any) -> int:
    known = trt.NetworkDefinitionCreationFlag
    return sum(1 << int(getattr(known, name)) for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(known, name))


def _strongly_typed(trt: Any) -> bool:
    """Whether the graph's own types are what is built."""
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _layers(network: Any) -> Iterable[Any]:
    return (network.get_layer(index) for index in range(network.num_layers))


def _half_states(trt: Any, network: Any, interface: Interface) -> None:
    names = {name for state in interface.states for name in (state.input.name, state.output.name)}
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    for tensor in (*tensors, *(network.get_output(i) for i in range(network.num_outputs))):
        if tensor.name in names:
            tensor.dtype = trt.DataType.HALF


def _keep_layers(trt: Any, network: Any, kept_nodes: frozenset[str]) -> None:
    outer = {network.get_output(i).name for i in range(network.num_outputs)}
    for layer in _layers(network):
        if layer.name in kept_nodes and not layer.type.name.startswith("PLUGIN"):
            layer.precision = trt.DataType.FLOAT
            for index in range(layer.num_outputs):
                if layer.get_output(index).name not in outer:  # states, which stay half
                    layer.set_output_type(index, trt.DataType.FLOAT)


def _check_tensors(trt: Any, network: Any, interface: Interface, graph: GraphName) -> None:
    names = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16", trt.DataType.INT32: "int32"}
    names[trt.DataType.UINT8] = "uint8"
    found = [network.get_input(i) for i in range(network.num_inputs)]
    found += [network.get_output(i) for i in range(network.num_outputs)]
    types = {tensor.name: names.get(tensor.dtype, str(tensor.dtype)) for tensor in found}
    expected = {spec.name: spec.dtype for spec in (*interface.inputs(graph), *interface.outputs)}
    if types != expected:
        raise InvalidInputError(
            f"{graph}.onnx has the tensors {types}, its metadata says {expected}: export the model again"
        )


def _check_plugins(network: Any, model: onnx.ModelProto, graph: GraphName) -> int:
    """How many layers are the plugin; raises InvalidInputError if it is not exactly where the graph has the op."""
    found = {layer.name for layer in _layers(network) if layer.type.name.startswith("PLUGIN")}
    expected = {node.name for node in plugin_nodes(model)}
    if found != expected:
        raise InvalidInputError(
            f"{graph}.onnx: the plugin {OP.name} should be {sorted(expected)}, the library made it {sorted(found)};"
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


def _check_convolutions(trt: Any, network: Any, kept_nodes: frozenset[str], graph: GraphName) -> None:
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    types = {layer.name: layer.get_output(0).dtype for layer in _layers(network) if layer.type in kinds}
    wanted = {name: trt.DataType.FLOAT if name in kept_nodes else trt.DataType.HALF for name in types}
    if types != wanted or not types:
        right = sum(types[name] == wanted[name] for name in types)
        raise InvalidInputError(
            f"{graph}.onnx: only {right} of {len(types)} convolutions have the precision in the network that they are"
            " to have: export the model again"
        )


def _configure(
    library: Library,
    config: Any,
    options: BuildOptions,
    *,
    half: bool,
    int8: bool,
    keeps: bool,
    capabilities: Sequence[str],
) -> None:
    trt = library.module
    config.clear_flag(trt.BuilderFlag.TF32)
    _without_other_libraries(trt, config)
    if half and not _strongly_typed(trt):
        config.set_flag(trt.BuilderFlag.FP16)
        if keeps:
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    if int8 and not _strongly_typed(trt):
        config.set_flag(trt.BuilderFlag.INT8)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the inspector
    if options.builder_optimization_level is not None:
        config.builder_optimization_level = options.builder_optimization_level
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace << 20)
    if options.hardware_compatibility != "none":
        name = options.hardware_compatibility.replace("-", "_").upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, name)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if library.is_rtx:  # its wheel has no lean runtime to put in
            config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if library.is_rtx:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, "SM" + capability.replace(".", "")), index)


def _without_other_libraries(trt: Any, config: Any) -> None:
    """TensorRT 8.6 and 10 take kernels of cuBLAS and cuDNN where they are told to, or find them; an engine with those
    does not load where they are missing. Later ones and TensorRT-RTX know no such sources."""
    sources = getattr(trt, "TacticSource", None)
    others = [getattr(sources, name) for name in ("CUBLAS", "CUBLAS_LT", "CUDNN") if hasattr(sources, name)]
    if others:
        config.set_tactic_sources(config.get_tactic_sources() & ~sum(1 << int(source) for source in others))


def inspect(library: Library, plan: bytes, graph: GraphName) -> tuple[float, int]:
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
