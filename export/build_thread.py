"""A build in a thread of its own: this one shows how far it is, and stops it. Imports the library as an argument.

A signal's exception must not be raised inside one of the library's callbacks, where it would end the process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtu.export.engine_graph import BuiltGraph, Messages

Say = Callable[[str], None]
Progress = Callable[[str, float], None]
"""Takes what is being done and how far it is, 0 to 1; called a few times a second."""


def run_in_thread(
    work: Callable[[], BuiltGraph],
    graph: str,
    monitor: Any,
    messages: Messages,
    echo: Say | None,
    progress: Progress,
) -> BuiltGraph:
    """Runs `work` in a thread. This one shows progress and messages, and stops the build if it is interrupted."""
    result: list[BuiltGraph] = []
    errors: list[BaseException] = []
    finished = threading.Event()

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            finished.set()

    # A name from "mtu-" lets the command line end even if the library does not.
    thread = threading.Thread(target=run, name="mtu-build", daemon=True)
    shown = len(messages.all)
    thread.start()
    try:
        while not finished.wait(0.1):
            text, fraction = monitor.state() if monitor is not None else ("", 0.0)
            progress(f"{graph}: {text}" if text else graph, fraction)
            shown = _echo(messages, shown, echo)
    except BaseException:
        if monitor is not None:
            monitor.cancelled = True
        finished.wait(10)
        raise
    thread.join()
    _echo(messages, shown, echo)
    if errors:
        raise errors[0]
    return result[0]


def _echo(messages: Messages, shown: int, echo: Say | None) -> int:
    end = len(messages.all)
    if echo is not None:
        for severity, text in messages.all[shown:end]:
            echo(f"{severity} {text}")
    return end


def new_monitor(trt: Any) -> Any:
    """A progress monitor that keeps what the library reports and can stop the build; None where there is none (8.6)."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Nothing in here may raise."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._phases: dict[str, list[Any]] = {}  # name: parent, steps, steps done
            self._lock = threading.Lock()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                self._phases[name] = [parent, steps, 0]

        def phase_finish(self, name: str) -> None:
            with self._lock:
                self._phases.pop(name, None)

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                if name in self._phases:
                    self._phases[name][2] = step + 1
            return not self.cancelled

        def state(self) -> tuple[str, float]:
            """The innermost phase and how far the outermost is."""
            with self._lock:
                phases = dict(self._phases)
            name, fraction = "", 0.0
            inner = next((n for n in reversed(phases) if n not in {p[0] for p in phases.values()}), None)
            while inner is not None and inner in phases:
                name = name or inner
                parent, steps, done = phases.pop(inner)
                fraction = min(1.0, (done + fraction) / max(1, steps))
                inner = parent
            return name, fraction

    return Monitor()
