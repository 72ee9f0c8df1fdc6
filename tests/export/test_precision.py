"""fp16 of graphs of any kind: layers, activations, sizes of Resize, maps between kept layers."""

# ruff: noqa: E402
from __future__ import annotations

import numpy as np
import pytest
from tests import needs

needs.library("onnx", "onnxruntime")

import onnx
import onnxruntime
from onnx import TensorProto, numpy_helper

from mtu.export.graph_view import GraphView
from mtu.export.precision import fp32_layers, fp32_nodes, to_fp16

TEXT = """
<ir_version: 9, opset_import: ["" : 18]>
only (float[1, 2, H, W] x) => (uint8[1, 2, H2, W2] y, float[1, 2, H, W] z) {
    [a] a_out = Conv<pads = [1, 1, 1, 1]>(x, "a.weight")
    [a_on] a_on = ACTIVATION
    [half] small, rest = Split<axis = 1, num_outputs = 2>(a_on)
    [join] joined = Concat<axis = 1>(rest, small)
    [b] z = Conv<pads = [1, 1, 1, 1]>(joined, "b.weight")
    [b_again] b_twice = Conv<pads = [1, 1, 1, 1]>(z, "b.weight")
    [large] large = Resize<mode = "nearest">(b_twice, , twice)
    [scale] scaled = Mul(large, top)
    [round] rounded = Round(scaled)
    [cast] y = Cast<to = 2>(rounded)
}
"""
ACTIVATIONS = (
    "Relu(a_out)",
    "LeakyRelu<alpha = 0.1>(a_out)",
    "Clip(a_out, low, high)",
    "Sigmoid(a_out)",
    "PRelu(a_out, slope)",
    "Identity(a_out)",
)
CONSTANTS = {
    "twice": np.array([1, 1, 2, 2], np.float32),
    "top": np.float32(255),
    "low": np.float32(-1),
    "high": np.float32(6),
    "slope": np.full((2, 1, 1), 0.2, np.float32),
}


def made(activation):
    model = onnx.parser.parse_model(TEXT.replace("ACTIVATION", activation))
    numbers = np.random.default_rng(1)
    constants = {name: value for name, value in CONSTANTS.items() if name in activation or name in ("twice", "top")}
    for name in "ab":
        constants[f"{name}.weight"] = numbers.normal(0, 0.2, (2, 2, 3, 3)).astype(np.float32)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model


def test_a_view_knows_layers_and_who_reads_them():
    view = GraphView(made("Relu(a_out)"))
    assert {name: [node.name for node in nodes] for name, nodes in view.layers.items()} == {
        "a": ["a"],
        "b": ["b", "b_again"],
    }
    assert view.layer_of == {"a": "a", "b": "b", "b_again": "b"}
    assert [node.name for node in view.readers["z"]] == ["b_again"] and view.producers["rest"].name == "half"
    assert view.activation(view.layers["a"][0]).name == "a_on" and view.activation(view.layers["b"][0]) is None
    assert [node.name for node in view.scaling] == ["cast", "round", "scale"]
    assert view.given(view.producers["rest"]) == ["small", "rest"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("keep", [(), ("a",), ("b",), ("a", "b")])
def test_every_graph_computes_in_fp16_nearly_what_it_does_in_fp32(activation, keep):
    model = made(activation)
    x = np.random.default_rng(2).normal(0, 1, (1, 2, 6, 10)).astype(np.float32)
    truth = run(model, x)
    nodes = fp32_nodes(model, keep)
    to_fp16(model, keep)
    onnx.checker.check_model(model, full_check=True)
    assert fp32_layers(model) == set(keep)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert types["twice"] == TensorProto.FLOAT and types["top"] == TensorProto.FLOAT
    assert types["a.weight"] == (TensorProto.FLOAT if "a" in keep else TensorProto.FLOAT16)
    wanted = {"a": {"a", *(() if activation.startswith("Identity") else ("a_on",))}, "b": {"b", "b_again", "large"}}
    assert nodes == {*(name for layer in keep for name in wanted[layer])} | (
        {"half", "join", "a_on"} if len(keep) == 2 else set()
    )
    for found, true in zip(run(model, x.astype(np.float16)), truth, strict=True):
        assert np.abs(found.astype(np.float32) - true).max() < (0.01 if true.dtype == np.float32 else 1.5)


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y", "z"], {"x": x})


def test_a_convolution_with_weights_that_are_computed_is_no_layer():
    model = made("Relu(a_out)")
    model.graph.node.insert(0, onnx.helper.make_node("Abs", ["w"], ["a.weight"], "makes_weights"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2, 3, 3]))
    del model.graph.initializer[[tensor.name for tensor in model.graph.initializer].index("a.weight")]
    view = GraphView(model)
    assert list(view.layers) == ["b"] and view.carried(view.producers["a_out"]) == ["x", "a.weight"]
