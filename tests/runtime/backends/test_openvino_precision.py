"""OpenVINO's bf16: what stays fp32, when `--precision auto` takes it, and what is kept of that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.frames import moving_frames

from mtu.core import processor
from mtu.export.bundle_files import load_graphs, save_bundle
from mtu.runtime import Session, open_backend, open_bundle
from mtu.runtime.backends import openvino_precision
from mtu.runtime.backends.openvino_models import Compiler, Target

pytestmark = pytest.mark.needs_library("openvino")


@pytest.fixture
def with_bf16():
    if not processor.bf16_units():
        pytest.skip("this processor has no units for bf16")


def restored(backend, frames):
    session = Session(backend, scene_threshold=None)
    return [each for frame in frames for each in session.push(frame)] + session.flush()


@pytest.mark.parametrize("graph", ["first", "step"])
def test_the_matching_alone_is_kept_fp32(graph, with_bf16):
    bundle = open_bundle()
    model = Compiler(bundle, Target("CPU", "bf16", 1))._read(bundle.interface.graph(graph))
    kinds = [node.get_type_name() for node in model.get_ops() if openvino_precision._KEY in node.get_rt_info()]
    assert {"MatMul", "TopK"} <= {*kinds}
    assert not {"Convolution", "ConvolutionBackpropData", "Parameter", "Result"} & {*kinds}


def test_the_matching_computes_in_fp32(with_bf16):
    bundle = open_bundle()
    compiled = Compiler(bundle, Target("CPU", "bf16", 1)).compile(bundle.interface.graph("step"), 64, 96)
    found = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        found.setdefault(info["layerType"].value, set()).add(info["runtimePrecision"].value)
    assert found["MatMul"] == {"f32"}
    assert "bf16" in found["Convolution"]


def test_matching_whose_displacement_nothing_reads_is_kept_fp32_too(with_bf16, tmp_path):
    bundle = open_bundle()
    (graph, *_), models = bundle.interface.graphs, load_graphs(bundle)
    outputs = tuple(each for each in graph.outputs if each.role != "displacement")
    interface = replace(bundle.interface, graphs=(replace(graph, outputs=outputs),))
    kept = [each for each in models[graph.name].graph.output if each.name in {out.tensor.name for out in outputs}]
    del models[graph.name].graph.output[:]
    models[graph.name].graph.output.extend(kept)
    (node,) = (each for each in models[graph.name].graph.node if each.domain)
    node.output[1] = ""  # has no name; one that OpenVINO drops has none either
    save_bundle(tmp_path, interface, {graph.name: models[graph.name]})
    compiled = Compiler(open_bundle(tmp_path), Target("CPU", "bf16", 1)).compile(interface.graphs[0], 32, 48)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    assert {info["runtimePrecision"].value for info in infos if info["layerType"].value == "MatMul"} == {"f32"}


@pytest.mark.parametrize(
    ("units", "nearness", "expected"),
    [
        ("AMX", 58.2, "bf16"),
        ("AMX", 53.0, "bf16"),
        ("AMX", 52.9, "fp32"),
        ("AVX512-BF16", 99.0, "fp32"),
        ("", 99.0, "fp32"),
    ],
)
def test_auto_takes_bf16_where_it_is_fast_and_near(small, monkeypatch, with_bf16, units, nearness, expected):
    monkeypatch.setattr(openvino_precision, "bf16_units", lambda: units)
    monkeypatch.setattr(openvino_precision, "_nearness", lambda *_: nearness)
    said = []
    backend = open_backend("openvino", small, "cpu", precision="auto", say=said.append)
    assert backend.arithmetic == expected
    assert len(said) == 1
    assert said[0].startswith(f"--precision auto: {expected}")
    backend.close()


def test_the_proof_is_made_once(small, monkeypatch, tmp_path, with_bf16):
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(openvino_precision, "bf16_units", lambda: "AMX")  # or it would not be tried
    first, again = [], []
    open_backend("openvino", small, "cpu", precision="auto", say=first.append).close()
    monkeypatch.setattr(openvino_precision, "made_clip", None)
    open_backend("openvino", small, "cpu", precision="auto", say=again.append).close()
    assert first == again
    (kept,) = tmp_path.glob("openvino/bf16-*")
    kept.write_bytes(b"rubbish")
    with pytest.raises(TypeError):  # it is made again
        open_backend("openvino", small, "cpu", precision="auto")


def test_a_far_model_is_computed_in_fp32(small, monkeypatch, tmp_path, with_bf16):
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(openvino_precision, "bf16_units", lambda: "AMX")  # or it would not be tried
    monkeypatch.setattr(openvino_precision, "NEAR", 200.0)
    said = []
    backend = open_backend("openvino", small, "cpu", precision="auto", say=said.append)
    assert (backend.arithmetic, len(said)) == ("fp32", 1)
    backend.close()


def test_states_in_bf16_go_out_and_in(small, with_bf16):
    backend = open_backend("openvino", small, "cpu", precision="bf16")
    random = np.random.default_rng(0)
    states = {
        name: random.standard_normal(state.at(16, 24)).astype(np.float32)
        for name, state in small.interface.states.items()
    }
    found = backend.read_states(backend.write_states(states))
    for name, state in states.items():
        assert found[name].dtype == np.float32
        assert np.abs(found[name] - state).max() <= np.abs(state).max() / 256
        assert not np.array_equal(found[name], state)
    backend.close()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_states_in_bf16_that_are_not_finite_are_found(value, with_bf16):
    from mtu.runtime.backends.openvino_backend import _is_finite
    from mtu.runtime.openvino_library import load_openvino

    openvino = load_openvino()
    bits = (np.array([[0.0, -3e38, 3e38, value]], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    for row, expected in (bits, False), (bits[:, :3], True):
        row = np.ascontiguousarray(row)
        assert _is_finite(openvino.Tensor(row, row.shape, openvino.Type.bf16)) is expected


def test_pictures_in_bf16_are_near(small, with_bf16):
    frames = moving_frames(6, 24, 32)
    a, b = (
        restored(open_backend("openvino", small, "cpu", precision=precision), frames) for precision in ("fp32", "bf16")
    )
    errors = [openvino_precision._error(x, y) for x, y in zip(a, b, strict=True)]
    assert 0 < max(errors) < 1e-5


def test_amx_is_read_from_the_processor(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("flags\t\t: sse2 avx512_bf16 amx_bf16 amx_int8\n")
    assert processor.bf16_units(file) == "AMX"
    file.write_text("flags\t\t: sse2 avx512_bf16\n")
    assert processor.bf16_units(file) == "AVX512-BF16"
    assert processor.bf16_units(tmp_path / "none") == ""
