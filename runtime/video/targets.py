"""Choosing the writer of a target: a video, yuv4mpeg, a directory of pictures, or a single picture."""

from __future__ import annotations

import os
from pathlib import Path

from mtu.core.errors import InvalidInputError, OutputError
from mtu.runtime.video.pictures.encoding import choose_picture_encoding
from mtu.runtime.video.pictures.files import PICTURE_SUFFIXES
from mtu.runtime.video.pictures.writer import DirectoryWriter, PictureWriter
from mtu.runtime.video.source import SourceInfo
from mtu.runtime.video.video_writer import VideoWriter
from mtu.runtime.video.writer import EncodeOptions, Target, Writer
from mtu.runtime.video.yuv4mpeg import Y4MWriter


def open_writer(
    path: str | Path,
    source: SourceInfo,
    *,
    width: int | None = None,
    height: int | None = None,
    options: EncodeOptions | None = None,
    overwrite: bool = False,
    copy_streams: bool = True,
    maps: bool = False,
) -> Writer:
    """Open what the result of `source` is written to.

    `path` is a video file, "-" (yuv4mpeg on stdout), a directory for pictures (no ending, a trailing slash, or an
    existing directory), or, for a single picture, a .png, .jpg or .tif file. `width` and `height` are those of what is
    given to `write`, if not the source's; with `maps` that is float32 [H, W] in [0, 1] instead of pictures, and becomes
    16-bit gray pictures, exact .npy files (picture_format npy), or a gray video. Raises OutputError or
    InvalidInputError before anything is written.
    """
    name = str(path)
    path, suffix = Path(name), Path(name).suffix.lower()
    target = Target(
        path=None if name == "-" else path,
        source=source,
        width=width or source.width,
        height=height or source.height,
        options=options or EncodeOptions(),
        overwrite=overwrite,
        copy_streams=copy_streams,
        maps=maps,
    )
    if name == "-":
        return Y4MWriter(target)
    _check_path(path, source)
    if name.endswith(("/", os.sep)) or path.is_dir() or not suffix:
        return DirectoryWriter(target, choose_picture_encoding(target, single=False))
    if path.exists() and not overwrite:
        raise OutputError(f"{name} exists: choose another name, or replace it with --overwrite")
    still = source.stems is not None and source.frame_count == 1
    if suffix in PICTURE_SUFFIXES and (still or suffix != ".webp"):
        encoding = choose_picture_encoding(target, single=True)
        if not still:
            raise InvalidInputError(
                f"{name} is one picture, but the source is a video: give a video file, or a directory (no ending) with"
                f" --picture-format {encoding.kind}"
            )
        return PictureWriter(target, encoding)
    if suffix == ".y4m":
        return Y4MWriter(target)
    if target.options.picture_format is not None:
        raise InvalidInputError(f"--picture-format is for a directory of pictures, and {name} is none: leave it out")
    return VideoWriter(target)


def _check_path(path: Path, source: SourceInfo) -> None:
    given = Path(source.name)
    if source.name != "-" and given.exists() and path.exists() and path.samefile(given):
        raise OutputError(f"{path} is the source itself: choose another name")
    if source.name != "-" and path.resolve() in given.resolve().parents:
        raise OutputError(f"{path} holds the source: choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"the directory {path.parent} does not exist: create it first")
