"""What OpenVINO computes in where it is not fp32: bf16, what of a graph it spares, and when it may be taken unasked.

Imports numpy; openvino and onnx are handed in.

Note [bf16]
    bf16 has the range of fp32 and 8 bits of its 24. A processor with AMX multiplies matrices of it several times as
    fast. Sums are kept in fp32. A custom op that gives an index (the matching) stays in fp32, or equal costs would be
    told apart by rounding, and different ones not.

Note [the proof]
    What bf16 costs depends on the weights, so `--precision auto` tries: it restores a short made clip in fp32 and in
    bf16, each with its own states, and takes bf16 if every frame is as near as `NEAR`. docs/accuracy.md has what real
    clips of such models give. The answer is kept in the cache directory.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mtu.core.cache import keep, read_kept
from mtu.core.errors import InvalidInputError
from mtu.core.processor import bf16_units
from mtu.core.window import Picture
from mtu.plugins.nodes import op_nodes
from mtu.runtime.backends import Backend

if TYPE_CHECKING:
    from mtu.runtime.backends.openvino_models import Compiler
    from mtu.runtime.session import Restored

NEAR = 53.0
"""dB, PSNR of bf16 to fp32 in the worst frame of the clip of the proof: typical frames of real clips are as near."""
FRAMES, HEIGHT, WIDTH = 16, 96, 128
"""Of that clip; the sides are rounded up to what the model takes."""
_KEY = "DisablePrecisionConversion_0"
_CARRIER = """<?xml version="1.0"?><net name="carrier" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1" element_type="f32"/>
<output><port id="0" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="1" name="marked" type="ReLU" version="opset1">
<rt_info><attribute name="DisablePrecisionConversion" version="0" value="dynamic:f16,bf16"/></rt_info>
<input><port id="0" precision="FP32"><dim>1</dim></port></input>
<output><port id="1" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="2" name="y" type="Result" version="opset1">
<input><port id="0" precision="FP32"><dim>1</dim></port></input></layer>
</layers><edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/></edges></net>"""
"""A model in OpenVINO's own format with the attribute of a node that stays in its type, which Python cannot make."""


def keep_indices_fp32(core: Any, model: Any, proto: onnx.ModelProto) -> None:
    """Marks what the indices in custom ops are computed by, so that it stays fp32 under a hint for bf16.

    `proto` is the graph before its functions were inlined, `model` the openvino.Model of it after. Raises
    InvalidInputError where OpenVINO does not know the mark.
    """
    ops = [node for node, _ in op_nodes(proto)]
    (carrier,) = (node for node in core.read_model(_CARRIER.encode(), b"").get_ops() if node.get_type_name() == "Relu")
    info = carrier.get_rt_info()
    if ops and _KEY not in info:
        raise InvalidInputError(
            "--precision bf16: this version of openvino cannot keep the matching in fp32: pip install -U"
            ' "mtu-trt[openvino]", or leave it out'
        )
    nodes = [node for node in model.get_ops() if node.get_type_name() != "Result"]  # which has its input's names
    made_by = {name: node for node in nodes for each in node.outputs() for name in each.get_names()}
    for node in ops:
        ends = {made_by[name].get_friendly_name() for name in node.input}
        # OpenVINO has dropped an output that nothing reads; the matching behind it still says what is fetched.
        inside = _behind([made_by[name] for name in node.output if name in made_by], ends)
        for found in _behind([each for each in inside if _is_index(each)], ends):
            found.set_rt_info(info[_KEY], _KEY)


def _behind(nodes: Sequence[Any], ends: Iterable[str]) -> list[Any]:
    """Nodes, and all that the values come from that they are computed by, up to the nodes named in `ends`."""
    found, seen, todo = [], {*ends}, [*nodes]
    while todo:
        node = todo.pop()
        if node.get_friendly_name() not in seen and node.get_type_name() not in ("Parameter", "Constant"):
            seen.add(node.get_friendly_name())
            found.append(node)
            if node.get_type_name() != "ShapeOf":
                todo += [value.get_node() for value in node.input_values()]
    return found


def _is_index(node: Any) -> bool:
    return any(each.get_element_type().is_integral() for each in node.outputs())


def made_clip(height: int, width: int) -> Iterator[Picture]:
    """The clip of the proof: texture with the spectrum of photographs that moves, blurred along its motion."""
    random = np.random.default_rng(0)
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    spectrum = np.fft.fft2(random.standard_normal((3, height, width))) / np.hypot(
        np.hypot(y, x), 1 / max(height, width)
    )
    texture = np.real(np.fft.ifft2(spectrum))
    texture = 128 + 48 * (texture - texture.mean()) / texture.std()
    shown = texture.clip(0, 255).transpose(1, 2, 0)
    for number in range(FRAMES):
        steps = [np.roll(shown, (2 * number + step // 2, 5 * number + step), (0, 1)) for step in range(5)]
        yield np.ascontiguousarray(np.mean(steps, axis=0).round().astype(np.uint8))


def choose_precision(compiler: Compiler, opened: Callable[[str, tuple[int, int]], Backend]) -> tuple[str, str]:
    """f32 or bf16 for the model of `compiler`, whose precision is f32, and why, in words. See Note [the proof].

    `opened` gives the backend for a precision and a size.
    """
    if compiler.target.device != "CPU" or bf16_units() != "AMX":
        return (
            "f32",
            "fp32, for bf16 is taken on a processor with AMX alone, and none is found (Linux alone says)",
        )
    try:
        nearness = _nearness(compiler, opened)
    except InvalidInputError as error:
        return "f32", f"fp32 ({error})"
    measured = f"a made clip is {nearness:.1f} dB from fp32 in its worst frame, and {NEAR:.0f} are asked for"
    return ("bf16", f"bf16 ({measured})") if nearness >= NEAR else ("f32", f"fp32 (in bf16 {measured})")


def _nearness(compiler: Compiler, opened: Callable[[str, tuple[int, int]], Backend]) -> float:
    """PSNR of bf16 to fp32 in the worst frame of the made clip, in dB; 99 where the pictures are equal."""
    from mtu.runtime.session import Session

    interface = compiler.bundle.interface
    size = interface.size.padded(HEIGHT, WIDTH)
    file = compiler.kept("bf16", [graph.name for graph in interface.graphs], *size)
    with contextlib.suppress(TypeError, ValueError):
        return float(json.loads(read_kept(file) or b""))
    clips: list[list[Restored]] = []
    for precision in "f32", "bf16":
        with contextlib.closing(opened(precision, size)) as backend:
            session = Session(backend, scene_threshold=None)
            moments = (dict.fromkeys(interface.streams, frame) for frame in made_clip(*size))
            clips.append([each for moment in moments for each in session.push(moment)] + session.flush())
    worst = max(_error(a, b) for a, b in zip(*clips, strict=True))
    nearness = round(min(99.0, -10 * math.log10(max(worst, 1e-12))), 2)
    keep(file, json.dumps(nearness).encode(), "what bf16 costs")
    return nearness


def _error(a: Restored, b: Restored) -> float:
    """Mean square, where white is 1."""
    if a.picture is not None and b.picture is not None:
        return float(np.square((a.picture.astype(np.float32) - b.picture) / 255).mean())
    assert a.map is not None and b.map is not None, "every model gives a picture or a map"
    return float(np.square(a.map.astype(np.float32) - b.map).mean())
