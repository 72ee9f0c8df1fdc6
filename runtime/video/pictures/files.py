"""Reading single pictures, and listing those of a directory in natural order.

Everything goes through PyAV; reads only the paths it is given and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.runtime.video.colour import Pixels, ToRGB, colour_of, quarter_turn, upright
from mtu.runtime.video.pictures.header import known_header, open_picture
from mtu.runtime.video.properties import carried_by

_KINDS = "png jpg jpeg jpe jfif bmp dib tif tiff webp ppm pgm pbm pnm pam tga exr dpx jp2 j2k jxl qoi sgi"
_DECODERS = {"png": "png", "jpeg": "mjpeg", "tiff": "tiff", "webp": "webp", "gif": "gif"}
# Decoders pass over some damage otherwise: half a JPEG would be gray below.
_STRICT = {"png": "crccheck+explode", "jpeg": "explode"}
# Orientation of EXIF -> display matrix.
_TURNS: dict[int, tuple[int, ...]] = {
    number: (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    for number, (a, b, c, d) in enumerate(
        ((-1, 0, 0, 1), (-1, 0, 0, -1), (1, 0, 0, -1), (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0), (0, -1, 1, 0)), 2
    )
}
T = TypeVar("T", bound=np.generic)
_DEEP = ("rgb48", "rgba64", "gray16", "ya16")
"""Beginnings of the names of formats with 16 bits."""
PICTURE_SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split(" "))
"""File names with these endings are pictures."""


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", name.casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def is_named_as_picture(path: Path, suffixes: Collection[str] = PICTURE_SUFFIXES) -> bool:
    """Whether a file in a directory is one of its pictures (or has another of these endings) by its name. A link to a
    file that is not there is one too, and what may not be looked at, which whoever reads it will say; pipes and
    directories are none."""
    if path.suffix.lower() not in suffixes or path.name.startswith("."):
        return False
    try:
        return path.is_file() or (path.is_symlink() and not path.exists())
    except PermissionError:
        return True


def list_pictures(directory: Path) -> list[Path]:
    """The picture files of a directory in natural order; other and hidden files are ignored."""
    found = [path for path in directory.iterdir() if is_named_as_picture(path)]
    return sorted(found, key=lambda path: (natural_key(path.name), path.name))


def decode_picture(path: Path, *, damaged: bool = False) -> tuple[av.VideoFrame, Pixels]:
    """The picture of a file as decoded, and as RGB turned upright by its orientation tag.

    `damaged` takes what can be had of one whose data is broken. Raises MissingFileError or InvalidInputError.
    """
    picture, rgb = _decode(path, lambda frame: ToRGB(colour_of(frame)[0])(frame), damaged)
    return picture, rgb


def read_floats(path: str | Path) -> NDArray[np.float32]:
    """Read a picture with all its bits: float32 [H, W, 3], RGB in [0, 1], upright; alpha is dropped.

    8 and 16 bits of RGB and gray are exact; other kinds are read as `read_picture` does. Raises as that.
    """

    def floats(frame: av.VideoFrame) -> NDArray[np.float32]:
        if frame.format.name.startswith(_DEEP):
            return frame.to_ndarray(format="rgb48le").astype(np.float32) / np.float32(65535)
        return ToRGB(colour_of(frame)[0])(frame).astype(np.float32) / np.float32(255)

    return _decode(Path(path), floats, damaged=False)[1]


def _decode(
    path: Path, converted: Callable[[av.VideoFrame], NDArray[T]], damaged: bool
) -> tuple[av.VideoFrame, NDArray[T]]:
    header = known_header(path)
    if header is not None and header.animated:
        raise InvalidInputError(f"{path} is animated: only still pictures are read here; make it a video first")
    try:
        if header is not None:
            strict = "" if damaged else _STRICT.get(header.kind, "")
            picture = decode_data(header.kind, path.read_bytes(), strict)
            # Where EXIF is there, PyAV 18 gives no matrix but only degrees, which know of no mirrors.
            matrix = _TURNS.get(header.orientation)
        else:
            with open_picture(path) as container:
                picture = next(container.decode(video=0))
            matrix = carried_by(picture).matrix
        rgb = converted(picture)
        if matrix and quarter_turn(matrix):
            rgb = np.ascontiguousarray(upright(rgb, matrix))
        return picture, rgb
    except (av.FFmpegError, OSError, IndexError, ValueError, StopIteration) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"{path} is not a picture that can be read: {reason}") from None


def decode_data(kind: str, data: bytes, strict: str = "") -> av.VideoFrame:
    """The first picture of a file of a kind that `known_header` knows; opening it as a container would decode it twice.

    `strict` is FFmpeg's err_detect. Raises ValueError or av.FFmpegError.
    """
    decoder = av.CodecContext.create(_DECODERS[kind], "r")
    assert isinstance(decoder, VideoCodecContext)
    # Others would give the picture only when more comes.
    decoder.thread_count, decoder.options = 1, {"err_detect": strict} if strict else {}
    pictures = decoder.decode(av.Packet(data)) or decoder.decode(None)
    if not pictures:
        raise ValueError("it holds no picture")
    return pictures[0]


def read_picture(path: str | Path) -> Pixels:
    """Read a picture: uint8 [H, W, 3], RGB, full range, upright. Alpha is dropped.

    Raises MissingFileError or InvalidInputError.
    """
    return decode_picture(Path(path))[1]
