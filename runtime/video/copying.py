"""The other streams: audio, subtitles, attachments, chapters and metadata, copied packet for packet.

What a container refuses is found out in memory (trial.py), before anything is written to disk. Text subtitles that it
refuses are converted to the kind it holds; everything else it refuses is dropped, and said.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
from av.container import OutputContainer
from av.stream import Stream
from av.subtitles.stream import SubtitleStream
from av.video.codeccontext import VideoCodecContext

from mtu.runtime.video.containers.table import container_of
from mtu.runtime.video.source import SourceInfo, is_inner
from mtu.runtime.video.subtitles import add_text, converted
from mtu.runtime.video.tags import attachment_of, lost_marks, lost_of_stream, set_tag, stream_metadata
from mtu.runtime.video.timing import later_timecode
from mtu.runtime.video.track import Track
from mtu.runtime.video.trial import Sample, Trial, first_packets, refusal, tags_back

# The only subtitles of a transport stream that a player understands; its muxer takes any.
_DVB = {"dvbsub", "dvb_subtitle", "dvb_teletext", "libzvbi_teletextdec", "pgssub", "hdmv_pgs_subtitle"}
# FFmpeg's muxer ends the process at these, unless they come from the same container.
_FLV_OWN = ("pcm_", "adpcm_", "nellymoser", "speex")


def timecode_of(source: SourceInfo) -> str | None:
    """The timecode of the first picture, such as "01:02:03:04": a tag of the pictures, of a data stream or the file."""
    if source.container is None or source.stream is None:
        return None
    streams = [source.stream, *source.container.streams.data]
    tags = [*(stream.metadata for stream in streams), source.container.metadata]
    found = [value for each in tags for key, value in each.items() if key.lower() == "timecode"]
    if not found or source.segment is None:
        return found[0] if found else None
    return later_timecode(found[0], math.ceil(source.segment.begin * source.rate), source.rate) or found[0]


class Copier:
    """Carries the streams that are not processed from a source into an output container."""

    def __init__(
        self, source: SourceInfo, output: OutputContainer, pictures: Sample, mux: Callable[[av.Packet[Any]], None]
    ) -> None:
        """Add a stream to `output` for each one it can hold beside the `pictures`. `notes` says what it cannot.

        `mux` writes a packet.
        """
        self.notes: list[str] = []
        self._output, self._mux, self._row = output, mux, container_of(output.format.name)
        self._accepted = [pictures]
        self._copied: dict[int, _Copied] = {}
        self._source = source
        assert source.container is not None and source.stream is not None
        streams = source.container.streams
        others = [each for each in streams if each.index != source.stream.index and not is_inner(each)]
        self._first = first_packets(source.name, len(streams)) if others else {}
        for stream in others:
            self._take(stream)
        chapters = _chapters(source)
        if chapters and self._row.chapters:
            output.set_chapters(chapters)
        elif chapters:
            self.notes.append(f"{output.format.name} cannot hold chapters: dropped; .mkv would keep them")

    def _take(self, stream: Stream) -> None:
        container = self._output.format.name
        name = _describe(stream)
        cover = self._source.covers.get(stream.index)
        if cover is not None and container == "matroska":
            # It keeps them as attachments, and gives them back as pictures.
            self._output.add_attachment(*attachment_of(stream, bytes(cover)), bytes(cover))
            return
        if stream.type == "data" and "timecode" in stream.metadata:
            return  # it says no more than the pictures' tag, of which muxers make such a stream again
        why = _refusal(self._output, self._accepted, stream, self._first.get(stream.index), cover is not None)
        if isinstance(why, Sample):
            self._copy_from(stream, why, name)
        elif (text := self._as_text(stream)) is not None:
            self._copy_from(stream, text, name, converts=True)
            self.notes.append(f"{container} cannot hold {name}: converted to {self._row.text}, without styles")
        else:
            keeper = _keeper(stream, self._first.get(stream.index), cover is not None)
            better = f"; {keeper} would keep it" if keeper else ""
            self.notes.append(f"{container} cannot hold {name}: dropped ({why}{better})")

    def _as_text(self, stream: Stream) -> Sample | None:
        """A stream of text subtitles as the container holds it, None if it is none or holds none."""
        codec, context = self._row.text, stream.codec_context
        if codec is None or not isinstance(stream, SubtitleStream) or context is None or not context.codec.text_sub:
            return None
        sample = Sample(lambda output: add_text(output, stream, codec))
        return sample if refusal(self._output, self._accepted, sample) is None else None

    def _copy_from(self, stream: Stream, sample: Sample, name: str, *, converts: bool = False) -> None:
        track = Track(
            "cover" if stream.index in self._source.covers else stream.type,
            stream.time_base or Fraction(1, 1000),
            self._source.origin,
            edit_lists=self._row.edit_lists,
        )
        target, trial = sample.add(self._output), Trial(self._output, sample.add)
        self._copied[stream.index] = _Copied(name, track, target, trial, converts)
        back = tags_back(self._output, self._accepted, sample)
        if back is not None:
            tags, disposition = back
            lost = [lost_of_stream(target.metadata, tags), lost_marks(target.disposition, disposition)]
            if words := " and ".join(filter(None, lost)):
                self.notes.append(f"{self._output.format.name} cannot hold of {name}: {words}")
        self._accepted.append(sample)
        context = stream.codec_context
        reordered = isinstance(context, VideoCodecContext) and context.has_b_frames
        if reordered and stream.container.format.name == "avi" != self._output.format.name:
            self.notes.append(f"AVI does not say when the pictures of {name} are shown: they may change places")

    def copy(self, packet: av.Packet[Any]) -> None:
        """Write a packet of one of the copied streams; ignores others. The data is unchanged. Raises OutputError."""
        copied = self._copied.get(packet.stream_index)
        if copied is not None:
            self._write(copied, copied.track.ready(packet))

    def finish(self, end: Fraction) -> None:
        """Write what waits for its end; `end` is that of the pictures, in seconds. Raises OutputError."""
        for copied in self._copied.values():
            self._write(copied, copied.track.rest(end))

    def _write(self, copied: _Copied, packets: list[av.Packet[Any]]) -> None:
        for packet in packets:
            written = converted(packet, copied.target) if copied.converts else packet
            if written is None:
                continue
            why = copied.trial.refusal(written)
            if why is not None:
                copied.refused[why] += 1
                continue
            written.stream = copied.target
            self._mux(written)

    def close(self) -> None:
        """End the trials. May be called twice."""
        for copied in self._copied.values():
            copied.trial.close()

    def remarks(self) -> list[str]:
        """What had to be changed or left out while copying."""
        remarks = []
        for copied in self._copied.values():
            remarks += [f"{copied.name}: {text}" for text in copied.track.remarks()]
            for why, count in copied.refused.items():
                refused = f"{count} packets that {self._output.format.name} refuses ({why}) were left out"
                remarks.append(f"{copied.name}: {refused}")
        return remarks


@dataclass
class _Copied:
    """A stream that is copied."""

    name: str
    """For messages."""
    track: Track
    target: Stream
    trial: Trial
    converts: bool
    """Whether its packets become text of the kind the container holds."""
    refused: Counter[str] = field(default_factory=Counter)
    """Packets that were left out, by reason."""


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


def _refusal(
    output: OutputContainer, accepted: list[Sample], stream: Stream, packets: list[av.Packet[Any]] | None, cover: bool
) -> Sample | str:
    """How a container takes one more stream, or why it does not: tried in memory with a packet, if there is one."""
    container = output.format.name
    codec = stream.codec_context
    if cover and not container_of(container).covers:
        return "it has no place for covers"
    if codec is None and stream.type != "attachment" and (stream.type != "data" or stream.name is None):
        return "its codec is unknown"
    if output.default_audio_codec == output.default_subtitle_codec == "none":
        return "it holds pictures only"  # the muxer of raw video would take packets of any kind
    elsewhere = stream.container.format.name != container
    if container == "flv" and elsewhere and codec is not None and codec.name.startswith(_FLV_OWN):
        return "FFmpeg cannot write it there"
    if stream.type == "attachment" and container != "matroska":
        return "it has no place for attachments"
    if container == "mpegts" and (codec is None or (stream.type == "subtitle" and codec.name not in _DVB)):
        return "players would not find it there"
    why: str | None = None
    tries: list[av.Packet[Any] | None] = [*packets] if packets else [None]
    for packet in tries:
        sample = Sample(lambda out: _add(out, stream), packet)
        why = refusal(output, accepted, sample)
        if why is None:
            return sample
    assert why is not None
    return why


def _keeper(stream: Stream, packets: list[av.Packet[Any]] | None, cover: bool) -> str | None:
    """The ending of a usual container that does hold a stream, None if there is none."""
    for container, ending in (("matroska", ".mkv"), ("mov", ".mov"), ("mp4", ".mp4"), ("mpegts", ".ts")):
        with av.open(io.BytesIO(), "w", format=container) as output:
            if isinstance(_refusal(output, [], stream, packets, cover), Sample) or (cover and container == "matroska"):
                return ending
    return None


def _chapters(source: SourceInfo) -> list[Any]:
    """The source's chapters on the output's clock, cut to the segment."""
    assert source.container is not None
    chapters, segment = [], source.segment
    for chapter in source.container.chapters():
        base = chapter["time_base"] or Fraction(1, 1000)
        begin, end = chapter["start"] * base - source.origin, chapter["end"] * base - source.origin
        if segment is not None:
            length = end if segment.until is None else segment.until - segment.begin
            begin, end = max(begin, Fraction(0)), min(end, length)
            if end <= begin:
                continue
        chapters.append({**chapter, "start": round(begin / base), "end": round(end / base)})
    return chapters
