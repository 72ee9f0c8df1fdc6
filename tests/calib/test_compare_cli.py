"""mtu-compare, the command: what it prints and writes, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("polygraphy")
pytest.importorskip("torch")
pytest.importorskip("skimage")

import torch
from tests import cli
from tests.calib.comparing import Page, altered, frames, one_weight, swapped_channels
from tests.conftest import ROOT
from tests.frames import moving_frames
from tests.processes import Terminal, environment
from tests.runtime.test_lean import run as run_lean

from mtu.calib.compare import compare
from mtu.calib.compare_report import MODES
from mtu.models.checkpoint import random_checkpoint
from mtu.runtime import open_backend, open_bundle
from mtu.runtime.report import check_report, write_report
from mtu.runtime.video import read_picture, write_png

pytestmark = pytest.mark.usefixtures("one_thread")
DEMO = ROOT / "calib/demo/blurred.mp4"


def test_the_command_writes_what_it_measured(capsys, tmp_path, small, half, clip):
    ended = cli.run(capsys, "mtu-compare", small.directory, half.directory, "--input", clip, "--frames", 4,
                    "--min-psnr", 50, "--min-agreement", 95, "--json", tmp_path / "r.json",
                    "--html", tmp_path / "r.html", "--backend-b", "onnxruntime")  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert re.search(r"^step +4 +\d\d\.\d\d dB", ended.out, re.MULTILINE)
    assert re.search(r"^rollout +4 +\d\d\.\d\d dB", ended.out, re.MULTILINE)
    assert f"B  {half.directory}: custom fp16 on onnxruntime cpu" in ended.out
    report = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert report["passed"] is True and report["floors"] == {"psnr": 50.0, "agreement": 0.95, "map_difference": None}
    assert [report["a"]["precision"], report["b"]["precision"]] == ["fp32", "fp16"]
    for mode in MODES:
        (found, count) = (report["modes"][mode], len(report["modes"][mode]["frames"]))
        assert count == 4 and found["first_below_floor"] is None
        frame = found["frames"][found["worst_frame"]]
        assert frame["psnr"] == min(each["psnr"] for each in found["frames"]) > 50
        assert frame["tensors"].keys() == {"output", "restored_out", "motion_out", "detail_out"}
        assert frame["tensors"]["detail_out"].keys() == {"largest", "50%", "99%", "99.9%"}
        assert 0 <= frame["displacement"]["ties"] <= 1 - frame["displacement"]["equal"] + 1e-9
    text = (tmp_path / "r.html").read_text()
    shown = Page(text)
    assert shown.links == [] and "http" not in text
    assert set(shown.pictures) >= {"A", "B", "motion of A", "motion of B"} and text.count("<svg") == 6
    assert all(len(pictures) == 2 for name, pictures in shown.pictures.items() if not name.startswith("difference"))
    (tmp_path / "a.png").write_bytes(shown.pictures["A"][0])
    a, b = open_backend("onnxruntime", small), open_backend("onnxruntime", half)
    step, _ = compare(a, b, frames()[:4])
    assert np.array_equal(read_picture(tmp_path / "a.png"), step.shown[0].rgb)
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r.html", "a.png"}


@pytest.mark.parametrize("change", [one_weight, swapped_channels])
def test_a_missed_floor_is_exit_code_1_and_the_reports_are_there(capsys, tmp_path, change):
    broken = altered(open_bundle("mtu2"), tmp_path / "broken", change)
    ended = cli.run(capsys, "mtu-compare", "mtu2", broken.directory, "--input", DEMO, "--mode", "rollout",
                    "--frames", 3, "--min-psnr", 70, "--json", tmp_path / "r.json",
                    "--html", tmp_path / "r.html")  # fmt: skip
    assert ended.code == 1, ended.err
    assert "rollout: below the floor from frame 0: PSNR" in ended.out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["passed"] is False and list(report["modes"]) == ["rollout"]
    assert report["modes"]["rollout"]["first_below_floor"] == 0
    shown = Page((tmp_path / "r.html").read_text())
    assert "Below the floor" in shown.text and report["verdicts"][0] in shown.text


def test_a_checkpoint_and_a_model_of_one_unit(capsys, tmp_path, clip, single):
    checkpoint = random_checkpoint("mtu", {"units": 1, "channels": 4, "blocks": 0})
    torch.save(dict(checkpoint.weights), tmp_path / "weights.pt")
    sides = [tmp_path / "weights.pt", single.directory, "--input", clip]
    ended = cli.run(capsys, "mtu-compare", *sides, "--frames", 3, "--min-psnr", 60, "--json", tmp_path / "r.json",
                    "--html", tmp_path / "r.html", "--backend-b", "onnxruntime")  # fmt: skip
    assert ended.code == 0, ended.err + ended.out
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["a"]["backend"], report["b"]["backend"]) == ("torch", "onnxruntime")
    assert report["a"]["checkpoint"] == report["b"]["checkpoint"] == checkpoint.digest
    assert report["modes"]["step"]["frames"][0]["displacement"] is None
    text = (tmp_path / "r.html").read_text()
    assert "motion of A" not in Page(text).pictures
    assert text.count(f"<td>{checkpoint.digest[:12]}</td>") == 2  # as the commands print it, whole
    ended = cli.run(capsys, "mtu-compare", *sides, "--min-agreement", 90)
    assert ended.code == 2 and "estimates no motion" in ended.err
    ended = cli.run(capsys, "mtu-compare", *sides, "--backend-a", "onnxruntime")
    assert ended.code == 2 and "is a checkpoint, which backend onnxruntime cannot run" in ended.err


def test_bad_input_is_one_message(capsys, tmp_path, small, clip):
    infinite = altered(small, tmp_path / "nan", lambda w: w["motion_layer.0.0.bias"].fill(np.inf), ["step"])
    small_frames = tmp_path / "mixed"
    small_frames.mkdir()
    for number, width in enumerate((24, 24, 28)):
        write_png(small_frames / f"{number}.png", moving_frames(1, 16, width)[0])
    directory, video = small.directory, small_frames / "clip.mp4"
    video.touch()
    for arguments, message in (
        ([directory, directory, "--input", clip, "--frames", 7], "has 6 frames, fewer than the 7 asked for"),
        ([directory, directory, "--input", small_frames], "is 28x16"),
        (
            [directory, "mtu2", "--input", clip],
            "A and B have different networks (A is custom, B is mtu2): 2 units, 4 channels, 1 block and 2 units, 26",
        ),
        ([directory, infinite.directory, "--input", clip], "motion_out of B in step at frame 1"),
        ([infinite.directory, directory, "--input", clip], "motion_out of A at frame 1"),
        (
            [directory, infinite.directory, "--input", clip, "--mode", "rollout"],
            "motion_out of B in rollout at frame 1",
        ),
        ([directory, directory, "--input", clip, "--json", tmp_path], f"--json {tmp_path}: is a directory"),
        ([directory, directory, "--input", clip, "--json", "-"], "--json -: give the name of a file"),
        ([directory, directory, "--input", clip, "--html", clip], f"--html {clip}: is a directory"),
        ([directory, directory, "--input", video, "--json", video], "is an input or the output of another"),
        ([directory, directory, "--input", clip, "--html", tmp_path / "no" / "r.html"], "the directory does not exist"),
        (
            [directory, directory, "--input", clip, "--html", tmp_path / "r", "--json", tmp_path / "r"],
            "the output of another option",
        ),
        ([directory, directory, "--input", clip, "--min-psnr", "nan"], "--min-psnr nan: give dB from 0"),
        ([directory, directory, "--input", clip, "--min-agreement", 101], "percent, 0 to 100"),
        ([directory, tmp_path / "none", "--input", clip], "does not exist"),
        ([directory, directory, "--input", tmp_path / "none.mp4"], "none.mp4"),
    ):
        ended = cli.run(capsys, "mtu-compare", *arguments)
        assert ended.code == 2 and message in ended.err and ended.out == "", (arguments, ended)
        assert ended.err.startswith("mtu-compare: error: ")
    assert {path.name for path in tmp_path.iterdir()} == {"nan", "mixed"}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_report_that_cannot_be_written_is_said_before_anything_runs(capsys, tmp_path, small, clip):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked.json").touch(0o400)
    (tmp_path / "locked").chmod(0o500)
    for option, path in (("--json", tmp_path / "locked" / "r"), ("--html", tmp_path / "locked.json")):
        ended = cli.run(capsys, "mtu-compare", small.directory, small.directory, "--input", clip, option, path)
        assert ended.code == 2 and f"{option} {path}: cannot be written; check" in ended.err and ended.out == ""


def test_a_report_that_fails_late_leaves_what_was_there(capsys, tmp_path, monkeypatch, small, clip):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "r.json").write_text("before")
    monkeypatch.setattr(Path, "write_bytes", full)
    ended = cli.run(capsys, "mtu-compare", small.directory, small.directory, "--input", clip, "--frames", 1,
                    "--json", tmp_path / "r.json")  # fmt: skip
    assert ended.code == 2 and "r.json: cannot be written (No space left on device)" in ended.err
    assert ended.out.startswith("A  ") and (tmp_path / "r.json").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_report_is_written_where_a_link_leads_and_into_a_pipe(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "r.json")
    os.mkfifo(tmp_path / "pipe")
    read = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link.json", "pipe"):
        check_report(tmp_path / name)
        write_report(tmp_path / name, {"a": 1})
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "r.json").read_text()) == {"a": 1}
    assert json.loads(os.read(read, 100)) == {"a": 1}
    os.close(read)


def test_progress_is_shown_on_a_terminal_alone(tmp_path, small, clip):
    """The other tests see that stderr is empty without one."""
    terminal = Terminal()
    command = [small.directory, small.directory, "--input", clip, "--frames", "3", "--mode", "step"]
    code = "import sys\nsys.argv[0] = 'mtu-compare'\nfrom mtu.calib.compare_cli import main\nmain()"
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=terminal.end,
        env=environment(TERM="xterm", COLUMNS="100"),
    )
    shown = terminal.finish()
    assert process.returncode == 0, shown
    assert b"mtu-compare" in shown and b"3/3" in shown
    assert b"3/3" not in process.stdout and process.stdout.startswith(b"A  ")


def test_a_missing_extra_is_named_before_anything_is_written(tmp_path):
    code = "sys.argv[0] = 'mtu-compare'\nfrom mtu.calib.compare_cli import main\nmain()"
    done = run_lean(
        code, "mtu2", "mtu2", "--input", str(ROOT / "calib/demo/blurred.mp4"), "--html", str(tmp_path / "r.html")
    )
    assert done.returncode == 2 and 'pip install "mtu-trt[compare]"' in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []
