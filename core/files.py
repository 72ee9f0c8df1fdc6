"""Files and directories that get their name only when they are whole. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from mtu.core.errors import InvalidInputError, MissingFileError, OutputError

_ENDS, _SAMPLES, _SAMPLE = 1 << 20, 16, 1 << 16


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file in one step: all of it is there, or what was there before. Raises OSError."""
    temporary = path.absolute().parent / f".{path.name[:40]}.{secrets.token_hex(4)}.part"
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def hidden_beside(path: Path, ending: str) -> Path:
    """A hidden name beside `path` for what belongs to it; shortened where a file system would not take it."""
    name = f".{path.name}.{ending}"
    if len(os.fsencode(name)) > 255:
        name = f".{path.name[:40]}.{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.{ending}"
    return path.absolute().parent / name


def check_target(directory: Path, kind: str, files: Collection[str], overwrite: bool) -> None:
    """Raises OutputError unless `directory` may be written: it is not there, is empty, or `overwrite` is given and it
    holds nothing but `files`. `kind` says what it is to become: "a bundle"."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise OutputError(f"{directory} is a file; {kind} is a directory: choose another name")
    content = {path.name for path in directory.iterdir()}
    if content and not overwrite:
        raise OutputError(f"{directory} exists already: choose another name or add --overwrite")
    if foreign := content.difference(files):
        raise OutputError(
            f"{directory} holds {sorted(foreign)[0]}, which is no part of {kind}, and is not overwritten:"
            " choose another name"
        )


@contextlib.contextmanager
def temporary_beside(directory: Path) -> Iterator[Path]:
    """A directory beside `directory`, gone afterwards unless it was renamed. Raises OutputError."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name[:40]}.", suffix=".part", dir=directory.parent))
    except OSError as error:
        raise OutputError(f"cannot write beside {directory}: {error.strerror}") from None
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_through(path: Path, content: bytes) -> None:
    """Writes a file of a directory that is to be published, and waits for the disk. Raises OutputError."""
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot write {path.name}: {error.strerror}") from None


def publish(temporary: Path, directory: Path, overwrite: bool) -> None:
    """Gives a whole directory its name. What stood there goes first, and only with `overwrite`. Raises OutputError."""
    temporary.chmod(0o755)
    old = temporary.with_suffix(".old")
    try:
        for _ in range(10):
            if overwrite and directory.exists():
                with contextlib.suppress(FileNotFoundError):  # another process took it away
                    directory.rename(old)
                shutil.rmtree(old, ignore_errors=True)
            try:
                temporary.rename(directory)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if not overwrite:
                break
    except OSError as error:
        raise OutputError(f"cannot write {directory}: {error.strerror}") from None
    raise OutputError(
        f"{directory} has appeared meanwhile, written by another process, and is not replaced: use that one"
    )


def fingerprint(source: str) -> str:
    """What tells a source from another or a changed one, without reading all of it: sha256, hexadecimal, of the size,
    both ends and 16 samples between them of a file, or of the names, sizes and times of change (whole seconds) in a
    directory, where pictures that differ may well be of one size. Raises MissingFileError, InvalidInputError."""
    path = Path(source)
    try:
        if path.is_dir():
            entries = ((entry.name, entry.stat()) for entry in os.scandir(path) if entry.is_file())
            listed = sorted((name, stat.st_size, int(stat.st_mtime)) for name, stat in entries)
            return hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(str(size).encode())
            for place in (0, max(0, size - _ENDS)):
                file.seek(place)
                digest.update(file.read(_ENDS))
            between = max(0, size - 2 * _ENDS)
            for number in range(_SAMPLES if between else 0):
                file.seek(_ENDS + between * number // _SAMPLES)
                digest.update(file.read(min(_SAMPLE, between)))
    except FileNotFoundError:
        raise MissingFileError(f"{source} does not exist") from None
    except OSError as error:
        raise InvalidInputError(f"{source} cannot be read ({error.strerror})") from None
    return digest.hexdigest()
