"""A timing cache on disk. TensorRT may end the process on a cache that is damaged or of another version, so what is
handed to it is framed: who wrote it, and a digest. Plain Python."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from mtu.core.errors import InvalidInputError, OutputError
from mtu.core.files import write_whole

_MAGIC = b"mtu timing cache 1\n"


def check_timing_cache(path: Path) -> None:
    """Raises OutputError if the cache cannot be written later, InvalidInputError if `path` is a file of another kind,
    which would be replaced."""
    try:
        with tempfile.NamedTemporaryFile(dir=path.absolute().parent):
            pass
    except OSError as error:
        raise OutputError(
            f"the timing cache {path} cannot be written ({error.strerror}): name a file in a directory that can be"
        ) from None
    if path.is_dir() or (path.exists() and path.stat().st_size and not _read(path).startswith(_MAGIC)):
        raise InvalidInputError(
            f"{path} is no timing cache of mtu-build-engine and is not replaced: name another file, or remove it"
        )


def read_timing_cache(path: Path, made_by: str, say: Callable[[str], None]) -> bytes:
    """The cache in `path`, for TensorRT; empty, with a line for the user, if it does not fit.

    `made_by` says what it must have been made with: library, version and GPU.
    """
    content = _read(path) if path.exists() else b""
    if not content:
        return b""
    header, _, payload = content[len(_MAGIC) :].partition(b"\n")
    try:
        fields = json.loads(header)
        found, digest = str(fields["made_by"]), str(fields["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        found, digest = made_by, ""
    if found != made_by:
        say(f"note: the timing cache {path} is of {found}, here is {made_by}; it is not used and will be replaced")
        return b""
    if hashlib.sha256(payload).hexdigest() != digest:
        say(f"note: the timing cache {path} is damaged; it is not used and will be replaced")
        return b""
    return payload


def write_timing_cache(path: Path, made_by: str, payload: bytes) -> None:
    """Replaces the cache in one step; raises OutputError."""
    header = json.dumps({"made_by": made_by, "sha256": hashlib.sha256(payload).hexdigest()}).encode()
    try:
        write_whole(path, _MAGIC + header + b"\n" + payload)
    except OSError as error:
        raise OutputError(f"the timing cache {path} cannot be written: {error.strerror}") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"the timing cache {path} cannot be read: {error.strerror}") from None
