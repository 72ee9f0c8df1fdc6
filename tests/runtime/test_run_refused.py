"""What mtu-run refuses or survives: one message, exit code 2, nothing at the output's name."""

from __future__ import annotations

import array
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import termios

import av
import numpy as np
import pytest
from tests import cli
from tests.cli import has_part, refused
from tests.conftest import ROOT
from tests.media import make_video, moving
from tests.processes import LIMIT, environment, is_full, wait_until

from mtu.runtime.video import write_png


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "in.mkv", 7, codec="ffv1", pix_fmt="bgr0")


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--codec", "h265x"], ["h265x"]),
        (["--pix-fmt", "yuv999"], ["yuv999"]),
        (["-e", "presett=fast"], ["presett"]),
        (["-e", "preset"], ["key=value"]),
        (["--backend", "opencv"], ["unknown backend 'opencv'"]),
        (["--device", "tpu"], ["unknown device 'tpu'"]),
        (["--segment", "5"], ["5"]),
        (["--segment", "90:99"], []),
        (["--scene-threshold", "0"], ["must be above 0"]),
        (["--model", "{tmp}/none"], ["does not exist"]),
        (["--model", "{tmp}/empty"], ["lacks bundle.json"]),
        (["--model", "{tmp}/text"], ["cannot be read as ONNX"]),
        (["--model", "{tmp}/text", "--backend", "onnxruntime"], ["cannot be loaded"]),
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
