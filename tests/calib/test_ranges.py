"""mtu-calibrate ranges: figures against numpy, layers that fp16 is too narrow for, and fp16 bundles that keep them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tests.calib.comparing import altered
from tests.cli import run
from tests.engine_builds import half_bundle
from tests.frames import moving_frames
from tests.media import make_video, moving

from mtu.calib.keep_fp32 import find_ranges
from mtu.calib.quality import psnr
from mtu.calib.ranges import COUNTS, Range, measure, range_of
from mtu.calib.rollout import feeds
from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.export.graph_view import GraphView
from mtu.export.precision import fp32_layers, read_layers
from mtu.export.to_onnx import export_bundle
from mtu.models.checkpoint import random_checkpoint
from mtu.plugins.correlation_argmax_warp.reference import correlation_argmax_warp
from mtu.plugins.op import DOMAIN
from mtu.runtime import Bundle, deblur, open_backend
from mtu.runtime.video import write_png

PROGRAM = "mtu-calibrate"
# What tensors of a model are multiplied by, and the layers that ranges has to name. What a layer gives is made large or
# small, and what the layers behind it do to it the reverse: the pictures stay what they were.
KEEP = {
    # Two units, one tensor between two layers.
    "wide": ({"HGs.0.RBs.0.0.": 1e6, "HGs.0.RBs.0.2.weight": 1e-6}, {"HGs.0.RBs.0.0", "HGs.0.RBs.0.2"}),
    # One unit, through a skip connection: the maps of enc1 and dec2 are summed. The weights fit fp16.
    "skip": (
        {"HGs.0.enc1.": 5e5, "HGs.0.enc2.0.weight": 2e-6, "HGs.0.dec2.": 5e5, "out.weight": 2e-6},
        {"HGs.0.enc1.0", "HGs.0.enc2.0", "HGs.0.dec2.0", "out"},
    ),
    "tiny": (
        {"HGs.0.enc1.": 4e-6, "HGs.0.enc2.0.weight": 2.5e5, "HGs.0.dec2.": 4e-6, "out.weight": 2.5e5},
        {"HGs.0.enc1.0", "HGs.0.enc2.0", "HGs.0.dec2.0", "out"},
    ),
}
# The wide map of enc1 goes through the op in the first frame; this changes what the network makes, in fp32 too.
MOVED = {"HGs.0.enc1.": 1e6, "HGs.1.enc1.0.weight": 1e-6, "motion_layer.0.0.weight": 1e-6}


def scaled(bundle: Bundle, directory: Path, factors: Mapping[str, float]) -> Bundle:
    """A copy of a bundle with the weights whose names start so multiplied."""

    def change(weights: dict[str, np.ndarray]) -> None:
        for name, value in weights.items():
            for start, factor in factors.items():
                if name.startswith(start):
                    value *= np.float32(factor)

    return altered(bundle, directory, change)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six frames of 48x32 in a directory."""
    directory = tmp_path_factory.mktemp("clip")
    for index, frame in enumerate(moving_frames(6, 32, 48)):
        write_png(directory / f"{index}.png", frame)
    return directory


@pytest.fixture(scope="module")
def bundles(small: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The models of `KEEP` in fp32."""
    root = tmp_path_factory.mktemp("fp32")
    one_unit = export_bundle(random_checkpoint("mtu", {"units": 1, "channels": 4, "blocks": 1}), root / "one")
    sources = {"wide": small, "skip": one_unit, "tiny": one_unit}
    return {name: scaled(sources[name], root / name, factors) for name, (factors, _) in KEEP.items()}


class CorrelationArgmaxWarp(OpRun):  # type: ignore[misc]
    op_domain = DOMAIN

    def _run(self, *maps: np.ndarray, **attributes: int) -> tuple[np.ndarray, np.ndarray]:
        names = ("max_displacement", "pool_size", "scale")
        return correlation_argmax_warp(*maps, *(attributes[name] for name in names))


def error_by_the_letter(fp32: Bundle, bundle: Bundle) -> float:
    """How far a bundle by ONNX's reference evaluator is from the fp32 one by onnxruntime; RMS of a picture of 0 to 1.

    The worst of four frames, each from the states of the fp32 model.

    onnxruntime has no fp16 arithmetic on a CPU and computes in fp32, where nothing overflows.
    """
    evaluators, truths, worst = {}, {}, 0.0
    for graph in ("first", "step"):
        model = onnx.load(bundle.graph(graph))
        del model.functions[:]
        evaluators[graph] = ReferenceEvaluator(model, new_ops=[CorrelationArgmaxWarp])
        truths[graph] = onnxruntime.InferenceSession(str(fp32.graph(graph)), providers=["CPUExecutionProvider"])
    for graph, inputs in feeds(open_backend("onnxruntime", fp32, "cpu"), moving_frames(4, 16, 24)):
        half = {name: each.astype(np.float16) if each.dtype == np.float32 else each for name, each in inputs.items()}
        with np.errstate(all="ignore"):
            (found,) = evaluators[graph].run(["restored_out"], half)
        assert np.isfinite(found).all(), "not finite"
        (truth,) = truths[graph].run(["restored_out"], inputs)
        worst = max(worst, float(np.sqrt(np.square(found - truth).mean())))
    return worst


def fetched(bundle: Bundle, names: list[str], clips: list[list[np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """The values of tensors of both graphs in all frames, by onnxruntime alone."""
    sessions, found = {}, {}
    for graph in ("first", "step"):
        model = onnx.load(bundle.graph(graph))
        extra = set(names).difference(value.name for value in model.graph.output)
        model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in extra)
        sessions[graph] = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found[graph] = {name: np.zeros(0, np.float32) for name in names}
    for clip in clips:
        for graph, inputs in feeds(open_backend("onnxruntime", bundle, "cpu"), clip):
            for name, value in zip(names, sessions[graph].run(names, inputs), strict=True):
                found[graph][name] = np.append(found[graph][name], value)
    return found


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("wide", ["div_2", "conv2d_5", "relu_5", "cat_2", "detail_out", "restored_out"]),
        ("tiny", ["div_2", "conv2d_2", "relu_2", "restored_out"]),
    ],
)
def test_the_figures_are_numpys_over_all_clips(bundles: dict[str, Bundle], name: str, names: list[str]) -> None:
    clips = [moving_frames(3, 16, 24), [frame // 4 for frame in moving_frames(2, 20, 12, seed=1)]]
    measured = measure(bundles[name], clips)
    for graph, tensors in fetched(bundles[name], names, clips).items():
        for tensor, values in tensors.items():
            wanted, found = range_of(values), measured[graph][tensor]
            assert found.elements == wanted.elements
            for count in ("zeros", "above", "gone", "tiny"):
                # Another order of the sums moves a value over a threshold now and then.
                assert getattr(found, count) == pytest.approx(getattr(wanted, count), rel=0.01, abs=2), (tensor, count)
            assert found.lowest == pytest.approx(wanted.lowest, rel=1e-4)
            assert found.highest == pytest.approx(wanted.highest, rel=1e-4)
    if name == "wide":
        assert measured["step"]["conv2d_5"].above > 0
    else:
        assert measured["step"]["relu_2"].tiny > measured["step"]["relu_2"].gone > 0


def test_the_thresholds_are_those_of_fp16() -> None:
    edges = [2.0**-25, 2.0**-24, 2.0**-14, 65504.0, 65520.0]
    values = np.array([0, 0, 1, *edges, *(np.nextafter(np.float32(e), np.float32(s)) for e in edges for s in (0, 1e9))])
    values = np.concatenate([values, -values]).astype(np.float32)
    found = range_of(values)
    with np.errstate(over="ignore"):
        half = np.abs(values.astype(np.float16))
    assert found.zeros == (values == 0).sum()
    assert found.gone == ((half == 0) & (values != 0)).sum() == 4
    assert found.tiny == ((np.abs(values) < np.finfo(np.float16).tiny) & (values != 0)).sum()
    assert found.above == (np.abs(values) > np.finfo(np.float16).max).sum()
    assert np.isinf(half).sum() == 4  # of those above, the ones that no longer round to the largest


def test_every_tensor_of_mtu2_is_measured_and_fits(clip: Path, tmp_path: Path, capsys) -> None:
    report, keep = tmp_path / "r.json", tmp_path / "keep.txt"
    arguments = ("ranges", "mtu2", "--input", clip, "--frames", 2, "--json", report, "--keep", keep)
    ended = run(capsys, PROGRAM, *arguments)
    assert ended.code == 0, ended.err
    assert ended.out.endswith("every layer fits fp16\n") and "keep in fp32" not in ended.out
    found = json.loads(report.read_text())
    assert (found["frames"], found["keep"], found["states"]) == (2, {}, [])
    names = {(row["layer"], row["name"]) for row in found["tensors"]}
    # A sum belongs to the last layer in it; what the op moves in the first frame to the unit whose map it is.
    assert {("HGs.0.RBs.0.2", "add"), ("HGs.0.dec2.0", "getitem"), ("", "restored_in"), ("out", "conv2d_43")} <= names
    # A line for each layer and no more: the tensors are in the report.
    lines = ended.out.splitlines()
    assert len(found["weights"]) == 48 and len(lines) == 48 + 6 and max(map(len, lines)) <= 82
    figures = next(line.split() for line in lines if line.startswith("HGs.0.RBs.0.2 "))
    mine = [row for row in found["tensors"] if row["layer"] == "HGs.0.RBs.0.2"]
    assert len(mine) == 3
    assert float(figures[1]) == pytest.approx(min(row["lowest"] for row in mine), rel=1e-3)
    assert float(figures[2]) == pytest.approx(max(row["highest"] for row in mine), rel=1e-3)
    assert read_layers(keep) == frozenset()
    assert all(line.startswith("#") for line in keep.read_text().splitlines())


@pytest.mark.parametrize("name", KEEP)
def test_layers_that_are_kept_make_fp16_what_fp32_is(
    bundles: dict[str, Bundle], clip: Path, tmp_path: Path, capsys, name: str
) -> None:
    pytest.importorskip("skimage")
    wanted = KEEP[name][1]
    keep, report = tmp_path / "keep.txt", tmp_path / "r.json"
    options = ("--input", clip, "--keep", keep, "--json", report)
    ended = run(capsys, PROGRAM, "ranges", bundles[name].directory, *options)
    assert ended.code == 0, ended.err
    assert read_layers(keep) == wanted, ended.out
    found = json.loads(report.read_text())
    assert set(found["keep"]) == wanted and found["frames"] == 6
    for layer in wanted:
        assert f"\n{layer}: " in ended.out
    assert f"keep {len(wanted)} of " in ended.out
    half = half_bundle(bundles[name], tmp_path / "half", wanted)
    assert all(fp32_layers(onnx.load(half.graph(graph))) == wanted for graph in ("first", "step"))
    frames = moving_frames(6, 32, 48)
    pictures = (deblur(frames, model=bundle.directory, scene_threshold=None) for bundle in (bundles[name], half))
    assert min(psnr(one, other) for one, other in zip(*pictures, strict=True)) > 45
    error = error_by_the_letter(bundles[name], half)
    assert error < 5e-4
    # Without them: weights that overflow, values that do, or pictures that are less alike.
    with pytest.raises((InvalidInputError, AssertionError), match=r"exceed fp16's range|not finite|too far"):
        plain = half_bundle(bundles[name], tmp_path / "plain", ())
        assert error_by_the_letter(bundles[name], plain) < 3 * error, "too far"


def test_a_wide_map_goes_through_the_op(small: Bundle, clip: Path, tmp_path: Path) -> None:
    bundle = scaled(small, tmp_path / "moved", MOVED)
    report = find_ranges(bundle, [str(clip)], 3)
    assert any("takes cat_2, which reaches" in reason for reason in report.keep["HGs.1.enc1.0"])
    assert not report.states
    half = half_bundle(bundle, tmp_path / "half", report.keep)
    types = {}
    for graph in ("first", "step"):
        values = onnx.shape_inference.infer_shapes(onnx.load(half.graph(graph))).graph.value_info
        types[graph] = {value.name: value.type.tensor_type.elem_type for value in values}
    assert (types["first"]["getitem"], types["step"]["getitem"]) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    assert error_by_the_letter(bundle, half) < 5e-4


def test_a_clip_of_one_frame_is_a_first_frame(small: Bundle) -> None:
    frame = moving_frames(1, 16, 16)[0]
    measured = measure(small, [[frame]])
    assert set(measured) == {"first"} and measured["first"]["_to_copy_2"].largest == frame.max()


def test_frames_of_two_sizes_are_no_clip(small: Bundle) -> None:
    with pytest.raises(InvalidInputError, match="frame 2 is 20x16, the frames before are 16x16"):
        measure(small, [[*moving_frames(2, 16, 16), *moving_frames(1, 16, 20)]])
    with pytest.raises(InvalidInputError, match="no clip to measure"):
        find_ranges(small, [])


def test_small_values_beside_normal_ones_are_no_reason() -> None:
    counts = {"elements": 100, "zeros": 50, "above": 0, "gone": 10}
    assert not Range(0, 1, **counts, tiny=44).trouble(1)
    assert Range(0, 1, **counts, tiny=45).trouble(1) == "has 90.0% of its values below 2^-14"
    assert Range(-16377, 1, **counts, tiny=0).trouble(4) == "reaches 1.638e+04 (other videos may reach 4 times that)"
    assert not Range(-16377, 1, **counts, tiny=0).trouble(1)
    assert set(COUNTS) > {"zeros", "above", "gone", "tiny"}


def test_states_beyond_fp16_cannot_be_kept(small: Bundle, clip: Path, tmp_path: Path, capsys) -> None:
    bundle = scaled(small, tmp_path / "b", {"HGs.1.dec2.": 1e6, "out.": 1e-6})
    report, keep = tmp_path / "r.json", tmp_path / "keep.txt"
    options = ("--input", clip, "--frames", 2, "--json", report, "--keep", keep)
    ended = run(capsys, PROGRAM, "ranges", bundle.directory, *options)
    assert ended.code == 2 and ended.err.count("error:") == 1
    assert "the state detail_out reaches" in ended.err and "use --precision fp32" in ended.err
    assert "the state detail_out reaches" in json.loads(report.read_text())["states"][0] and not keep.exists()


def test_a_state_that_vanishes_cannot_be_kept(small: Bundle, clip: Path, tmp_path: Path, capsys) -> None:
    bundle = scaled(small, tmp_path / "b", {"motion_layer.": 1e-9})
    keep = tmp_path / "keep.txt"
    ended = run(capsys, PROGRAM, "ranges", bundle.directory, "--input", clip, "--frames", 2, "--keep", keep)
    assert ended.code == 2 and "the state motion_out has 100.0% of its values below 2^-14" in ended.err
    assert not keep.exists()


@pytest.mark.parametrize(("layer", "value"), [("HGs.1.enc1.", np.nan), ("out.", np.inf), ("HGs.1.", 1e38)])
def test_a_model_that_is_not_finite_is_refused(small: Bundle, tmp_path: Path, layer: str, value: float) -> None:
    bad = scaled(small, tmp_path / "bad", {layer: value})
    with pytest.raises(NonFiniteError, match=r"non-finite values in \w+ at frame 0"):
        measure(bad, [moving_frames(3, 16, 16)])


def test_weights_that_are_not_finite_are_named(small: Bundle, clip: Path, tmp_path: Path, capsys) -> None:
    bad = scaled(small, tmp_path / "bad", {"HGs.0.enc2.": np.nan})
    ended = run(capsys, PROGRAM, "ranges", bad.directory, "--input", clip, "--frames", 2)
    assert ended.code == 2 and "the weights of HGs.0.enc2.0 are not all finite" in ended.err


def test_the_first_tensor_that_overflows_is_named(small: Bundle, tmp_path: Path) -> None:
    bad = scaled(small, tmp_path / "bad", {"HGs.0.enc": 1e38})
    names = [nodes[0].output[0] for nodes in GraphView(onnx.load(bad.graph("first"))).layers.values()]
    with pytest.raises(NonFiniteError, match=f"values in {names[3]} at frame 0"):
        measure(bad, [moving_frames(3, 16, 16)])


def test_a_damaged_clip_is_not_taken_for_a_whole_one(small: Bundle, tmp_path: Path, capsys) -> None:
    video = make_video(tmp_path / "whole.mkv", moving(40, 48, 64))
    (tmp_path / "damaged.mkv").write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    ended = run(capsys, PROGRAM, "ranges", small.directory, "--input", tmp_path / "damaged.mkv")
    assert ended.code == 2 and "damaged" in ended.err and ended.out == "", ended
    ended = run(capsys, PROGRAM, "ranges", small.directory, "--input", tmp_path / "damaged.mkv", "--frames", 2)
    assert ended.code == 0
    ended = run(capsys, PROGRAM, "ranges", small.directory, "--input", video, "--frames", 1)
    assert ended.code == 2 and "give a clip of two frames or more" in ended.err


def test_bad_input_gets_one_message(small: Bundle, clip: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    half = half_bundle(small, tmp_path / "half", ())
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for index, width in enumerate((24, 24, 28)):
        write_png(tmp_path / "mixed" / f"{index}.png", moving_frames(1, 16, width)[0])
    (tmp_path / "text").write_text("no video")
    whole = ("--input", clip)
    for bundle, options, words in (
        (small.directory, (), "--input is missing; write:"),
        (small.directory, ("--input", "empty"), "empty"),
        (small.directory, ("--input", "none.mp4"), "none.mp4"),
        (small.directory, ("--input", "text"), "text"),
        (small.directory, (*whole, "--frames", 7), "has 6 frames, fewer than the 7"),
        (small.directory, (*whole, "--frames", 0), "--frames"),
        (small.directory, ("--input", "mixed"), "mixed: 2.png is 28x16, but 0.png is 24x16"),
        (half.directory, whole, "is fp16: calibration needs the fp32 bundle"),
        ("none", whole, "model none does not exist"),
        (clip, whole, "lacks bundle.json"),
        (small.directory, (*whole, "--json", "no/r.json"), "the directory does not exist"),
        (small.directory, (*whole, "--keep", tmp_path), "is a directory"),
        (small.directory, (*whole, "--keep", "x", "--json", "x"), "--json x"),
    ):
        ended = run(capsys, PROGRAM, "ranges", bundle, *options)
        assert ended.code == 2 and words in ended.err, (options, ended.err)
        assert "Traceback" not in ended.err and ended.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "half", "mixed", "text"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_known_before_the_work(small: Bundle, clip: Path, tmp_path, capsys):
    tmp_path.chmod(0o500)
    ended = run(capsys, PROGRAM, "ranges", small.directory, "--input", clip, "--keep", tmp_path / "keep")
    tmp_path.chmod(0o700)
    assert ended.code == 2 and "--keep" in ended.err and "cannot be written" in ended.err and ended.out == ""
