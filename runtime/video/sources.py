"""Choosing the reader of a source: a video, a directory of pictures, a single picture, an animation, or stdin."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.kinds import is_model_directory, kind_of, meant
from mtu.runtime.video.animated_webp import AnimatedWebPReader
from mtu.runtime.video.images import IMAGE_SUFFIXES, list_images
from mtu.runtime.video.picture_header import Header, known_header
from mtu.runtime.video.picture_reader import PictureReader
from mtu.runtime.video.reader import Reader, ReadOptions
from mtu.runtime.video.video_reader import VideoReader

_ANIMATIONS = {".gif", ".apng"}
_BEGINNINGS = {
    b"....ftyp": "MP4 or MOV",
    b"....moov": "MOV",
    b"\x1a\x45\xdf\xa3": "Matroska or WebM",
    b"RIFF....AVI ": "AVI",
    b"RIFF....WEBP": "WebP",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"FLV": "FLV",
    b"OggS": "Ogg",
    b"\x00\x00\x01\xba": "MPEG",
    b"\x00\x00\x00\x01": "an H.264 or HEVC stream",
    b"DKIF": "IVF",
    b"G": "MPEG-TS",
}
"""How other formats begin, as regular expressions."""


def open_reader(source: str | Path, options: ReadOptions | None = None) -> Reader:
    """Open a video file or URL, a directory of pictures, a single picture, or "-" (stdin, yuv4mpeg).

    Raises MissingFileError, or InvalidInputError if there is nothing in it that can be decoded.
    """
    options, name = options or ReadOptions(), str(source)
    if name == "-":
        _refuse_other_input()
    if name == "-" or "://" in name:
        return VideoReader(name, options)
    path = Path(name)
    if not path.exists():
        raise MissingFileError(f"{name} does not exist: give a video, a directory of pictures, or - for stdin")
    if path.is_dir():
        return PictureReader(name, _pictures(path), options)
    if path.is_file() and path.stat().st_size == 0:
        raise InvalidInputError(f"{name} is empty (0 bytes)")
    if kind_of(path) in ("checkpoint", "graph", "engine"):
        raise InvalidInputError(f"{name} {meant(path)}")
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES | _ANIMATIONS:
        header = known_header(path)
        if header is not None and header.animated:
            return _open_animation(name, header, options)
    return PictureReader(name, [path], options) if suffix in IMAGE_SUFFIXES else VideoReader(name, options)


def _pictures(directory: Path) -> list[Path]:
    """Its pictures. Raises InvalidInputError if it has none."""
    paths = list_images(directory)
    if not paths and is_model_directory(directory):
        raise InvalidInputError(f"{directory} {meant(directory)}")
    if not paths:
        kinds = " ".join(sorted(IMAGE_SUFFIXES))
        raise InvalidInputError(f"{directory} holds no pictures: none of its files ends in one of {kinds}")
    return paths


def _open_animation(name: str, header: Header, options: ReadOptions) -> Reader:
    if header.kind == "webp":
        return AnimatedWebPReader(name, header, options)
    reader = VideoReader(name, options, {"png": "apng", "gif": "gif"}[header.kind])
    reader.loops = header.loops
    return reader


def _refuse_other_input() -> None:
    """Raises InvalidInputError if stdin is a terminal, empty or no yuv4mpeg; nothing is taken from it."""
    stdin = sys.stdin
    if stdin is None or not hasattr(stdin.buffer, "peek"):
        return
    pipe = "ffmpeg -i VIDEO -f yuv4mpegpipe - | mtu-run - -o OUTPUT"
    if stdin.isatty():
        raise InvalidInputError(f"stdin is a terminal: give the name of a file, or pipe in yuv4mpeg: {pipe}")
    start = stdin.buffer.peek(16)[:16]
    if not start:
        raise InvalidInputError(f"stdin is empty: pipe in yuv4mpeg, and see what the program before it said: {pipe}")
    if start.startswith(b"YUV4MPEG2"[: len(start)]):
        return
    looks = next((name for begin, name in _BEGINNINGS.items() if re.match(begin, start, re.DOTALL)), None)
    looks = f", it looks like {looks}" if looks else ""
    raise InvalidInputError(
        f"stdin is not yuv4mpeg{looks}: give the name of the file, or pipe it through ffmpeg: {pipe}"
    )
