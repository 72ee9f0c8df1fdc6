"""Subtitles that are showing where a segment begins: they lie before it in the file. Opens the source once more."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer

REACH = 60
"""Seconds before the segment that are searched; subtitles are rarely shown for longer."""


def showing(container: InputContainer, form: str | None, time: Fraction) -> list[av.Packet[Any]]:
    """Packets of the subtitles of `container`, a file, that are showing at `time`, cut so as to begin there.

    `time` is in seconds on the clock of the file, which was opened as `form`.
    """
    wanted = {stream.index for stream in container.streams.subtitles}
    if not wanted or time <= 0:
        return []
    found = []
    with av.open(container.name, format=form, metadata_errors="replace") as again:
        again.seek(max(0, int((time - REACH) * av.time_base)))
        for packet in again.demux():
            if packet.dts is not None and packet.dts * packet.time_base >= time:
                # All streams are about as far.
                break
            if packet.stream_index not in wanted or packet.pts is None or not packet.duration:
                continue
            cut, end = math.ceil(time / packet.time_base), packet.pts + packet.duration
            if packet.pts < cut < end:
                packet.pts = packet.dts = cut
                packet.duration = end - cut
                packet.stream = container.streams[packet.stream_index]
                found.append(packet)
    return found
