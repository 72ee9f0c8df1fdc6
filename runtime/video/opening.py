"""Which reader a source gets, and which writer a target: a video, yuv4mpeg, a directory of pictures, or one picture."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mtu.core.errors import InvalidInputError, MissingFileError, OutputError
from mtu.core.kinds import is_model_directory, kind_of, meant
from mtu.runtime.video.containers.signatures import signature_of
from mtu.runtime.video.pictures.animated_webp import AnimatedWebPReader
from mtu.runtime.video.pictures.encoding import choose_picture_encoding
from mtu.runtime.video.pictures.files import PICTURE_SUFFIXES, list_pictures
from mtu.runtime.video.pictures.header import known_header
from mtu.runtime.video.pictures.reader import PictureReader
from mtu.runtime.video.pictures.writer import DirectoryWriter, PictureWriter
from mtu.runtime.video.source import Reader, ReadOptions, SourceInfo
from mtu.runtime.video.streams import StreamsReader
from mtu.runtime.video.video_reader import VideoReader
from mtu.runtime.video.video_writer import VideoWriter
from mtu.runtime.video.writer import EncodeOptions, Target, Writer
from mtu.runtime.video.yuv4mpeg import Y4MWriter

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
        raise MissingFileError(f"{name} does not exist: give a video or a directory of pictures")
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


def open_streams(source: str, views: Mapping[str, str], options: ReadOptions) -> Reader:
    """The reader of `source`, and with it in step those of the further streams `views`: sources by name, all read with
    the same options, but for the choice of a video stream. Raises as `open_reader`, and as `StreamsReader`."""
    reader = open_reader(source, options)
    if not views:
        return reader
    opened: dict[str, Reader] = {}
    try:
        for name, path in views.items():
            try:
                opened[name] = open_reader(path, replace(options, video_stream=None))
            except (InvalidInputError, MissingFileError) as error:
                raise type(error)(f"--stream {name}: {error}") from None
        return StreamsReader(reader, opened)
    except BaseException:
        for each in (reader, *opened.values()):
            each.close()
        raise


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
    for name in (source.name, *source.beside):
        given, what = Path(name), "the source" if name == source.name else f"the stream {name}"
        if name != "-" and given.exists() and path.exists() and path.samefile(given):
            raise OutputError(f"{path} is {what} itself: choose another name")
        if name != "-" and path.resolve() in given.resolve().parents:
            raise OutputError(f"{path} holds {what}: choose another name")
    if not path.parent.is_dir():
        raise OutputError(f"the directory {path.parent} does not exist: create it first")
