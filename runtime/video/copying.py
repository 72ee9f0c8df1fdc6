"""The other streams: audio, subtitles, attachments, chapters and metadata, copied packet for packet.

What a container refuses is found out by writing its header into memory, before anything is written to disk. Text
subtitles that it refuses are converted to the kind it holds; everything else it refuses is dropped, and said.
"""

from __future__ import annotations

import io
import re
from contextlib import suppress
from fractions import Fraction
from typing import Any

import av
from av.container import OutputContainer
from av.stream import Stream
from av.subtitles.codeccontext import SubtitleCodecContext
from av.subtitles.stream import SubtitleStream

from mtu.runtime.video.reader import Reader, is_inner
from mtu.runtime.video.tags import attachment_of, set_tag, stream_metadata
from mtu.runtime.video.timing import Clock

# The text subtitles of a container, where others are converted to them.
_TEXT = {"mp4": "mov_text", "mov": "mov_text", "ipod": "mov_text", "matroska": "subrip", "webm": "webvtt"}
# Containers that keep a cover as a cover, not as one more video.
_COVERS = {"mp4", "ipod", "matroska"}
_CHAPTERS = {"mp4", "mov", "ipod", "3gp", "3g2", "psp", "f4v", "matroska", "webm", "nut", "asf"}
# The only subtitles of a transport stream that a player understands; its muxer takes any.
_DVB = {"dvbsub", "dvb_subtitle", "dvb_teletext", "libzvbi_teletextdec", "pgssub", "hdmv_pgs_subtitle"}


class Copier:
    """Carries the streams that are not processed from a reader into an output container."""

    def __init__(self, reader: Reader, output: OutputContainer) -> None:
        """Add a stream to `output` for each one it can hold. `notes` says what it cannot."""
        self.notes: list[str] = []
        self._output = output
        self._origin = reader.origin
        self._copied: dict[int, Stream] = {}
        self._converted: dict[int, SubtitleStream] = {}
        self._covers = set(reader.covers)
        self._clocks: dict[int, Clock] = {}
        self._refused: dict[int, int] = {}
        self._names: dict[int, str] = {}
        source = reader.container
        assert source is not None and reader.stream is not None
        for stream in source.streams:
            if stream.index != reader.stream.index and not is_inner(stream):
                self._names[stream.index] = _describe(stream)
                self._clocks[stream.index] = Clock(stream.time_base or Fraction(1, 1000), None)
                self._take(stream, reader)
        chapters = _chapters(reader)
        if chapters and output.format.name in _CHAPTERS:
            output.set_chapters(chapters)
        elif chapters:
            self.notes.append(f"{output.format.name} cannot hold chapters: dropped; .mkv would keep them")

    def _take(self, stream: Stream, reader: Reader) -> None:
        container = self._output.format.name
        cover = reader.covers.get(stream.index)
        if cover is not None and container == "matroska":
            # It keeps them as attachments, and gives them back as pictures.
            self._output.add_attachment(*attachment_of(stream, bytes(cover)), bytes(cover))
            return
        why = "it has no place for covers" if cover and container not in _COVERS else _refusal(stream, container)
        if why is None:
            self._copied[stream.index] = _add(self._output, stream)
        elif isinstance(stream, SubtitleStream) and container in _TEXT and _is_text(stream):
            self._converted[stream.index] = _add_text(self._output, stream, _TEXT[container])
            self.notes.append(
                f"{container} cannot hold {self._names[stream.index]}: converted to {_TEXT[container]}, without styles"
            )
        else:
            better = "" if container == "matroska" else "; .mkv would keep it"
            self.notes.append(f"{container} cannot hold {self._names[stream.index]}: dropped ({why}{better})")

    def copy(self, packet: av.Packet[Any]) -> None:
        """Write a packet of one of the copied streams; ignores others. The data is unchanged. Raises OSError."""
        index = packet.stream_index
        try:
            if index in self._converted:
                text = _text_of(packet)
                if text is not None:
                    self._mux(_text_packet(packet, text, self._converted[index]), index, self._converted[index])
            elif index in self._copied:
                self._mux(packet, index, self._copied[index])
        except av.FFmpegError as error:
            # What is wrong with one packet must not end the work; a full disk must.
            if isinstance(error, OSError) and not isinstance(error, ValueError):
                raise
            self._refused[index] = self._refused.get(index, 0) + 1

    def _mux(self, packet: av.Packet[Any], index: int, target: Stream) -> None:
        if index in self._covers:
            packet.pts = packet.dts = 0
        else:
            shift = round(self._origin / packet.time_base)
            dts = packet.dts if packet.dts is not None else packet.pts
            stamp, _ = self._clocks[index].stamp(dts, packet.duration)
            # A clock that fell back moves both times.
            move = 0 if dts is None else stamp - dts
            pts = stamp if packet.pts is None else packet.pts + move
            packet.pts, packet.dts = max(stamp, pts) - shift, stamp - shift
        packet.stream = target
        self._output.mux(packet)

    def remarks(self) -> list[str]:
        """What had to be changed or left out while copying."""
        clocks = self._clocks.items()
        return [f"{self._names[index]}: {text}" for index, clock in clocks for text in clock.remarks("packets")] + [
            f"{self._names[index]}: {count} damaged packets were left out" for index, count in self._refused.items()
        ]


def _describe(stream: Stream) -> str:
    """Words for messages, such as "subtitle stream 3 (ass, ger)"."""
    codec = stream.codec_context.name if stream.codec_context is not None else getattr(stream, "name", None)
    details = ", ".join(filter(None, [codec, stream.metadata.get("language"), stream.metadata.get("title")]))
    return f"{stream.type} stream {stream.index}{f' ({details})' if details else ''}"


def _add(output: OutputContainer, stream: Stream) -> Stream:
    added = output.add_stream_from_template(stream, opaque=True)
    added.metadata.clear()
    added.metadata.update(stream_metadata(stream.metadata, output.format.name))
    added.disposition = stream.disposition
    set_tag(added, output.format.name, stream)
    return added


def _refusal(stream: Stream, container: str) -> str | None:
    """Why a container cannot hold a stream, None if it can: tried by writing a header into memory."""
    codec = stream.codec_context
    if codec is None and stream.type not in ("attachment", "data"):
        return "its codec is unknown"
    if stream.type == "attachment" and container != "matroska":
        return "it has no place for attachments"
    if container == "mpegts" and (codec is None or (stream.type == "subtitle" and codec.name not in _DVB)):
        return "players would not find it there"
    probe = av.open(io.BytesIO(), "w", format=container)
    try:
        _add(probe, stream)
        probe.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None)
        return "no such streams in this format" if reason in (None, "Invalid argument") else str(reason)
    finally:
        with suppress(av.FFmpegError, ValueError):
            probe.close()
    return None


def _is_text(stream: SubtitleStream) -> bool:
    context = stream.codec_context
    # PyAV before 15 cannot give an encoder the header it needs.
    return context is not None and context.codec.text_sub and hasattr(SubtitleCodecContext, "subtitle_header")


def _add_text(output: OutputContainer, stream: SubtitleStream, codec: str) -> SubtitleStream:
    context = stream.codec_context
    context.open(strict=False)
    added: Any = output.add_stream(codec)
    added.codec_context.subtitle_header = context.subtitle_header
    added.codec_context.time_base = added.time_base = Fraction(1, 1000)
    added.metadata.update(stream_metadata(stream.metadata, output.format.name))
    added.disposition = stream.disposition
    assert isinstance(added, SubtitleStream)
    return added


def _text_of(packet: av.Packet[Any]) -> str | None:
    """The plain text of a subtitle packet, None if it shows nothing."""
    lines = []
    for subtitle in packet.decode():
        # ReadOrder, Layer, Style, Name, three margins, Effect, Text
        parts = getattr(subtitle, "ass", b"").split(b",", 8)
        if len(parts) == 9:
            text = re.sub(r"\{[^}]*\}", "", parts[8].decode("utf-8", "replace"))
            lines.append(text.replace("\\N", "\n").replace("\\n", "\n").replace("\\h", " ").strip())
    return "\n".join(filter(None, lines)) or None


def _text_packet(packet: av.Packet[Any], text: str, target: SubtitleStream) -> av.Packet[Any]:
    body = text.encode()
    if target.codec_context.name == "mov_text":
        body = len(body).to_bytes(2, "big") + body
    converted: av.Packet[Any] = av.Packet(body)
    converted.time_base = packet.time_base
    converted.pts, converted.dts, converted.duration = packet.pts, packet.dts, packet.duration
    return converted


def _chapters(reader: Reader) -> list[Any]:
    """The source's chapters on the output's clock, cut to the segment."""
    assert reader.container is not None
    chapters: list[Any] = []
    segment = reader.segment
    for chapter in reader.container.chapters():
        base = chapter["time_base"] or Fraction(1, 1000)
        begin, end = chapter["start"] * base - reader.origin, chapter["end"] * base - reader.origin
        if segment is not None:
            length = end if segment.until is None else segment.until - segment.begin
            begin, end = max(begin, Fraction(0)), min(end, length)
            if end <= begin:
                continue
        chapters.append({**chapter, "start": round(begin / base), "end": round(end / base)})
    return chapters
