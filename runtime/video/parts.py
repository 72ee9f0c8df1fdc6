"""A video whose pictures several processes encode, each a part of it, joined without a second encode.

Each part has an encoder of its own, so it begins with a key picture and needs nothing of the others. A part is two
files: `NAME.packets` has its packets in decoding order, `NAME.json` says what they are and gets its name last. Writes
these and the target.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av

from mtu.core.errors import InvalidInputError, OutputError
from mtu.core.files import write_whole
from mtu.runtime.video.source import Frame
from mtu.runtime.video.video_writer import VideoWriter
from mtu.runtime.video.writer import Target, Writer, write_failed

# Encoders that give a packet for each picture, and whose headers do not depend on the pictures.
_ENCODERS = {
    *("libx264", "libx264rgb", "libx265", "libvpx-vp9", "libsvtav1", "libaom-av1"),
    *("h264_nvenc", "hevc_nvenc", "av1_nvenc"),
    *("ffv1", "prores", "prores_ks", "prores_aw", "dnxhd", "mjpeg"),
}


def header_of(writer: Writer) -> str:
    """What the encoder of a video has for the header of the container, hexadecimal: that of all its parts. Raises
    InvalidInputError unless what `writer` makes can be encoded in parts."""
    if not isinstance(writer, VideoWriter):
        raise InvalidInputError("--join fast is for videos, and the output is none: use --join exact")
    encoding = writer.encoding
    if encoding.codec not in _ENCODERS:
        raise InvalidInputError(
            f"--join fast cannot join what {encoding.codec} has encoded (it can that of"
            f" {', '.join(sorted(_ENCODERS))}): use --join exact, or another --codec"
        )
    if any("pass" in f"{key}={value}" for key, value in encoding.options.items()):
        raise InvalidInputError("--join fast encodes in parts, which has no second pass: use --join exact")
    return writer.header


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part that is whole."""

    made_by: dict[str, Any]
    """What its packets depend on beside the pictures."""
    packets: tuple[tuple[int, int, bool], ...]
    """In decoding order: size, the place where it is shown, counted from 0, and whether it is a key picture."""
    digest: str
    """sha256 of all packets."""
    path: Path

    def read(self) -> Iterator[bytes]:
        """The packets. Raises OutputError if they are not those that were written, which are deleted then."""
        hashes = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                for size, _, _ in self.packets:
                    content = file.read(size)
                    hashes.update(content)
                    yield content
        except OSError as error:
            raise OutputError(f"{self.path} cannot be read ({error.strerror}): delete it") from None
        if hashes.hexdigest() != self.digest:
            self.path.unlink(missing_ok=True)
            raise OutputError(
                f"{self.path} had changed since it was written, and was deleted: the same command goes on"
            )


def find_part(path: Path, made_by: Mapping[str, Any]) -> Part | None:
    """The part at `path` without ending; None if it is not there, is not whole, or was made by something else."""
    try:
        fields = json.loads(path.with_suffix(".json").read_bytes())
        fields["packets"] = tuple((int(size), int(place), bool(key)) for size, place, key in fields["packets"])
        part = Part(**fields, path=path.with_suffix(".packets"))
        whole = part.path.stat().st_size == sum(size for size, _, _ in part.packets)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return part if whole and part.made_by == json.loads(json.dumps(made_by)) else None


class PartWriter(VideoWriter):
    """Encodes pictures as the writer of the whole video would, into a part."""

    def __init__(self, target: Target, path: Path, header: str, made_by: Mapping[str, Any]) -> None:
        """`target` is that of the whole video, in a directory that may be written, without other streams; `path` that
        of the part, without ending. Raises as `open_writer`, and InvalidInputError if the encoder has another `header`
        here than that of all parts."""
        self._part, self._made_by = path, made_by
        self._incomplete = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        self._file: IO[bytes] | None = None
        self._hashes = hashlib.sha256()
        self._packets: list[tuple[int, int, bool]] = []
        super().__init__(target)
        try:
            if self.header != header:
                raise InvalidInputError(
                    f"{self.encoding.codec} writes another header here than where the film is joined (another version,"
                    " or another kind of processor): let machines of one kind work, or use --join exact"
                )
            self._file = self._incomplete.open("wb")
        except InvalidInputError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise write_failed(path, error) from None

    def _mux(self, packet: av.Packet[Any]) -> None:
        assert self._file is not None
        content = bytes(packet)
        self._hashes.update(content)
        self._packets.append((len(content), packet.pts or 0, packet.is_keyframe))
        try:
            self._file.write(content)
        except OSError as error:
            raise write_failed(self._part, error) from None

    def commit(self) -> None:
        """Gives the part its name, when it lies on the disk. Raises OutputError."""
        assert self._file is not None
        self._encode(None)
        shown = sorted({pts for _, pts, _ in self._packets})
        if len(shown) != self._count or len(self._packets) != self._count or not self._packets[0][2]:
            raise OutputError(
                f"{self.encoding.codec} gave {len(self._packets)} packets for {self._count} pictures, or none to begin"
                " with, which cannot be joined: use --join exact"
            )
        places = {pts: place for place, pts in enumerate(shown)}
        said = {
            "made_by": self._made_by,
            "packets": [(size, places[pts], key) for size, pts, key in self._packets],
            "digest": self._hashes.hexdigest(),
        }
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._incomplete.replace(self._part.with_suffix(".packets"))
            write_whole(self._part.with_suffix(".json"), json.dumps(said).encode())
        except OSError as error:
            raise write_failed(self._part, error) from None

    def close(self) -> None:
        """Removes what was not committed. May be called twice."""
        if self._file is not None:
            self._file.close()
        self._incomplete.unlink(missing_ok=True)
        super().close()


class JoinedWriter(VideoWriter):
    """A video file of parts; `join` instead of `write` and `copy`."""

    def __init__(self, target: Target, parts: Sequence[Part]) -> None:
        """`parts` have the header of the encoder here. Raises as `open_writer`."""
        super().__init__(target)
        self._parts = parts

    def join(self, frames: Iterable[Frame], others: Iterable[av.Packet[Any]]) -> None:
        """Writes all parts with the times of `frames`, whose pictures are not looked at, and the packets of the other
        streams. Raises OutputError, and InvalidInputError if there are more or fewer frames than pictures."""
        times = [self._place(frame) for frame in frames]
        encoded = sum(len(part.packets) for part in self._parts)
        if encoded != len(times):
            raise InvalidInputError(f"the units have {encoded} pictures, and the source has {len(times)} frames")
        origin = self._target.source.origin
        waiting = self._timed(times)
        ready = next(waiting, None)
        for other in others:
            stamp = other.pts if other.dts is None else other.dts
            while ready is not None and stamp is not None and ready[0] <= stamp * other.time_base - origin:
                self._mux(ready[1])
                ready = next(waiting, None)
            self.copy(other)
        while ready is not None:
            self._mux(ready[1])
            ready = next(waiting, None)

    def _timed(self, times: list[tuple[int, int]]) -> Iterator[tuple[Fraction, av.Packet[Any]]]:
        """The packets of all parts, each with the second at which it is decoded; `times` are those of all pictures, as
        shown: begin and duration in ticks."""
        # A picture is decoded as many places before it is shown as any picture is.
        delay = max(
            (number - place for part in self._parts for number, (_, place, _) in enumerate(part.packets)), default=0
        )
        first = 0
        for part in self._parts:
            for number, ((_, place, key), content) in enumerate(zip(part.packets, part.read(), strict=True), first):
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.is_keyframe = self._stream, self.encoding.time_base, key
                packet.pts, packet.duration = times[first + place]
                begin = times[max(0, number - delay)][0]
                packet.dts = begin if number >= delay else times[number][0] - times[delay][0] + begin
                self._written += 1
                yield packet.dts * self.encoding.time_base, packet
            first += len(part.packets)

    def _encode(self, picture: av.VideoFrame | None) -> None:
        """There is nothing to encode."""
