"""Muxers that write nowhere: what a container refuses is found out there, before it can cost a picture.

A muxer reports what it refuses late (at a packet of another stream, or at its end), and a failed end leaves no file. So
streams are tried together with a packet each before frame 1, and every packet that is copied goes through a muxer of
its own stream first. Reads the beginning of the source a second time; writes nothing.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer, OutputContainer
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from mtu.runtime.video.containers.muxer_options import discard

# How far the beginning of a source is read for a packet of each stream, and how many of each are tried: the first of a
# recording may be cut.
_PACKETS, _BYTES, _TRIES = 1000, 32 << 20, 3

Refused = (av.FFmpegError, ValueError)
"""What a muxer in memory raises where it refuses something."""


class _Nowhere:
    """A file that forgets what is written; FFmpeg counts itself where it stands."""

    def write(self, data: bytes) -> int:
        return len(data)

    def seek(self, offset: int, whence: int) -> int:
        return max(0, offset)

    def tell(self) -> int:
        return 0


@dataclass(frozen=True)
class Sample:
    """A stream to try: how it is added to a container, and one of its packets, if there is one."""

    add: Callable[[OutputContainer], Stream]
    packet: av.Packet[Any] | None = None


def reason_of(error: Exception) -> str:
    """What a muxer says, in words; "Invalid argument" says nothing."""
    reason = getattr(error, "strerror", None)
    empty = reason in (None, "Invalid argument", "Operation not permitted")
    return "no such streams in this format" if empty else str(reason)


def rehearse(
    output: OutputContainer, add: Callable[[OutputContainer], Stream], picture: av.VideoFrame
) -> tuple[Sample, list[tuple[str, str]]]:
    """Encode and write one picture as the output will, and read back the tags of the file and of its stream.

    Raises one of `Refused` where the container cannot hold it.
    """
    file = io.BytesIO()
    with _muxer(output, file) as trial:
        stream = add(trial)
        assert isinstance(stream, VideoStream)
        trial.start_encoding()
        packets = [*stream.encode(picture), *stream.encode(None)]
        if not packets:
            raise ValueError("its encoder gives nothing for a picture")
        _mux(trial, stream, packets[0])
    tags: list[tuple[str, str]] = []
    with suppress(*Refused), _read(output, file) as written:
        tags = [*written.metadata.items(), *written.streams[0].metadata.items()]
    return Sample(lambda container: container.add_stream_from_template(stream, opaque=True), packets[0]), tags


def refusal(output: OutputContainer, accepted: Sequence[Sample], sample: Sample) -> str | None:
    """Why a container that has taken some streams cannot hold one more, None if it can: by writing and reading it."""
    samples = [*accepted, sample]
    try:
        file, stream = _written(output, samples)
    except Refused as error:
        return reason_of(error)
    back = _kinds(output, file)
    if back is None and (not accepted or _kinds(output, _written(output, accepted)[0]) is not None):
        return "the file could not be read with it"
    # Some take anything, and give back as nameless data what they have no name for, or nothing at all.
    if back is None or any(each.packet is None for each in samples):
        return None
    return None if back[len(samples) - 1 :][:1] == [_kind_of(stream)] else "it would not be known there"


def tags_back(
    output: OutputContainer, accepted: Sequence[Sample], sample: Sample
) -> tuple[list[tuple[str, str]], Disposition] | None:
    """The tags and the disposition of one more stream as a container gives them back; None if they cannot be read."""
    with suppress(*Refused, IndexError), _read(output, _written(output, [*accepted, sample])[0]) as written:
        stream = written.streams[len(accepted)]
        return [*stream.metadata.items()], Disposition(stream.disposition)
    return None


def _written(output: OutputContainer, samples: Sequence[Sample]) -> tuple[io.BytesIO, Stream]:
    """A file with a packet of each stream, in memory, and the last of its streams. Raises one of `Refused`."""
    file = io.BytesIO()
    with _muxer(output, file) as trial:
        streams = [(each.add(trial), each.packet) for each in samples]
        trial.start_encoding()
        for stream, packet in streams:
            if packet is not None:
                _mux(trial, stream, packet)
    return file, streams[-1][0]


def _kind_of(stream: Stream) -> tuple[str, str | None]:
    """What a stream is; of data also its name."""
    return stream.type, getattr(stream, "name", None) if stream.type == "data" else None


def _kinds(output: OutputContainer, file: io.BytesIO) -> list[tuple[str, str | None]] | None:
    """The streams of what has been written into memory, None where it cannot be read, such as raw pictures."""
    with suppress(*Refused), _read(output, file) as written:
        return [_kind_of(stream) for stream in written.streams]
    return None


def first_packets(source: str, streams: int) -> dict[int, list[av.Packet[Any]]]:
    """Packets from the beginning of a file with so many streams, by stream number; none of what is no file."""
    found: dict[int, list[av.Packet[Any]]] = defaultdict(list)
    size = 0
    if not Path(source).is_file():
        return found
    with suppress(av.FFmpegError), av.open(str(Path(source).absolute()), metadata_errors="replace") as container:
        for _, packet in zip(range(_PACKETS), container.demux(), strict=False):
            size += packet.size
            if packet.size and len(found[packet.stream_index]) < _TRIES:
                found[packet.stream_index].append(packet)
            if size > _BYTES or sum(len(packets) == _TRIES for packets in found.values()) == streams:
                break
    return found


class Trial:
    """A muxer of one stream alone, which reports what it refuses at once. Where there is none it accepts all."""

    def __init__(self, output: OutputContainer, add: Callable[[OutputContainer], Stream]) -> None:
        self._running = ExitStack()
        try:
            self._muxer = self._running.enter_context(_muxer(output))
            self._stream: Stream | None = add(self._muxer)
            self._muxer.start_encoding()
        except Refused:
            self._stream = None  # such as MXF, which begins with a picture
        self._is_empty = self._stream is not None

    def refusal(self, packet: av.Packet[Any]) -> str | None:
        """Why the container does not take this packet next, None if it does. Leaves the packet as it is."""
        if self._stream is None:
            return None
        try:
            with _unchanged(packet):
                packet.stream, self._is_empty = self._stream, False
                self._muxer.mux(packet)
        except Refused as error:
            return reason_of(error)
        return None

    def close(self) -> None:
        """End it. May be called twice."""
        if self._stream is not None and self._is_empty:
            discard(self._muxer, self._stream)
            self._is_empty = False
        with suppress(*Refused):
            self._running.close()


@contextmanager
def _muxer(output: OutputContainer, file: Any = None) -> Iterator[OutputContainer]:
    """A muxer like another one, into nowhere or memory; what it refuses at its end is raised when the block ends."""
    options = dict(output.container_options)
    # This would read the file again.
    flags = [flag for flag in options.pop("movflags", "").split("+") if flag not in ("", "faststart")]
    if flags:
        options["movflags"] = "+".join(flags)
    muxer = av.open(file or _Nowhere(), "w", format=output.format.name, container_options=options)
    muxer.metadata.update(output.metadata)
    try:
        yield muxer
    except BaseException:
        with suppress(*Refused):
            muxer.close()
        raise
    muxer.close()


def _read(output: OutputContainer, file: io.BytesIO) -> InputContainer:
    """Open what has been written into memory. Raises one of `Refused` where it cannot be read."""
    # A file of a packet or two is too short to be recognised by what it holds: one of MPEG-TS passes for MPEG-PS.
    form: str | None = None
    with suppress(ValueError):
        form = av.ContainerFormat(output.format.name, "r").name
    return av.open(io.BytesIO(file.getvalue()), "r", format=form, metadata_errors="replace")


@contextmanager
def _unchanged(packet: av.Packet[Any]) -> Iterator[None]:
    """Gives a packet its times back, which a muxer changes to its own clock."""
    kept = packet.pts, packet.dts, packet.duration, packet.time_base
    try:
        yield
    finally:
        packet.pts, packet.dts, packet.duration, packet.time_base = kept


def _mux(trial: OutputContainer, stream: Stream, packet: av.Packet[Any]) -> None:
    """Write a packet at time 0."""
    with _unchanged(packet):
        packet.pts = packet.dts = 0
        packet.duration = packet.duration if 0 < (packet.duration or 0) < 1 << 31 else 1
        packet.stream = stream
        trial.mux(packet)
