"""Q and DQ in an exported graph: where they stand, what never gets them, and what runtimes make of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
import onnxruntime
from onnx import helper, numpy_helper
from tests.frames import moving_frames

from mtu.calib.rollout import feeds
from mtu.core.errors import InvalidInputError
from mtu.core.interface import Interface
from mtu.export.precision import to_fp16
from mtu.export.quantise import DEQUANTISED, LEVELS, Limits, candidates, for_tensorrt, quantise
from mtu.runtime import open_backend, open_bundle
from mtu.runtime.backends.ort_backend import sums_are_exact

pytestmark = pytest.mark.usefixtures("one_thread")


def load(bundle, graph="step"):
    return onnx.load(bundle.graph(graph))


def copy(model):
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def run(model, feed, outputs=("restored_out",), path=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if path is not None:
        options.optimized_model_filepath = str(path)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(outputs), feed)


@pytest.fixture(scope="module")
def feed(small):
    """A step of the small model with real states."""
    return list(feeds(open_backend("onnxruntime", small), moving_frames(4, 32, 48)))[-1][1]


@pytest.fixture(scope="module")
def limits(small, feed):
    """Of every candidate of the step graph, from this one frame."""
    model = load(small)
    found = {}
    for layer in candidates(model):
        probe = copy(model)
        probe.graph.output.extend(helper.make_tensor_value_info(n, 1, None) for n in (layer.input, layer.output))
        found[layer.name] = Limits(*(float(np.abs(v).max()) for v in run(probe, feed, (layer.input, layer.output))))
    return found


def quantised(bundle, limits, graph="step"):
    model = load(bundle, graph)
    quantise(model, limits)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_candidates_are_the_convolutions_that_may_be_int8():
    bundle = open_bundle()
    units = [
        f"HGs.{unit}.{name}"
        for unit in (0, 1)
        for name in ("enc1.0", "enc2.0", "enc3.0", *(f"RBs.{b}.{i}" for b in range(8) for i in (0, 2)), "RB_end.0")
    ]
    for graph in ("first", "step"):
        assert [layer.name for layer in candidates(load(bundle, graph))] == ["base_conv.0", "inp_prev_conv.0", *units]


def test_only_the_convolutions_and_their_relus_read_rounded_values(small, limits):
    for graph in ("first", "step"):
        model = quantised(small, limits, graph)
        readers = Counter(
            node.op_type for node in model.graph.node for name in node.input if name.endswith(DEQUANTISED)
        )
        assert readers == {"Conv": 2 * len(limits), "Relu": len(limits)}
        untouched = [node for node in model.graph.node if node.input and node.input[1:2] and node.op_type == "Conv"]
        untouched = [node.input[1] for node in untouched if not node.input[1].endswith(DEQUANTISED)]
        assert untouched == ["motion_layer.0.0.weight", "out.weight"]
        producers = {name: node.op_type for node in model.graph.node for name in node.output}
        assert not {producers[value.name] for value in model.graph.output} & {"DequantizeLinear", "QuantizeLinear"}


def test_scales_are_symmetric_and_weights_have_one_for_each_channel(small, limits):
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in load(small).graph.initializer}
    after = {tensor.name: numpy_helper.to_array(tensor) for tensor in quantised(small, limits).graph.initializer}
    zeros = [value for name, value in after.items() if name.endswith("_zero")]
    assert len(zeros) == len(limits) + 1 and not any(value.any() for value in zeros)
    for layer in limits:
        name = f"{layer}.weight"
        weights, rounded, scales = before[name], after[name], after[f"{name}_scale"]
        assert rounded.dtype == np.int8 and scales.shape == (len(weights),)
        np.testing.assert_allclose(scales, np.abs(weights).max((1, 2, 3)) / LEVELS, rtol=1e-6)
        assert np.abs(rounded).max((1, 2, 3)).tolist() == [LEVELS] * len(weights)
        assert np.abs(rounded * scales[:, None, None, None] - weights).max() <= scales.max() * 0.5001
        assert after[f"{layer}.bias"].dtype == np.float32


def test_onnxruntime_computes_every_layer_in_int8(small, feed, limits, tmp_path):
    model = quantised(small, limits)
    (fp32,), (int8,) = run(load(small), feed), run(model, feed, path=tmp_path / "optimised.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == len(limits)
    away = np.abs(fp32 - int8)
    assert 0 < away.mean() < 2e-3 and away.max() < 0.05


def test_rounding_before_the_relu_is_rounding_behind_it(small, feed, limits):
    names = ("HGs.0.RBs.0.0", "HGs.0.RBs.0.2")
    model = quantised(small, {name: limits[name] for name in names})
    last = next(layer for layer in candidates(load(small)) if layer.name == names[-1])
    fused = copy(model)
    for_tensorrt(fused)
    onnx.checker.check_model(fused, full_check=True)
    for each in (model, fused):
        each.graph.output.append(helper.make_tensor_value_info(last.output, 1, None))
    assert [Counter(node.op_type for node in each.graph.node)["QuantizeLinear"] for each in (model, fused)] == [4, 2]
    producers = {name: node.op_type for node in fused.graph.node for name in node.output}
    assert {producers[n.input[0]] for n in fused.graph.node if n.op_type == "Relu"} == {"Conv", "ConvTranspose"}
    (before,), (behind,) = (run(each, feed, [last.output]) for each in (model, fused))
    scale = limits[last.name].output / LEVELS
    steps = np.abs(before / scale - np.rint(np.minimum(behind / scale, LEVELS)))
    assert steps.max() < 1.01 and (steps > 0.01).mean() < 1e-3  # other sums, so now and then another side of a half
    assert before.max() > 50 * scale


def test_a_channel_of_no_weights_gives_its_bias(small, feed, limits):
    model = load(small)
    for tensor in model.graph.initializer:
        if tensor.name in ("HGs.0.enc1.0.weight", "HGs.0.enc1.0.bias"):
            value = numpy_helper.to_array(tensor).copy()
            value[0] = 0.25 if value.ndim == 1 else 1e-12
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    layer = next(layer for layer in candidates(model) if layer.name == "HGs.0.enc1.0")
    quantise(model, {layer.name: Limits(limits[layer.name].input, 0.5)})
    model.graph.output.append(helper.make_tensor_value_info(layer.output, 1, None))
    (found,) = run(model, feed, [layer.output])
    np.testing.assert_allclose(found[0, 0], 0.25, atol=0.5 / LEVELS)
    del model.graph.output[-1]
    to_fp16(model)
    scales = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_scale")]
    assert all(scale.dtype == np.float16 and (scale > 0).all() for scale in scales)


def test_an_input_of_zeros_and_layers_of_the_other_graph(small, limits):
    model = load(small)
    quantise(model, {"HGs.0.enc1.0": Limits(0.0, 0.0), "of another network": Limits(1.0, 1.0)})
    scales = [numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_scale") and not t.dims]
    assert scales == [np.float32(1 / LEVELS)] * 2
    before = load(small)
    quantise(before, {})
    assert [node.op_type for node in before.graph.node] == [node.op_type for node in load(small).graph.node]


def test_the_interface_says_what_is_int8():
    plain = open_bundle().interface
    assert plain.arithmetic == "fp32"
    interface = replace(plain, int8_layers=("a", "b"))
    assert interface.arithmetic == "fp32 with 2 layers in int8"
    assert Interface.from_dict(json.loads(json.dumps(interface.to_dict())), "x") == interface != plain
    with pytest.raises(InvalidInputError, match="int8_layers"):
        replace(plain, int8_layers=(1,))


TEXT = """
<ir_version: 9, opset_import: ["" : 18]>
only (float[1, 2, H, W] x) => (float[1, 2, H, W] y) {
    [a] a_out = Conv<pads = [1, 1, 1, 1]>(x, "a.weight", "a.bias")
    [a_on] a_leaky = LeakyRelu<alpha = 0.1>(a_out)
    [b] b_out = Conv<pads = [1, 1, 1, 1]>(a_leaky, "b.weight")
    [b_on] b_relu = Relu(b_out)
    [b_again] b_out2 = Conv<pads = [1, 1, 1, 1]>(b_relu, "b.weight")
    [b_again_on] b_relu2 = Relu(b_out2)
    [sum] s = Add(b_relu2, x)
    [c] c_out = Conv<pads = [1, 1, 1, 1]>(s, "c.weight", "a.bias")
    [c_on] c_sigmoid = Sigmoid(c_out)
    [d] d_out = Conv<pads = [1, 1, 1, 1]>(c_sigmoid, "d.weight", "a.bias")
    [d_on] d_relu = Relu(d_out)
    [d_more] d_both = Add(d_relu, d_out)
    [e] e_out = Conv<pads = [1, 1, 1, 1]>(d_both, "e.weight", "a.bias")
    [e_on] e_relu = Relu(e_out)
    [e_again] e_linear = Conv<pads = [1, 1, 1, 1]>(e_relu, "e.weight", "a.bias")
    [f] f_out = Conv<pads = [1, 1, 1, 1]>(e_linear, "f.weight", "a.bias")
    [f_on] y = Relu(f_out)
}
"""


@pytest.fixture
def by_hand():
    """A graph with layers of every kind; b has no bias and two places, e is linear at its second."""
    model = onnx.parser.parse_model(TEXT)
    numbers = np.random.default_rng(1)
    for name in "abcdef":
        weights = numbers.normal(0, 0.3, (2, 2, 3, 3)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, f"{name}.weight"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.2, -0.1], np.float32), "a.bias"))
    return model


def test_candidates_of_any_graph(by_hand):
    """Not c, which has another activation; d, whose result is read twice; e, linear at a place; f, an output."""
    found = [(layer.name, layer.input, layer.output) for layer in candidates(by_hand)]
    assert found == [("a", "x", "a_out"), ("b", "a_leaky", "b_relu"), ("b", "b_relu", "b_relu2")]


def test_a_leaky_relu_and_a_layer_at_two_places(by_hand, tmp_path):
    x = np.random.default_rng(2).normal(0, 1, (1, 2, 16, 24)).astype(np.float32)
    (truth,) = run(by_hand, {"x": x}, ["y"])
    limits = {"a": Limits(5.0, 5.0), "b": Limits(5.0, 5.0)}
    quantise(by_hand, limits)
    onnx.checker.check_model(by_hand, full_check=True)
    for_trt = copy(by_hand)
    for_tensorrt(for_trt)
    kinds = [Counter(node.op_type for node in each.graph.node) for each in (by_hand, for_trt)]
    assert [(each["QuantizeLinear"], each["DequantizeLinear"]) for each in kinds] == [(6, 8), (3, 5)]
    for model in (by_hand, for_trt):
        (found,) = run(model, {"x": x}, ["y"], path=tmp_path / "optimised.onnx")
        assert 0 < np.abs(found - truth).max() < 0.1
    run(by_hand, {"x": x}, ["y"], path=tmp_path / "optimised.onnx")
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert kinds["QLinearConv"] == 3


@pytest.mark.needs_library("tensorrt_rtx")
def test_tensorrt_rtx_takes_a_leaky_relu_in_int8(by_hand):
    import tensorrt_rtx as trt

    from mtu.runtime.tensorrt_library import load_library

    quantise(by_hand, {"a": Limits(5.0, 5.0), "b": Limits(5.0, 5.0)})
    for_tensorrt(by_hand)
    logger = load_library("tensorrt-rtx").logger
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(by_hand.SerializeToString()), logger.last_error()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("x", *[(1, 2, 16, 24)] * 3)
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None, logger.last_error()


def test_who_adds_in_16_bits(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    assert sums_are_exact("aarch64", cpuinfo)
    assert not sums_are_exact("x86_64", cpuinfo)
    for flags, exact in (("sse avx2 avx512f", False), ("avx2 avx_vnni", True), ("avx512_vnni\n", True)):
        cpuinfo.write_text(f"processor : 0\nflags : {flags} xsave")
        assert sums_are_exact("AMD64", cpuinfo) is exact
