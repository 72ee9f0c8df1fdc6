"""Corners of the command lines: odd names, closed streams, files that are in each other's way, turned comparisons."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests import cli
from tests.cli import has_part, refused
from tests.conftest import ROOT
from tests.frames import moving_frames
from tests.media import make_video, moving
from tests.processes import LIMIT, wait_until
from tests.runtime.test_lean import SCRIPTS

from mtu.core.errors import InvalidInputError, MissingExtraError, OutputError
from mtu.export.to_onnx import export_bundle
from mtu.models.checkpoint import random_checkpoint
from mtu.runtime import open_backend, open_bundle
from mtu.runtime.compare import compose
from mtu.runtime.console import run_app, say
from mtu.runtime.console.progress import FpsColumn
from mtu.runtime.video import open_reader, read_picture, write_png
from mtu.runtime.video.colour import upright

TURNS = {
    "none": (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30),
    "90": (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30),
    "180": (-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30),
    "270": (0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30),
    "mirrored": (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30),
}


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "in.mkv", 4, codec="ffv1", pix_fmt="bgr0")


@pytest.mark.parametrize("stem", ["a:b", "file:x", "n" * 251, "é" * 125, "100%", "-x", "p%03d"])
def test_names_are_names_and_nothing_else(capsys, tmp_path, monkeypatch, small, clip, stem):
    """FFmpeg takes what stands before a colon for a protocol; a temporary name must not be too long."""
    monkeypatch.chdir(tmp_path)
    clip.rename(f"{stem}.mkv")
    model = ("--model", small.directory)
    for arguments in ((f"--output={stem}.mp4",), ("--output=frames",)):
        ended = cli.run(capsys, "mtu-run", *model, *arguments, "--", f"{stem}.mkv")
        assert ended.code == 0, ended.err
    (tmp_path / "frames" / "000000.png").rename(f"{stem}.png")
    assert cli.run(capsys, "mtu-run", *model, f"--output={stem}", "--", f"{stem}.png").code == 0
    assert (tmp_path / f"{stem}.mp4").stat().st_size > 0 and (tmp_path / stem / f"{stem}.png").is_file()
    assert not [p for p in tmp_path.iterdir() if ".part" in p.name]


def test_a_percent_sign_in_a_picture_name_is_no_pattern(tmp_path):
    first, second = moving(2)
    write_png(tmp_path / "p%03d.png", first)
    write_png(tmp_path / "p001.png", second)
    assert np.array_equal(read_picture(tmp_path / "p%03d.png"), first)


def test_an_address_that_does_not_answer(capsys, tmp_path, small):
    source = "http://127.0.0.1:9/in.mp4"
    ended = cli.run(capsys, "mtu-run", source, "-o", tmp_path / "out.mp4", "--model", small.directory)
    refused(ended, tmp_path, "check the address")


@pytest.mark.parametrize("option", ["source", "-o", "--model", "--json", "--save-motion"])
def test_names_that_no_file_can_have(capsys, tmp_path, monkeypatch, small, clip, option):
    monkeypatch.chdir(tmp_path)
    given = {"source": clip, "-o": "out.mp4", "--model": small.directory, option: "n" * 300 + ".mp4"}
    arguments = [given.pop("source"), *(value for pair in given.items() for value in pair)]
    refused(cli.run(capsys, "mtu-run", *arguments), tmp_path, "name too long")


def test_names_that_are_empty(capsys, tmp_path, monkeypatch, small, clip):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    refused(cli.run(capsys, "mtu-run", clip, "-o", "", "--model", small.directory), tmp_path, "output has no name")
    refused(cli.run(capsys, "mtu-run", "", "-o", "out.mp4", "--model", small.directory), tmp_path, "input has no name")
    ended = cli.run(capsys, "mtu-run", clip, "-o", "out.mp4", "--model", small.directory, "--segment", "")
    refused(ended, tmp_path, "not a segment")


@pytest.mark.parametrize(
    ("report", "words"),
    [
        ("in.mkv", "input or the output"),
        ("out.mp4", "input or the output"),
        ("link", "input or the output"),
        ("folder", "is a directory"),
        ("-", "name of a file"),
    ],
)
def test_a_report_replaces_neither_input_nor_output(capsys, tmp_path, monkeypatch, small, clip, report, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").hardlink_to(clip)
    before = clip.read_bytes()
    ended = cli.run(capsys, "mtu-run", clip, "-o", "out.mp4", "--model", small.directory, "--json", report)
    refused(ended, tmp_path, words)
    assert clip.read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_report_that_cannot_be_written_ends_in_a_message(capsys, tmp_path, small, clip):
    arguments = (clip, "-o", tmp_path / "out.mkv", "--model", small.directory, "--json", "/dev/full")
    ended = cli.run(capsys, "mtu-run", *arguments)
    assert ended.code == 2 and "--json /dev/full: cannot be written (No space left" in ended.err
    assert (tmp_path / "out.mkv").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("script", ["mtu-compare", "mtu-doctor"])
def test_a_full_disk_under_stdout_is_a_message(script):
    with Path("/dev/full").open("w") as full:
        code = f"from {SCRIPTS[script].replace(':', ' import ')}\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", code, "--version"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / ".links")},
        )
    assert done.returncode == 2
    assert done.stderr == f"{script}: error: no space left on device; free some, or write elsewhere\n"


def test_a_report_does_not_replace_a_picture_of_the_input(capsys, tmp_path, small):
    for number, frame in enumerate(moving_frames(3, 16, 16)):
        write_png(tmp_path / f"{number}.png", frame)
    before = (tmp_path / "1.png").read_bytes()
    options = ("-o", tmp_path.parent / "out.mkv", "--model", small.directory, "--json", tmp_path / "1.png")
    ended = cli.run(capsys, "mtu-run", tmp_path, *options)
    assert ended.code == 2 and "1.png: is one of the files of" in ended.err
    assert (tmp_path / "1.png").read_bytes() == before


@pytest.mark.parametrize(("output", "motion"), [("a", "a"), ("a", "a/b"), ("a/out.mp4", "a")])
def test_motion_and_output_in_each_other_are_refused_first(capsys, tmp_path, small, clip, output, motion):
    (tmp_path / "a").mkdir()
    arguments = ("-o", tmp_path / output, "--save-motion", tmp_path / motion, "--model", small.directory)
    refused(cli.run(capsys, "mtu-run", clip, *arguments, "--overwrite"), tmp_path, "lie in each other")
    assert not list((tmp_path / "a").iterdir())


def test_a_directory_that_holds_the_source_is_not_replaced(capsys, tmp_path, small):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "a.png", moving(1)[0])
    arguments = ("-o", tmp_path / "in", "--overwrite", "--model", small.directory)
    refused(cli.run(capsys, "mtu-run", tmp_path / "in" / "a.png", *arguments), tmp_path, "holds the source")
    assert (tmp_path / "in" / "a.png").is_file()


@pytest.mark.parametrize("ending", ["m3u8", "mpd"])
def test_formats_of_several_files_are_refused(capsys, tmp_path, monkeypatch, small, ending):
    monkeypatch.chdir(tmp_path)
    source = make_video("in.mp4", 4, audio=True)
    ended = cli.run(capsys, "mtu-run", source, "-o", f"out.{ending}", "--model", small.directory)
    refused(ended, tmp_path, "several")
    assert [p.name for p in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_closed_streams_are_said(capsys, tmp_path, monkeypatch, small, clip, stream):
    from mtu.runtime.video import open_writer

    monkeypatch.setattr(sys, stream, None)
    if stream == "stdin":
        with pytest.raises(InvalidInputError, match="stdin is closed"):
            open_reader("-")
    else:
        with open_reader(str(clip)) as reader, pytest.raises(OutputError, match="stdout is closed"):
            open_writer("-", reader.info)


def test_without_stderr_nothing_is_said_on_stdout(tmp_path, small, clip):
    done = subprocess.run(
        [
            "sh",
            "-c",
            '"$@" 2>&-',
            "sh",
            sys.executable,
            "-m",
            "mtu.runtime.cli",
            str(clip),
            "-o",
            "-",
            "--model",
            str(small.directory),
        ],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".links")},
        timeout=120,
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"YUV4MPEG2") and b"mtu-run" not in done.stdout


def test_a_log_that_cannot_be_written_ends_no_run(monkeypatch):
    class Gone:
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    say("mtu-run", "text")


def test_memory_that_is_short_is_said(capsys):
    def short(**_):
        raise MemoryError

    with pytest.raises(SystemExit) as ended:
        run_app(short, "mtu-run")  # type: ignore[arg-type]
    assert ended.value.code == 2 and "error: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_makes_an_error_of_is_no_bug(number, code):
    def exporter(**_):
        try:
            signal.raise_signal(number)
        except BaseException as error:
            raise RuntimeError("failed to export") from error

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        run_app(exporter, "mtu-export")  # type: ignore[arg-type]
    assert ended.value.code == code and signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal")
def test_a_closed_terminal_leaves_nothing(tmp_path, small):
    source = make_video(tmp_path / "in.mp4", moving(400, 96, 128))
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mtu.runtime.cli",
            str(source),
            "-o",
            str(tmp_path / "out.mp4"),
            "--model",
            str(small.directory),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".links")},
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    wait_until(lambda: has_part(tmp_path), process)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=LIMIT)
    assert process.returncode == 129, said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.mp4"]


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("width", [1, 8, 9])
def test_a_comparison_is_side_by_side_as_it_is_shown(turn, width):
    """Of a video that a phone took upright, too."""
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 200, (2, 6, width, 3)).astype(np.uint8)
    left, right = upright(before, turn), upright(after, turn)
    both = upright(compose(before, after, "side-by-side", turn), turn)
    assert np.array_equal(both, np.concatenate((left, right), axis=1))
    split = upright(compose(before, after, "split", turn), turn)
    middle = left.shape[1] // 2
    assert np.array_equal(split[:, : max(middle - 1, 0)], left[:, : max(middle - 1, 0)])
    assert np.array_equal(split[:, middle + 1 :], right[:, middle + 1 :])
    assert (split[:, max(middle - 1, 0) : middle] == 255).all()


def test_a_turned_video_is_compared_side_by_side(capsys, tmp_path, small):
    source = make_video(tmp_path / "in.mp4", 3, display_matrix=TURNS["90"])
    arguments = (source, "-o", tmp_path / "out", "--compare", "side-by-side", "--model", small.directory)
    assert cli.run(capsys, "mtu-run", *arguments).code == 0
    assert read_picture(tmp_path / "out" / "000000.png").shape == (64, 96, 3)


def test_the_progress_line_is_one_line():
    column = FpsColumn().get_table_column()
    assert column.no_wrap


def test_the_expected_number_of_frames_is_not_too_small(tmp_path):
    source = make_video(tmp_path / "in.mp4", 12)
    from mtu.runtime.video import ReadOptions, Segment

    with open_reader(source, ReadOptions(Segment(0, 0.1))) as reader:
        assert reader.info.frame_count == 3


# The files that mtu-export writes.


def test_a_bundle_is_replaced_where_one_stands_and_through_links(tmp_path, monkeypatch, small):
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    for name in ("first", "step"):
        shutil.copy(small.graph(name), tmp_path / "b")
    one = random_checkpoint("mtu", {"units": 1, "channels": 2, "blocks": 0})
    export_bundle(one, Path(), overwrite=True)
    assert open_backend("onnxruntime", open_bundle(tmp_path / "b")).interface.settings == one.settings
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("b")
    export_bundle(random_checkpoint("mtu", {"units": 1, "channels": 3, "blocks": 0}), Path("link"), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert open_backend("onnxruntime", open_bundle("link")).interface.settings["channels"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "link"]


def test_a_number_of_a_device_is_in_plain_digits(small):
    with pytest.raises(InvalidInputError, match="unknown device"):
        open_backend("onnxruntime", small, "cuda:²")


# mtu.calib.quality


@pytest.mark.parametrize(("height", "width"), [(48, 72), (10, 64)])
def test_videos_that_cannot_be_compared(tmp_path, clip, height, width):
    pytest.importorskip("skimage")
    from mtu.calib.quality_cli import quality

    other = make_video(tmp_path / "other.mkv", moving(4, height, width), codec="ffv1", pix_fmt="bgr0")
    with pytest.raises(InvalidInputError, match=f"one size, at least 11x11, and are: blurred {width}x{height}"):
        quality(clip if width == 72 else other, other, clip if width == 72 else other)


# mtu-bench


def test_an_error_survives_the_way_between_processes():
    error = MissingExtraError("torch", "export", "backend torch")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


class FakePipe:
    def __init__(self):
        self.sent = []

    def send(self, answer):
        self.sent.append(answer)

    def recv(self):
        raise EOFError


def test_bench_says_what_a_backend_died_of(small, monkeypatch):
    from mtu.benchmarks import bench

    def short(height, width):
        raise MemoryError

    monkeypatch.setattr(bench, "_noise", short)
    pipe = FakePipe()
    what = bench.Contestant(str(small.directory), "onnxruntime", None, "cpu", 1, (8, 16))
    bench._work(pipe, what)  # type: ignore[arg-type]
    assert "out of memory at 16x8" in str(pipe.sent)
    with pytest.raises(InvalidInputError, match="the process of backend x died"):
        bench._receive(pipe, "x")  # type: ignore[arg-type]


def test_bench_takes_spaces_between_names(capsys, small):
    ended = cli.run(capsys, "mtu-bench", small.directory, "--size", "8x8", "--backends", "onnxruntime, none")
    assert ended.code == 2 and "unknown backend 'none'" in ended.err


# Encoders


def test_an_encoder_that_does_not_open_blames_no_option(capsys, tmp_path, monkeypatch, small, clip):
    """Such as one that needs a device which is not there."""
    from mtu.runtime.video import encoding

    def no_device(trial):
        raise ValueError("no device")

    monkeypatch.setattr(encoding, "_try", no_device)
    ended = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out.mp4", "--crf", "20", "--model", small.directory)
    refused(ended, tmp_path, "cannot encode 64x48", "no device")


def test_options_of_x265_leave_its_log_off(capfd, tmp_path, small, clip):
    arguments = ("-c", "libx265", "-e", "x265-params=bframes=1", "--model", small.directory)
    ended = cli.run(capfd, "mtu-run", clip, "-o", tmp_path / "out.mp4", *arguments)
    assert ended.code == 0 and "x265 [info]" not in ended.err
