"""Exports a network as a bundle: a directory with `bundle.json` and the graphs of its family. Imports torch and onnx.

The graphs hold everything between uint8 frames and uint8 frames: layout and scaling, the network, scaling and rounding
to nearest (half to even). A custom op is one node with a model-local function beside it, so any ONNX runtime executes
the graph and TensorRT can replace the node by the plugin.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.nn.modules.batchnorm import _BatchNorm

from mtu.core.errors import InvalidInputError
from mtu.core.files import publish, temporary_beside
from mtu.core.interface import STREAMS, Graph, Interface, Tensor
from mtu.export.bundle_files import check_bundle_target, save_bundle
from mtu.export.precision import check_layers, in_fp16, read_layers, to_fp16
from mtu.export.verify import takes_streams, verify
from mtu.export.working_memory import working_bytes
from mtu.models.checkpoint import Checkpoint, random_checkpoint
from mtu.models.families import errors_of, find_family
from mtu.plugins.nodes import op_nodes
from mtu.plugins.onnx_body import OPSET
from mtu.plugins.op import find_op
from mtu.runtime.bundle import Bundle, open_bundle

TRACED_SIZE = (32, 48)
"""Height and width of the example frames, or the model's smallest; nothing of them stays in the graph."""
TRACED_STREAMS = 3
"""So many streams are traced of a model that is batched; neither 1 nor what `verify` runs."""
FOR_EVER = 2**31 - 1
"""An end of a slice that says "to the last"; the exporter writes this or more."""


def export_graph(checkpoint: Checkpoint, graph: Graph, interface: Interface) -> onnx.ModelProto:
    """The fp32 ONNX model of one graph, dynamic in H and W, and in axis 0 for an `interface` that is batched, with the
    functions of its custom ops.

    Traced at one size, which is three times as fast as with symbolic sizes and gives the same nodes, where none of them
    holds a size; else with symbolic ones. `verify` runs the graph at another size. Traced with random weights, because
    the exporter leaves out zero biases and merges equal tensors: a bundle holds every weight that inference uses, under
    its checkpoint name.
    """
    traced = random_checkpoint(checkpoint.family, checkpoint.settings).network()
    modules = find_family(checkpoint.family).graphs(traced)
    size = interface.size.padded(*TRACED_SIZE)
    one, example = (
        tuple(
            torch.zeros(each.tensor.at(*size, streams), dtype=getattr(torch, each.tensor.dtype))
            for each in graph.inputs
        )
        for streams in (1, TRACED_STREAMS if interface.batched else 1)
    )
    with errors_of(checkpoint.family):
        if set(modules) != {each.name for each in interface.graphs}:
            names = ", ".join(each.name for each in interface.graphs)
            raise InvalidInputError(f"graphs gives {', '.join(modules)}, the description has {names}")
        if normed := [name for name, each in traced.named_modules() if isinstance(each, _BatchNorm)]:
            raise InvalidInputError(
                f"the network has batch normalisation ({normed[0]}), which the exporter mixes with other layers: fold"
                " it into the convolution before it, torch.nn.utils.fusion.fuse_conv_bn_eval"
            )
        module = modules[graph.name].eval()
        _check_outputs(module, one, graph, size)
        model = _trace(module, example, graph, None)
        if may_hold_size(model):
            model = _trace(module, example, graph, _symbolic(interface, graph))
    _rename(model, _names(module, traced))
    _fill(model, checkpoint)
    _name_dimensions(model, interface, graph)
    for name, attributes in ops_of(model).items():
        op = find_op(name)
        model.functions.append(op.part(op.function)(**attributes))
    return model


@torch.inference_mode()
def _check_outputs(module: torch.nn.Module, example: tuple[Any, ...], graph: Graph, size: tuple[int, int]) -> None:
    """Raises InvalidInputError unless a graph's module gives what the description says for padded frames of `size`."""
    given = module(*example)
    given = given if isinstance(given, tuple) else (given,)
    if others := [type(value).__name__ for value in given if not isinstance(value, torch.Tensor)]:
        raise InvalidInputError(f"graph {graph.name} gives a {others[0]}: it gives a tensor, or a tuple of tensors")
    described = [(each.tensor.name, each.tensor.dtype, each.tensor.at(*size)) for each in graph.outputs]
    if len(given) != len(described):
        raise InvalidInputError(f"graph {graph.name} gives {len(given)} outputs, the description has {len(described)}")
    for value, (name, dtype, shape) in zip(given, described, strict=True):
        found = (str(value.dtype).removeprefix("torch."), tuple(value.shape))
        if found != (dtype, shape):
            raise InvalidInputError(
                f"graph {graph.name} gives {name} as {found[0]} {list(found[1])} for a frame of {size[1]}x{size[0]},"
                f" the description says {dtype} {list(shape)}"
            )


def _trace(module: torch.nn.Module, example: tuple[Any, ...], graph: Graph, dynamic: Any) -> onnx.ModelProto:
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[each.tensor.name for each in graph.inputs],
            output_names=[each.tensor.name for each in graph.outputs],
            dynamic_shapes=dynamic,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def may_hold_size(model: onnx.ModelProto) -> bool:
    """Whether the size that was traced may be a constant of a node."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def may_hold(node: onnx.NodeProto) -> bool:
        if node.op_type == "Resize":  # by scales it holds none
            return len(node.input) > 3
        if node.op_type == "Slice":  # from the first to the last, by whatever steps, it holds none
            starts, ends = (constants.get(name, np.array(1)) for name in node.input[1:3])
            return not ((starts == 0).all() and (ends >= FOR_EVER).all())
        if node.op_type == "Pad":  # nor by the same in front and behind, as layers do; what fits a size does it behind
            pads = constants.get(node.input[1], np.arange(2))
            return not (pads[: len(pads) // 2] == pads[len(pads) // 2 :]).all()
        return node.op_type in ("Reshape", "Expand", "ConstantOfShape", "Tile")

    return any(may_hold(node) for node in model.graph.node)


def _symbolic(interface: Interface, graph: Graph) -> Any:
    """torch.export's symbols for the sizes of the inputs: multiples of those of the size rule."""
    unit = interface.size.multiple
    base = {axis: torch.export.Dim(axis, min=2) for axis in ("h", "w")}
    streams = torch.export.Dim("n", min=2)
    shapes = []
    for each in graph.inputs:
        named: dict[int, Any] = {0: streams} if interface.batched else {}
        for index, size in enumerate(each.tensor.shape):
            if isinstance(size, str):
                times, axis = Tensor("", "", (size,)).at(unit, unit)[0], base["h" if "H" in size else "w"]
                named[index] = times * axis if times > 1 else axis
        shapes.append(named)
    return tuple(shapes)


def ops_of(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """The custom ops in a graph, with their attributes. Raises InvalidInputError where an op has two sets of them:
    a function is found by its name, so a model can have one."""
    found: dict[str, dict[str, int]] = {}
    for node, op in op_nodes(model):
        given = {each.name: each.i for each in node.attribute if each.name in op.attributes}
        attributes = {**op.attributes, **given}
        if found.setdefault(node.op_type, attributes) != attributes:
            raise InvalidInputError(f"the network uses {node.op_type} with two sets of attributes: use one")
    return found


def export_bundle(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    precision: str = "fp32",
    keep_fp32: Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Writes the bundle of a checkpoint to `directory`, which gets its name when all graphs have been verified.

    `precision` "fp16" makes weights, states and arithmetic fp16 (matching stays in fp32 inside the op), but for the
    layers that the file `keep_fp32` names. `say` is called with one line for each stage. Raises OutputError if
    `directory` exists (without `overwrite`) or cannot be written, MissingFileError or InvalidInputError for a file of
    layers that cannot be used, InvalidInputError if a graph does not give what the network gives.
    """
    if keep_fp32 is not None and precision != "fp16":
        raise InvalidInputError(f"--keep-fp32 is for --precision fp16: with {precision} every layer is fp32")
    keep = frozenset[str]() if keep_fp32 is None else read_layers(keep_fp32)
    check_layers(keep, (name.removesuffix(".weight") for name in checkpoint.weights if name.endswith(".weight")))
    # Replacing a directory moves it: neither "." nor a link can be moved.
    directory = directory.resolve()
    check_bundle_target(directory, overwrite)
    described = checkpoint.describe()
    batched = takes_streams(checkpoint)
    with temporary_beside(directory) as temporary:
        if batched:
            try:
                _write(checkpoint, replace(described, batched=True), temporary, precision, keep, say)
            except InvalidInputError:  # what is wrong with one stream too is told below
                batched = False
                say("this fails with several streams at once: again with one")
        if not batched:
            _write(checkpoint, described, temporary, precision, keep, say)
            say("note: the network takes one stream at a time, so several are not computed together")
        publish(temporary, directory, overwrite)
    return open_bundle(directory)


def _write(
    checkpoint: Checkpoint,
    described: Interface,
    temporary: Path,
    precision: str,
    keep: frozenset[str],
    say: Callable[[str], None],
) -> None:
    """The files of a bundle, and their proof."""
    models: dict[str, onnx.ModelProto] = {}
    for graph in described.graphs:
        say(f"exporting {graph.name}.onnx")
        models[graph.name] = export_graph(checkpoint, graph, described)
    interface = replace(
        described,
        ops={
            name: {"version": find_op(name).version, **attributes}
            for model in models.values()
            for name, attributes in ops_of(model).items()
        },
        working_bytes=max(working_bytes(models[graph.name], described, graph) for graph in described.graphs),
    )
    if precision == "fp16":
        for graph in described.graphs:
            to_fp16(models[graph.name], keep)
        interface = in_fp16(interface)
    save_bundle(temporary, interface, models)
    say(f"checking {'both graphs' if len(models) == 2 else 'the graphs'} against torch")
    largest = verify(open_bundle(temporary), checkpoint)
    if any(largest.values()):
        differences = ", ".join(f"{name} {value:.2g}" for name, value in largest.items())
        say(f"note: two streams at once differ from each alone by up to: {differences}")


def _names(module: torch.nn.Module, network: torch.nn.Module) -> Mapping[str, str]:
    """What the exporter calls the weights of a graph's module, and their names in the checkpoint."""
    checkpoint = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    named = module.state_dict(keep_vars=True)
    return {name: checkpoint[id(tensor)] for name, tensor in named.items() if id(tensor) in checkpoint}


def _rename(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Gives the weights their checkpoint names and the custom nodes telling ones, so that readers find them again."""
    for index, (node, _) in enumerate(op_nodes(model)):
        node.name = f"{node.op_type}_{index}"
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)


def _fill(model: onnx.ModelProto, checkpoint: Checkpoint) -> None:
    """Replaces the weights that the graph was traced with by those of the checkpoint."""
    for tensor in model.graph.initializer:
        if tensor.name in checkpoint.weights:
            tensor.CopyFrom(numpy_helper.from_array(checkpoint.weights[tensor.name].numpy(), tensor.name))


def _name_dimensions(model: onnx.ModelProto, interface: Interface, graph: Graph) -> None:
    """Makes the graph dynamic: inputs and outputs get the description's names for sizes, what was traced goes."""
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of the machine that exported
    for value in (*model.graph.input, *model.graph.output):
        found: Any = value.type.tensor_type
        shape = graph.tensors[value.name].shape
        for dim, size in zip(found.shape.dim, (STREAMS, *shape[1:]) if interface.batched else shape, strict=True):
            if isinstance(size, str):
                dim.dim_param = size


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of torch's own future and of torchvision's absence, and shows what it failed on, node by node,
    which says nothing to a user."""
    names = ("torch.onnx._internal.exporter._registration", "torch.fx.experimental.symbolic_shapes")
    loggers = {logger: logger.level for logger in map(logging.getLogger, names)}
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        for logger, level in loggers.items():
            logger.setLevel(level)
