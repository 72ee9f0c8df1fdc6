"""OpenVINO reports to nobody: nothing is looked up, sent, started or written outside the cache directory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.conftest import ROOT
from tests.frames import write_clip
from tests.processes import LIMIT, environment

from mtu.core.errors import InvalidInputError, MissingExtraError
from mtu.runtime import openvino_library

pytestmark = pytest.mark.needs_library("openvino", "onnx")

WATCHED = """
import json, os, sys, threading
seen, watched = [], True
def watch(event, arguments):
    if watched and event.startswith(("socket.", "subprocess.", "os.fork", "os.posix_spawn", "os.system")):
        seen.append(event)
        raise OSError(f"{event} is refused")
sys.addaudithook(watch)
"""
LIBRARY = """
import numpy as np
from mtu.runtime import Session, open_backend, open_bundle
backend = open_backend("openvino", open_bundle(MODEL), "cpu", size=(16, 24))
session = Session(backend)
for shift in range(4):
    session.push(np.full((16, 24, 3), shift, np.uint8))
session.flush()
backend.close()
"""
COMMAND = """
sys.argv = ["mtu-run", CLIP, "-o", TARGET, "--model", MODEL, "--backend", "openvino"]
from mtu.runtime.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
AFTER = """
from mtu.runtime import openvino_library
blocked = openvino_library.TELEMETRY in sys.modules
watched = False
import openvino_telemetry
import openvino
threads = [thread.name for thread in threading.enumerate() if not thread.daemon]
print(json.dumps({"seen": seen, "blocked": blocked, "found": openvino_telemetry.__name__, "threads": threads}))
"""


@pytest.mark.parametrize("code", [LIBRARY, COMMAND])
@pytest.mark.needs_library("openvino_telemetry")
def test_nothing_is_sent(tmp_path, small, code):
    home = tmp_path / "home"
    home.mkdir()
    names = {"MODEL": small.directory, "CLIP": write_clip(tmp_path / "clip", 3, 16, 24), "TARGET": tmp_path / "out"}
    said = "".join(f"{name} = {str(value)!r}\n" for name, value in names.items())
    done = subprocess.run(
        [sys.executable, "-c", WATCHED + said + code + AFTER],
        env=environment(HOME=str(home), XDG_CACHE_HOME=str(home / "cache")),
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"seen": [], "blocked": False, "found": "openvino_telemetry", "threads": ["MainThread"]}
    assert list(home.iterdir()) == []


def test_nothing_is_left_running(small):
    """Of the process that had it: no child, and no thread of Python."""
    children = "print(open(f'/proc/self/task/{os.getpid()}/children').read().split(), threading.enumerate()[1:])"
    code = "import os, sys, threading\n" + f"MODEL = {str(small.directory)!r}\n" + LIBRARY + children
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "[] []\n"), done.stderr


@pytest.mark.parametrize("own", [True, False])
def test_whoever_has_the_telemetry_keeps_it(monkeypatch, own):
    """Even where the import fails."""
    package = type(sys)("openvino_telemetry")
    if own:
        monkeypatch.setitem(sys.modules, "openvino_telemetry", package)
    else:
        monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    seen = []

    def imported(name):
        seen.append(sys.modules["openvino_telemetry"])
        raise ImportError("libopenvino.so is not there")

    monkeypatch.setattr(openvino_library.importlib, "import_module", imported)
    with pytest.raises(InvalidInputError, match=r"cannot be loaded \(libopenvino.so is not there\): install it again"):
        openvino_library.load_openvino()
    assert seen == [None]
    assert sys.modules.get("openvino_telemetry") is (package if own else None)
    assert ("openvino_telemetry" in sys.modules) is own


def test_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(openvino_library, "is_importable", lambda name: False)
    with pytest.raises(MissingExtraError, match=r'pip install "mtu-trt\[openvino\]"'):
        openvino_library.load_openvino()
