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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt

from mtu.core.errors import OutputError
from mtu.runtime.video.colour import quarter_turn, upright
from mtu.runtime.video.source import Frame, SourceInfo

PictureKind = Literal["png", "jpg", "tiff", "npy"]
"""Kinds of files that a directory of pictures is written as; npy is for maps alone, and exact."""


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


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is to be written, and where."""

    path: Path | None
    """None: stdout."""
    source: SourceInfo
    width: int
    """Of what is given to `write`, in pixels."""
    height: int
    options: EncodeOptions = EncodeOptions()
    overwrite: bool = False
    copy_streams: bool = True
    maps: bool = False
    """Whether maps are given instead of pictures."""


class Writer(ABC):
    """A target opened by `open_writer`. Leaving the `with` without `commit` removes what was written."""

    notes: list[str]
    """What the target cannot hold and how it is written; complete before the first frame."""
    remarks: list[str]
    """Harmless things found while writing; complete after `commit`."""
    _keeps_maps = False
    """Whether `_write` takes maps; others get them as gray pictures."""

    def __init__(self, target: Target) -> None:
        self.notes, self.remarks = [], []
        self._target, self._path = target, target.path or Path("stdout")
        self._temporary = temporary_name(self._path)
        matrix = target.source.display_matrix
        self._turn = matrix if matrix is not None and quarter_turn(matrix) else None
        if target.maps and not self._keeps_maps:
            self.notes.append(
                "maps are written in gray with 8 bits, in steps of 1/255, less what the encoder changes: a directory of"
                " PNG or TIFF pictures keeps 16 bits"
            )

    def write(self, picture: npt.NDArray[Any], frame: Frame) -> None:
        """Write a processed picture (uint8 [H, W, 3] RGB), or a map (float32 [H, W]), with its source frame's timing.

        Which of them is said at the opening. Values of maps are clipped to 0 to 1, NaN is 0. `picture` may be reused as
        soon as this returns. Raises OutputError if it cannot be written.
        """
        size, maps = (self._target.height, self._target.width), self._target.maps
        shape, kind = (size, np.dtype(np.float32)) if maps else ((*size, 3), np.dtype(np.uint8))
        if picture.shape != shape or picture.dtype != kind:
            what = "map" if maps else "picture"
            raise ValueError(
                f"a {what} of this writer is {kind} {list(shape)}, got {picture.dtype} {list(picture.shape)}"
            )
        if maps and not self._keeps_maps:
            picture = np.repeat(levels(picture, np.uint8)[..., None], 3, axis=2)
        self._write(picture if self._turn is None else upright(picture, self._turn), frame)

    @abstractmethod
    def _write(self, picture: Any, frame: Frame) -> None: ...

    def copy(self, packet: av.Packet[Any]) -> None:  # noqa: B027  only videos hold other streams
        """Write another stream's packet, unchanged; those the target cannot hold are dropped."""

    @abstractmethod
    def commit(self) -> None:
        """Finish, and give the result its final name. Raises OutputError."""

    @property
    def temporary(self) -> Path:
        """Where the result is until `commit`."""
        return self._temporary

    def close(self) -> None:
        """Remove what was not committed. May be called twice."""
        with suppress(OSError):
            self._temporary.unlink()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create(self) -> None:
        """Create the temporary file. Raises OutputError, such as where the directory cannot be written."""
        try:
            self._temporary.touch(exist_ok=False)
        except OSError as error:
            raise write_failed(self._path, error) from None

    def _publish(self) -> None:
        """Put the whole file in its place. Raises OutputError."""
        try:
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            if self._path.exists() and not self._target.overwrite:
                raise OutputError(f"{self._path} has appeared meanwhile and is not replaced: choose another name")
            self._temporary.replace(self._path)
        except OSError as error:
            raise write_failed(self._path, error) from None


def levels(values: npt.NDArray[Any], kind: type[np.uint8 | np.uint16]) -> npt.NDArray[Any]:
    """The whole numbers nearest to a map's values, of which 1 is the largest of `kind`."""
    largest = np.iinfo(kind).max
    rounded: npt.NDArray[Any] = np.rint(np.nan_to_num(values.astype(np.float64)).clip(0, 1) * largest).astype(kind)
    return rounded


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
