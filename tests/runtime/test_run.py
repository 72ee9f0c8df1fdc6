"""mtu-run end to end, on a tiny model: what it writes, what it keeps, what it says, how it ends."""

from __future__ import annotations

import array
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
from fractions import Fraction

import av
import numpy as np
import pytest
from tests import cli
from tests.conftest import ROOT
from tests.media import make_video, moving
from tests.processes import LIMIT, environment, is_full, wait_until

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
    assert "7 frames 64x48 in" in ended.err and "onnxruntime cpu" in ended.err
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
        assert cli.run(capsys, "mtu-run", source, "-o", tmp_path / name, "--model", small.directory).code == 0
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
    assert found["backend"] == "onnxruntime" and found["device"] == "cpu" and found["model"] == "custom"
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


# Bad input: one message, exit code 2, nothing at the output's name.


def images(tmp_path, sizes):
    (tmp_path / "in").mkdir()
    for index, (height, width) in enumerate(sizes):
        write_png(tmp_path / "in" / f"{index}.png", np.zeros((height, width, 3), np.uint8))
    return tmp_path / "in"


def with_bytes(tmp_path, content, name="in.mp4"):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def audio_only(tmp_path):
    with av.open(str(tmp_path / "in.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return tmp_path / "in.wav"


BAD_SOURCES = {
    "missing": lambda p: p / "none.mp4",
    "empty": lambda p: with_bytes(p, b""),
    "text": lambda p: with_bytes(p, b"This is not a video.\n" * 50),
    "random": lambda p: with_bytes(p, np.random.default_rng(0).bytes(20000)),
    "audio only": audio_only,
    "no images": lambda p: images(p, []),
    "sizes differ": lambda p: images(p, [(8, 8), (8, 12)]),
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_bad_sources(capsys, tmp_path, small, kind):
    source = BAD_SOURCES[kind](tmp_path)
    refused(cli.run(capsys, "mtu-run", source, "-o", tmp_path / "out.mp4", "--model", small.directory), tmp_path)


def refused(ended, tmp_path, *words):
    assert ended.code == 2, ended.err
    assert ended.err.count("error:") == 1 and "Traceback" not in ended.err
    assert ended.out == ""
    assert all(word in ended.err for word in words), ended.err
    assert not (tmp_path / "out.mp4").exists()
    assert not [p for p in tmp_path.iterdir() if ".part" in p.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--codec", "h265x"], ["h265x"]),
        (["--pix-fmt", "yuv999"], ["yuv999"]),
        (["-e", "presett=fast"], ["presett"]),
        (["-e", "preset"], ["key=value"]),
        (["--backend", "openvino"], ["unknown backend 'openvino'"]),
        (["--device", "tpu"], ["unknown device 'tpu'"]),
        (["--segment", "5"], ["5"]),
        (["--segment", "90:99"], []),
        (["--scene-threshold", "0"], ["must be above 0"]),
        (["--model", "{tmp}/none"], ["does not exist"]),
        (["--model", "{tmp}/empty"], ["lacks bundle.json"]),
        (["--model", "{tmp}/text"], ["cannot be loaded"]),
        (["--model", "{tmp}/foreign"], ["is not the graph first that bundle.json describes"]),
        (["--json", "{tmp}/none/r.json"], ["does not exist"]),
    ],
)
def test_bad_options(capsys, tmp_path, small, clip, arguments, words):
    (tmp_path / "empty").mkdir()
    foreign_models(tmp_path, small)
    filled = [a.format(tmp=tmp_path) for a in arguments]
    model = [] if "--model" in filled else ["--model", small.directory]
    refused(cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out.mp4", *model, *filled), tmp_path, *words)


def foreign_models(tmp_path, bundle):
    import onnx

    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [onnx.helper.make_tensor_value_info("y", 1, [1])]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    for name in ("text", "foreign"):
        (tmp_path / name).mkdir()
        shutil.copy(bundle.directory / "bundle.json", tmp_path / name)
        for graph_name in ("first", "step"):
            content = b"no model" if name == "text" else model.SerializeToString()
            (tmp_path / name / f"{graph_name}.onnx").write_bytes(content)


def test_outputs_that_cannot_be(capsys, tmp_path, small, clip):
    model = ("--model", small.directory)
    (tmp_path / "file").write_text("")
    (tmp_path / "taken.mp4").write_text("mine")
    before = clip.read_bytes()
    for target in (clip, tmp_path / "none" / "out.mp4", tmp_path / "file" / "out.mp4", tmp_path / "taken.mp4"):
        refused(cli.run(capsys, "mtu-run", clip, "-o", target, *model), tmp_path)
    refused(cli.run(capsys, "mtu-run", clip, "-o", clip, "--overwrite", *model), tmp_path)
    assert clip.read_bytes() == before
    assert (tmp_path / "taken.mp4").read_text() == "mine"
    assert cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "taken.mp4", "--overwrite", *model).code == 0


def test_save_motion_of_one_unit_is_refused(capsys, tmp_path, clip, single):
    arguments = ("-o", tmp_path / "out.mp4", "--model", single.directory, "--save-motion", tmp_path / "m")
    ended = cli.run(capsys, "mtu-run", clip, *arguments)
    refused(ended, tmp_path, "estimates no motion")
    assert not (tmp_path / "m").exists()


def test_a_truncated_video_keeps_what_decodes_and_says_so(capsys, tmp_path, small):
    whole = make_video(tmp_path / "whole.mkv", 60, codec="mpeg4").read_bytes()
    source = with_bytes(tmp_path, whole[: len(whole) // 2], "in.mkv")
    ended = cli.run(capsys, "mtu-run", source, "-o", tmp_path / "out.mkv", "--model", small.directory)
    assert ended.code == 3, ended.err
    assert "damaged input" in ended.err
    with av.open(str(tmp_path / "out.mkv")) as out:
        kept = sum(1 for _ in out.decode(video=0))
    assert 5 < kept < 60


def test_disk_full(tmp_path, small):
    """A file-size limit stands in for a full disk."""
    source = make_video(tmp_path / "in.mkv", moving(12, 96, 128), codec="ffv1", pix_fmt="bgr0")
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
        "from mtu.runtime.cli import main\n"
        "main()"
    )
    arguments = [str(source), "-o", str(tmp_path / "out.mkv"), "--codec", "ffv1", "--model", str(small.directory)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".links")},
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "error:" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mkv"]


def has_part(directory):
    """Whether the run has begun to write."""
    return any(".part" in path.name for path in directory.iterdir())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_run_and_leave_nothing(tmp_path, small, number, code):
    source = make_video(tmp_path / "in.mp4", moving(400, 96, 128))
    arguments = [str(source), "-o", str(tmp_path / "out.mp4"), "--model", str(small.directory)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mtu.runtime.cli", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".links")},
    )
    wait_until(lambda: has_part(tmp_path), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from the kernel in Linux's unit")
def test_peak_memory_does_not_grow_with_the_length(tmp_path, small):
    code = (
        "import resource, sys\n"
        "from mtu.runtime.job import Job, run_job\n"
        "from pathlib import Path\n"
        "run_job(Job(sys.argv[1], sys.argv[2], model=Path(sys.argv[3])))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for count in (60, 600):
        source = make_video(tmp_path / f"{count}.mkv", moving(count, 64, 96), codec="mpeg4", audio=True, subtitles=True)
        done = subprocess.run(
            [sys.executable, "-c", code, str(source), str(tmp_path / f"out{count}.mkv"), str(small.directory)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / ".links")},
            check=True,
        )
        peaks.append(int(done.stdout))
    assert peaks[1] <= 1.05 * peaks[0], peaks


def test_a_pipe_that_gives_nothing_more_can_be_interrupted(tmp_path, small):
    source = make_video(tmp_path / "in.y4m", 5, codec="rawvideo", pix_fmt="yuv444p")
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mtu.runtime.cli",
            "-",
            "-o",
            str(tmp_path / "out.mkv"),
            "--model",
            str(small.directory),
        ],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".links")},
    )
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(source.read_bytes())
    process.stdin.flush()
    waiting = array.array("i", [0])

    def waits_for_more() -> bool:
        fcntl.ioctl(process.stdin, termios.FIONREAD, waiting)
        return has_part(tmp_path) and waiting[0] == 0

    wait_until(waits_for_more, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT) == 130
    assert b"Traceback" not in process.stderr.read()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.y4m"]
    process.stdin.close()
    process.stderr.close()


def test_a_pipe_that_nobody_reads_can_be_terminated(tmp_path, small):
    source = make_video(tmp_path / "in.mkv", moving(40, 96, 128), codec="ffv1", pix_fmt="bgr0")
    arguments = [str(source), "-o", "-", "--save-motion", str(tmp_path / "motion"), "--model", str(small.directory)]
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "mtu.runtime.cli", *arguments],
        stdout=write,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    wait_until(lambda: is_full(write), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=LIMIT)
    os.close(read)
    os.close(write)
    assert process.returncode == 143
    assert b"Traceback" not in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mkv"]


def test_yuv4mpeg_through_pipes(tmp_path, small):
    source = make_video(tmp_path / "in.y4m", 5, codec="rawvideo", pix_fmt="yuv444p")
    done = subprocess.run(
        [sys.executable, "-m", "mtu.runtime.cli", "-", "-o", "-", "--model", str(small.directory)],
        stdin=source.open("rb"),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".links")},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"YUV4MPEG2 W64 H48")
    assert done.stdout.count(b"FRAME") == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["either --checkpoint FILE or --preset NAME"]),
        (["--preset", "mtu3"], ["unknown preset 'mtu3'"]),
        (["--checkpoint", "{tmp}/none.pt"], ["does not exist"]),
        (["--checkpoint", "{tmp}/text.pt"], ["text.pt"]),
        (["--preset", "mtu1", "--checkpoint", "{tmp}/text.pt"], ["either"]),
    ],
)
def test_export_refusals(capsys, tmp_path, arguments, words):
    (tmp_path / "text.pt").write_text("hello")
    filled = [a.format(tmp=tmp_path) for a in arguments]
    ended = cli.run(capsys, "mtu-export", "onnx", "-o", tmp_path / "out.mp4", *filled)
    refused(ended, tmp_path, *words)
