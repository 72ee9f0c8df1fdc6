"""The boxes of MP4 and MOV files: whether the index comes first, and where a file in fragments is broken.

Reads files only. FFmpeg's demuxer goes on silently behind a broken fragment.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO


def index_is_first(path: Path) -> bool:
    """Whether a file has its index (moov) before its pictures, so that it plays while it still loads."""
    if not path.is_file():
        return False
    offset, end = 0, path.stat().st_size
    with path.open("rb") as file:
        for _ in range(100):
            size, name = _box(file, offset, end)
            if size < 8 or name in (b"moov", b"mdat"):
                return name == b"moov"
            offset += size
    return False


def faults(file: BinaryIO, end: int) -> Iterator[tuple[int, str]]:
    """Places in a file of `end` bytes where it is broken, and what is wrong there.

    An index of the whole file needs no structure, so only files with fragments are judged.
    """
    offset, numbers = 0, list[int]()
    while offset < end:
        size, name = _box(file, offset, end)
        if name == b"moof":
            numbers.append(_fragment_number(file, offset))
        after = offset + size
        if numbers and (size < 8 or not name.isascii() or not name.isalnum()):
            yield offset, "its structure is broken"
            after = _next_fragment(file, offset + 1, end)
        elif numbers and after > end:
            yield end, f"it is cut off: {after - end} bytes are missing"
        elif size < 8:
            return
        offset = after
    steps = [later - earlier for earlier, later in pairwise(numbers)]
    skipped = [step - 1 for step in steps if step > 1]
    # Some writers number otherwise: a gap is one where most have none.
    if skipped and steps.count(1) >= len(skipped):
        yield 0, f"{sum(skipped)} fragments are missing"


def _box(file: BinaryIO, offset: int, end: int) -> tuple[int, bytes]:
    """Size and name of the box at a place; the name is shorter than 4 bytes where the file ends."""
    file.seek(offset)
    head = file.read(16)
    size = int.from_bytes(head[:4], "big")
    if size == 1:
        size = int.from_bytes(head[8:16], "big")
    elif size == 0:
        size = end - offset
    return size, head[4:8]


def _fragment_number(file: BinaryIO, offset: int) -> int:
    file.seek(offset)
    return int.from_bytes(file.read(64).partition(b"mfhd")[2][4:8], "big")


def _next_fragment(file: BinaryIO, offset: int, end: int) -> int:
    while offset < end:
        file.seek(offset)
        data = file.read(1 << 20)
        at = data.find(b"moof")
        if at >= 4:
            return offset + at - 4
        offset += max(1, len(data) - 8)
    return end
