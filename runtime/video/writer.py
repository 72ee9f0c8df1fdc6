"""What all targets share: the interface, what the user asks of it, and how files get their names.

Writes beside the target under a hidden temporary name and renames when the result is whole, so a final name never
holds half a result.
"""

from __future__ import annotations

import errno
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import numpy as np

from mtu.core.errors import OutputError
from mtu.runtime.video.colour import Pixels, quarter_turn, upright
from mtu.runtime.video.reader import Frame, Reader

PictureKind = Literal["png", "jpg", "tiff"]
"""Kinds of files that a directory of pictures is written as."""


@dataclass(frozen=True)
class EncodeOptions:
    """What the user asked of the encoder; None and {} leave it to the defaults."""

    codec: str | None = None
    crf: float | None = None
    pix_fmt: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    muxer_options: Mapping[str, str] = field(default_factory=dict)
    """Of the container."""
    picture_format: PictureKind | None = None
    """Of a directory of pictures; None is png."""

    def given(self) -> list[str]:
        """Names of the command-line options that are set."""
        flags = {
            "--codec": self.codec,
            "--crf": self.crf,
            "--pix-fmt": self.pix_fmt,
            "-e": self.options or None,
            "-m": self.muxer_options or None,
            "--picture-format": self.picture_format,
        }
        return [flag for flag, value in flags.items() if value is not None]


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


def write_failed(path: Path, error: Exception) -> OutputError:
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
