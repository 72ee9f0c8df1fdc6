"""IFAN and DMENet in fp16, in int8 and as engines, with weights that keep values what they are in a trained network."""

# ruff: noqa: E402
from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests import cli, needs
from tests.frames import moving_frames, write_clip

needs.library("onnxruntime", "skimage", "torch")

from tests.engine_builds import of_one_stream
from tests.graphs import before_rounding
from tests.ifan import calm

from mtu.calib.keep_fp32 import find_ranges
from mtu.export.bundle_files import load_graphs
from mtu.export.graph_view import GraphView
from mtu.export.precision import in_fp16, to_fp16
from mtu.export.quantise import candidates
from mtu.export.to_onnx import export_bundle
from mtu.models.checkpoint import Checkpoint
from mtu.models.ifan import from_released
from mtu.runtime.bundle import Bundle
from mtu.runtime.engine import open_engine

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ifan(tmp_path_factory) -> Bundle:
    settings = {"iterations": 17, "channels": 4, "streams": 1}
    checkpoint = Checkpoint("ifan", settings, from_released(calm(settings)))
    return export_bundle(checkpoint, tmp_path_factory.mktemp("calm") / "bundle")


def psnr(a, b) -> float:
    return float(-10 * np.log10(((a.astype(np.float64) - b) ** 2).mean()))


def test_ifan_in_fp16_stays_near_fp32_through_all_iterations(ifan):
    (frame,) = moving_frames(1, 64, 96)
    half = load_graphs(ifan)["picture"]
    to_fp16(half)
    wanted = before_rounding(onnx.load(ifan.graph("picture")), {"frame": frame[None]})
    found = before_rounding(half, {"frame": frame[None]})
    assert found.dtype == np.float16 and wanted.std() > 0.1
    assert 45 < psnr(found, wanted) < 90


def test_no_layer_of_ifan_leaves_the_range_of_fp16(ifan, tmp_path):
    report = find_ranges(ifan, [str(write_clip(tmp_path / "clip", 1, 64, 96))])
    assert not report.keep
    assert {f"F.3.{iteration}" for iteration in range(17)} <= {row.layer for row in report.rows}


def test_layers_with_a_leaky_relu_can_be_int8_and_those_of_filters_cannot(ifan, dmenet):
    found = {layer.name for layer in candidates(load_graphs(ifan)["picture"])}
    assert len(found) == 55
    assert {"conv1_1.0", "kconv4_2.0", "conv_DME.0", "F.0.0", "upconv1_u.0", "out_res.0"} <= found
    never = {"DME.3", "conv4_3.0", "conv_res.1.stem.2.2", *(f"F.3.{iteration}" for iteration in range(17))}
    assert not never & found  # the op takes what conv4_3 and F.3 give, and an identity is added to what the other gives
    maps = load_graphs(dmenet)["map"]
    assert set(GraphView(maps).layers) - {layer.name for layer in candidates(maps)} == {"decoder.uf.c3"}


@pytest.mark.needs_library("tensorrt_rtx")
@pytest.mark.parametrize(
    "size", [("--size", "48x32"), ("--min-size", "16x16", "--opt-size", "48x32", "--max-size", "96x64")]
)
def test_an_engine_of_a_map_from_the_command_line(dmenet, tmp_path, capsys, size):
    options = "--runtime", "tensorrt-rtx", "--fp16", *size
    ended = cli.run(capsys, "mtu-build-engine", dmenet.directory, "-o", tmp_path / "E", *options)
    assert ended.code == 0, ended.err
    assert "map.engine: 100% of the network's floating-point layers are fp16, no plugin layer" in ended.err
    made = open_engine(tmp_path / "E").manifest
    assert (made.precision, made.plugins, made.interface) == ("fp16", {}, in_fp16(of_one_stream(dmenet.interface)))
