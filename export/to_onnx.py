"""Exports a network as a bundle: `first.onnx` and `step.onnx` in one directory. Imports torch and onnx.

The graphs hold everything between uint8 frames and uint8 frames: a Cast first, layout and scaling, the network, scaling
and rounding to nearest (half to even), a Cast last. The motion compensation is one custom node with a model-local
function beside it, so any ONNX runtime executes the graph and TensorRT can replace the node by the plugin.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from mtu.core.errors import InvalidInputError
from mtu.core.files import check_target, publish, temporary_beside, write_through
from mtu.core.interface import GRAPHS, SIZE_MULTIPLE, GraphName, Interface
from mtu.export.graph_file import to_bytes
from mtu.export.precision import check_layers, read_layers, to_fp16
from mtu.export.verify import verify
from mtu.models.checkpoint import Checkpoint, random_checkpoint
from mtu.models.mtu.network import Network
from mtu.plugins.correlation_argmax_warp.onnx_function import function_proto
from mtu.plugins.op import DOMAIN
from mtu.runtime.bundle import Bundle, open_bundle

OPSET = 18
"""The newest opset that TensorRT 8.6 to 11 and TensorRT-RTX all read."""
TRACED_SIZE = (32, 48)
"""Height and width of the example frames; nothing of them stays in the graph."""


class FrameGraph(nn.Module):
    """One of the two graphs, from uint8 window and states to the outputs of the interface, in its order."""

    def __init__(self, network: Network, graph: GraphName) -> None:
        super().__init__()
        self.network = network
        self.graph = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Takes and gives the tensors of `Interface.inputs(graph)` and `Interface.outputs`."""
        frames = [frame.float().permute(0, 3, 1, 2) / 255 for frame in inputs[:5]]
        if self.graph == "first":
            restored, states, displacement = self.network.first(frames)
        else:
            restored, states, displacement = self.network.step(frames, inputs[5:])
        output = (restored * 255).round().permute(0, 2, 3, 1).to(torch.uint8)
        return (output, *states) if displacement is None else (output, *states, displacement)


def export_graph(checkpoint: Checkpoint, interface: Interface, graph: GraphName) -> onnx.ModelProto:
    """The fp32 ONNX model of one graph, dynamic in H and W, with the op's function.

    Traced at one size, which is three times as fast as with symbolic sizes and gives the same nodes: none of them holds
    a size. `_name_dimensions` makes sure of that, and `verify` runs the graph at another size. Traced with random
    weights, because the exporter leaves out zero biases and merges equal tensors: a bundle holds every weight that
    inference uses, under its checkpoint name.
    """
    specs = interface.inputs(graph)
    example = tuple(torch.zeros(spec.at(*TRACED_SIZE), dtype=getattr(torch, spec.dtype)) for spec in specs)
    with _quiet_exporter():
        program = torch.onnx.export(
            FrameGraph(random_checkpoint(checkpoint.config).network(), graph).eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[spec.name for spec in specs],
            output_names=[spec.name for spec in interface.outputs],
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _rename(model)
    _fill(model, checkpoint)
    _name_dimensions(model, interface)
    if interface.has_motion:
        model.functions.append(function_proto(interface.max_displacement, interface.pool_size, SIZE_MULTIPLE))
    return model


def export_bundle(
    checkpoint: Checkpoint,
    directory: Path,
    *,
    precision: str = "fp32",
    keep_fp32: Path | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Writes the bundle of a checkpoint to `directory`, which gets its name when both graphs have been verified.

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
    check_target(directory, "a bundle", {"first.onnx", "step.onnx"}, overwrite)
    interface = Interface(checkpoint.config, "float16" if precision == "fp16" else "float32", checkpoint.digest)
    with temporary_beside(directory) as temporary:
        for graph in GRAPHS:
            say(f"exporting {graph}.onnx")
            model = export_graph(checkpoint, Interface(checkpoint.config), graph)
            if precision == "fp16":
                to_fp16(model, keep)
            write_through(temporary / f"{graph}.onnx", to_bytes(model, interface, graph))
        say("checking both graphs against torch")
        verify(open_bundle(temporary), checkpoint.network())
        publish(temporary, directory, overwrite)
    return open_bundle(directory)


def _rename(model: onnx.ModelProto) -> None:
    """Gives the weights their checkpoint names and the custom nodes telling ones, so that readers find them again."""
    prefix = "network."
    for index, node in enumerate(node for node in model.graph.node if node.domain == DOMAIN):
        node.name = f"motion_compensation_{index}"
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.removeprefix(prefix)
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.removeprefix(prefix)


def _fill(model: onnx.ModelProto, checkpoint: Checkpoint) -> None:
    """Replaces the weights that the graph was traced with by those of the checkpoint."""
    for tensor in model.graph.initializer:
        if tensor.name in checkpoint.weights:
            tensor.CopyFrom(numpy_helper.from_array(checkpoint.weights[tensor.name].numpy(), tensor.name))


def _name_dimensions(model: onnx.ModelProto, interface: Interface) -> None:
    """Makes the graph dynamic: inputs and outputs get the interface's names for sizes, what was traced goes."""
    sized = {node.op_type for node in model.graph.node} & {
        "Reshape",
        "Expand",
        "Resize",
        "Slice",
        "Pad",
        "ConstantOfShape",
    }
    assert not sized, f"{sized} may hold the traced size"
    del model.graph.value_info[:]
    specs = {spec.name: spec for spec in (*interface.inputs("step"), *interface.outputs)}
    for value in (*model.graph.input, *model.graph.output):
        for dim, wanted in zip(value.type.tensor_type.shape.dim, specs[value.name].shape, strict=True):
            if isinstance(wanted, str):
                dim.dim_param = wanted


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns of torch's own future and of torchvision's absence, which say nothing to a user."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
