"""Writing yuv4mpeg, to stdout or into a file: raw pictures after a line that says their size, rate and pixel aspect.

Writes stdout, or the target and its temporary file beside it.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import BinaryIO

from mtu.core.errors import InvalidInputError, OutputError
from mtu.runtime.video.colour import FULL, MATRICES, FromRGB, Pixels, pixels_of, swaps_sides
from mtu.runtime.video.source import Frame
from mtu.runtime.video.writer import Target, Writer, write_failed

_LAYOUTS = {"yuv420p": "420mpeg2", "yuv422p": "422", "yuv444p": "444", "yuv411p": "411", "gray": "mono"}


class Y4MWriter(Writer):
    """yuv4mpeg at a constant rate."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        options, source = target.options, target.source
        if given := [flag for flag in options.given() if flag != "--pix-fmt"]:
            raise InvalidInputError(f"yuv4mpeg takes no {', '.join(given)}: leave it out, or write a video file")
        form = options.pix_fmt or next(
            (f for f in _LAYOUTS if source.pix_fmt.replace("j", "").startswith(f)), "yuv444p"
        )
        if form not in _LAYOUTS:
            known = ", ".join(_LAYOUTS)
            raise InvalidInputError(f"yuv4mpeg cannot hold the pixel format '{form}': choose one of {known}")
        self._header = self._describe(form)
        if target.path is None:
            if sys.stdout is None:
                raise OutputError("stdout is closed: give a file as the output")
            if sys.stdout.isatty():
                raise InvalidInputError(
                    "stdout is a terminal, which cannot show yuv4mpeg: pipe it on (mtu-run INPUT -o - | ffplay -), "
                    "or give a file as the output"
                )
            self._out: BinaryIO = sys.stdout.buffer
        else:
            self._create()
            self._out = self._temporary.open("wb")

    def _describe(self, form: str) -> bytes:
        """The first line; sets what pictures are converted with, and says what they lose."""
        width, height, source = self._target.width, self._target.height, self._target.source
        sar = source.sample_aspect_ratio
        if self._turn is not None:
            self.notes.append("yuv4mpeg holds no orientation: the pictures are turned upright")
            if swaps_sides(self._turn):
                width, height, sar = height, width, sar and 1 / sar
        rate, colour = source.rate, source.colour.encoded(height)
        self._from_rgb = FromRGB(form, colour)
        self.notes.append(
            f"yuv4mpeg holds pictures only, at {float(rate):.6g} per second: no sound, no timestamps, no colour matrix "
            f"(it is {MATRICES[colour.matrix]})"
        )
        aspect = f"{sar.numerator}:{sar.denominator}" if sar else "0:0"
        full = "FULL" if colour.range == FULL else "LIMITED"
        order = {"progressive": "p", "tff": "t", "bff": "b"}[source.fields if self._turn is None else "progressive"]
        layout = "420jpeg" if form == "yuv420p" and colour.centred else _LAYOUTS[form]
        return (
            f"YUV4MPEG2 W{width} H{height} F{rate.numerator}:{rate.denominator} I{order} A{aspect} "
            f"C{layout} XCOLORRANGE={full}\n"
        ).encode()

    def _write(self, picture: Pixels, frame: Frame) -> None:
        planes = [pixels_of(plane).tobytes() for plane in self._from_rgb(picture).planes]
        self._put(b"".join([self._header, b"FRAME\n", *planes]))
        self._header = b""

    def _put(self, data: bytes) -> None:
        try:
            self._out.write(data)
            self._out.flush()
        except BrokenPipeError:
            raise OutputError("stdout was closed by the program that reads it: see its message") from None
        except OSError as error:
            raise write_failed(self._path, error) from None

    def commit(self) -> None:
        """Write what is left, and give a file its final name. Raises OutputError."""
        self._put(self._header)
        if self._target.path is not None:
            self._out.close()
            self._publish()

    def close(self) -> None:
        """Remove a file that was not committed; leaves stdout open, which is not ours. May be called twice."""
        if self._target.path is not None:
            with suppress(OSError):
                self._out.close()
            super().close()
