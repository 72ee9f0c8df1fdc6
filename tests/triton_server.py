"""A real tritonserver, that of the wheel nvidia-pytriton, started on a model repository. Nothing here is a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import util
from pathlib import Path

from tests.processes import wait_until


@dataclass
class Running:
    """A server: its ports, its process and the file of what it says."""

    http: int
    grpc: int
    metrics: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    def figures(self) -> dict[str, float]:
        """Our metrics by name, each the sum over all models."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as page:
            lines = [line for line in page.read().decode().splitlines() if line.startswith("mtu_")]
        found: dict[str, float] = {}
        for line in lines:
            name = line.partition("{")[0]
            found[name] = found.get(name, 0) + float(line.rpartition(" ")[2])
        return found

    def after(self, before: dict[str, float], frames: int) -> dict[str, float]:
        """How much larger the metrics are than they were, once so many frames were restored and no stream is open."""
        last = {}

        def is_there() -> bool:
            last.update({name: value - before[name] for name, value in self.figures().items()})
            return last["mtu_frames_total"] >= frames and self.figures()["mtu_streams"] == 0

        wait_until(is_there, self.process)
        assert last["mtu_frames_total"] == frames
        return last


def frame_memory() -> set[str]:
    """What clients on this machine share with servers now."""
    return {path.name for path in Path("/dev/shm").glob("mtu-frames-*")}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]


@contextlib.contextmanager
def serve(models: Path, work: Path, *, models_may_fail: bool = False) -> Iterator[Running]:
    """Runs a server on the repository `models`; `work` is a directory for its files."""
    spec = util.find_spec("pytriton")
    assert spec is not None and spec.origin is not None
    wheel = Path(spec.origin).parent / "tritonserver"
    backend = work / "backends" / "python"
    shutil.copytree(wheel / "backends" / "python", backend, dirs_exist_ok=True)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    stub = backend / "triton_python_backend_stub"
    shutil.copy(wheel / "python_backend_stubs" / version / stub.name, stub)
    binary = Path(shutil.copy(wheel / "bin" / "tritonserver", work / "tritonserver"))
    for each in (binary, stub):
        each.chmod(0o755)
    libraries = wheel.parent.parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")
    http, grpc, metrics = free_ports(3)
    log = work / "server.log"
    options = [f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")]
    options += [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}", "--exit-timeout-secs=1"]
    # As docs/scale.md has it: the memory of a model need not grow.
    regions = f"mtu-test-{os.getpid()}-{grpc}-"
    options += [
        f"--backend-config=python,shm-{how}" for how in ("default-byte-size=536870912", f"region-prefix-name={regions}")
    ]
    # Without it every model is started twice.
    options += ["--exit-on-error=false"] if models_may_fail else ["--disable-auto-complete-config"]
    with log.open("wb") as said:
        process = subprocess.Popen(
            [binary, f"--model-repository={models}", f"--backend-directory={backend.parent}", *options],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
                # The Python in the server heeds no PYTHONPATH; it is that of the first python3 of PATH.
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            },
            start_new_session=True,
        )
    try:
        server = Running(http, grpc, metrics, process, log)
        _wait(server)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what runs the models outlives it for a while
        process.wait(10)
        for region in Path("/dev/shm").glob(f"{regions}*"):
            region.unlink(missing_ok=True)  # of a model that was killed, half a gigabyte


def _wait(server: Running) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{server.http}/v2/health/live"):
            return
        assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.1)
    raise AssertionError(server.log.read_text())
