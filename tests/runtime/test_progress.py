"""A bar on a terminal, a line a minute elsewhere; a terminal that nobody reads holds up no command."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys

import pytest
from tests.cli import run
from tests.conftest import ROOT
from tests.media import make_video
from tests.processes import LIMIT, Terminal, environment, unread_terminal, wait_until

from mtu.runtime.console import progress
from mtu.runtime.console.terminal import PatientTerminal

RUN = [sys.executable, "-m", "mtu.runtime.cli"]


@pytest.fixture
def clip(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("clip") / "in.mkv", 4, codec="ffv1", pix_fmt="bgr0")


@pytest.fixture
def start(small, clip, tmp_path):
    """Begins mtu-run with these descriptors; what it writes is tmp_path/out.mkv."""
    begun = []

    def begin(*options, source=clip, **streams):
        words = [*RUN, source, "-o", tmp_path / "out.mkv", "--model", small.directory, *options]
        begun.append(subprocess.Popen(words, cwd=ROOT, env=environment(), **streams))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def test_a_line_a_minute_without_a_terminal(capsys, monkeypatch, small, clip, tmp_path):
    short = run(capsys, "mtu-run", clip, "-o", tmp_path / "a.mkv", "--model", small.directory)
    assert " left" not in short.err and "a second" not in short.err
    monkeypatch.setattr(progress, "EVERY", 0.0)
    ended = run(capsys, "mtu-run", clip, "-o", tmp_path / "b.mkv", "--model", small.directory)
    lines = [line for line in ended.err.splitlines() if "a second" in line]
    assert re.fullmatch(r"mtu-run: 1 of \d+ frames, \d+\.\d\d a second, \d+:\d\d:\d\d left", lines[0])
    total = int(lines[0].split()[3])
    assert len(lines) == total
    assert re.fullmatch(rf"mtu-run: {total} of {total} frames, \d+\.\d\d a second", lines[-1])
    assert ended.err.index(lines[-1]) < ended.err.index("b.mkv:")
    silent = run(capsys, "mtu-run", clip, "-o", tmp_path / "c.mkv", "--model", small.directory, "--no-progress")
    assert "a second" not in silent.err


def test_stages_say_where_they_are(capsys, monkeypatch):
    with progress.stage_bar("mtu-x") as reach:
        reach("first half", 0.25)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.stage_bar("mtu-x") as reach:
        reach("first half", 0.25)
    assert re.fullmatch(r"mtu-x: first half, 25 %, \d+:\d\d:\d\d left\n", capsys.readouterr().err)
    with progress.frame_counter("mtu-x", None) as advance:
        advance()
    assert re.fullmatch(r"mtu-x: 1 frames, \d+\.\d\d a second\n", capsys.readouterr().err)
    with progress.stage_bar("mtu-x", enabled=False) as reach:
        reach("first half", 0.25)
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(start):
    terminal = Terminal()
    process = start(stderr=terminal.end)
    assert process.wait(LIMIT) == 0
    shown = terminal.finish()
    assert b"fps" in shown and b"out.mkv:" in shown
    assert b"\x1b[?25l" not in shown  # hides the cursor


@pytest.mark.parametrize("also_stdout", [False, True])
def test_a_terminal_that_nobody_reads_ends_the_command(start, tmp_path, also_stdout):
    with unread_terminal() as end:
        process = start(stderr=end, **({"stdout": end} if also_stdout else {}))
        assert process.wait(LIMIT) == 0
    assert (tmp_path / "out.mkv").is_file()


def test_an_error_on_a_terminal_that_nobody_reads(start):
    with unread_terminal() as end:
        assert start("--segment", "x", stderr=end).wait(LIMIT) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_terminal_that_nobody_reads_can_be_interrupted(start, tmp_path, tmp_path_factory, number, code):
    source = tmp_path_factory.mktemp("long") / "in.y4m"
    source.write_bytes(b"YUV4MPEG2 W64 H48 F25:1 C420jpeg\n" + (b"FRAME\n" + bytes(64 * 48 * 3 // 2)) * 2000)
    with unread_terminal() as end:
        process = start(stdout=end, stderr=end, source=source)
        wait_until(lambda: list(tmp_path.iterdir()), process)
        process.send_signal(number)
        assert process.wait(LIMIT) == code
    assert list(tmp_path.iterdir()) == []


def test_a_table_on_a_terminal_that_nobody_reads_can_be_interrupted():
    """stdout is not dropped while anybody may still read it; Ctrl-C ends the wait."""
    read, write = os.pipe()
    code = f"""
import os
from mtu.runtime.console import new_app, run_app
app = new_app()
@app.command()
def main():
    os.write({write}, b"begun")
    print("a table")
run_app(app, "mtu-x")
"""
    with unread_terminal() as end:
        streams = {"stdout": end, "stderr": end, "pass_fds": (write,)}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment(), **streams)
        os.read(read, 5)
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 130
    os.close(read)
    os.close(write)


def test_the_flags_of_the_terminal_stay_as_they_are():
    terminal = Terminal()
    stream = PatientTerminal(terminal.end)
    stream.write(b"one\n")
    assert os.get_blocking(terminal.end)
    stream.close()
    os.write(terminal.end, b"two\n")
    assert terminal.finish().split() == [b"one", b"two"]


@pytest.mark.parametrize("kind", ["pipe", "file", "nothing"])
def test_what_is_no_terminal_stays_as_it_is(tmp_path, kind):
    """Python 3.13, and 3.10 to 3.12 with -X dev, tell of what fails while an object is dropped."""
    code = "import mtu.runtime.console.terminal as t, sys; t.make_stderr_patient(); print(sys.stderr is sys.__stderr__)"
    if kind == "nothing":
        code = f"import os; os.close(2); {code}"
    with (tmp_path / "err").open("w+") as file:
        stderr = file if kind == "file" else subprocess.PIPE
        command = [sys.executable, "-X", "dev", "-c", code]
        done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=stderr, timeout=LIMIT)
        file.seek(0)
        assert (done.stdout, done.stderr or b"", file.read()) == (b"True\n", b"", "")


def test_nothing_waits_for_a_terminal_that_has_taken_nothing(monkeypatch):
    waits = []
    monkeypatch.setattr("mtu.runtime.console.terminal.PATIENCE", 0.05)
    with unread_terminal() as end:
        stream = PatientTerminal(end)
        real = select.select
        monkeypatch.setattr(select, "select", lambda *given: waits.append(given[3]) or real(*given))
        assert stream.write(b"dropped") == 7
        assert waits
        waits.clear()
        stream.write(b"dropped too")
        assert waits == []
        stream.close()
