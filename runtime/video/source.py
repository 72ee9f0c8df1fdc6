"""What all sources share: what the user asks, what is known at once, and the frames that come. Opens no files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

import av
from av.container import InputContainer
from av.stream import Stream
from av.video.stream import VideoStream

from mtu.runtime.video.colour import Colour, Pixels
from mtu.runtime.video.fields import Fields
from mtu.runtime.video.timing import Segment

USUAL_RATE = Fraction(25)
"""Pictures per second of what has no rate, such as a directory of pictures."""


@dataclass(frozen=True)
class ReadOptions:
    """What the user asked of the source; the defaults take all of it."""

    segment: Segment | None = None
    video_stream: int | None = None
    """Which video stream is processed, counted from 0 without covers; None takes the one marked default."""
    rate: Fraction | None = None
    """Pictures per second of pictures, which have no times; None is `USUAL_RATE`."""
    deinterlace: bool = False
    """Whether interlaced pictures of a video are made progressive."""
    on_size_change: Literal["scale", "stop"] = "scale"
    """What happens where pictures of a video change their size: they are scaled to the first one's, or refused."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded picture."""

    rgb: Pixels
    """uint8 [H, W, 3], RGB, full range, C-contiguous."""
    pts: int
    """Presentation time in `time_base` units; rises from frame to frame."""
    time_base: Fraction
    """Seconds."""
    duration: int
    """In `time_base` units, >= 1."""
    fields: Fields = "progressive"
    views: Mapping[str, Pixels] = field(default_factory=dict)
    """The pictures of further streams for the same time, by name, as `rgb`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceInfo:
    """What is known of a source before its first picture is processed."""

    name: str
    """As the user gave it."""
    width: int
    """Of the pictures as given, in pixels."""
    height: int
    time_base: Fraction
    average_rate: Fraction | None
    """Pictures per second; None if unknown."""
    frame_count: int | None
    """Pictures to come (an estimate; of the segment if there is one), None if unknown."""
    colour: Colour
    pix_fmt: str
    """FFmpeg's name of the source's pixel format."""
    sample_aspect_ratio: Fraction | None = None
    display_matrix: tuple[int, ...] | None = None
    """9 integers in FFmpeg's layout, None if pictures are shown as they are stored.

    Pixels are given as they are stored. PyAV 18 can write the matrix of an encoded stream, so that the writer carries
    it over where the container keeps it, and turns the pixels upright elsewhere. Still pictures are turned upright by
    their reader: those that are written carry no orientation."""
    fields: Fields = "progressive"
    """Of the first picture."""
    stereo_mode: str | None = None
    """How a picture holds two views, in Matroska's words, None if it holds one."""
    origin: Fraction = Fraction(0)
    """Time on the source's clock that is 0 in the output: the first picture of a segment, the beginning of a clock that
    starts anywhere (MPEG-TS) or below 0; otherwise 0."""
    segment: Segment | None = None
    notes: tuple[str, ...] = ()
    """What to say before the first picture."""
    beside: tuple[str, ...] = ()
    """Names of the further streams that are read in step, as the user gave them."""
    container: InputContainer | None = None
    """Where the other streams come from; None for pictures."""
    stream: VideoStream | None = None
    """The stream that is decoded; None for pictures."""
    covers: Mapping[int, av.Packet[Any]] = field(default_factory=dict)
    """Still pictures that belong to the file, by stream number; they are given before everything else."""
    stems: tuple[str, ...] | None = None
    """File names without ending, of a directory of pictures, by the `pts` of their frames."""
    loops: int | None = None
    """How many times an animation (GIF, APNG, WebP) is played in all, 0 for ever; None for what is no animation."""

    @property
    def rate(self) -> Fraction:
        """`average_rate`, `USUAL_RATE` where it is unknown."""
        return self.average_rate or USUAL_RATE


class Reader(ABC):
    """A source opened by `open_reader`. Iterate once and in one thread at a time; close it when no thread uses it.

    Iteration gives `Frame`s and, in demux order, `av.Packet`s of the other streams.
    """

    info: SourceInfo
    """Known when the reader is made, since the first picture is decoded then."""
    remarks: list[str]
    """Harmless things found while reading, such as timestamps that had to be made up; complete after the iteration."""
    damage: str | None = None
    """What could not be decoded, None if all was well; complete after the iteration."""

    @abstractmethod
    def __iter__(self) -> Iterator[Frame | av.Packet[Any]]:
        """Pictures and other packets. Raises InvalidInputError where pictures change their size."""

    def others(self) -> Iterator[av.Packet[Any]]:
        """The packets of the other streams, instead of an iteration: no more pictures are decoded."""
        return iter(())

    def close(self) -> None:  # noqa: B027  pictures hold nothing open
        """Close the source. May be called twice."""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_inner(stream: Stream) -> bool:
    """Whether a stream is an inner matter of its container, such as MP4's chapter titles."""
    # AVDISCARD_ALL; PyAV before 18 does not tell.
    return int(getattr(stream, "discard", 0)) == 48
