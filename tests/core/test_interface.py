"""The description of a model: what it says of itself, JSON and back, what contradicts itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mtu.core.errors import InvalidInputError
from mtu.core.interface import (
    Frame,
    Graph,
    Input,
    Interface,
    Output,
    Size,
    State,
    Tensor,
    Unit,
)
from mtu.models import mimo_unet, mtu
from mtu.models.mtu import PRESETS
from mtu.runtime.bundle import check_metadata, metadata

FRAME = (1, "H", "W", 3)
MTU2 = mtu.describe(PRESETS["mtu2"])


def frame(name: str, offset: int = 0) -> Input:
    return Input(Tensor(name, "uint8", FRAME), Frame("image", offset))


def state(name: str) -> Input:
    return Input(Tensor(f"{name}_in", "float32", (1, 4, "H/2", "W/2")), State(name))


A, B = (Output(Tensor(name, "float32", (1, 4, "H/2", "W/2")), "state") for name in "ab")
LARGE = Output(Tensor("large", "uint8", (1, "2*H", "2*W", 3)), "picture")
MASK = Output(Tensor("mask", "float16", (1, "3*H/2", "W")), "map", unit=Unit("share", 2.5, -0.5))
OUTPUTS = (LARGE, A, MASK, B)
OTHER = Interface(
    family="other",
    variant="for this test",
    settings={"widths": [1, 2], "name": "x"},
    graphs=(
        Graph("one_state", (frame("now"), frame("far", 3), state("a")), OUTPUTS),
        Graph("none", (frame("now"), frame("before", -4)), OUTPUTS),
        Graph("two_states", (state("b"), frame("now"), state("a")), OUTPUTS),
    ),
    size=Size(2, 6, 5),
    scale=2,
    weights="ab" * 32,
    precision="fp16",
    int8_layers=("inner.0", "out"),
    ops={"SomeOp": {"version": 1, "radius": 3}},
    working_bytes=1234,
)
KINDS = {"mtu2": MTU2, "mtu1": mtu.describe(PRESETS["mtu1"]), "mimo": mimo_unet.describe({"blocks": 1, "channels": 4})}
KINDS["other"] = OTHER


def test_names_and_shapes_of_mtu2_are_those_of_the_contract():
    assert [(each.tensor.name, each.tensor.dtype, each.tensor.at(8, 12)) for each in MTU2.graph("step").inputs] == [
        ("frame_prev2", "uint8", (1, 8, 12, 3)),
        ("frame_prev1", "uint8", (1, 8, 12, 3)),
        ("frame", "uint8", (1, 8, 12, 3)),
        ("frame_next1", "uint8", (1, 8, 12, 3)),
        ("frame_next2", "uint8", (1, 8, 12, 3)),
        ("restored_in", "float32", (1, 3, 8, 12)),
        ("motion_in", "float32", (1, 52, 2, 3)),
        ("detail_in", "float32", (1, 26, 8, 12)),
    ]
    assert [(each.tensor.name, each.role, each.tensor.at(8, 12)) for each in MTU2.outputs] == [
        ("output", "picture", (1, 8, 12, 3)),
        ("restored_out", "state", (1, 3, 8, 12)),
        ("motion_out", "state", (1, 52, 2, 3)),
        ("detail_out", "state", (1, 26, 8, 12)),
        ("displacement", "displacement", (1, 2, 3)),
    ]
    assert (MTU2.look_back, MTU2.look_ahead, MTU2.the("displacement").radius) == (2, 2, 10)
    assert list(KINDS["mtu1"].states) == ["restored_out"] and KINDS["mtu1"].the("displacement") is None


@pytest.mark.parametrize("interface", KINDS.values(), ids=KINDS)
def test_json_and_back(interface):
    again = Interface.from_dict(json.loads(json.dumps(interface.to_dict())), "x")
    assert again == interface and again.digest == interface.digest
    assert replace(interface, weights="cd").digest != interface.digest
    for graph in interface.graphs:
        check_metadata(metadata(interface, graph), again, again.graph(graph.name), "x.onnx")
        with pytest.raises(InvalidInputError, match=r"x\.onnx is not the graph .* export the model again"):
            check_metadata(metadata(interface, graph), replace(interface, weights="cd"), graph, "x.onnx")


@pytest.mark.parametrize(
    ("held", "graph"),
    [((), "none"), ("a", "one_state"), ("b", "none"), ("ab", "two_states"), ("bac", "two_states"), ("c", "none")],
)
def test_a_frame_goes_through_the_graph_that_uses_the_most_states(held, graph):
    assert OTHER.graph_for(held).name == graph


def test_what_a_description_says_of_itself():
    assert (OTHER.look_back, OTHER.look_ahead) == (4, 3)
    assert {name: each.offset for name, each in OTHER.frames.items()} == {"now": 0, "far": 3, "before": -4}
    assert OTHER.states == {"a": A.tensor, "b": B.tensor}
    assert OTHER.graph("two_states").states == {"b_in": "b", "a_in": "a"}
    assert OTHER.with_role("picture", "map") == (LARGE, MASK) and OTHER.the("displacement") is None
    assert OTHER.arithmetic == "fp16 with 2 layers in int8"
    with pytest.raises(InvalidInputError, match="has no graph 'step': it has one_state, none, two_states"):
        OTHER.graph("step")


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((1, "H", "W", 3), (5, 7), (1, 5, 7, 3)),
        ((1, "H/4", "W/4"), (8, 12), (1, 2, 3)),
        ((1, "H/4", "W/4"), (5, 13), (1, 2, 4)),
        (("2*W", "3*H/2"), (5, 6), (12, 8)),
        ((64,), (1, 1), (64,)),
    ],
)
def test_shapes_at_a_size(shape, size, expected):
    assert Tensor("x", "float32", shape).at(*size) == expected
    larger = Tensor("x", "float32", shape).enlarged(3)
    assert larger.at(*size) == Tensor("x", "float32", shape).at(3 * size[0], 3 * size[1])


def test_sizes_that_are_padded():
    for multiple, minimum in ((1, 1), (4, 4), (4, 16), (6, 12), (64, 128)):
        for side in range(1, 200):
            expected = next(n for n in range(side, 1000) if n % multiple == 0 and n >= minimum)
            assert Size(multiple, minimum).padded(side, 5)[0] == Size(multiple, minimum).padded(5, side)[1] == expected


def test_frames_that_are_too_small_are_refused():
    assert Size(4, 4, 7).padded(7, 9) == (8, 12)
    for height, width in ((6, 9), (9, 6), (1, 1)):
        with pytest.raises(
            InvalidInputError, match=f"frames of {width}x{height} are too small .* takes 7x7 and larger"
        ):
            Size(4, 4, 7).padded(height, width)
    assert "smallest" not in MTU2.to_dict()["size"]  # so that bundles of older releases keep their digests


def graphs(*inputs: Input, outputs=OUTPUTS, then: tuple[Graph, ...] = OTHER.graphs[1:]):
    return {"graphs": (Graph("one_state", inputs, outputs), *then)}


def single(output: Output, **others):
    return graphs(frame("now"), outputs=(output,), then=()) | others


def picture(*shape, dtype="uint8"):
    return single(Output(Tensor("out", dtype, shape), "picture"), scale=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (graphs(frame("now"), state("c")), "one_state, input c_in is state 'c', which no output gives"),
        (graphs(state("a")), "graph one_state takes no frame"),
        (graphs(frame("now"), frame("now")), "graph one_state has a name twice"),
        (graphs(frame("now", 1)), "graph none, input now is another frame than in another graph"),
        (graphs(frame("now"), frame("far", 101)), "input far: offset 101"),
        (graphs(frame("now"), frame("far", 10**30)), "input far: offset 1000000000"),
        (graphs(frame("now", 0.5)), "input now: offset 0.5"),
        (graphs(Input(Tensor("x", "uint8", FRAME), Frame("left", 0))), "is of stream 'left', which there is not"),
        (graphs(Input(Tensor("x", "float32", FRAME), Frame("image", 0))), "a frame is uint8 [1, H, W, 3]"),
        (graphs(Input(Tensor("x", "float16", (1, 4, "H/2", "W/2")), State("a"))), "differs from the state a"),
        (graphs(frame("../now")), "name '../now'"),
        (graphs(frame("now"), outputs=OUTPUTS[:2]), "graph none gives other outputs than one_state"),
        ({"graphs": OTHER.graphs[:1]}, "every graph takes states: none is for a first frame"),
        ({"graphs": ()}, "graphs []: one or more"),
        ({"graphs": OTHER.graphs[:1] * 2}, "graphs ['one_state', 'one_state']: one or more"),
        ({"graphs": (replace(OTHER.graphs[1], name="../first"),)}, "graphs ['../first']: one or more"),
        ({"graphs": (replace(OTHER.graphs[1], name=".."),)}, "graphs ['..']: one or more"),
        ({"graphs": (replace(OTHER.graphs[1], name="x" * 65),)}, ": one or more"),
        (single(A), "no output is a picture or a map"),
        (picture(1, "H", "W", 1), "output out: uint8 [1, 'H', 'W', 1] is no picture"),
        (picture(1, "H", "W", 3, dtype="float32"), "is no picture"),
        (picture(1, "H", "W/3", 3), "W/3 needs frames of a multiple of 3"),
        (picture(1, "H", "V", 3), "the size 'V' of a tensor"),
        (picture(1, "99999*H", "W", 3), "the size '99999*H' of a tensor"),
        (picture(1, 0, "W", 3), "size 0"),
        (picture(1, True, "W", 3), "size True"),
        (single(replace(LARGE, role="photo")), "role 'photo'; roles are picture, map, displacement, state"),
        (single(replace(LARGE, radius=1)), "radius 1"),
        (single(replace(MASK, unit=Unit("x", float("nan"), 0))), "unit Unit"),
        (single(replace(MASK, unit=Unit("x", True, 0))), "unit Unit"),
        (single(replace(LARGE, unit=Unit("x", 1, 0))), "unit Unit"),
        ({"scale": 3}, "output large: uint8 [1, '2*H', '2*W', 3] is no picture"),
        ({"scale": 0}, "size and scale: whole numbers from 1"),
        ({"size": Size(4, 4, 0)}, "size and scale: whole numbers from 1"),
        ({"size": Size(4, 6)}, "size: the minimum 6 is no multiple"),
        ({"size": Size(10**9, 10**9)}, "size and scale: whole numbers from 1"),
        ({"size": Size(2.0, 2)}, "size and scale: whole numbers from 1"),
        ({"precision": "fp8"}, "precision is 'fp8': fp32 or fp16"),
        ({"streams": ()}, "streams (): one or more"),
        ({"ops": {"x": {}}}, "ops: each has a version"),
        ({"settings": [1]}, "settings: a mapping"),
        ({"variant": None}, "family, variant, weights: texts"),
        ({"working_bytes": -1}, "working_bytes: a whole number"),
    ],
)
def test_a_description_that_contradicts_itself(changes, words):
    with pytest.raises(InvalidInputError) as caught:
        replace(OTHER, **changes)
    assert words in str(caught.value)
