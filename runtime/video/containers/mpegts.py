"""The packets of MPEG-TS files: where some are missing, by their counters.

Reads open files only. FFmpeg's demuxer goes on silently behind such a place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

_WINDOW, _OVERLAP = 1 << 16, 1 << 12


def faults(file: BinaryIO, end: int) -> Iterator[tuple[int, str]]:
    """Places in a file of `end` bytes where it is broken, and what is wrong there."""
    start, stride = _first_packet(file)
    found: dict[int, str] = {}
    # The windows overlap, so that a counter is compared with the one before in one of them.
    for offset in range(start, end, stride * (_WINDOW - _OVERLAP)) if stride else ():
        file.seek(offset)
        data = file.read(stride * _WINDOW)
        packets = np.frombuffer(data, np.uint8, len(data) // stride * stride).reshape(-1, stride)
        for rows, what in _torn(packets):
            found.update((offset + int(row) * stride, what) for row in rows)
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
