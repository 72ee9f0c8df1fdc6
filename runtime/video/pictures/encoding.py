"""Encoding single pictures and maps: PNG, JPEG, TIFF and .npy. Writes only the file that `write_png` is given."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.video.codeccontext import VideoCodecContext

from mtu.core.errors import InvalidInputError, OutputError
from mtu.runtime.video.colour import FULL, Colour, FromRGB, Pixels, picture_of
from mtu.runtime.video.writer import PictureKind, Target, levels

SUFFIXES: Mapping[PictureKind, tuple[str, ...]] = {
    "png": (".png",),
    "jpg": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "tiff": (".tif", ".tiff"),
}
"""File name endings of each kind; the first is the one given to the files of a directory."""
_BT601 = 5
_TIFF_COMPRESSIONS = ("deflate", "lzw", "packbits", "raw")


@dataclass(frozen=True)
class PictureEncoding:
    """A kind of picture files, and how it is encoded."""

    kind: PictureKind = "png"
    options: Mapping[str, str] = field(default_factory=dict)
    """jpg: q, 1 (best, and the default) to 31. tiff: compression_algo, deflate by default. All but jpg are lossless."""
    maps: bool = False
    """Whether maps are encoded: png and tiff in gray with 16 bits, npy as they are."""

    def __post_init__(self) -> None:
        known = {"jpg": ["q"], "tiff": ["compression_algo"]}.get(self.kind, [])
        if unknown := [key for key in self.options if key not in known]:
            raise InvalidInputError(
                f"-e {unknown[0]}: {self.kind} pictures take {f'-e {known[0]}= alone' if known else 'no options'}"
            )
        quality, compression = self.options.get("q", "1"), self.options.get("compression_algo", "deflate")
        if not (quality.isdecimal() and 1 <= int(quality) <= 31):
            raise InvalidInputError(f"-e q={quality}: the quality of jpg pictures goes from 1 (best) to 31")
        if compression not in _TIFF_COMPRESSIONS:
            raise InvalidInputError(f"-e compression_algo={compression}: choose one of {', '.join(_TIFF_COMPRESSIONS)}")
        if self.kind == "npy" and not self.maps:
            raise InvalidInputError("npy files are for maps, and these are pictures: write them as png, jpg or tiff")
        if self.maps and self.kind == "jpg":
            raise InvalidInputError("jpg pictures hold 8 bits, and maps more: write them as png or tiff pictures")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of file names; the first is the one given to files."""
        return (".npy",) if self.kind == "npy" else SUFFIXES[self.kind]

    def check(self, width: int, height: int) -> None:
        """Raises InvalidInputError if there are no pictures of that size."""
        if self.kind == "npy":
            return
        try:
            self._open(width, height)
        except (av.FFmpegError, ValueError, OverflowError) as error:
            raise InvalidInputError(f"{self.kind} cannot hold {width}x{height}: {error}") from None

    def encode(self, pixels: npt.NDArray[Any]) -> bytes:
        """A file of uint8 [H, W, 3] RGB, or of a map."""
        if self.kind == "npy":
            file = io.BytesIO()
            np.save(file, pixels)
            return file.getvalue()
        encoder = self._open(pixels.shape[1], pixels.shape[0])
        if self.maps:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(levels(pixels, np.uint16)), self._gray)
        elif self.kind == "jpg":
            picture = FromRGB("yuvj444p", Colour(_BT601, FULL))(pixels)
        else:
            picture = picture_of(pixels)
        return b"".join(bytes(packet) for packet in encoder.encode(picture) + encoder.encode(None))

    @property
    def _gray(self) -> str:
        """The format of 16 bits that the encoder takes."""
        return "gray16be" if self.kind == "png" else "gray16le"

    def _open(self, width: int, height: int) -> VideoCodecContext:
        encoder = av.CodecContext.create("mjpeg" if self.kind == "jpg" else self.kind, "w")
        assert isinstance(encoder, VideoCodecContext)
        encoder.width, encoder.height, encoder.time_base = width, height, Fraction(1, 25)
        # One thread: a frame thread would keep the picture after the call.
        encoder.thread_count = 1
        if self.kind == "jpg":
            # JFIF, which is written where the aspect of the pixels is known, is full range and BT.601.
            encoder.pix_fmt, encoder.colorspace, encoder.color_range = "yuvj444p", _BT601, FULL
            encoder.sample_aspect_ratio = Fraction(1)
            encoder.flags |= int(Flags.bitexact)
            quality = self.options.get("q", "1")
            encoder.options = {"qmin": quality, "qmax": quality}
        else:
            encoder.pix_fmt = self._gray if self.maps else "rgb24"
            # Level 1 is 4 times faster than the default and 4 % larger.
            encoder.options = {"compression_level": "1"}
            if self.kind == "tiff":
                encoder.options |= {"compression_algo": self.options.get("compression_algo", "deflate")}
        encoder.open()
        return encoder


def choose_picture_encoding(target: Target, *, single: bool) -> PictureEncoding:
    """The encoding of a directory's pictures, or of a `single` one by its name. Raises InvalidInputError."""
    wanted, path = target.options, target.path
    kind: PictureKind = wanted.picture_format or "png"
    if single and path is not None:
        suffix = path.suffix.lower()
        named = next((name for name, suffixes in SUFFIXES.items() if suffix in suffixes), None)
        if named is None:
            kinds = ", ".join(suffixes[0] for suffixes in SUFFIXES.values())
            raise InvalidInputError(f"pictures are written as {kinds}: name the output {path.with_suffix('.png')}")
        if wanted.picture_format not in (None, named):
            raise InvalidInputError(
                f"--picture-format {wanted.picture_format}, but {path} is named {suffix}: leave it out"
            )
        kind = named
    if given := [flag for flag in wanted.given() if flag not in ("-e", "--picture-format")]:
        quality = "; the quality of jpg pictures is -e q=1 (best) to 31" if "--crf" in given else ""
        raise InvalidInputError(f"{kind} pictures take no {', '.join(given)}: leave it out, or write a video{quality}")
    return PictureEncoding(kind, wanted.options, target.maps)


def encode_png(rgb: Pixels) -> bytes:
    """A PNG file of uint8 [H, W, 3] RGB."""
    return PictureEncoding().encode(rgb)


def write_png(path: str | Path, rgb: Pixels) -> None:
    """Write uint8 [H, W, 3] RGB as a PNG file, replacing what is there. Raises OutputError."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise InvalidInputError(f"a picture is uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
    try:
        Path(path).write_bytes(encode_png(rgb))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
