"""What the parts of the GPU check say: checks, times, values, and what could not be done. Standard library only."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mtu.core.errors import MissingExtraError

Record = dict[str, Any]
"""One finding as it stands in the JSON: `kind` is check, time, value, fact, skip or error; `name` says of what."""


class Skip(Exception):  # noqa: N818
    """Something cannot be done on this host; the message says why, and what would help."""


def why_not(error: Exception) -> str | None:
    """The reason if `error` only says that something is missing on this host, None if it is a failure."""
    if isinstance(error, (Skip, MissingExtraError)):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not f"{error.name}.".startswith("mtu."):
        return f"the package {error.name} is not installed"
    if type(error).__name__ == "OutOfMemoryError":  # torch's
        return f"too little device memory: {str(error).splitlines()[0]}"
    return None


@dataclass(frozen=True)
class GpuReport:
    """Where a section puts its findings, each as soon as it has it."""

    emit: Callable[[Record], None]
    deadline: float = float("inf")
    """By `time.monotonic`: nothing is begun that would take longer."""

    def fact(self, name: str, value: Any) -> None:
        """Something the figures depend on."""
        self.emit({"kind": "fact", "name": name, "value": value})

    def check(self, name: str, passed: bool, detail: str = "") -> None:
        """Something that must be so."""
        self.emit({"kind": "check", "name": name, "passed": bool(passed), "detail": detail})

    def value(self, name: str, group: str, value: float) -> None:
        """A measure that is no time. `group` is what `gpu_results.figures` looks for."""
        self.emit({"kind": "value", "name": name, "group": group, "value": value})

    def time(self, name: str, group: str, milliseconds: Sequence[float], **more: Any) -> None:
        """Samples of one thing's time; `more` is anything to be read beside it."""
        p90 = sorted(milliseconds)[len(milliseconds) * 9 // 10]
        found = {"median_ms": statistics.median(milliseconds), "p90_ms": p90, "samples": len(milliseconds)}
        self.emit({"kind": "time", "name": name, "group": group, **found, **more})

    def skip(self, name: str, reason: str) -> None:
        """Something that is not done."""
        self.emit({"kind": "skip", "name": name, "reason": reason})

    def run(self, name: str, part: Callable[[], Any], seconds: float = 0) -> Any:
        """What `part` returns, or None if it fails or cannot be done here, which is recorded under `name`.

        `seconds` is about what it takes; it is not begun with less than that left.
        """
        left = self.deadline - time.monotonic()
        if left < seconds:
            self.skip(name, f"takes about {seconds:.0f} s and {max(left, 0):.0f} s are left: --minutes gives more")
            return None
        try:
            return part()
        except Exception as error:
            reason = why_not(error)
            if reason is not None:
                self.skip(name, reason)
                return None
            traceback.print_exception(error)
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename.rsplit('/', 1)[-1]}:{place.lineno}"
            message = f"{type(error).__name__}: {error}"[:2000]
            self.emit({"kind": "error", "name": name, "message": message, "where": where})
            return None
