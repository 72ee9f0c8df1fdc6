"""Where a file is broken, by the structure of its container: demuxers go on behind such a place without a word.

Reads the file once more, and only where its container can tell: Matroska and WebM (elements and checksums), MP4 and MOV
in fragments (boxes and their numbers), MPEG-TS (counters of its packets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from mtu.runtime.video import matroska

Fault = tuple[int, str]
"""A place in bytes, and what is wrong there."""
_TS_WINDOW, _TS_OVERLAP = 1 << 16, 1 << 12


def find_faults(path: Path, container: str) -> list[Fault]:
    """Where a file is broken; `container` is FFmpeg's name of its demuxer. Empty where that cannot be told."""
    look = _LOOKS.get(container)
    if look is None or not path.is_file():
        return []
    with path.open("rb") as file:
        return list(look(file, path.stat().st_size))


def _fragments(file: BinaryIO, end: int) -> Iterator[Fault]:
    """An index of the whole file needs no structure, so only files with fragments are judged."""
    place, numbers = 0, list[int]()
    while place < end:
        file.seek(place)
        head = file.read(24)
        size, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if kind == b"moof":
            numbers.append(int.from_bytes(_after(file, b"mfhd", place, 64)[4:8], "big"))
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        elif size == 0:
            size = end - place
        after = place + size
        if numbers and (size < 8 or not kind.isascii() or not kind.isalnum()):
            yield place, "its structure is broken"
            after = _next_fragment(file, place + 1, end)
        elif numbers and after > end:
            yield end, f"it is cut off: {after - end} bytes are missing"
        elif size < 8:
            return
        place = after
    steps = [later - earlier for earlier, later in pairwise(numbers)]
    skipped = [step - 1 for step in steps if step > 1]
    # Some writers number otherwise: a gap is one where most have none.
    if skipped and steps.count(1) >= len(skipped):
        yield 0, f"{sum(skipped)} fragments are missing"


def _after(file: BinaryIO, name: bytes, place: int, within: int) -> bytes:
    file.seek(place)
    return file.read(within).partition(name)[2]


def _next_fragment(file: BinaryIO, place: int, end: int) -> int:
    while place < end:
        file.seek(place)
        data = file.read(1 << 20)
        at = data.find(b"moof")
        if at >= 4:
            return place + at - 4
        place += max(1, len(data) - 8)
    return end


def _transport(file: BinaryIO, end: int) -> Iterator[Fault]:
    start, stride = _first_packet(file)
    found: dict[int, str] = {}
    # The windows overlap, so that a counter is compared with the one before in one of them.
    for place in range(start, end, stride * (_TS_WINDOW - _TS_OVERLAP)) if stride else ():
        file.seek(place)
        data = file.read(stride * _TS_WINDOW)
        packets = np.frombuffer(data, np.uint8, len(data) // stride * stride).reshape(-1, stride)
        for rows, what in _torn(packets):
            found.update((place + int(row) * stride, what) for row in rows)
    yield from sorted(found.items())


def _torn(packets: npt.NDArray[np.uint8]) -> Iterator[tuple[npt.NDArray[np.intp], str]]:
    """Rows of transport packets [N, 188 or more] that are faulty, or before which some of their stream are lost."""
    yield np.flatnonzero(packets[:, 0] != 0x47), "its packets are out of step"
    yield np.flatnonzero(packets[:, 1] >> 7), "packets are marked as faulty"
    pids = (packets[:, 1].astype(np.intp) & 0x1F) << 8 | packets[:, 2]
    begins, counts = packets[:, 1] >> 6 & 1, packets[:, 3].astype(np.intp) & 15
    meant = (packets[:, 3] >> 5 & 1) & (packets[:, 4] > 0) & packets[:, 5] >> 7
    # The packets with a payload, stream by stream; a counter may stay for a packet that is sent twice.
    order = np.argsort(pids, kind="stable")
    order = order[(packets[order, 3] >> 4 & 1 == 1) & (pids[order] != 0x1FFF)]
    before, after = order[:-1], order[1:]
    jump = (pids[before] == pids[after]) & ((counts[after] - counts[before]) % 16 > 1) & (meant[after] == 0)
    before, after = before[jump], after[jump]
    # Where files were joined all counters jump, at beginnings, behind the tables that a file begins with.
    tables = np.flatnonzero((pids < 0x20) & (np.isin(np.arange(len(pids)), after) | (counts == 0)))
    joined = (begins[after] == 1) & (np.searchsorted(tables, before) < np.searchsorted(tables, after))
    yield after[~joined & (pids[after] >= 0x20)], "packets are missing"


def _first_packet(file: BinaryIO) -> tuple[int, int]:
    """Where the first packet begins and how far it is to the next, 0 if there are none."""
    data = file.read(4096)
    for stride in (188, 192, 204):
        for start in range(min(stride, max(0, len(data) - 2 * stride))):
            if all(byte == 0x47 for byte in data[start::stride]):
                return start, stride
    return 0, 0


_LOOKS: dict[str, Callable[[BinaryIO, int], Iterator[Fault]]] = {
    "matroska,webm": matroska.faults,
    "mov,mp4,m4a,3gp,3g2,mj2": _fragments,
    "mpegts": _transport,
}
