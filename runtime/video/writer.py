"""What all targets share, and the targets made of pictures: PNG files in a directory, or one PNG file.

Writes beside the target under a hidden temporary name and renames when the result is whole, so a final name never
holds half a result.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from mtu.models.errors import OutputError
from mtu.runtime.video.colour import Pixels, quarter_turn, upright
from mtu.runtime.video.images import encode_png
from mtu.runtime.video.reader import Frame, Reader


class Writer(ABC):
    """A target opened by `open_writer`. Leaving the `with` without `commit` removes what was written."""

    notes: list[str]
    """What the target cannot hold and how it is written; complete before the first frame."""
    remarks: list[str]
    """Harmless things found while writing; complete after `commit`."""

    def __init__(self, reader: Reader, width: int, height: int) -> None:
        self.notes, self.remarks = [], []
        self._shape = (height, width, 3)
        self._turn: tuple[int, ...] | None = None
        matrix = reader.display_matrix
        if matrix is not None and quarter_turn(matrix):
            self._turn = matrix

    def write(self, rgb: Pixels, frame: Frame) -> None:
        """Write a processed picture (uint8 [H, W, 3] RGB) with the timing of its source frame.

        `rgb` may be reused as soon as this returns. Raises OutputError if it cannot be written.
        """
        if rgb.shape != self._shape or rgb.dtype != np.uint8:
            raise ValueError(
                f"a picture of this writer is uint8 {list(self._shape)}, got {rgb.dtype} {list(rgb.shape)}"
            )
        self._write(rgb if self._turn is None else upright(rgb, self._turn), frame)

    @abstractmethod
    def _write(self, rgb: Pixels, frame: Frame) -> None: ...

    def copy(self, packet: av.Packet[Any]) -> None:  # noqa: B027  only videos hold other streams
        """Write another stream's packet, unchanged; those the target cannot hold are dropped."""

    @abstractmethod
    def commit(self) -> None:
        """Finish, and give the result its final name. Raises OutputError."""

    @abstractmethod
    def close(self) -> None:
        """Remove what was not committed. May be called twice."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_failed(path: Path, error: OSError | av.FFmpegError) -> OutputError:
    """The error to raise where writing `path` failed."""
    code = getattr(error, "errno", None)
    if code in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"disk full while writing {path}: nothing was kept; free some space and start again")
    if code == errno.EFBIG:
        return OutputError(f"{path} has become larger than the file system or a limit allows: nothing was kept")
    return OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}")


def temporary_name(path: Path) -> Path:
    """A hidden name beside `path`, with its ending; not longer than a file system allows where `path` is not."""
    return path.parent / f".{path.stem[:40]}.{secrets.token_hex(4)}.part{path.suffix}"


def create_file(path: Path, target: Path) -> None:
    """Create the temporary file of `target`. Raises OutputError, such as where the directory cannot be written."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise write_failed(target, error) from None


def finish_file(temporary: Path, target: Path, overwrite: bool) -> None:
    """Put a whole file in its place."""
    try:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if target.exists() and not overwrite:
            raise OutputError(f"{target} has appeared meanwhile and is not replaced: choose another name")
        temporary.replace(target)
    except OSError as error:
        raise error if isinstance(error, OutputError) else write_failed(target, error) from None


class PictureWriter(Writer):
    """One PNG file."""

    def __init__(self, path: Path, reader: Reader, width: int, height: int, overwrite: bool) -> None:
        super().__init__(reader, width, height)
        self._path, self._overwrite = path, overwrite
        self._temporary = temporary_name(path)
        create_file(self._temporary, path)

    def _write(self, rgb: Pixels, frame: Frame) -> None:
        try:
            self._temporary.write_bytes(encode_png(rgb))
        except OSError as error:
            raise write_failed(self._path, error) from None

    def commit(self) -> None:
        """Give the file its final name. Raises OutputError."""
        finish_file(self._temporary, self._path, self._overwrite)

    def close(self) -> None:
        """Remove what was not committed. May be called twice."""
        self._temporary.unlink(missing_ok=True)


class DirectoryWriter(Writer):
    """A directory of PNG files: 000000.png and so on, or the names of the source's pictures."""

    def __init__(self, path: Path, reader: Reader, width: int, height: int, overwrite: bool) -> None:
        super().__init__(reader, width, height)
        self._path, self._overwrite = path.absolute(), overwrite
        self._check_free()
        self._stems = reader.stems
        self._count = 0
        if self._turn is not None:
            self.notes.append("PNG holds no orientation: the pictures are turned upright")
        if reader.container is not None and len(reader.container.streams) > 1:
            self.notes.append(
                "a directory of PNG files holds pictures only: sound, subtitles and timestamps are dropped"
            )
        self._temporary = temporary_name(self._path)
        try:
            self._temporary.mkdir()
        except OSError as error:
            raise write_failed(path, error) from None

    def _check_free(self) -> None:
        """Refuse to touch anything but an empty directory or, with overwrite, one that holds nothing but PNG files."""
        path = self._path
        if not path.exists():
            return
        if not path.is_dir() or path.is_symlink():
            raise OutputError(f"{path} exists and is no directory: choose another name")
        entries = list(path.iterdir())
        if entries and not self._overwrite:
            raise OutputError(f"{path} exists and is not empty: choose another name, or replace it with --overwrite")
        other = [entry.name for entry in entries if entry.suffix.lower() != ".png" or not entry.is_file()]
        if other:
            raise OutputError(
                f"{path} is not replaced, since it holds more than PNG files ({', '.join(sorted(other)[:3])}): "
                "choose another name"
            )

    def _write(self, rgb: Pixels, frame: Frame) -> None:
        stem = f"{self._count:06d}" if self._stems is None else self._stems[self._count]
        self._count += 1
        try:
            (self._temporary / f"{stem}.png").write_bytes(encode_png(rgb))
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
