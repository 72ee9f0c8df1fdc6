"""Choosing the reader of a source: a video, a directory of pictures, a single picture, an animation, or stdin."""

from __future__ import annotations

from pathlib import Path

from mtu.models.errors import InvalidInputError, MissingFileError
from mtu.runtime.video.animated_webp import AnimatedWebPReader
from mtu.runtime.video.images import IMAGE_SUFFIXES, list_images
from mtu.runtime.video.picture_header import Header, known_header
from mtu.runtime.video.picture_reader import PictureReader
from mtu.runtime.video.reader import Reader, ReadOptions
from mtu.runtime.video.video_reader import VideoReader

_ANIMATIONS = {".gif", ".apng"}


def open_reader(source: str | Path, options: ReadOptions | None = None) -> Reader:
    """Open a video file or URL, a directory of pictures, a single picture, or "-" (stdin, yuv4mpeg).

    Raises MissingFileError, or InvalidInputError if there is nothing in it that can be decoded.
    """
    options = options or ReadOptions()
    name = str(source)
    path = Path(name)
    if name != "-" and "://" not in name:
        if not path.exists():
            raise MissingFileError(f"{name} does not exist: give a video, a directory of pictures, or - for stdin")
        if path.is_dir():
            paths = list_images(path)
            if not paths:
                kinds = " ".join(sorted(IMAGE_SUFFIXES))
                raise InvalidInputError(f"{name} holds no pictures: none of its files ends in one of {kinds}")
            return PictureReader(name, paths, options)
        if path.is_file() and path.stat().st_size == 0:
            raise InvalidInputError(f"{name} is empty (0 bytes)")
        if path.suffix.lower() in IMAGE_SUFFIXES | _ANIMATIONS:
            header = known_header(path)
            if header is not None and header.animated:
                return _open_animation(name, header, options)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                return PictureReader(name, [path], options)
    return VideoReader(name, options)


def _open_animation(name: str, header: Header, options: ReadOptions) -> Reader:
    if header.kind == "webp":
        return AnimatedWebPReader(name, options)
    reader = VideoReader(name, options, {"png": "apng", "gif": "gif"}[header.kind])
    reader.loops = header.loops
    return reader
