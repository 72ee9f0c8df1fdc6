"""Choosing an encoder, its pixel format, its time base and its options, so that nothing can fail after the first frame.

Opens encoders to try them; touches no files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product
from pathlib import Path

import av
from av.codec import Codec
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat

from mtu.core.errors import InvalidInputError
from mtu.runtime.video.colour import FULL, RGB, Colour, FromRGB, is_rgb
from mtu.runtime.video.containers.table import container_of
from mtu.runtime.video.encoders import DEFAULTS, choose_codec, choose_format, choose_options, did_you_mean, holds
from mtu.runtime.video.fields import Fields, marks_fields
from mtu.runtime.video.filters import FromRGBToPalette
from mtu.runtime.video.writer import EncodeOptions, Target

# The right pixel format whatever the source's is: colours made for the picture, and a conversion that the encoder does.
_FORMATS = {"gif": "pal8", "libwebp": "bgra", "libwebp_anim": "bgra"}
# FFmpeg's numbers of field orders.
_FIELD_ORDERS = {"tff": 2, "bff": 3}
NO_TIMESTAMPS = 0x80
"""FFmpeg's flag of formats without timestamps (AVFMT_NOTIMESTAMPS)."""
# A rate that an encoder knows stands for one that is lower by so much: for a variable one, or 30 with missing pictures.
_NEAR = Fraction(5, 100)
_GIF_TICK = Fraction(1, 100)
# What an encoder that does not open raises.
_FAILURES = (av.FFmpegError, ValueError, OverflowError)


@dataclass(frozen=True)
class Encoding:
    """Settings with which the encoder has been opened once."""

    codec: str
    width: int
    height: int
    pix_fmt: str
    time_base: Fraction
    rate: Fraction | None
    sample_aspect_ratio: Fraction | None
    colour: Colour
    qscale: bool
    """Whether the quantiser is fixed, at the option qmin."""
    options: Mapping[str, str]
    fields: Fields = "progressive"

    def from_rgb(self) -> FromRGB | FromRGBToPalette:
        """What makes pictures for the encoder."""
        if self.pix_fmt == "pal8":
            return FromRGBToPalette()
        return FromRGB(self.pix_fmt, self.colour)

    def apply(self, context: VideoCodecContext) -> None:
        """Set everything on a context that is not open yet."""
        context.width, context.height, context.pix_fmt = self.width, self.height, self.pix_fmt
        context.time_base = self.time_base
        if self.rate:
            context.framerate = self.rate
        if self.sample_aspect_ratio:
            context.sample_aspect_ratio = self.sample_aspect_ratio
        rgb = is_rgb(VideoFormat(self.pix_fmt))
        context.colorspace = RGB if rgb else self.colour.matrix
        context.color_range = FULL if rgb else self.colour.range
        context.color_primaries, context.color_trc = self.colour.primaries, self.colour.transfer
        context.thread_type = "AUTO"
        context.flags |= int(Flags.frame_duration)
        # The number is each picture's own, which PyAV does not set: its 0 becomes the least that is allowed, qmin.
        context.qscale = self.qscale
        context.options = dict(self.options)
        if self.fields != "progressive":
            context.flags |= int(Flags.interlaced_dct) | int(Flags.interlaced_me)
            if hasattr(context, "field_order"):  # PyAV 18
                context.field_order = _FIELD_ORDERS[self.fields]


def with_fields(encoding: Encoding, fields: Fields) -> tuple[Encoding, list[str]]:
    """The settings for interlaced pictures, or the same and what is lost."""
    marked = replace(encoding, fields=fields)
    context = av.CodecContext.create(encoding.codec, "w")
    assert isinstance(context, VideoCodecContext)
    marked.apply(context)
    if marks_fields(context, fields):
        return marked, []
    return encoding, [
        f"{encoding.codec} does not mark pictures as interlaced here: the output is marked as progressive, so that no"
        " player deinterlaces it"
    ]


def choose_encoding(container: OutputContainer, target: Target, *, turned: bool) -> tuple[Encoding, list[str]]:
    """Settings that the encoder accepts, and what to say about them.

    `turned` says that the sides of the encoded picture are exchanged. Raises InvalidInputError naming what is allowed.
    """
    source, wanted = target.source, target.options
    width, height = (target.height, target.width) if turned else (target.width, target.height)
    codec = choose_codec(container, wanted.codec).name
    formats = [form.name for form in Codec(codec, "w").video_formats or []]
    pix_fmt = _choose_pix_fmt(container, codec, formats, source.pix_fmt, wanted.pix_fmt)
    options, qscale = choose_options(codec, wanted.options, wanted.crf)
    row = container_of(container.format.name)
    if row.in_order:
        options.setdefault("bf", "0")
    colour = source.colour.encoded(height)
    if codec == "mjpeg":
        # JFIF knows no other.
        colour = replace(colour, matrix=5, range=FULL, centred=True)
    sar, rate = source.sample_aspect_ratio, source.rate
    # Whether each picture has a time of its own there, not just a place in the order.
    timed = not row.rate_only and not container.format.flags & NO_TIMESTAMPS
    bases = [source.time_base, Fraction(1, 60000), 1 / rate] if timed else [1 / rate]
    if container.format.name == "gif":
        bases = [_GIF_TICK]
    encoding = Encoding(
        codec=codec,
        width=width,
        height=height,
        pix_fmt=pix_fmt,
        time_base=bases[0],
        rate=source.average_rate,
        sample_aspect_ratio=(1 / sar) if sar and turned else sar,
        colour=colour,
        qscale=qscale,
        options=options,
    )
    notes = _container_notes(container, encoding, rate, timed)
    known_rate = _known_rate(container, encoding, rate, timed)
    if known_rate != rate:
        notes.append(
            f"{codec} knows no {float(rate):.5g} pictures per second: written as {float(known_rate):.5g}, each "
            f"picture at the nearest 1/{float(known_rate):.5g} s"
        )
        bases, encoding = [1 / known_rate], replace(encoding, rate=known_rate)
    alternatives = [pix_fmt]
    if wanted.pix_fmt is None and "yuv444p" in formats and (width % 2 or height % 2):
        alternatives.append("yuv444p")
    error: Exception | None = None
    for form, base in product(alternatives, bases):
        trial = replace(encoding, pix_fmt=form, time_base=base)
        try:
            unused = _try(trial)
        except _FAILURES as failure:
            error = error or failure
            continue
        if unused:
            raise InvalidInputError(_unknown_option(codec, unused[0]))
        if form != pix_fmt:
            notes.append(f"{codec} cannot encode {width}x{height} as {pix_fmt}: encoded as {form}")
        return trial, notes
    raise InvalidInputError(_refusal(encoding, wanted, error))


def _choose_pix_fmt(container: OutputContainer, codec: str, formats: list[str], source: str, wanted: str | None) -> str:
    """The pixel format that is `wanted`, else the nearest to the `source`'s; `formats` are the encoder's."""
    if wanted is not None and formats and wanted not in formats:
        raise InvalidInputError(
            f"{codec} cannot encode the pixel format '{wanted}'{did_you_mean(wanted, formats)}: choose one of"
            f" {', '.join(formats)}"
        )
    if codec == "rawvideo" and Path(container.name).suffix == ".rgb":
        formats = ["rgb24"]
    chosen = wanted or _FORMATS.get(codec) or choose_format(source, formats)
    if (codec, chosen) == ("apng", "pal8"):
        raise InvalidInputError(
            "apng has one palette for all pictures, and each would need its own: leave out --pix-fmt"
        )
    return chosen


def _container_notes(container: OutputContainer, encoding: Encoding, rate: Fraction, timed: bool) -> list[str]:
    """What a container loses of the times, and how raw video is read. Raises InvalidInputError."""
    name = container.format.name
    notes = []
    if not timed:
        written = f"{float(rate):.6g} pictures per second"
        notes.append(f"{name} holds no timestamps: written at {written}; a variable rate is lost")
    if name == "gif" and rate * _GIF_TICK > 1:
        raise InvalidInputError(
            f"gif holds at most 100 pictures per second, not {float(rate):.5g}: choose .apng, .webp or .mp4"
        )
    if name == "gif" and rate * _GIF_TICK * 2 > 1:
        notes.append(
            f"most programs show a GIF of {float(rate):.5g} pictures per second slower, at 10; .apng and .webp keep it"
        )
    if name == "rawvideo":
        notes.append(
            "raw video says nothing of itself: FFmpeg reads it with -f rawvideo -pixel_format "
            f"{encoding.pix_fmt} -video_size {encoding.width}x{encoding.height} -framerate {rate}"
        )
    return notes


def _known_rate(container: OutputContainer, encoding: Encoding, rate: Fraction, timed: bool) -> Fraction:
    """The rate, or the nearest above it where the encoder knows few. Raises InvalidInputError."""
    rates = _rates(encoding)
    if not rates or rate in rates:
        return rate
    near = next((each for each in rates if -_NEAR / 100 <= each / rate - 1 <= _NEAR), None)
    if near is not None and timed:
        return near
    younger = replace(encoding, codec="mpeg2video")
    also = encoding.codec == "mpeg1video" and holds(container.format.name, younger.codec) and rate in _rates(younger)
    listed = ", ".join(f"{float(each):.5g}" for each in rates if 10 <= each <= 60)
    raise InvalidInputError(
        f"{encoding.codec} knows no {float(rate):.5g} pictures per second, but {listed}: choose "
        f"{'-c mpeg2video, or an ending' if also else 'an ending'} such as .mp4 or .mkv, or give the video one of these"
        " rates first"
    )


def _rates(encoding: Encoding) -> list[Fraction]:
    """Pictures per second that an encoder knows; [] if it takes any."""
    known = sorted({Fraction(str(rate)) for rate in Codec(encoding.codec, "w").frame_rates or []})
    plain = _plain(encoding)
    # MPEG-1's list has some that it refuses.
    return [rate for rate in known if _opens(replace(plain, time_base=1 / rate, rate=rate))]


def _opens(encoding: Encoding) -> bool:
    try:
        _try(encoding)
    except _FAILURES:
        return False
    return True


def _plain(encoding: Encoding) -> Encoding:
    """The same encoder with a small, ordinary picture and without options of the user."""
    formats = [form.name for form in Codec(encoding.codec, "w").video_formats or []]
    pix_fmt = choose_format("yuv420p", formats)
    return replace(encoding, options=DEFAULTS.get(encoding.codec, {}), width=64, height=64, pix_fmt=pix_fmt)


@contextmanager
def _silence() -> Iterator[None]:
    """Lets x264 and others print nothing to stderr: some messages are older than the log that they are given."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _try(encoding: Encoding) -> list[str]:
    """Open the encoder; returns the options it did not understand."""
    os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 prints its settings and errors to stderr otherwise
    context = av.CodecContext.create(encoding.codec, "w")
    assert isinstance(context, VideoCodecContext)
    encoding.apply(context)
    with _silence():
        context.open()
    return sorted(context.options)


def _unknown_option(codec: str, name: str) -> str:
    context = av.CodecContext.create(codec, "w")
    if not hasattr(context, "supported_options"):  # PyAV before 18
        return f"{codec} has no option '{name}'"
    listed = context.supported_options
    own, generic = ([option.name for option in options] for options in (listed.private, listed.generic))
    return f"{codec} has no option '{name}'{did_you_mean(name, own + generic)}; its own options: {', '.join(own)}"


def _refusal(encoding: Encoding, wanted: EncodeOptions, error: Exception | None) -> str:
    """Why no trial worked: the option alone that fails, or the size and format."""
    plain = _plain(encoding)
    # Where it does not open at all, the options are not to blame.
    options = encoding.options if _opens(plain) else {}
    for key, value in options.items():
        if not _opens(replace(plain, options={**plain.options, key: value})):
            flag = "--crf " if key in ("crf", "cq") and wanted.crf is not None else f"-e {key}="
            given = wanted.options.get(key, value)
            return f"{encoding.codec} refuses {flag}{given}: give a value in its range"
    why = getattr(error, "strerror", None) or error
    odd = " (odd sizes need a format such as yuv444p)" if encoding.width % 2 or encoding.height % 2 else ""
    return f"{encoding.codec} cannot encode {encoding.width}x{encoding.height} as {encoding.pix_fmt}{odd}: {why}"
