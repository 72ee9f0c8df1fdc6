"""Runs the sections of the GPU check, each in a process of its own, and writes what they find at once.

A section that fails, crashes or hangs costs the others nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtu.benchmarks.gpu_report import Record

ROOT = Path(__file__).resolve().parent.parent
GRACE = 30.0
"""Seconds that a section may take longer than it was given before it is ended."""


def collect(command: Sequence[str], seconds: float, found: Callable[[Record], None]) -> str:
    """Runs a section's process and hands its findings on as they come; how it ended, "" if well."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    ended = threading.Event()

    def end() -> None:
        ended.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds + GRACE, end)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found(json.loads(line))
        code = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            end()
            process.wait()
    if ended.is_set():
        return f"ended because it took more than {seconds + GRACE:.0f} s"
    return "" if code == 0 else f"died of signal {-code}" if code < 0 else f"ended with exit code {code}"


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Replaces the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def commit() -> str | None:
    """The commit of the checkout, with "+" where files differ from it; None where git does not say."""
    git = shutil.which("git")
    if git is None:
        return None
    answers = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        done = subprocess.run([git, "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return None
        answers.append(done.stdout.strip())
    return answers[0] + ("+" if answers[1] else "")
