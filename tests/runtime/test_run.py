"""mtu-run end to end, on a tiny model: what it writes, what it keeps, what it says, how it ends."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from tests import cli
from tests.media import make_video, moving

from mtu.models.mtu import PRESETS, describe
from mtu.runtime import deblur, open_backend, read_frames, restore
from mtu.runtime.compare import compose
from mtu.runtime.motion_picture import motion_picture
from mtu.runtime.video import read_picture, write_png


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "in.mkv", 7, codec="ffv1", pix_fmt="bgr0")


def test_the_pictures_are_those_of_the_library(capsys, tmp_path, small, clip):
    ended = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out", "--model", small.directory)
    assert ended.code == 0, ended.err
    assert ended.out == ""
    assert "7 frames 64x48 in" in ended.err and "openvino cpu" in ended.err
    expected = list(deblur(read_frames(clip), model=small.directory))
    written = [read_picture(path) for path in sorted((tmp_path / "out").iterdir())]
    assert len(written) == 7
    assert all(np.array_equal(a, b) for a, b in zip(written, expected, strict=True))


def test_torch_and_onnxruntime_write_the_same(capsys, tmp_path, small, clip):
    for backend in ("onnxruntime", "torch"):
        cli.run(capsys, "mtu-run", clip, "-o", tmp_path / backend, "--model", small.directory, "--backend", backend)
    for a, b in zip(sorted((tmp_path / "onnxruntime").iterdir()), sorted((tmp_path / "torch").iterdir()), strict=True):
        assert np.abs(read_picture(a).astype(int) - read_picture(b)).max() <= 1


def test_reruns_are_bit_identical(capsys, tmp_path, small):
    source = make_video(tmp_path / "in.mp4", 6, audio=True)
    for name in ("a.mp4", "b.mp4"):
        # With mbtree x264 does not always give the same.
        words = source, "-o", tmp_path / name, "--model", small.directory, "-e", "x264-params=mbtree=0"
        assert cli.run(capsys, "mtu-run", *words).code == 0
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize("units", [1, 2, 4])
def test_a_released_checkpoint_all_the_way(capsys, tmp_path, units):
    """Acceptance 2: checkpoint, export, images in, images out, equal to the network on the same frames."""
    import torch

    from mtu.models.mtu.architecture import Network
    from mtu.models.mtu.config import NetworkConfig

    torch.manual_seed(units)
    network = Network(NetworkConfig(units, 6, 1), auxiliary=True)
    checkpoint = tmp_path / f"MTU{units}_DVD.pytorch"
    torch.save({"module.Network." + key: value for key, value in network.state_dict().items()}, checkpoint)
    (tmp_path / "frames").mkdir()
    frames = moving(5, 30, 45)
    for index, frame in enumerate(frames):
        write_png(tmp_path / "frames" / f"{index}.png", frame)
    ended = cli.run(capsys, "mtu-export", "onnx", "--checkpoint", checkpoint, "-o", tmp_path / "b")
    assert ended.code == 0, ended.err
    assert ("only training uses" in ended.err) == (units > 1)
    backends = ("onnxruntime", "torch")
    for backend in backends:
        arguments = ("-o", f"{tmp_path}/{backend}/", "--model", tmp_path / "b", "--backend", backend)
        ended = cli.run(capsys, "mtu-run", tmp_path / "frames", *arguments)
        assert ended.code == 0, ended.err
    network.eval()
    padded = [np.pad(f, ((0, 2), (0, 3), (0, 0)), mode="edge") for f in frames]
    pictures = [torch.from_numpy(f).permute(2, 0, 1)[None] / 255 for f in padded]
    states: tuple[torch.Tensor, ...] = ()
    with torch.inference_mode():
        for t in range(5):
            window = [pictures[min(max(t + k, 0), 4)] for k in (-2, -1, 0, 1, 2)]
            restored, states, _ = network.step(window, states) if states else network.first(window)
            expected = (restored[0].permute(1, 2, 0)[:30, :45] * 255).numpy()
            for backend in backends:
                assert np.abs(read_picture(tmp_path / backend / f"{t}.png") - expected).max() <= 0.5 + 0.02


def test_variable_frame_rate_odd_size_audio_and_subtitles_are_kept(capsys, tmp_path, small):
    """Acceptance 3."""
    stamps = [0, 40, 75, 140, 150, 300, 333, 400]
    source = make_video(
        tmp_path / "in.mkv",
        moving(8, 47, 63),
        pts=stamps,
        time_base=Fraction(1, 1000),
        pix_fmt="yuv444p",
        audio=2,
        subtitles=True,
        chapters=True,
        attachment=True,
        metadata={"title": "a title"},
    )
    target = tmp_path / "out.mkv"
    ended = cli.run(capsys, "mtu-run", source, "-o", target, "--model", small.directory)
    assert ended.code == 0, ended.err
    with av.open(str(source)) as a, av.open(str(target)) as b:
        assert [s.type for s in a.streams] == [s.type for s in b.streams]
        assert b.metadata["title"] == "a title"
        assert a.chapters() == b.chapters()
        video = b.streams.video[0]
        assert (video.width, video.height) == (63, 47)
        assert [int(f.pts * f.time_base * 1000 + Fraction(1, 2)) for f in b.decode(video)] == stamps
    for index in range(1, 4):
        with av.open(str(source)) as a, av.open(str(target)) as b:
            before = [(bytes(p), p.pts, p.time_base) for p in a.demux(a.streams[index]) if p.size]
            after = [(bytes(p), p.pts, p.time_base) for p in b.demux(b.streams[index]) if p.size]
            assert before == after


def test_a_scene_cut_starts_afresh(capsys, tmp_path, small):
    dark, bright = [f // 8 for f in moving(4)], [255 - f // 8 for f in moving(4, seed=1)]
    source = make_video(tmp_path / "in.mkv", dark + bright, codec="ffv1", pix_fmt="bgr0")
    report = tmp_path / "report.json"
    for name, flag in (("cut", "--scene-detection"), ("whole", "--no-scene-detection")):
        arguments = (source, "-o", tmp_path / name, "--model", small.directory, "--json", report, flag)
        assert cli.run(capsys, "mtu-run", *arguments).code == 0
        assert json.loads(report.read_text())["scene_cuts"] == ([4] if name == "cut" else [])
    fresh = list(deblur(bright, model=small.directory, scene_threshold=None))
    pictures = [read_picture(path) for path in sorted((tmp_path / "cut").iterdir())]
    assert all(np.array_equal(a, b) for a, b in zip(pictures[4:], fresh, strict=True))
    assert not np.array_equal(read_picture(tmp_path / "whole" / "000004.png"), fresh[0])


def test_the_report_says_what_was_done(capsys, tmp_path, small, clip):
    report = tmp_path / "r.json"
    cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out.mkv", "--model", small.directory, "--json", report)
    found = json.loads(report.read_text())
    assert found["frames"] == 7 and (found["width"], found["height"]) == (64, 48)
    assert found["backend"] == "openvino" and found["device"] == "cpu" and found["model"] == "custom"
    assert found["seconds"] >= found["inference_seconds"] > 0 and found["damage"] is None


@pytest.mark.parametrize(("compare", "width"), [("side-by-side", 128), ("split", 64)])
def test_compare(capsys, tmp_path, small, clip, compare, width):
    arguments = (clip, "-o", tmp_path / "out", "--model", small.directory, "--compare", compare)
    assert cli.run(capsys, "mtu-run", *arguments).code == 0
    after = list(deblur(read_frames(clip), model=small.directory))
    picture = read_picture(tmp_path / "out" / "000003.png")
    assert picture.shape == (48, width, 3)
    before = list(read_frames(clip))[3]
    assert np.array_equal(picture[:, :31], before[:, :31])
    assert np.array_equal(picture[:, -31:], after[3][:, -31:])
    assert compare == "side-by-side" or (picture[:, 31:33] == 255).all()


def test_compose_of_one_pixel():
    one = np.zeros((1, 1, 3), np.uint8)
    assert compose(one, one, "split").shape == (1, 1, 3)


def test_save_motion_colours_the_displacement(capsys, tmp_path, small, clip):
    arguments = (clip, "-o", tmp_path / "out.mkv", "--model", small.directory, "--save-motion", tmp_path / "motion")
    assert cli.run(capsys, "mtu-run", *arguments).code == 0
    pictures = [read_picture(path) for path in sorted((tmp_path / "motion").iterdir())]
    backend = open_backend("onnxruntime", small)
    output = small.interface.the("displacement")
    expected = [motion_picture(r.displacement, output, 48, 64) for r in restore(read_frames(clip), backend)]
    assert all(np.array_equal(a, b) for a, b in zip(pictures, expected, strict=True))


def test_motion_colours():
    centre, right, down = 220, 220 + 10, 220 + 10 * 21
    output = describe(PRESETS["mtu2"]).the("displacement")
    picture = motion_picture(np.array([[centre, right, down]], np.int32), output, 4, 11)
    assert picture.shape == (4, 11, 3)
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture[0, 4].tolist() == [255, 0, 0]
    assert picture[0, 8].tolist() == [128, 255, 0]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (5, 3)])
def test_tiny_sizes_and_short_clips(capsys, tmp_path, small, count, height, width):
    (tmp_path / "in").mkdir()
    for index in range(count):
        write_png(tmp_path / "in" / f"{index}.png", np.full((height, width, 3), 40 * index, np.uint8))
    ended = cli.run(capsys, "mtu-run", tmp_path / "in", "-o", tmp_path / "out", "--model", small.directory)
    assert ended.code == 0, ended.err
    assert [read_picture(p).shape for p in sorted((tmp_path / "out").iterdir())] == [(height, width, 3)] * count


def test_segment(capsys, tmp_path, small, clip):
    arguments = (clip, "-o", tmp_path / "out", "--model", small.directory, "--segment", "0.08:0.2")
    ended = cli.run(capsys, "mtu-run", *arguments)
    assert ended.code == 0, ended.err
    assert len(list((tmp_path / "out").iterdir())) == 3
