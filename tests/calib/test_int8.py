"""The search for layers that can be int8: harm after a rollout, the allowed loss, what is written and what is not."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

pytest.importorskip("av")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
pytest.importorskip("skimage")

import onnxruntime
from onnx import numpy_helper
from tests import cli
from tests.calib.comparing import altered
from tests.frames import moving_frames

from mtu.calib.int8 import ASSUMED_PSNR, Clip, calibrate, read_clips
from mtu.calib.quality import psnr
from mtu.calib.ranges import measure
from mtu.calib.rollout import feeds
from mtu.core.errors import InvalidInputError, NonFiniteError, OutputError
from mtu.export.bundle_files import load_graphs, save_bundle
from mtu.export.engine import build_engine
from mtu.export.engine_graph import build_graph
from mtu.export.engine_options import BuildOptions
from mtu.export.quantise import Limits, candidates, quantise
from mtu.runtime import open_backend, open_bundle, restore
from mtu.runtime.backends import automatic
from mtu.runtime.engine import Profile
from mtu.runtime.video import write_png

pytestmark = pytest.mark.usefixtures("one_thread")


def restored(bundle, frames):
    with contextlib.closing(open_backend("onnxruntime", bundle)) as backend:
        return [result.rgb for result in restore(frames, backend, scene_threshold=None)]


def with_truth(bundle):
    """Two clips, and as the truth what the model gives with a little noise."""
    made = []
    for seed in range(2):
        frames = moving_frames(4, 30, 50, seed)
        noise = np.random.default_rng(seed).integers(-4, 5, (4, 30, 50, 3))
        sharp = [np.clip(f + n, 0, 255).astype(np.uint8) for f, n in zip(restored(bundle, frames), noise, strict=True)]
        made.append(Clip(f"clip {seed}", frames, sharp))
    return made


@pytest.fixture(scope="module")
def clips(small):
    return with_truth(small)


def with_ranges_of(bundle, clip, directory):
    """All layers in int8, with 1.5 times the largest values of a clip."""
    models = load_graphs(bundle)
    measured = measure(bundle, [clip.frames])
    largest = {}
    for graph, model in models.items():
        for layer in candidates(model):
            taken, given = (measured[graph][name].largest for name in (layer.input, layer.output))
            before = largest.get(layer.name, (0, 0))
            largest[layer.name] = max(before[0], 1.5 * taken), max(before[1], 1.5 * given)
    for model in models.values():
        quantise(model, {name: Limits(*each) for name, each in largest.items()})
    directory.mkdir()
    save_bundle(directory, replace(bundle.interface, int8_layers=(*largest,)), models)
    return open_bundle(directory)


def scales(bundle):
    """The scales of all activations of the step graph."""
    tensors = onnx.load(bundle.graph("step")).graph.initializer
    return {t.name: float(numpy_helper.to_array(t)) for t in tensors if t.name.endswith("_scale") and not t.dims}


@pytest.fixture(scope="module")
def everything(small, clips, tmp_path_factory):
    """The bundle with all layers in int8, and what was found on the way."""
    directory = tmp_path_factory.mktemp("int8") / "bundle"
    said = []
    found = calibrate(small, clips, directory, allowed=50, progress=lambda text, done: said.append((text, done)))
    return open_bundle(directory), found, said


def test_the_bundle_is_a_normal_one(small, clips, everything, tmp_path):
    bundle, found, said = everything
    assert found.int8 == tuple(found.alone) and len(found.int8) == 14
    assert found.never == ("HGs.0.dec1.0", "HGs.0.dec2.0", "motion_layer.0.0", "HGs.1.dec1.0", "HGs.1.dec2.0", "out")
    with contextlib.closing(open_backend("onnxruntime", bundle)) as backend:
        assert backend.interface.int8_layers == found.int8
        assert backend.interface.arithmetic == "fp32 with 14 layers in int8"
    for graph in ("first", "step"):
        onnx.checker.check_model(onnx.load(bundle.graph(graph)), full_check=True)
    done = [share for _, share in said]
    assert done == sorted(done) and done[-1] == 1.0 and done[0] >= 0
    assert found.held_out
    # What was measured is what ranges of the other clip do, over whole clips, with their own states.
    pairs = []
    for number, clip in enumerate(clips):
        int8 = with_ranges_of(small, clips[1 - number], tmp_path / str(number))
        pairs.append((restored(int8, clip.frames), restored(small, clip.frames), clip.sharp))
    away = np.concatenate([np.subtract(int8, fp32, dtype=np.float64).ravel() for int8, fp32, _ in pairs])
    assert found.together.psnr == pytest.approx(10 * math.log10(255**2 / np.mean(away**2)), abs=1e-3)
    losses = [psnr(b, s) - psnr(a, s) for int8, fp32, sharp in pairs for a, b, s in zip(int8, fp32, sharp, strict=True)]
    assert found.together.loss == pytest.approx(np.mean(losses), abs=1e-6)
    assert found.together.psnr < min(harm.psnr for harm in found.alone.values())
    # What was written has the larger ranges of the two.
    one, other, both = (scales(each) for each in (open_bundle(tmp_path / "0"), open_bundle(tmp_path / "1"), bundle))
    assert both == {name: max(one[name], other[name]) for name in one} and one != other


def test_the_most_harmful_layers_go_back_until_the_loss_is_allowed(single, tmp_path):
    clips = with_truth(single)
    before = calibrate(single, clips, tmp_path / "bundle", allowed=50)
    allowed = before.together.loss * 0.6
    said = []
    found = calibrate(single, clips, tmp_path / "bundle", allowed=allowed, say=said.append, overwrite=True)
    assert found.together.loss <= allowed < before.together.loss
    gone = [name for name in found.alone if name not in found.int8]
    assert gone and found.int8
    assert max(found.alone[name].psnr for name in gone) <= min(found.alone[name].psnr for name in found.int8)
    assert len(said) == len(gone) and all("goes back to fp32" in line for line in said)
    assert found.alone == before.alone
    weights = {t.name: t.data_type for t in onnx.load(tmp_path / "bundle" / "step.onnx").graph.initializer}
    for name in found.alone:
        kind = onnx.TensorProto.INT8 if name in found.int8 else onnx.TensorProto.FLOAT
        assert weights[f"{name}.weight"] == kind


def test_without_sharp_clips_the_loss_is_estimated(single, clips, tmp_path):
    blurred = [Clip(clip.source, clip.frames, None) for clip in clips[:1]]
    found = calibrate(single, blurred, tmp_path / "bundle", allowed=50)
    assert not found.has_sharp and not found.held_out and len(found.int8) == 6
    assert "one clip, restored with its own ranges" in found.table() and "(estimated" in found.table()
    truth, error = (10 ** (-value / 10) for value in (ASSUMED_PSNR, found.together.psnr))
    assert found.together.loss == pytest.approx(10 * math.log10((truth + error) / truth))
    assert all(harm.loss >= 0 for harm in found.alone.values())


def test_a_bundle_that_misses_the_floor_is_not_written(single, clips, tmp_path):
    with pytest.raises(InvalidInputError, match=r"no layer can be int8 with a loss of 1e-09 dB: .* nothing is written"):
        calibrate(single, [Clip("clip", clips[0].frames, None)], tmp_path / "bundle", allowed=1e-9)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fp16", [False, True])
def test_tensorrt_rtx_builds_it(small, everything, clips, tmp_path, fp16, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    bundle, found, _ = everything
    built = {}

    def spy(prepared, *arguments):
        built[prepared.graph.name] = prepared.model
        return build_graph(prepared, *arguments)

    monkeypatch.setattr("mtu.export.engine_graph.build_graph", spy)
    options = BuildOptions(Profile.fixed(32, 48), fp16, None, "tensorrt-rtx", plugin=False)
    interface = build_engine(bundle, tmp_path / "engine", options).manifest.interface
    assert interface.int8_layers == found.int8
    assert interface.arithmetic == f"fp{16 if fp16 else 32} with 14 layers in int8"
    for model in built.values():
        kinds = Counter(node.op_type for node in model.graph.node)
        assert kinds["QuantizeLinear"] == 14 and kinds["DequantizeLinear"] == 28
        producers = {name: node.op_type for node in model.graph.node for name in node.output}
        assert {producers[n.input[0]] for n in model.graph.node if n.op_type == "Relu"} == {"Conv", "ConvTranspose"}
    # What was built gives what fp32 gives, nearly.
    frames = [frame[:28, :48] for frame in clips[0].frames]
    *_, (_, inputs) = feeds(open_backend("onnxruntime", small), frames)
    half = {name: value.astype(np.float16) if fp16 and value.dtype == np.float32 else value
            for name, value in inputs.items()}  # fmt: skip
    session = onnxruntime.InferenceSession(built["step"].SerializeToString(), providers=["CPUExecutionProvider"])
    truth = onnxruntime.InferenceSession(str(small.graph("step")), providers=["CPUExecutionProvider"])
    (int8,), (fp32,) = (each.run(["output"], feed) for each, feed in ((session, half), (truth, inputs)))
    assert 40 < psnr(int8[0], fp32[0]) < 90


def test_a_layer_cannot_be_int8_and_kept_in_fp32(everything, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    bundle, _, _ = everything
    (tmp_path / "keep.txt").write_text("HGs.0.dec1.0\nHGs.0.enc1.0\n")
    options = BuildOptions(Profile.fixed(32, 48), True, tmp_path / "keep.txt", "tensorrt-rtx")
    with pytest.raises(InvalidInputError, match=r"--keep-fp32 names HGs\.0\.enc1\.0, which is int8 in this bundle"):
        build_engine(bundle, tmp_path / "engine", options)
    (tmp_path / "keep.txt").write_text("HGs.0.dec1.0\n")
    assert build_engine(bundle, tmp_path / "engine", options).manifest.fp32_layers == ("HGs.0.dec1.0",)


def test_what_cannot_be_made_int8(small, everything, clips, tmp_path):
    bundle, _, _ = everything
    with pytest.raises(InvalidInputError, match=r"is fp32 with 14 layers in int8: calibration needs the fp32 bundle"):
        calibrate(bundle, clips, tmp_path / "b", allowed=1)
    for few, said in (([], "0 clips, 0 frames"), ([clips[0], Clip("one", clips[0].frames[:1], None)], "2 clips, 1 fr")):
        with pytest.raises(InvalidInputError, match=said):
            calibrate(small, few, tmp_path / "b", allowed=1)
    broken = altered(small, tmp_path / "nan", lambda weights: weights["HGs.0.enc1.0.bias"].fill(np.inf))
    with pytest.raises(NonFiniteError):
        calibrate(broken, clips, tmp_path / "b", allowed=1)
    with pytest.raises(OutputError, match="is the fp32 bundle itself"):
        calibrate(small, clips, small.directory, allowed=1, overwrite=True)
    assert not (tmp_path / "b").exists()


# The command


@pytest.fixture(scope="module")
def folders(clips, tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for number, clip in enumerate(clips):
        for kind, frames in (("blurred", clip.frames), ("sharp", clip.sharp)):
            (root / f"{kind}{number}").mkdir()
            for index, frame in enumerate(frames):
                write_png(root / f"{kind}{number}" / f"{index}.png", frame)
    return root


def test_the_command_says_what_it_did(capsys, tmp_path, folders, single):
    clip = folders / "blurred0"
    arguments = ["int8", single.directory, "-o", tmp_path / "bundle", "--input", clip, "--sharp", clip, "--frames", 3]
    ended = cli.run(capsys, "mtu-calibrate", *arguments, "--max-psnr-drop", 20, "--json", tmp_path / "r.json")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert len(report["alone"]) == len(report["int8"]) == 6 and report["has_sharp"]
    assert report["frames"] == 3 and report["clips"] == [str(clip)] and not report["held_out"]
    assert len(report["checkpoint"]) == 64 and report["model"] == str(single.directory)
    for name, harm in report["alone"].items():
        alone = "equal" if harm["psnr"] is None else f"{harm['psnr']:.2f} dB"
        assert re.search(rf"^{re.escape(name)} +{alone} ", ended.out, re.MULTILINE)
    assert "6 of 6 layers in int8" in ended.out
    assert set(report["times"]) == {"fp32", "int8"} and " times" in ended.out
    assert report["backend"] == automatic(single, "cpu") and f" in {report['backend']} on this CPU: " in ended.out
    ran = cli.run(capsys, "mtu-run", clip, "--model", tmp_path / "bundle", "-o", tmp_path / "out")
    assert ran.code == 0 and "custom fp32 with 6 layers in int8" in ran.err + ran.out
    same = ["--input", clip, "--min-psnr", 40, "--backend-b", "onnxruntime"]
    compared = cli.run(capsys, "mtu-compare", single.directory, tmp_path / "bundle", *same)
    assert compared.code == 0 and "fp32 with 6 layers in int8 on onnxruntime" in compared.out
    refused = cli.run(capsys, "mtu-run", clip, "--model", tmp_path / "bundle", "--backend", "torch",
                      "-o", tmp_path / "torch")  # fmt: skip
    assert refused.code == 2 and "torch computes in fp32 or fp16 alone" in refused.err


def test_bad_input_is_one_message(capsys, tmp_path, small, folders, clips):
    blurred, sharp = folders / "blurred0", folders / "sharp0"
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for index, width in enumerate((48, 48, 52)):
        write_png(mixed / f"{index}.png", moving_frames(1, 32, width)[0])
    wide = tmp_path / "wide"
    wide.mkdir()
    for index, frame in enumerate(moving_frames(3, 30, 54)):
        write_png(wide / f"{index}.png", frame)
    (tmp_path / "empty").mkdir()
    full = tmp_path / "full"
    shutil.copytree(small.directory, full)
    start = ["int8", small.directory, "-o", tmp_path / "out"]
    for arguments, message in (
        ([*start, "--input", blurred, "--frames", 5], "has 4 frames, fewer than the 5 asked for"),
        ([*start, "--input", blurred, "--sharp", sharp, "--sharp", sharp], "1 clips of --input and 2 of --sharp"),
        ([*start, "--input", blurred, "--sharp", wide, "--frames", 3], "has frames of another size"),
        ([*start, "--input", mixed, "--frames", 3], "must have one size"),
        ([*start, "--input", tmp_path / "empty"], "empty"),
        ([*start, "--input", tmp_path / "none.mp4"], "none.mp4"),
        ([*start, "--input", blurred, "--frames", 4, "--max-psnr-drop", "nan"], "--max-psnr-drop nan: give dB above 0"),
        ([*start, "--input", blurred, "--frames", 4, "--max-psnr-drop", 0], "--max-psnr-drop 0: give dB above 0"),
        (
            [*start, "--input", blurred, "--frames", 4, "--max-psnr-drop", 1, "--min-psnr-drop", 1],
            "--min-psnr-drop is the old name of --max-psnr-drop",
        ),
        ([*start, "--input", blurred, "--frames", 4, "--min-psnr-drop", 0], "--max-psnr-drop 0: give dB above 0"),
        ([*start, "--input", blurred, "--frames", 4, "--json", tmp_path], "--json"),
        ([*start, "--input", blurred, "--frames", 4, "--json", tmp_path / "out"], "is an input or the output"),
        ([*start[:-1], full, "--overwrite", "--input", blurred, "--frames", 4, "--json", full / "r.json"], "lies in"),
        ([*start, "--input", blurred, "--frames", 4, "--json", small.graph("step")], "is an input or the output"),
        (["int8", small.directory, "-o", full, "--input", blurred, "--frames", 4], "exists already"),
        (["int8", tmp_path / "none", "-o", tmp_path / "out", "--input", blurred], "does not exist"),
    ):
        ended = cli.run(capsys, "mtu-calibrate", *arguments)
        assert ended.code == 2 and message in ended.err and ended.out == "", (arguments, ended)
        *notes, error = ended.err.splitlines()
        assert error.startswith("mtu-calibrate: error: ")
        old_alone = "--min-psnr-drop" in arguments and "--max-psnr-drop" not in arguments
        assert len(notes) == old_alone and all("is now called --max-psnr-drop" in note for note in notes)
    assert {path.name for path in tmp_path.iterdir()} == {"mixed", "wide", "empty", "full"}
    with pytest.raises(InvalidInputError, match="fewer than the 5"):
        read_clips([str(blurred)], [], 5)
