"""mtu-calibrate on models that are no recurrent network: one graph, no states, another size of the picture, a map."""

# ruff: noqa: E402
from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests import needs
from tests.cli import run
from tests.frames import moving_frames, write_clip
from tests.small_models import frame, opposite, trail

needs.library("onnxruntime", "skimage", "torch")

from mtu.calib.int8 import Clip, calibrate, read_clips
from mtu.calib.keep_fp32 import find_ranges
from mtu.core.errors import InvalidInputError
from mtu.core.interface import Graph, Interface, Output, Tensor
from mtu.export.bundle_files import save_bundle
from mtu.runtime import open_bundle

PROGRAM = "mtu-calibrate"
BRIGHT = """
<ir_version: 9, opset_import: ["" : 18]>
only (uint8[1, H, W, 3] image) => (float[1, H, W] bright) {
    [cast] a = Cast<to = 1>(image)
    [move] b = Transpose<perm = [0, 3, 1, 2]>(a)
    [scale] c = Div(b, top)
    [one] d = Conv<pads = [1, 1, 1, 1]>(c, "one.weight")
    [leaky] e = LeakyRelu<alpha = 0.2>(d)
    [two] f = Conv<pads = [1, 1, 1, 1]>(e, "two.weight")
    [squash] g = Sigmoid(f)
    [flat] bright = Squeeze(g, axis)
}
"""


@pytest.fixture
def bright(tmp_path):
    """A model that gives a map, by a convolution with a leaky ReLU and one with a sigmoid."""
    output = Output(Tensor("bright", "float32", (1, "H", "W")), "map")
    graph = Graph("only", (frame("image"),), (output,))
    interface = Interface(family="by hand", variant="bright", settings={}, graphs=(graph,))
    model = onnx.parser.parse_model(BRIGHT)
    numbers = np.random.default_rng(1)
    constants = {
        "top": np.float32(255),
        "axis": np.array([1]),
        "one.weight": numbers.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32),
        "two.weight": numbers.normal(0, 0.3, (1, 4, 3, 3)).astype(np.float32),
    }
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items())
    (tmp_path / "bright").mkdir()
    save_bundle(tmp_path / "bright", interface, {"only": model})
    return open_bundle(tmp_path / "bright")


def test_ranges_of_one_graph_and_one_frame(mimo, tmp_path, capsys):
    clip = write_clip(tmp_path / "clip", 1, 32, 40)
    ended = run(capsys, PROGRAM, "ranges", mimo.directory, "--input", clip)
    assert ended.code == 0, ended.err
    assert "\nframes  " in ended.out and "states" not in ended.out and ended.out.endswith("every layer fits fp16\n")
    report = find_ranges(mimo, [str(clip)])
    assert (report.frames, report.states) == (1, []) and {row.layer for row in report.rows} == {"", *report.weights}


def test_int8_of_one_graph_and_one_frame(mimo, tmp_path):
    found = calibrate(mimo, [Clip("clip", moving_frames(1, 30, 37), None)], tmp_path / "B", allowed=50)
    # The second convolution of a residual block is linear, and so are those that merge and that give the picture.
    assert "Encoder.0.layers.0.main.0.main.0" in found.int8 and "Encoder.0.layers.0.main.1.main.0" in found.never
    made = open_bundle(tmp_path / "B")
    assert made.interface.int8_layers == found.int8 == tuple(found.alone) and len(found.int8) > 10
    assert 30 < found.together.psnr < 100


def test_int8_of_a_map(bright, tmp_path, capsys):
    clips = [Clip(str(seed), moving_frames(2, 20, 31, seed), None) for seed in (1, 2)]
    found = calibrate(bright, clips, tmp_path / "B", allowed=50)
    assert (found.int8, found.never) == (("one",), ("two",)) and 20 < found.together.psnr < 100
    with pytest.raises(InvalidInputError, match="gives a map and no picture, which no sharp clip shows"):
        calibrate(bright, [Clip("sharp", clips[0].frames, clips[0].frames)], tmp_path / "C", allowed=50)
    with pytest.raises(InvalidInputError, match=r"0 clips, 0 frames in the shortest: give at least one$"):
        calibrate(bright, [], tmp_path / "C", allowed=50)


@pytest.mark.parametrize("make", [opposite, trail])
def test_models_without_layers(tmp_path, capsys, make):
    clip, model = write_clip(tmp_path / "clip", 2, 16, 24), make(tmp_path / "model").directory
    ended = run(capsys, PROGRAM, "int8", model, "--input", clip, "--frames", 2, "-o", tmp_path / "B")
    assert ended.code == 2 and "no layer of this model can be int8: it has no convolution with a ReLU" in ended.err
    ended = run(capsys, PROGRAM, "ranges", model, "--input", clip)
    assert ended.code == 0 and ended.out.endswith("every layer fits fp16\n"), ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip", "model"]


def test_sharp_clips_of_a_model_that_enlarges(tmp_path):
    small, large = write_clip(tmp_path / "small", 2, 16, 24), write_clip(tmp_path / "large", 2, 32, 48)
    (clip,) = read_clips([str(small)], [str(large)], 2, scale=2)
    assert clip.sharp[0].shape == (32, 48, 3)
    with pytest.raises(InvalidInputError, match="those of the sharp clip 2 times as large for this model"):
        read_clips([str(small)], [str(small)], 2, scale=2)
