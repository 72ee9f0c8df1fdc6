"""What of a source could not be read: damaged packets and pictures, an early end, and a broken file.

Demuxers go on behind a broken place without a word. So files of the containers that can tell (`_FAULTS`) are read once
more at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av

from mtu.runtime.video.containers import matroska, mpegts, quicktime

Fault = tuple[int, str]
"""A place in bytes, and what is wrong there."""
_FAULTS: dict[str, Callable[[BinaryIO, int], Iterator[Fault]]] = {
    "matroska,webm": matroska.faults,
    "mov,mp4,m4a,3gp,3g2,mj2": quicktime.faults,
    "mpegts": mpegts.faults,
}
"""By FFmpeg's names of demuxers."""

MAX_ERRORS_IN_A_ROW = 100
"""So many damaged packets without a picture between them end the iteration."""
# Containers give times rounded to their tick, and the last duration is often a guess.
_END_TOLERANCE = Fraction(1, 2)


class CountedPipe:
    """A pipe that is read, and how many bytes have come out of it."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self.count = 0

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`."""
        data = self._pipe.read(size)
        self.count += len(data)
        return data


class Damage:
    """Counts what goes wrong while a source is read."""

    def __init__(self) -> None:
        self._errors = self._in_a_row = self._pictures = 0
        self._last_error = ""
        self._first: int | None = None
        self._last = self._end = 0
        # In seconds on the source's clock.
        self._seen_end = Fraction(0)

    def fail(self, error: Exception) -> None:
        """A packet could not be read or decoded."""
        self._errors += 1
        self._in_a_row += 1
        self._last_error = getattr(error, "strerror", None) or str(error)

    @property
    def hopeless(self) -> bool:
        """Whether only damage comes."""
        return self._in_a_row > MAX_ERRORS_IN_A_ROW

    @property
    def reason(self) -> str:
        """What went wrong with packets, "" if nothing."""
        return f"{self._errors} damaged packets, {self._last_error}" if self._errors else ""

    def decoded(self) -> None:
        """A packet gave a picture."""
        self._in_a_row = 0

    def picture(self, picture: av.VideoFrame) -> None:
        """A picture is given."""
        self._pictures += picture.is_corrupt

    def packet(self, packet: av.Packet[Any]) -> None:
        """A packet was read."""
        begin = packet.pts if packet.pts is not None else packet.dts
        if begin is not None:
            self._seen_end = max(self._seen_end, (begin + (packet.duration or 0)) * packet.time_base)
        if packet.pos is not None and packet.pos >= 0:
            self._first = packet.pos if self._first is None else min(self._first, packet.pos)
            self._last = max(self._last, packet.pos)
            self._end = max(self._end, packet.pos + packet.size)

    def lost(self) -> list[str]:
        """What was found while reading, in words."""
        lost = []
        if self.hopeless:
            lost.append(f"stopped after {MAX_ERRORS_IN_A_ROW} damaged packets in a row")
        elif self._errors:
            lost.append(f"{self._errors} damaged packets were skipped ({self._last_error})")
        if self._pictures:
            lost.append(f"{self._pictures} pictures were damaged")
        return lost

    def early_end(self, end: Fraction, rate: Fraction | None) -> list[str]:
        """Whether what was read ends well before `end`, in words."""
        if end - self._seen_end <= max(_END_TOLERANCE, 3 / (rate or 25)):
            return []
        return [f"it ends at {float(self._seen_end):.2f} s of {float(end):.2f} s"]

    def cut_off(self, size: int) -> list[str]:
        """Whether bytes of a source of `size` bytes, which is packets to its end, became none, in words."""
        return ["its last picture is cut off"] if size > self._end else []

    def broken(self, path: Path, container: str, *, whole: bool) -> list[str]:
        """Whether the file is broken where it was read, or, if `whole`, anywhere, in words."""
        try:
            found = find_faults(path, container)
        except OSError:
            return []
        if not whole:
            first = self._first or 0
            found = [(offset, what) for offset, what in found if first <= offset <= self._last]
        words = []
        for what in dict.fromkeys(what for _, what in found):
            offsets = [offset for offset, same in found if same == what]
            more = f" and {len(offsets) - 1} more" if len(offsets) > 1 else ""
            words.append(f"{what} (byte {offsets[0]}{more})" if offsets[0] else what)
        return words


def find_faults(path: Path, container: str) -> list[Fault]:
    """Where a file is broken; `container` is FFmpeg's name of its demuxer. Empty where that cannot be told."""
    faults = _FAULTS.get(container)
    if faults is None or not path.is_file():
        return []
    with path.open("rb") as file:
        return list(faults(file, path.stat().st_size))
