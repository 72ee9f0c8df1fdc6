"""Choosing the reader of a source: a video, a directory of pictures, a single picture, an animation, or stdin."""

from __future__ import annotations

import sys
from pathlib import Path

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.kinds import is_model_directory, kind_of, meant
from mtu.runtime.video.containers.signatures import signature_of
from mtu.runtime.video.pictures.animated_webp import AnimatedWebPReader
from mtu.runtime.video.pictures.files import PICTURE_SUFFIXES, list_pictures
from mtu.runtime.video.pictures.header import known_header
from mtu.runtime.video.pictures.reader import PictureReader
from mtu.runtime.video.source import Reader, ReadOptions
from mtu.runtime.video.video_reader import VideoReader

_ANIMATIONS = {".gif", ".apng"}


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
    if suffix in PICTURE_SUFFIXES | _ANIMATIONS:
        header = known_header(path)
        if header is not None and header.animated and header.kind == "webp":
            return AnimatedWebPReader(name, header, options)
        if header is not None and header.animated:
            return VideoReader(name, options, {"png": "apng", "gif": "gif"}[header.kind], header.loops)
    return PictureReader(name, [path], options) if suffix in PICTURE_SUFFIXES else VideoReader(name, options)


def _pictures(directory: Path) -> list[Path]:
    """Its pictures. Raises InvalidInputError if it has none."""
    paths = list_pictures(directory)
    if not paths and is_model_directory(directory):
        raise InvalidInputError(f"{directory} {meant(directory)}")
    if not paths:
        kinds = " ".join(sorted(PICTURE_SUFFIXES))
        raise InvalidInputError(f"{directory} holds no pictures: none of its files ends in one of {kinds}")
    return paths


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
    found = signature_of(start)
    looks = f", it looks like {found.name}" if found else ""
    raise InvalidInputError(
        f"stdin is not yuv4mpeg{looks}: give the name of the file, or pipe it through ffmpeg: {pipe}"
    )
