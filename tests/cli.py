"""Runs a command line inside the test process. Nothing here is a test."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass

import pytest

from tests.runtime.test_lean import SCRIPTS


@dataclass
class Ended:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], script: str, *arguments: object) -> Ended:
    """Runs `script` of pyproject.toml with these arguments; an exception that is no exit is a failure of the test."""
    module, function = SCRIPTS[script].split(":")
    capsys.readouterr()
    old = sys.argv
    sys.argv = [script, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            getattr(importlib.import_module(module), function)()
    finally:
        sys.argv = old
    said = capsys.readouterr()
    code = ended.value.code
    assert isinstance(code, int)
    return Ended(code, said.out, said.err)


def refused(ended, tmp_path, *words):
    assert ended.code == 2, ended.err
    assert ended.err.count("error:") == 1 and "Traceback" not in ended.err
    assert ended.out == ""
    assert all(word in ended.err for word in words), ended.err
    assert not (tmp_path / "out.mp4").exists()
    assert not [p for p in tmp_path.iterdir() if ".part" in p.name]


def has_part(directory):
    """Whether the run has begun to write."""
    return any(".part" in path.name for path in directory.iterdir())
