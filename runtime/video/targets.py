"""Choosing the writer of a target: a video, yuv4mpeg, a directory of pictures, or a single picture."""

from __future__ import annotations

import os
from pathlib import Path

from mtu.core.errors import InvalidInputError, OutputError
from mtu.runtime.video.pictures.encoding import choose_picture_encoding
from mtu.runtime.video.pictures.files import PICTURE_SUFFIXES
from mtu.runtime.video.pictures.writer import DirectoryWriter, PictureWriter
from mtu.runtime.video.reader import Reader
from mtu.runtime.video.video_writer import VideoWriter
from mtu.runtime.video.writer import EncodeOptions, Writer
from mtu.runtime.video.yuv4mpeg import Y4MWriter


def open_writer(
    target: str | Path,
    reader: Reader,
    *,
    width: int | None = None,
    height: int | None = None,
    options: EncodeOptions | None = None,
    overwrite: bool = False,
    copy_streams: bool = True,
) -> Writer:
    """Open what the result of `reader` is written to.

    `target` is a video file, "-" (yuv4mpeg on stdout), a directory for pictures (no ending, a trailing slash, or an
    existing directory), or, for a single picture, a .png, .jpg or .tif file. `width` and `height` are those of the
    pictures given to `write`, if not the reader's. Raises OutputError or InvalidInputError before anything is written.
    """
    options = options or EncodeOptions()
    width, height = width or reader.width, height or reader.height
    name = str(target)
    path = Path(name)
    if name == "-":
        return Y4MWriter(None, reader, width, height, options, overwrite)
    if name.endswith(("/", os.sep)) or path.is_dir() or not path.suffix:
        _check_place(path, reader)
        return DirectoryWriter(path, reader, width, height, overwrite, choose_picture_encoding(options))
    _check_place(path, reader)
    if path.exists() and not overwrite:
        raise OutputError(f"{name} exists: choose another name, or replace it with --overwrite")
    still = reader.stems is not None and reader.frame_count == 1
    if path.suffix.lower() in PICTURE_SUFFIXES and (still or path.suffix.lower() != ".webp"):
        encoding = choose_picture_encoding(options, path)
        if not still:
            raise InvalidInputError(
                f"{name} is one picture, but the source is a video: give a video file, or a directory (no ending) with"
                f" --picture-format {encoding.kind}"
            )
        return PictureWriter(path, reader, width, height, overwrite, encoding)
    if path.suffix.lower() == ".y4m":
        return Y4MWriter(path, reader, width, height, options, overwrite)
    if options.picture_format is not None:
        raise InvalidInputError(f"--picture-format is for a directory of pictures, and {name} is none: leave it out")
    return VideoWriter(path, reader, width, height, options, overwrite, copy_streams)


def _check_place(path: Path, reader: Reader) -> None:
    if reader.source != "-" and Path(reader.source).exists() and path.exists() and path.samefile(reader.source):
        raise OutputError(f"{path} is the source itself: choose another name")
    if reader.source != "-" and path.resolve() in Path(reader.source).resolve().parents:
        raise OutputError(f"{path} holds the source: choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"the directory {path.parent} does not exist: create it first")
