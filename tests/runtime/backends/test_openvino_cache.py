"""What OpenVINO compiled and keeps: a cache in any state costs time at most."""

# ruff: noqa: E402
from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests import cli, needs
from tests.frames import moving_frames, write_clip
from tests.processes import LIMIT, environment

needs.library("openvino", "onnx")

import onnx

from mtu.core import cache
from mtu.runtime import Session, open_backend, open_bundle
from mtu.runtime.backends import openvino_models

SIZE = (16, 24)


@pytest.fixture
def kept(monkeypatch, tmp_path, small):
    """The files in a cache of its own that `small` is compiled in."""
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path / "cache"))
    expected = pictures(small)

    def files():
        return sorted((tmp_path / "cache" / "openvino").iterdir())

    assert len(files()) == 2
    return files, expected


def pictures(bundle):
    backend = open_backend("openvino", bundle, "cpu", size=SIZE)
    session = Session(backend, scene_threshold=None)
    found = [each.rgb for frame in moving_frames(4, *SIZE) for each in session.push(frame)]
    found += [each.rgb for each in session.flush()]
    backend.close()
    return found


def with_digest(content):
    return hashlib.sha256(content).digest() + content


ENTRIES = {
    "empty": lambda content: b"",
    "short": lambda content: content[:40],
    "truncated": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "random": lambda content: os.urandom(1000),
    "random with a digest": lambda content: with_digest(os.urandom(1000)),
    "nothing with a digest": lambda content: with_digest(b""),
    "half with a digest": lambda content: with_digest(content[32 : len(content) // 2]),
    "a text with a digest": lambda content: with_digest(b"<?xml version='1.0'?>"),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_a_damaged_or_foreign_entry_is_made_again(small, kept, kind):
    files, expected = kept
    for path in files():
        path.write_bytes(ENTRIES[kind](path.read_bytes()))
    assert np.array_equal(pictures(small), expected)
    assert [len(cache.read_kept(path) or b"") > 100_000 for path in files()] == [True, True]


def test_what_is_kept_is_not_made_again(small, kept, monkeypatch):
    monkeypatch.setattr(openvino_models.Compiler, "_read", lambda *_: pytest.fail("it is read"))
    _, expected = kept
    assert np.array_equal(pictures(small), expected)


@pytest.mark.parametrize("key", ["get_version", "weights"])
def test_another_version_or_model_has_entries_of_its_own(small, kept, monkeypatch, tmp_path, key):
    files, _ = kept
    if key == "get_version":
        monkeypatch.setattr(openvino_models.load_openvino(), "get_version", lambda: "2031.1")
    else:
        shutil.copytree(small.directory, tmp_path / "m")
        for path in (tmp_path / "m").glob("*.onnx"):
            model = onnx.load(path)
            model.doc_string = "another file"
            onnx.save(model, path)
        small = open_bundle(tmp_path / "m")
    pictures(small)
    assert len(files()) == 4


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def an_entry_is_a_directory(cache_directory, monkeypatch):
    entries = list((cache_directory / "openvino").iterdir())
    for path in entries:
        path.unlink()
        path.mkdir()


def it_is_a_file(cache_directory, monkeypatch):
    shutil.rmtree(cache_directory)
    cache_directory.write_text("mine")


def it_lies_below_a_file(cache_directory, monkeypatch):
    it_is_a_file(cache_directory, monkeypatch)
    monkeypatch.setenv("MTU_CACHE_DIR", str(cache_directory / "cache"))


def it_may_not_be_written(cache_directory, monkeypatch):
    if os.getuid() == 0:
        monkeypatch.setenv("MTU_CACHE_DIR", "/proc/self/cache")
    else:
        shutil.rmtree(cache_directory)
        cache_directory.mkdir(0o500)


def the_disk_is_full(cache_directory, monkeypatch):
    shutil.rmtree(cache_directory)
    monkeypatch.setattr(cache, "write_whole", full)


def nobody_has_a_home(cache_directory, monkeypatch):
    monkeypatch.delenv("MTU_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("Could not determine home")))


@pytest.mark.parametrize(
    "state",
    [
        an_entry_is_a_directory,
        it_is_a_file,
        it_lies_below_a_file,
        it_may_not_be_written,
        the_disk_is_full,
        nobody_has_a_home,
    ],
)
def test_a_cache_that_cannot_be_used_is_a_note(small, kept, monkeypatch, capsys, tmp_path, state):
    clip = write_clip(tmp_path / "clip", 3, *SIZE)
    state(tmp_path / "cache", monkeypatch)
    model = ("--model", small.directory, "--backend", "openvino")
    ended = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out", *model)
    assert ended.code == 0 and len(list((tmp_path / "out").iterdir())) == 3
    notes = [line for line in ended.err.splitlines() if "cannot be kept" in line]
    assert len(notes) == 1 and notes[0].startswith("mtu-run: note: the compiled model cannot be kept in "), ended.err
    assert notes[0].endswith("): every run makes it again") and "Warning" not in ended.err


COMPILE = """
import sys
from mtu.runtime import open_backend, open_bundle
open_backend("openvino", open_bundle(sys.argv[1]), "cpu", size=(16, 24)).close()
"""
KILLED = "import os, pathlib\npathlib.Path.replace = lambda *_: os.kill(os.getpid(), 9)\n" + COMPILE


def start(code, bundle):
    return subprocess.Popen([sys.executable, "-c", code, str(bundle.directory)], env=environment())


def test_two_processes_compile_the_same_model(small, kept, tmp_path):
    files, expected = kept
    shutil.rmtree(tmp_path / "cache")
    processes = [start(COMPILE, small) for _ in range(2)]
    assert [process.wait(LIMIT) for process in processes] == [0, 0]
    assert len(files()) == 2 and not [path for path in files() if path.suffix]
    assert np.array_equal(pictures(small), expected)


def test_a_process_killed_while_it_writes(small, kept, tmp_path):
    files, expected = kept
    names = files()
    shutil.rmtree(tmp_path / "cache")
    assert start(KILLED, small).wait(LIMIT) == -signal.SIGKILL
    assert [path.suffix for path in files()] == [".part"]
    assert np.array_equal(pictures(small), expected)
    assert set(names) < set(files())
