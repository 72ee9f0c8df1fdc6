"""The targets made of pictures: files in a directory, or one file. Writes only the target, beside it first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from mtu.core.errors import OutputError
from mtu.runtime.video.pictures.encoding import PictureEncoding
from mtu.runtime.video.source import Frame
from mtu.runtime.video.writer import Target, Writer, temporary_name, write_failed


class PictureWriter(Writer):
    """One picture file."""

    _keeps_maps = True

    def __init__(self, target: Target, encoding: PictureEncoding) -> None:
        super().__init__(target)
        encoding.check(target.width, target.height)
        self._encoding = encoding
        self._create()

    def _write(self, picture: Any, frame: Frame) -> None:
        self._save(self._temporary, picture)

    def _save(self, path: Path, picture: Any) -> None:
        try:
            path.write_bytes(self._encoding.encode(picture))
        except OSError as error:
            raise write_failed(self._path, error) from None

    def commit(self) -> None:
        """Give the file its final name. Raises OutputError."""
        self._publish()


class DirectoryWriter(PictureWriter):
    """A directory of picture files: 000000.png and so on, or the names of the source's pictures."""

    def __init__(self, target: Target, encoding: PictureEncoding) -> None:
        super().__init__(target, encoding)
        self._count = 0
        if self._turn is not None:
            self.notes.append("pictures are written without a tag of orientation: they are turned upright")
        container = target.source.container
        if container is not None and len(container.streams) > 1:
            self.notes.append("a directory holds pictures only: sound, subtitles and timestamps are dropped")

    def _create(self) -> None:
        self._path = self._path.absolute()
        self._temporary = temporary_name(self._path)
        self._check_free()
        try:
            self._temporary.mkdir()
        except OSError as error:
            raise write_failed(self._target.path or self._path, error) from None

    def _check_free(self) -> None:
        """Refuse to touch anything but an empty directory or, with overwrite, one that holds nothing but files of
        the kind that is written."""
        path = self._path
        if not path.exists():
            return
        if not path.is_dir() or path.is_symlink():
            raise OutputError(f"{path} exists and is no directory: choose another name")
        entries = list(path.iterdir())
        if entries and not self._target.overwrite:
            raise OutputError(f"{path} exists and is not empty: choose another name, or replace it with --overwrite")
        kind, suffixes = self._encoding.kind, self._encoding.suffixes
        other = [entry.name for entry in entries if entry.suffix.lower() not in suffixes or not entry.is_file()]
        if other:
            raise OutputError(
                f"{path} is not replaced, since it holds more than {kind} files ({', '.join(sorted(other)[:3])}): "
                "choose another name"
            )

    def _write(self, picture: Any, frame: Frame) -> None:
        stems = self._target.source.stems
        stem = f"{self._count:06d}" if stems is None else stems[frame.pts]
        self._count += 1
        self._save(self._temporary / f"{stem}{self._encoding.suffixes[0]}", picture)

    def commit(self) -> None:
        """Give the directory its final name. Raises OutputError."""
        self._check_free()
        old = temporary_name(self._path)
        try:
            if self._path.exists():
                self._path.rename(old)
            try:
                self._temporary.rename(self._path)
            except OSError:
                if old.exists():
                    old.rename(self._path)
                raise
        except OSError as error:
            raise write_failed(self._path, error) from None
        shutil.rmtree(old, ignore_errors=True)

    def close(self) -> None:
        """Remove what was not committed. May be called twice."""
        shutil.rmtree(self._temporary, ignore_errors=True)
