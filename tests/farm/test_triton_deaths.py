"""Real servers of Triton that die in the middle, or a model of theirs does."""

# ruff: noqa: E402

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests import cli, needs
from tests.bundles import negative_bundle
from tests.frames import moving_frames
from tests.media import make_video
from tests.processes import environment, wait_until

needs.library("pytriton", "tritonclient")  # make serve-test has them

from tests.triton_server import frame_memory, serve

from mtu.export.triton_files import Serving, write_repository


@pytest.mark.parametrize("end", ["server", "model"])
def test_a_server_that_dies_in_the_middle(tmp_path, tmp_path_factory, capsys, end):
    """And of two models one is broken: the other one is served, and it is said why that one is not."""
    root = tmp_path_factory.mktemp("dies")
    write_repository(negative_bundle(root / "model").directory, root / "models", Serving(), name="good")
    write_repository(root / "model", root / "models", Serving(), name="broken")
    (root / "models" / "broken" / "1" / "model" / "picture.onnx").write_bytes(b"no graph")
    source = make_video(tmp_path / "in.mp4", moving_frames(60, 240, 320))
    with serve(root / "models", root / "work", models_may_fail=True) as server:
        ended = cli.run(capsys, "mtu-run", source, "-o", tmp_path / "out.mp4", "--server", f"{server.address}/broken")
        cli.refused(ended, tmp_path, "model broken is not ready")
        code = textwrap.dedent(
            """
            import sys, time
            from mtu.farm.triton_client import RemoteStream
            receive = RemoteStream._receive
            RemoteStream._receive = lambda self: (time.sleep(0.2), receive(self))[1]  # a long film
            from mtu.runtime.cli import main
            main()
            """
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, source, "-o", tmp_path / "out.mp4", "--server", server.address],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        wait_until(lambda: cli.has_part(tmp_path) and server.figures()["mtu_frames_total"] > 5, process)
        ending = [server.process.pid]
        if end == "model":  # the process that runs it; the server goes on
            commands = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
            ending = [int(number) for number, said in commands.items() if f"{root}/models/good/".encode() in said]
        assert ending
        for number in ending:
            os.kill(number, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 2, said
        assert said.count("error:") == 1 and "Traceback" not in said, said
        assert f"server {server.address}/good" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]
    assert not frame_memory()
