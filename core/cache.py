"""What is made once and kept for later runs: where it lies, and files that notice damage. Standard library only."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from pathlib import Path

from mtu.core.files import write_whole


class NotKeptWarning(UserWarning):
    """Something could not be written into the cache; it costs the next run some time."""


def cache_directory() -> Path:
    """Where kernels, engines and compiled models are kept: MTU_CACHE_DIR, else mtu in the user's cache directory."""
    if directory := os.environ.get("MTU_CACHE_DIR"):
        return Path(directory)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtu"
    except RuntimeError:  # a user without a home
        return Path(os.devnull) / "mtu"  # where nothing can be kept, which whoever tries is told


def read_kept(path: Path) -> bytes | None:
    """What `keep` wrote, or None if there is nothing or it is damaged."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    return None


def keep(path: Path, content: bytes, what: str) -> None:
    """Writes `content` to a file of the cache, with its digest; gives a NotKeptWarning if that is impossible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, hashlib.sha256(content).digest() + content)
    except OSError as error:
        text = f"{what} cannot be kept in {path.parent} ({error.strerror}): every run makes it again"
        warnings.warn(text, NotKeptWarning, stacklevel=3)
