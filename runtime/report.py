"""The file of `--json`: checked before the work, written after it. Standard library only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mtu.models.errors import OutputError


def check_report(path: Path, *others: str) -> None:
    """Raises OutputError if a report of `--json` cannot be written to `path`, or would replace one of `others`."""
    if path.is_dir():
        raise OutputError(f"--json {path}: is a directory; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"--json {path}: the directory does not exist")
    if str(path) == "-":
        raise OutputError("--json -: give the name of a file; stdout is for the video")
    for other in others:
        if path.resolve() == Path(other).resolve() or (path.exists() and Path(other).exists() and path.samefile(other)):
            raise OutputError(f"--json {path}: is the input or the output; give another name")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise OutputError(f"--json {path}: cannot be written; check its permissions or give another name")


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Writes the report of `--json`. Raises OutputError."""
    try:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--json {path}: cannot be written ({error.strerror}); everything else is done") from None
