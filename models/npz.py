"""Reads numpy's .npz, the format of TensorLayer's checkpoints, without pickle. Imports numpy; touches one file.

The file may be anybody's: headers are checked against the sizes that the archive gives before values are read, and the
archive's against the size of the file.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError

ENDING = ".npy"
"""Of every member of the archive; the name of the array is what stands before it."""
TIMES = 50
"""How many times its size a file may unpack to. Weights hardly shrink; what grows more is made to fill the memory."""
BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, NotImplementedError, ValueError)
"""What zipfile raises for an archive that is cut off or damaged."""


def is_npz(path: Path) -> bool:
    """Whether a file is numpy's, by the names of what is in it; by its own name if it is no whole archive."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except BROKEN:
        return is_zip and path.suffix.lower() == ".npz"
    if path.suffix.lower() == ".npz":
        return not any(name.endswith("data.pkl") for name in names)  # torch.save to a file of this name
    return bool(names) and all(name.endswith(ENDING) for name in names)


def read_npz(path: Path) -> dict[str, NDArray[np.floating[Any]]]:
    """The arrays of a file by name, as float16, float32 or float64 in this machine's byte order.

    Raises InvalidInputError if the file cannot be read, holds anything but such arrays, holds a name twice, or unpacks
    to far more than its size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check_members(path, members)
            return {each.filename.removesuffix(ENDING): _array(path, archive, each) for each in members}
    except InvalidInputError:  # a ValueError too
        raise
    except BROKEN as error:
        raise InvalidInputError(f"checkpoint {path} cannot be read as .npz ({error}): get it again") from None


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [each.filename for each in members]
    if others := [name for name in names if not name.endswith(ENDING)]:
        raise InvalidInputError(f"checkpoint {path} holds {others[0]!r}, which is no array; an .npz has arrays alone")
    if any(
        each.flag_bits & 1 or each.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for each in members
    ):
        raise InvalidInputError(
            f"checkpoint {path} is encrypted or compressed as numpy never does: unpack and save again"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidInputError(f"checkpoint {path} holds {twice.removesuffix(ENDING)} twice: remove one")
    size, unpacked = path.stat().st_size, sum(each.file_size for each in members)
    if unpacked > TIMES * size:
        raise InvalidInputError(
            f"checkpoint {path} has {size} bytes and would unpack to {unpacked}, more than {TIMES} times as many:"
            " no weights do; get it from its authors"
        )


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[np.floating[Any]]:
    what = f"checkpoint {path}: {member.filename.removesuffix(ENDING)}"
    with archive.open(member) as file:
        try:
            header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
            shape, by_columns, dtype = header(file)
        except Exception as error:  # numpy reads it as Python, and raises nearly anything
            raise InvalidInputError(
                f"{what} has no header of numpy's 1.0 or 2.0 ({error!s:.200}): get it again"
            ) from None
        if dtype.hasobject:
            raise InvalidInputError(
                f"{what} holds pickled objects; running code from a file is refused. Save the arrays alone:"
                " numpy.savez(FILE, **arrays)"
            )
        if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
            raise InvalidInputError(f"{what} has type {dtype}, should be floating-point")
        values = file.read()
    wanted = dtype.itemsize
    for side in shape:
        wanted *= side
    if min(shape, default=0) < 0 or len(values) != wanted:
        raise InvalidInputError(f"{what} is {dtype} {list(shape)} and has {len(values)} bytes, not {wanted}")
    found: NDArray[Any] = np.frombuffer(values, dtype).reshape(shape, order="F" if by_columns else "C")
    return np.array(found, dtype.newbyteorder("="), order="C")
