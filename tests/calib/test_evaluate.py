"""Tests of mtu.calib.alignment, mtu.calib.evaluate and mtu-eval on tiny folders of the real layouts."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.calib.comparing import one_graph
from tests.calib.test_datasets import MAKERS
from tests.cli import Ended, run
from tests.frames import moving_frames
from tests.training.test_flow import textured

from mtu.calib import evaluate as module
from mtu.calib.alignment import LARGEST, align, find_shift
from mtu.calib.datasets import Layout, VideoPair
from mtu.calib.evaluate import evaluate
from mtu.calib.quality import SMALLEST, measure, psnr
from mtu.core.errors import InvalidInputError, OutputError
from mtu.export.chain_files import write_chain
from mtu.runtime import Bundle, deblur
from mtu.runtime.bundle import bundle_json
from mtu.runtime.video import read_picture, write_png

pytest.importorskip("skimage")
pytest.importorskip("onnxruntime")


# --- the alignment


@functools.cache
def scene() -> NDArray[np.uint8]:
    return textured(220, 220)


def view(down: float, right: float, blur: float = 0.0, size: int = 160) -> NDArray[np.uint8]:
    """A part of a textured picture; what it shows lies `down` and `right` of where view(0, 0) has it."""
    from scipy import ndimage

    moved = ndimage.shift(
        ndimage.gaussian_filter(scene().astype(float), (1.5, 1.5, 0)), (down, right, 0), order=5, mode="mirror"
    )
    moved = ndimage.gaussian_filter(moved, (blur, blur, 0)) if blur else moved
    cut: NDArray[np.uint8] = moved[30 : 30 + size, 30 : 30 + size].round().clip(0, 255).astype(np.uint8)
    return cut


@pytest.mark.parametrize("blur", [0.0, 2.0])
@pytest.mark.parametrize("shift", [(0, 0), (3, -5), (-7, 2), (0.3, -0.7), (-1.25, 0.5), (0.1, 0.05), (4.5, -9.4)])
def test_known_shifts_are_found(shift: tuple[float, float], blur: float) -> None:
    found = find_shift(view(*shift, blur), view(0, 0))
    assert found == pytest.approx(shift, abs=0.11 if blur else 0.051)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -5), (-7, 2), (0, 4), (-16, 16)])
def test_whole_pixels_come_back_as_they_were(down: int, right: int) -> None:
    truth, picture = scene()[30:190, 30:190], scene()[30 - down : 190 - down, 30 - right : 190 - right]
    moved, shared, shift = align(picture, truth)
    assert shift == (down, right) and moved.shape == shared.shape == (160 - abs(down), 160 - abs(right), 3)
    assert np.array_equal(moved, shared)
    top, left = max(0, -down), max(0, -right)
    assert np.array_equal(shared, truth[top : top + shared.shape[0], left : left + shared.shape[1]])


def test_parts_of_a_pixel_come_back_nearly_as_they_were() -> None:
    picture, truth = view(0.3, -0.7), view(0, 0)
    moved, shared, _ = align(picture, truth)
    assert moved.shape == (159, 159, 3)
    assert psnr(moved, shared) > psnr(picture, truth) + 15
    assert measure(moved, shared).ssim > 0.99


def test_what_cannot_be_aligned_is_left_where_it_is() -> None:
    flat = np.full((40, 48, 3), 90, np.uint8)
    assert find_shift(flat, textured(40, 48)) == find_shift(textured(40, 48), flat) == (0, 0)
    far = LARGEST + 4
    assert find_shift(scene()[far : far + 160, :160], scene()[:160, :160]) == (0, 0)
    small = textured(60, 60)
    assert min(align(small[8:21, 8:21], small[5:18, 8:21])[0].shape[:2]) >= SMALLEST
    with pytest.raises(InvalidInputError, match="different sizes cannot be aligned"):
        find_shift(flat, flat[1:])


# --- the evaluation


def make(root: Path, layout: Layout) -> Path:
    """The folder of a data set whose videos move, the blurred ones with a trail; the first for testing is longer."""
    root = MAKERS[layout](root)
    for folder in sorted({path.parent for path in root.rglob("*.png")}):
        names = sorted(path.name for path in folder.iterdir())
        if "720p_240fps_2" in folder.parts:
            names += ["00003.png", "00004.png"]
        is_sharp = folder.name in ("GT", "sharp") or folder.parent.name.endswith("_sharp")
        for name, frame in zip(names, moving_frames(len(names), 32, 36, seed=len(str(folder.parent))), strict=True):
            blurred = ((frame.astype(np.uint16) + np.roll(frame, 2, 1)) // 2).astype(np.uint8)
            write_png(folder / name, frame if is_sharp else blurred)
    return root


@pytest.fixture
def dvd(tmp_path: Path) -> Path:
    return make(tmp_path, "dvd")


def folder_of(root: Path, video: str, kind: str) -> Path:
    return root / "quantitative_datasets" / video / kind


def pictures(folder: Path) -> list[NDArray[np.uint8]]:
    return [read_picture(path) for path in sorted(folder.iterdir())]


def refused(ended: Ended, *words: str) -> None:
    assert ended.code == 2 and ended.out == "", ended
    assert ended.err.startswith("mtu-eval: error: ") and "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


def test_the_figures_are_those_of_whole_videos_restored_without_cuts(dvd: Path, small: Bundle) -> None:
    evaluation = evaluate("dvd", dvd, small.directory)
    assert list(evaluation.videos) == ["720p_240fps_2", "IMG_0003", "IMG_0049"]
    means = []
    for video, scores in evaluation.videos.items():
        blurred, sharp = (pictures(folder_of(dvd, video, kind)) for kind in ("input", "GT"))
        restored = list(deblur(blurred, model=small.directory, scene_threshold=None))
        assert len(scores) == len(restored) == (5 if video == "720p_240fps_2" else 3)
        for score, before, after, truth in zip(scores, blurred, restored, sharp, strict=True):
            assert (score.blurred, score.restored) == (measure(before, truth), measure(after, truth))
        means.append([score.restored.psnr for score in scores[1:]])
        assert evaluation.video_means()[video][1].psnr == pytest.approx(np.mean(means[-1]))
    over_frames, over_videos = np.mean(np.concatenate(means)), np.mean([np.mean(mean) for mean in means])
    assert evaluation.overall()[1].psnr == pytest.approx(over_frames) and over_frames != pytest.approx(over_videos)
    text = evaluation.markdown()
    assert f"| **mean over frames** | 8 | {evaluation.overall()[0].psnr:.2f} |" in text
    assert f" {over_videos:.2f} |" in text.split("mean over videos")[1].splitlines()[0]


def test_the_papers_figure_stands_beside_its_preset(dvd: Path, small: Bundle) -> None:
    evaluation = evaluate("dvd", dvd, small.directory)
    assert evaluation.preset == "custom" and "paper" not in evaluation.markdown()
    evaluation.preset = "mtu2"
    text = evaluation.markdown()
    assert "| dvd | blurred | bundle | paper's mtu2 |" in text
    assert text.split("| PSNR |")[1].splitlines()[0].endswith("| 31.00 |")
    assert text.split("| SSIM |")[1].splitlines()[0].endswith("| 0.933 |")
    # It is of other pictures than these.
    assert "Caution" in text and "10 videos with 1,000 frames, and here are 3 with 11." in text
    whole = {f"v{number}": 100 for number in range(10)}
    evaluation.settings = dataclasses.replace(evaluation.settings, videos=whole)
    assert "Caution" not in evaluation.markdown()


@pytest.mark.parametrize("layout", ["dvd", "gopro", "reds"])
def test_a_layout_given_as_the_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(capsys, "mtu-eval", "--layout", "dvd", layout)
    refused(ended, f"'{layout}' is read as the folder", f"--layout {layout} DIR")


@pytest.mark.parametrize(("layout", "video"), [("dvd", "IMG_0049"), ("gopro", "GOPR0384_11_00"), ("reds", "000")])
def test_the_command_prints_tables_and_writes_a_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, small: Bundle, layout: Layout, video: str
) -> None:
    root, out = make(tmp_path, layout), tmp_path / "new" / "out"
    ended = run(capsys, "mtu-eval", root, "--layout", layout, "--model", small.directory, "-o", out)
    assert ended.code == 0 and f"| {video} | 2 |" in ended.out and f"mtu-eval: {video} (" in ended.err
    assert sorted(path.name for path in out.iterdir()) == ["results.csv", "results.json", "results.md"]
    assert (out / "results.md").read_text() == ended.out
    content = json.loads((out / "results.json").read_text())
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(content["settings"]["videos"].values())
    assert [row["counted"] for row in rows if row["video"] == video] == ["0", "1", "1"]
    counted = [float(row["restored_psnr"]) for row in rows if row["counted"] == "1"]
    assert content["mean_over_frames"]["restored"]["psnr"] == pytest.approx(np.mean(counted), abs=1e-3)


def test_the_blurred_input_is_aligned_as_well(tmp_path: Path, small: Bundle) -> None:
    root = make(tmp_path, "gopro")
    for number, path in enumerate(sorted((root / "test").rglob("blur_gamma/*.png"))):
        large = scene()[60 + number :, 60:]
        write_png(path, large[2:82, 5:95])
        write_png(path.parent.parent / "sharp" / path.name, large[5:85, 3:93])
    plain = evaluate("gopro", root, small.directory)
    out = tmp_path / "out"
    aligned = evaluate("gopro", root, small.directory, aligned=True, output=out)
    for score in aligned.videos["GOPR0384_11_00"]:
        assert score.blurred_shift == (3, -2) and score.blurred.psnr == np.inf
    assert plain.overall()[0].psnr < 30 and plain.overall()[1].psnr < aligned.overall()[1].psnr - 0.1
    assert "aligned to the truth" in aligned.markdown() and "| inf |" in aligned.markdown()
    assert json.loads((out / "results.json").read_text())["mean_over_frames"]["blurred"]["psnr"] is None
    assert evaluate("gopro", root, small.directory, aligned=True, output=out) == aligned, "read as written"


def test_videos_of_other_sizes_have_their_backend(dvd: Path, small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("input", "GT"):
        for path in folder_of(dvd, "IMG_0049", kind).iterdir():
            write_png(path, np.ascontiguousarray(read_picture(path).swapaxes(0, 1)))
    opened: list[Any] = []
    original = module.open_backend
    monkeypatch.setattr(module, "open_backend", lambda *a, **k: opened.append(k["size"]) or original(*a, **k))
    assert len(evaluate("dvd", dvd, small.directory).videos) == 3
    assert opened == [(32, 36), (36, 32)]


def test_few_frames_are_in_memory(tmp_path: Path, small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    video = tmp_path / "test" / "v"
    for folder in ("blur_gamma", "sharp"):
        (video / folder).mkdir(parents=True)
        for number, frame in enumerate(moving_frames(30, 16, 16)):
            write_png(video / folder / f"{number:06d}.png", frame)
    alive: list[weakref.ref[Any]] = []
    most = 0
    original = module.read_clip

    def read(pair: VideoPair, start: int, frames: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        nonlocal most
        clip = original(pair, start, frames)
        alive.extend(map(weakref.ref, clip))
        most = max(most, sum(reference() is not None for reference in alive))
        return clip

    monkeypatch.setattr(module, "read_clip", read)
    evaluate("gopro", tmp_path, small.directory)
    assert 6 <= most <= 14


def test_a_chain_is_measured_by_its_last_pictures(dvd: Path, small: Bundle, tmp_path: Path) -> None:
    chain = write_chain([small.directory, small.directory], tmp_path / "chain").directory
    evaluation = evaluate("dvd", dvd, chain)
    blurred, sharp = (pictures(folder_of(dvd, "IMG_0003", kind)) for kind in ("input", "GT"))
    restored = list(deblur(blurred, model=chain, scene_threshold=None))
    assert [each.restored for each in evaluation.videos["IMG_0003"]] == list(map(measure, restored, sharp))
    assert evaluation.preset == "custom + custom"
    assert evaluation.settings.model != evaluate("dvd", dvd, small.directory).settings.model


@pytest.mark.parametrize(("scale", "role", "words"), [(2, "picture", "2 times the size"), (1, "map", "no pictures")])
def test_a_model_that_gives_no_pictures_of_that_size(
    capsys: pytest.CaptureFixture[str], dvd: Path, tmp_path: Path, scale: int, role: Any, words: str
) -> None:
    (tmp_path / "bundle").mkdir()
    described = one_graph(role, scale)
    (tmp_path / "bundle" / "bundle.json").write_bytes(bundle_json(described))
    (tmp_path / "bundle" / "all.onnx").touch()
    refused(run(capsys, "mtu-eval", dvd, "--layout", "dvd", "--model", tmp_path / "bundle"), words)


# --- going on


def test_an_interrupted_evaluation_goes_on(
    dvd: Path, small: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    evaluate("dvd", dvd, small.directory, output=whole)
    asked: list[str] = []
    original = module._score

    def interrupted(pair: VideoPair, *rest: Any) -> Any:
        asked.append(pair.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return original(pair, *rest)

    monkeypatch.setattr(module, "_score", interrupted)
    command = ("mtu-eval", dvd, "--layout", "dvd", "--model", small.directory, "-o", parts)
    assert run(capsys, *command).code == 130
    assert list(json.loads((parts / "results.json").read_text())["videos"]) == ["720p_240fps_2"]
    assert "1 of 3 videos" in (parts / "results.md").read_text()
    assert run(capsys, *command).code == 0
    assert asked == ["720p_240fps_2", "IMG_0003", "IMG_0003", "IMG_0049"]
    again = run(capsys, *command)
    assert len(asked) == 4 and again.err.count("done before") == 3 and again.out == (parts / "results.md").read_text()
    for path in whole.iterdir():
        assert path.read_bytes() == (parts / path.name).read_bytes()


def test_a_folder_of_another_evaluation(
    dvd: Path, small: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    evaluate("dvd", dvd, small.directory, output=out)
    before = (out / "results.json").read_bytes()
    command = ("mtu-eval", dvd, "--layout", "dvd", "-o", out)
    mine = ("--model", small.directory)
    refused(run(capsys, *command, *mine, "--align"), "another evaluation, with align False, asked for True", "-o")
    refused(run(capsys, *command, *mine, "--device", "cpu"), "with device auto, asked for cpu")
    refused(run(capsys, *command), "of another model (sha256 ")
    root = make(tmp_path / "other", "gopro")
    refused(run(capsys, "mtu-eval", root, "--layout", "gopro", "-o", out, *mine), "with layout dvd, asked for gopro")
    for kind in ("input", "GT"):
        (folder_of(dvd, "IMG_0003", kind) / "00002.png").unlink()
    refused(run(capsys, *command, *mine), "of other videos or frames (the first that differs: IMG_0003)")
    assert (out / "results.json").read_bytes() == before


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format_version": "9"}', '{"format_version": "1"}', "\x00"])
def test_results_that_cannot_be_read(dvd: Path, small: Bundle, tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(content)
    with pytest.raises(OutputError, match="cannot be gone on with"):
        evaluate("dvd", dvd, small.directory, output=tmp_path / "out")


# --- bad input


def test_folders_that_are_no_place_for_results(
    dvd: Path, small: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    command = ("mtu-eval", dvd, "--layout", "dvd", "--model", small.directory, "-o")
    refused(run(capsys, *command, tmp_path / "file"), "file is a file; the results are a folder")
    refused(run(capsys, *command, tmp_path / "full"), "holds notes.txt and no results.json")
    refused(run(capsys, *command, tmp_path / "file" / "in"), "cannot write the results to")
    assert sorted(path.name for path in tmp_path.glob("f*/*")) == ["notes.txt"]


def test_data_and_models_that_are_none(
    dvd: Path, small: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    mine = ("--model", small.directory, "-o", out)
    refused(run(capsys, "mtu-eval", tmp_path / "no", "--layout", "dvd", *mine), "no does not exist: give the folder")
    refused(
        run(capsys, "mtu-eval", dvd, "--layout", "reds", *mine), "does not hold the data set reds", "say --layout dvd."
    )
    refused(run(capsys, "mtu-eval", dvd, "--layout", "dvd", "--model", dvd, "-o", out), "bundle.json")
    wrong = ("mtu-eval", dvd, "--layout", "dvd", *mine)
    refused(run(capsys, *wrong, "--backend", "gpu"), "unknown backend 'gpu'")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "bundle.json").write_bytes((small.directory / "bundle.json").read_bytes())
    for graph in ("first", "step"):
        (tmp_path / "broken" / f"{graph}.onnx").write_bytes(b"no graph")
    refused(run(capsys, "mtu-eval", dvd, "--layout", "dvd", "--model", tmp_path / "broken", "-o", out), "first.onnx")
    assert not out.exists()
    assert run(capsys, "mtu-eval", dvd, "--layout", "kitti").code == 2


def test_frames_that_cannot_be_measured(dvd: Path, small: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("mtu-eval", dvd, "--layout", "dvd", "--model", small.directory)
    video = "720p_240fps_2"
    paths = [folder_of(dvd, video, kind) / "00002.png" for kind in ("input", "GT")]
    right = [path.read_bytes() for path in paths]
    write_png(paths[1], np.zeros((32, 40, 3), np.uint8))
    refused(run(capsys, *command), f"{paths[1]} is 40x32, but", "00000.png is 36x32")
    write_png(paths[0], np.zeros((32, 40, 3), np.uint8))
    refused(run(capsys, *command), f"{paths[0]} is 40x32, but", "00000.png is 36x32")
    paths[0].write_bytes(b"no picture")
    refused(run(capsys, *command), "00002.png is not a picture that can be read")
    for path, content in zip(paths, right, strict=True):
        path.write_bytes(content)
    for kind in ("input", "GT"):
        for path in folder_of(dvd, video, kind).iterdir():
            write_png(path, read_picture(path)[:10])
    refused(run(capsys, *command), "00000.png is 36x10: SSIM needs 11x11")
    for kind in ("input", "GT"):
        for path in sorted(folder_of(dvd, video, kind).iterdir())[1:]:
            path.unlink()
    refused(run(capsys, *command), "1 of 3 videos have fewer than 2 frames")
