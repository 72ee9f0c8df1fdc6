"""The files that a command writes beside its result (`--json`, `--html`): checked before the work, written after it.

Standard library only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtu.core.errors import OutputError
from mtu.core.files import write_whole

REPORTS = (".json", ".html", ".txt")
"""What a report may replace in a directory that is an input or an output."""


def check_report(path: Path, *others: str, option: str = "--json") -> None:
    """Raises OutputError if the report of `option` cannot be written to `path`, or would replace one of `others`."""
    if path.is_dir():
        raise OutputError(f"{option} {path}: is a directory; give the name of a file")
    directory = path.resolve().parent
    if not directory.is_dir():
        raise OutputError(f"{option} {path}: the directory does not exist")
    if str(path) == "-":
        raise OutputError(f"{option} -: give the name of a file")
    for other in others:
        if path.resolve() == Path(other).resolve() or (path.exists() and Path(other).exists() and path.samefile(other)):
            raise OutputError(f"{option} {path}: is an input or the output of another option; give another name")
        if path.is_file() and path.suffix not in REPORTS and path.resolve().parent == Path(other).resolve():
            raise OutputError(f"{option} {path}: is one of the files of {other}; give another name")
    written = (path,) if _is_device(path) else (path, directory)
    if not all(os.access(each, os.W_OK) for each in written if each.exists()):
        raise OutputError(f"{option} {path}: cannot be written; check the permissions of it and of its directory")


def write_report(path: Path, report: Mapping[str, Any] | str, option: str = "--json") -> None:
    """Writes the report of `option`, a file in one step: a text as it is, anything else as JSON. Raises OutputError."""
    text = report if isinstance(report, str) else json.dumps(report, indent=2) + "\n"
    try:
        if _is_device(path):
            path.write_bytes(text.encode())
        else:
            write_whole(path.resolve(), text.encode())
    except OSError as error:
        raise OutputError(f"{option} {path}: cannot be written ({error.strerror}); give another name") from None


def _is_device(path: Path) -> bool:
    """Whether it is a device or a pipe (/dev/stdout), which is written to and never replaced."""
    return path.exists() and not path.is_file()
