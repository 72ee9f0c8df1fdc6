"""One run at a time may fill a store of scenes. Standard library.

Writes a lock into the directory, and removes what a killed run has left there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import IO

from mtu.core.errors import OutputError


class Hold:
    """A store that no other run may use while this one lives; what a killed one has left half written goes.

    A context manager. Several processes that fill a store together do not hold it, who leads them does.
    """

    def __init__(self, directory: Path) -> None:
        """Makes the directory. Raises OutputError if it cannot be written, or another run has it."""
        self._directory, self._path = directory, directory / "lock"
        try:
            directory.mkdir(exist_ok=True)
            self._file = self._locked()
            self._clear()
        except OutputError:
            raise
        except FileNotFoundError:
            raise OutputError(f"the directory {directory.parent} does not exist: create it first") from None
        except OSError as error:
            raise OutputError(f"{directory} cannot be written ({error.strerror})") from None

    def _locked(self) -> IO[bytes]:
        file = self._path.open("a+b")
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = self._is_ours(file)
            except BlockingIOError:
                free = False
            except OSError:
                free = True  # a file system without locks
            if not free:
                file.close()
                raise OutputError(
                    f"another run is writing {self._directory}: wait for its end, or give this one another output"
                )
        return file

    def _is_ours(self, file: IO[bytes]) -> bool:
        """Whether it is still there: the run that had it may have removed it."""
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        return False

    def _clear(self) -> None:
        self._file.seek(0)
        name = Path(os.fsdecode(self._file.read())).name
        if name.startswith(".") and ".part" in name:
            left = self._directory.parent / name
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
        for path in self._directory.glob("*.part"):
            path.unlink(missing_ok=True)

    def remember(self, temporary: Path) -> None:
        """What lies beside the store until it is whole, for the next run to remove if this one is killed."""
        with contextlib.suppress(OSError):
            self._file.truncate(0)
            self._file.write(os.fsencode(temporary.name))
            self._file.flush()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            if self._is_ours(self._file):
                self._path.unlink()
                self._directory.rmdir()  # if nothing is in it
        self._file.close()
