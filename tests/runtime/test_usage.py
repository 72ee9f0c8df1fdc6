"""Help pages fit a terminal of 80 columns; a wrong command line gets one clear message and exit code 2."""

from __future__ import annotations

import importlib
import re
import shlex

import pytest
import typer.main
from tests.cli import run
from tests.runtime.test_lean import SCRIPTS

COMMANDS = [
    *((script,) for script in SCRIPTS),
    ("mtu-export", "onnx"),
    ("mtu-export", "chain"),
    ("mtu-export", "triton"),
    ("mtu-calibrate", "ranges"),
    ("mtu-calibrate", "int8"),
    ("mtu-farm", "plan"),
    ("mtu-farm", "run"),
    ("mtu-farm", "verify"),
]


def options(script, *sub):
    """Every option and argument of a command."""
    module, _ = SCRIPTS[script].split(":")
    command = typer.main.get_command(importlib.import_module(module).app)
    for name in sub:
        command = command.commands[name]
    return [param for param in command.params if not getattr(param, "hidden", False)]


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_and_cuts_no_name(capsys, monkeypatch, command, width):
    monkeypatch.setenv("COLUMNS", str(width))
    page = run(capsys, *command, "--help")
    assert page.code == 0
    assert max(map(len, page.out.splitlines())) <= min(width, 80)
    assert "…" not in page.out
    assert f"Usage: {' '.join(command)} " in page.out
    for param in options(*command):
        for name in (*param.opts, *param.secondary_opts) if param.param_type_name == "option" else [param.metavar]:
            assert re.search(rf"(^  |, | / ){re.escape(name)}(,| |$)", page.out, re.MULTILINE), name
        # The text as well, whatever the lines are.
        assert "".join(param.help.split()) in "".join(page.out.split())


def test_options_are_in_groups(capsys):
    page = run(capsys, "mtu-run", "--help").out
    headings = re.findall(r"^(\w+):$", page, re.MULTILINE)
    assert headings == ["Input", "Output", "Encoder", "Model", "Report", "Options"]
    assert page.index("Encoder:") < page.index("--crf") < page.index("Model:") < page.index("--backend")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("mtu-run a.mp4 -o b.mp4 --crff 3", "there is no option --crff; did you mean --crf?"),
        ("mtu-run -i a.mp4 -o b.mp4", "there is no option -i; write it as: mtu-run INPUT... -o OUTPUT [OPTIONS]"),
        ("mtu-run", "INPUT is missing; write: mtu-run INPUT -o OUTPUT"),
        ("mtu-run a.mp4", "--output or -o is missing; write: mtu-run a.mp4 -o a-sharp.mp4"),
        ("mtu-run 'my clip.mov' --crf 3", "write: mtu-run 'my clip.mov' --crf 3 -o 'my clip-sharp.mov'"),
        ("mtu-run a.mp4 b.mp4 --crf 3", "--output or -o is missing; write: mtu-run a.mp4 -o b.mp4 --crf 3"),
        ("mtu-run -o b.mp4", "INPUT is missing; write: mtu-run INPUT -o b.mp4"),
        ("mtu-run a.mp4 README.md", "--output or -o is missing; write: mtu-run a.mp4 README.md -o OUTPUT"),
        ("mtu-run a -o", "-o needs a value"),
        ("mtu-run a -o b --strict=yes", "--strict takes no value"),
        (
            "mtu-run a -o b --compare splitt",
            "--compare: 'splitt' is not one of side-by-side, split; did you mean split?",
        ),
        ("mtu-run a -o b --compare 3", "--compare: '3' is not one of side-by-side, split"),
        ("mtu-run a -o b --crf x", "--crf: 'x' "),
        ("mtu-bench --rounds 0", "--rounds: "),
        ("mtu-bench --rounds many", "--rounds: 'many' "),
        ("mtu-bench --rounds 1.5", "--rounds: '1.5' "),
        ("mtu-export", "write: mtu-export onnx -o DIR"),
        ("mtu-export --checkpoint w.pth -o d", "write: mtu-export onnx --checkpoint w.pth -o d"),
        ("mtu-export w.pth -o d", "write: mtu-export onnx --checkpoint w.pth -o d"),
        ("mtu-export onnx w.pth -o d", "write: mtu-export onnx --checkpoint w.pth -o d"),
        ("mtu-export onxx --checkpoint w.pth", "no command 'onxx'; write: mtu-export onnx --checkpoint w.pth"),
        ("mtu-calibrate mtu2 --input c.mp4", "write: mtu-calibrate ranges mtu2 --input c.mp4, or: mtu-calibrate int8"),
        ("mtu-build-engine -o d", "BUNDLE is missing; write: mtu-build-engine BUNDLE -o d"),
        ("mtu-eval d", "--layout (dvd, gopro, reds, dpdd, realdof) is missing; write: mtu-eval d --layout NAME"),
        ("mtu-compare mtu2 --input c", "B is missing; write: mtu-compare mtu2 B --input c"),
        ("mtu-compare --input c", "A is missing; write: mtu-compare A B --input c"),
        ("mtu-eval --layout dvd", "DIR is missing; write: mtu-eval DIR --layout dvd"),
        ("mtu-eval --layout dvd gopro d", "'gopro' is one word too many; write: mtu-eval --layout dvd d"),
        ("mtu-eval d gopro --layout dvd", "'gopro' is one word too many; write: mtu-eval d --layout dvd"),
        ("mtu-eval dvd d --layout dvd -o out", "'dvd' is one word too many; write: mtu-eval d --layout dvd -o out"),
        ("mtu-eval gopro d", "--layout (dvd, gopro, reds, dpdd, realdof) is missing; write: mtu-eval --layout gopro d"),
        ("mtu-eval d out --layout dvd", "'out' is one word too many; write: mtu-eval d -o out --layout dvd"),
        ("mtu-train --data synthetic", "--output or -o is missing; write: mtu-train --data synthetic -o RUN"),
    ],
)
def test_a_wrong_command_line_gets_the_right_one(capsys, words, message):
    ended = run(capsys, *shlex.split(words))
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert ended.err.startswith(f"{words.split()[0]}: error: ") and ended.err.count("\n") == 1, ended.err
    assert not re.search("Value error|Input should|Traceback|╭", ended.err)
