"""The targets made of pictures: files in a directory, or one file. Writes only the target, beside it first."""

from __future__ import annotations

import shutil
from pathlib import Path

from mtu.core.errors import OutputError
from mtu.runtime.video.colour import Pixels
from mtu.runtime.video.pictures.encoding import SUFFIXES, PictureEncoding
from mtu.runtime.video.reader import Frame, Reader
from mtu.runtime.video.writer import Writer, create_file, finish_file, temporary_name, write_failed


class PictureWriter(Writer):
    """One picture file."""

    def __init__(
        self, path: Path, reader: Reader, width: int, height: int, overwrite: bool, encoding: PictureEncoding
    ) -> None:
        super().__init__(reader, width, height)
        encoding.check(width, height)
        self._encoding = encoding
        self._path, self._overwrite = path, overwrite
        self._temporary = temporary_name(path)
        create_file(self._temporary, path)

    def _write(self, rgb: Pixels, frame: Frame) -> None:
        try:
            self._temporary.write_bytes(self._encoding.encode(rgb))
        except OSError as error:
            raise write_failed(self._path, error) from None

    def commit(self) -> None:
        """Give the file its final name. Raises OutputError."""
        finish_file(self._temporary, self._path, self._overwrite)

    def close(self) -> None:
        """Remove what was not committed. May be called twice."""
        self._temporary.unlink(missing_ok=True)


class DirectoryWriter(Writer):
    """A directory of picture files: 000000.png and so on, or the names of the source's pictures."""

    def __init__(
        self, path: Path, reader: Reader, width: int, height: int, overwrite: bool, encoding: PictureEncoding
    ) -> None:
        super().__init__(reader, width, height)
        encoding.check(width, height)
        self._encoding = encoding
        self._path, self._overwrite = path.absolute(), overwrite
        self._check_free()
        self._stems = reader.stems
        self._count = 0
        if self._turn is not None:
            self.notes.append("pictures are written without a tag of orientation: they are turned upright")
        if reader.container is not None and len(reader.container.streams) > 1:
            self.notes.append("a directory holds pictures only: sound, subtitles and timestamps are dropped")
        self._temporary = temporary_name(self._path)
        try:
            self._temporary.mkdir()
        except OSError as error:
            raise write_failed(path, error) from None

    def _check_free(self) -> None:
        """Refuse to touch anything but an empty directory or, with overwrite, one that holds nothing but files of
        the kind that is written."""
        path = self._path
        if not path.exists():
            return
        if not path.is_dir() or path.is_symlink():
            raise OutputError(f"{path} exists and is no directory: choose another name")
        entries = list(path.iterdir())
        if entries and not self._overwrite:
            raise OutputError(f"{path} exists and is not empty: choose another name, or replace it with --overwrite")
        kind = self._encoding.kind
        other = [entry.name for entry in entries if entry.suffix.lower() not in SUFFIXES[kind] or not entry.is_file()]
        if other:
            raise OutputError(
                f"{path} is not replaced, since it holds more than {kind} files ({', '.join(sorted(other)[:3])}): "
                "choose another name"
            )

    def _write(self, rgb: Pixels, frame: Frame) -> None:
        stem = f"{self._count:06d}" if self._stems is None else self._stems[frame.pts]
        self._count += 1
        try:
            (self._temporary / f"{stem}{self._encoding.suffix}").write_bytes(self._encoding.encode(rgb))
        except OSError as error:
            raise write_failed(self._path, error) from None

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
