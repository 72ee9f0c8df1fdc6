"""int8 bundles in OpenVINO: computed in int8, right on every kind of processor, and said."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from tests.frames import moving_frames
from tests.processes import environment

from mtu.calib.quality import psnr
from mtu.calib.rollout import restored
from mtu.core import processor
from mtu.runtime import open_backend, open_bundle
from mtu.runtime.backends import openvino_models
from mtu.runtime.backends.openvino_models import Compiler, Target

pytestmark = [
    pytest.mark.needs_library("openvino", "onnx", "onnxruntime"),
    pytest.mark.usefixtures("one_thread"),
]
FRAMES = moving_frames(4, 32, 48)
FLAGS = {"AMX": "amx_int8 avx512_vnni", "VNNI": "avx512_vnni avx2", "": "avx2 avx_vnni avx512f"}
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
from mtu.calib.rollout import restored
from mtu.runtime import open_backend, open_bundle
from mtu.core import processor
processor.int8_units.__defaults__ = (Path(sys.argv[2]),)
backend = open_backend("openvino", open_bundle(Path(sys.argv[1])), "cpu")
np.save(sys.argv[4], [each.picture for each in restored(backend, np.load(sys.argv[3]))])
"""


@pytest.fixture(scope="module")
def int8(small, tmp_path_factory):
    """The small model with all layers in int8."""
    from mtu.calib.int8 import _limits
    from mtu.calib.ranges import load_fp32, measure
    from mtu.export.bundle_files import save_bundle
    from mtu.export.quantise import quantise

    models = load_fp32(small)
    limits = _limits(models, [measure(small, [FRAMES])])
    for model in models.values():
        quantise(model, limits)
    directory = tmp_path_factory.mktemp("int8")
    save_bundle(directory, replace(small.interface, int8_layers=tuple(limits)), models)
    return open_bundle(directory)


@pytest.fixture(scope="module")
def expected(int8):
    """Its pictures in onnxruntime."""
    return [each.picture for each in restored(open_backend("onnxruntime", int8, "cpu"), FRAMES)]


def cpuinfo(directory, units):
    path = directory / "cpuinfo"
    path.write_text(f"flags\t\t: sse2 {FLAGS[units]} xsave\n")
    return path


def convolutions(bundle, monkeypatch, units):
    """The types that those of the step graph are computed in."""
    monkeypatch.setattr(openvino_models, "int8_units", lambda: units)
    compiled = Compiler(bundle, Target("CPU", "f32", 1)).compile(bundle.interface.graph("step"), 32, 48)
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return [info["runtimePrecision"].value for info in infos if info["layerType"].value == "Convolution"]


@pytest.mark.parametrize(("units", "kinds"), [("AMX", {"i8", "u8"}), ("VNNI", {"u8"}), ("", set())])
def test_every_layer_is_computed_in_int8_where_the_processor_can(int8, monkeypatch, units, kinds):
    found = convolutions(int8, monkeypatch, units)
    whole = [kind for kind in found if kind in kinds]
    assert len(whole) == (len(int8.interface.int8_layers) if units else 0)
    assert {*found} - {*whole} == {"f32"}


@pytest.mark.parametrize(("units", "instructions"), [("AMX", "DEFAULT"), ("VNNI", "AVX512_CORE_VNNI")])
def test_pictures_are_those_of_onnxruntime(int8, expected, tmp_path, units, instructions):
    # Held to still fewer instructions by this variable, OpenVINO mixes them and goes wrong in fp32 too.
    if processor.int8_units() != "AMX":
        pytest.skip("this processor has no AMX, the only one that can be the other as well")
    np.save(tmp_path / "frames.npy", FRAMES)
    arguments = [int8.directory, cpuinfo(tmp_path, units), tmp_path / "frames.npy", tmp_path / "found.npy"]
    subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)],
        check=True,
        timeout=120,
        env=environment(ONEDNN_MAX_CPU_ISA=instructions, MTU_CACHE_DIR=str(tmp_path)),
    )
    assert min(psnr(a, b) for a, b in zip(np.load(tmp_path / "found.npy"), expected, strict=True)) >= 50


def test_without_units_pictures_are_nearer_to_fp32_than_int8_is(small, int8, expected, monkeypatch):
    monkeypatch.setattr(openvino_models, "int8_units", lambda: "")
    fp32, found = (
        [each.picture for each in restored(open_backend(name, bundle, "cpu"), FRAMES)]
        for name, bundle in (("onnxruntime", small), ("openvino", int8))
    )
    nearness = [min(psnr(a, b) for a, b in zip(pictures, fp32, strict=True)) for pictures in (found, expected)]
    assert nearness[0] > nearness[1]


def test_what_is_not_computed_in_int8_says_so(int8, monkeypatch):
    count = len(int8.interface.int8_layers)
    for units, precision, said in (
        ("VNNI", "f32", f"fp32 with {count} layers in int8"),
        ("", "f32", f"fp32 with {count} layers in int8 computed in fp32"),
    ):
        monkeypatch.setattr(openvino_models, "int8_units", lambda units=units: units)
        assert Compiler(int8, Target("CPU", precision, 1)).arithmetic == said


@pytest.mark.parametrize("units", FLAGS)
def test_units_are_read_from_the_processor(tmp_path, units):
    assert processor.int8_units(cpuinfo(tmp_path, units)) == units
    assert processor.int8_units(tmp_path / "none") == ""
