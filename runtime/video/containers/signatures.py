"""How files begin. Plain data."""

from __future__ import annotations

import re
from typing import NamedTuple


class Signature(NamedTuple):
    """A format by the first bytes of its files."""

    begin: bytes
    """A regular expression."""
    name: str
    """For people."""
    kind: str = ""
    """Of pictures: "png", "jpeg", "tiff", "webp", "gif" or "bmp"."""
    suffix: str = ""
    """Of pictures, without the dot."""


_SIGNATURES = (
    Signature(rb"\x89PNG\r\n\x1a\n", "PNG", "png", "png"),
    Signature(rb"\xff\xd8\xff", "JPEG", "jpeg", "jpg"),
    Signature(rb"GIF8", "GIF", "gif", "gif"),
    Signature(rb"RIFF....WEBP", "WebP", "webp", "webp"),
    Signature(rb"II\*\0|MM\0\*", "TIFF", "tiff", "tif"),
    Signature(rb"BM", "BMP", "bmp", "bmp"),
    Signature(rb"....ftyp", "MP4 or MOV"),
    Signature(rb"....moov", "MOV"),
    Signature(rb"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    Signature(rb"RIFF....AVI ", "AVI"),
    Signature(rb"FLV", "FLV"),
    Signature(rb"OggS", "Ogg"),
    Signature(rb"\x00\x00\x01\xba", "MPEG"),
    Signature(rb"\x00\x00\x00\x01", "an H.264 or HEVC stream"),
    Signature(rb"DKIF", "IVF"),
    Signature(rb"G", "MPEG-TS"),
)


def signature_of(start: bytes) -> Signature | None:
    """The format of a file that begins so, None if it is not known."""
    return next((each for each in _SIGNATURES if re.match(each.begin, start, re.DOTALL)), None)
