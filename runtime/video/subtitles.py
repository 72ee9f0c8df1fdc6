"""Subtitles: text is converted to the kind that a container holds; what is showing where a segment begins is found.

The latter lies before the segment in the file, which is opened once more for it.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.stream import Stream
from av.subtitles.stream import SubtitleStream

from mtu.runtime.video.tags import stream_metadata

REACH = 60
"""Seconds before the segment that are searched; subtitles are rarely shown for longer."""


def add_text(output: OutputContainer, stream: SubtitleStream, codec: str) -> SubtitleStream:
    """Add a stream of converted subtitles to a container; `codec` is its `Container.text`."""
    context = stream.codec_context
    context.open(strict=False)
    added: Any = output.add_stream(codec)
    added.codec_context.subtitle_header = context.subtitle_header
    added.codec_context.time_base = added.time_base = Fraction(1, 1000)
    added.metadata.update(stream_metadata(stream.metadata, output.format.name))
    added.disposition = stream.disposition
    assert isinstance(added, SubtitleStream)
    return added


def converted(packet: av.Packet[Any], target: Stream) -> av.Packet[Any] | None:
    """A packet as plain text for a stream that `add_text` has added, None if it shows nothing."""
    lines = []
    for subtitle in packet.decode():
        # ReadOrder, Layer, Style, Name, three margins, Effect, Text
        parts = getattr(subtitle, "ass", b"").split(b",", 8)
        if len(parts) == 9:
            text = re.sub(r"\{[^}]*\}", "", parts[8].decode("utf-8", "replace"))
            lines.append(text.replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " ").strip())
    body = "\n".join(filter(None, lines)).encode()
    if not body:
        return None
    if target.codec_context.name == "mov_text":
        body = len(body).to_bytes(2, "big") + body
    new: av.Packet[Any] = av.Packet(body)
    new.time_base = packet.time_base
    new.pts, new.dts, new.duration = packet.pts, packet.dts, packet.duration
    return new


def showing_at(container: InputContainer, form: str | None, time: Fraction) -> list[av.Packet[Any]]:
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
