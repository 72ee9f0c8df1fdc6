"""The header of a picture file: its size as shown, its pages, its animation. Decodes nothing.

PNG, JPEG, TIFF, WebP and GIF are read here; for other kinds FFmpeg is asked, which may read the whole file.
Pillow would not do: it opens no WebP that was cut off, decodes a whole PNG to look for EXIF behind the pixels, and is
three to ten times slower, so that damage would be called a bad header and a directory of 10,000 wait for minutes.
Sources: the specifications of PNG 3, JFIF 1.02, Exif 2.32, CIPA DC-007 (MPO), TIFF 6.0, RFC 9649 (WebP) and GIF89a.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
from av.container import InputContainer

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.runtime.video.containers.signatures import signature_of

_ORIENTATION, _SUBFILE, _WIDTH, _HEIGHT, _MP_COUNT = 0x0112, 0x00FE, 0x0100, 0x0101, 0xB001
_MOST_PAGES = 10_000
_BEGINNING = 1 << 16


@dataclass(frozen=True)
class Header:
    """What the beginning of a picture file says of it."""

    kind: str
    """"png", "jpeg", "tiff", "webp", "gif", or "" for other kinds."""
    width: int
    """As shown: turned by the orientation of EXIF."""
    height: int
    pages: int = 1
    """Pictures that are no frames of an animation; only the first is read."""
    animated: bool = False
    loops: int | None = None
    """How many times an animation is played, 0 for ever; None for still pictures."""
    cmyk: bool = False
    orientation: int = 1
    """Of EXIF, 1 to 8: how the stored picture is to be turned."""


def read_header(path: Path) -> Header:
    """The header of a picture. Raises MissingFileError, or InvalidInputError if it is damaged or none is found."""
    return known_header(path) or _ask_ffmpeg(path)


def known_header(path: Path) -> Header | None:
    """The header of a picture of the kinds that are read here, None for others. Raises as `read_header` does."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
            found = signature_of(start)
            kind = found.kind if found else ""
            header = _READERS[kind](file) if kind in _READERS else None
    except FileNotFoundError:
        raise MissingFileError(f"{path} does not exist") from None
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (struct.error, ValueError, IndexError):
        header = Header(kind, 0, 0)
    if not start:
        raise InvalidInputError(f"{path} is empty (0 bytes)")
    if header is not None and min(header.width, header.height) < 1:
        raise InvalidInputError(f"{path} is not a picture that can be read: its header is damaged or cut off")
    return header


def _take(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _shown(kind: str, width: int, height: int, orientation: int, **others: int | None) -> Header:
    orientation = orientation if 1 <= orientation <= 8 else 1
    if orientation >= 5:
        width, height = height, width
    return Header(kind, width, height, orientation=orientation, **others)  # type: ignore[arg-type]


def _png(file: BinaryIO) -> Header:
    width = height = 0
    animated, loops, orientation = False, None, 1
    file.seek(8)
    while True:
        (size,), name = _take(file, ">I"), file.read(4)
        begin = file.tell()
        if name == b"IHDR":
            width, height = _take(file, ">II")
        elif name == b"acTL":
            count, loops = _take(file, ">II")
            animated = count > 1
        elif name == b"eXIf":
            orientation = _orientation(file.read(size))
        elif name == b"IDAT":
            if orientation == 1:
                orientation = _orientation(_exif_at_the_end(file))
            return _shown("png", width, height, orientation, animated=animated, loops=loops if animated else None)
        file.seek(begin + size + 4)


def _exif_at_the_end(file: BinaryIO) -> bytes:
    """The EXIF that some programs write behind the pixels of a PNG; going through all their chunks would take long."""
    file.seek(max(0, file.seek(0, io.SEEK_END) - _BEGINNING))
    end = file.read()
    at = end.rfind(b"eXIf")
    size = int.from_bytes(end[max(0, at - 4) : max(0, at)], "big")
    chunk = end[at : at + 4 + size]
    return chunk[4:] if at > 0 and zlib.crc32(chunk).to_bytes(4, "big") == end[at + 4 + size : at + 8 + size] else b""


def _jpeg(file: BinaryIO) -> Header:
    orientation, pages = 1, 1
    file.seek(2)
    while True:
        mark, code = _take(file, "BB")
        while code == 0xFF:
            (code,) = _take(file, "B")
        if mark != 0xFF:
            raise ValueError
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            continue
        (size,) = _take(file, ">H")
        begin = file.tell()
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            _, height, width, components = _take(file, ">BHHB")
            return _shown("jpeg", width, height, orientation, pages=pages, cmyk=components == 4)
        if code in (0xD9, 0xDA):
            raise ValueError
        if code == 0xE1 and (data := file.read(size - 2)).startswith(b"Exif\0\0"):
            orientation = _orientation(data[6:])
        elif code == 0xE2 and (data := file.read(size - 2)).startswith(b"MPF\0"):
            pages = _first_directory(data[4:]).get(_MP_COUNT, 1)
        file.seek(begin + size - 2)


def _tiff(file: BinaryIO) -> Header:
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"
    file.seek(4)
    (offset,) = _take(file, f"{order}I")
    first, pages, seen = None, 0, set[int]()
    while offset and offset not in seen and len(seen) < _MOST_PAGES:
        seen.add(offset)
        file.seek(offset)
        tags = _directory(file, order)
        first = tags if first is None else first
        # Bit 0: a smaller copy of another picture.
        pages += not tags.get(_SUBFILE, 0) & 1
        (offset,) = _take(file, f"{order}I")
    if first is None:
        raise ValueError
    return _shown("tiff", first.get(_WIDTH, 0), first.get(_HEIGHT, 0), first.get(_ORIENTATION, 1), pages=max(1, pages))


def _directory(file: BinaryIO, order: str) -> dict[int, int]:
    """Tag -> first value of a TIFF directory at the file's place, of those that are integers in the entry itself."""
    (count,) = _take(file, f"{order}H")
    tags = {}
    for _ in range(count):
        tag, kind, number = _take(file, f"{order}HHI")
        value = file.read(4)
        if len(value) < 4:
            raise ValueError
        if kind in (3, 4) and number == 1:
            (tags[tag],) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", value)
    return tags


def _first_directory(data: bytes) -> dict[int, int]:
    """The first directory of TIFF data inside another file; empty if it is damaged."""
    try:
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        file = io.BytesIO(data)
        file.seek(struct.unpack_from(f"{order}I", data, 4)[0])
        return _directory(file, order)
    except (struct.error, KeyError, ValueError):
        return {}


def _orientation(exif: bytes) -> int:
    return _first_directory(exif).get(_ORIENTATION, 1)


def webp_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Names and sizes of the chunks of a WebP file, which stands at the content of each when it is given."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        size, begin = int.from_bytes(head[4:], "little"), file.tell()
        yield head[:4], size
        file.seek(begin + size + size % 2)


def _webp(file: BinaryIO) -> Header:
    width = height = 0
    animated, loops, orientation = False, None, 1
    for name, size in webp_chunks(file):
        if name == b"VP8X":
            data = file.read(10)
            animated = bool(data[0] & 2)
            width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (4, 7))
        elif name == b"VP8 " and not width:
            data = file.read(10)
            width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 6))
        elif name == b"VP8L" and not width:
            _, bits = _take(file, "<BI")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif name == b"ANIM":
            _, loops = _take(file, "<IH")
        elif name == b"EXIF":
            orientation = _orientation(file.read(size).removeprefix(b"Exif\0\0"))
    return _shown("webp", width, height, orientation, animated=animated, loops=loops if animated else None)


def _gif(file: BinaryIO) -> Header:
    file.seek(6)
    width, height, flags, _, _ = _take(file, "<HHBBB")
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, 1)
    loops = 1
    while (block := file.read(2))[:1] == b"!":
        parts = []
        while (size := _take(file, "B")[0]) != 0:
            parts.append(file.read(size))
        if block[1] == 0xFF and parts[:1] == [b"NETSCAPE2.0"] and len(parts) > 1 and len(parts[1]) == 3:
            # So many times once more.
            again = int.from_bytes(parts[1][1:], "little")
            loops = again + 1 if again else 0
    return Header("gif", width, height, animated=True, loops=loops)


_READERS = {"png": _png, "jpeg": _jpeg, "tiff": _tiff, "webp": _webp, "gif": _gif}


def open_picture(source: Path | BinaryIO) -> InputContainer:
    """A file of any kind, by FFmpeg. Raises av.FFmpegError, ValueError."""
    # An absolute name has no protocol, and without patterns a percent sign is a percent sign.
    name = str(source.absolute()) if isinstance(source, Path) else source
    return av.open(name, "r", options={"pattern_type": "none"})


def _ask_ffmpeg(path: Path) -> Header:
    # Its beginning has the size, as a rule; FFmpeg decodes what it is given.
    with path.open("rb") as file:
        beginning = io.BytesIO(file.read(_BEGINNING))
    reason: object = "it has no size"
    for source in (beginning, path):
        try:
            with open_picture(source) as container:
                context = container.streams.video[0].codec_context
                if context.width and context.height:
                    return Header("", context.width, context.height)
        except (av.FFmpegError, IndexError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
    raise InvalidInputError(f"{path} is not a picture that can be read: {reason}")
