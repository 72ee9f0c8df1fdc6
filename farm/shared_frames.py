"""Memory that a client and a server on one machine both see, so that frames do not go through the connection.

Linux only (/dev/shm). Imports numpy; `tritonclient` is handed in.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FOLDER = Path("/dev/shm")
_PREFIX = "mtu-frames-"


class SharedFrames:
    """As many slots as requests are under way; each has room for what a request sends and what its answer gives."""

    def __init__(self, client: Any, slots: int, sent: int, given: int) -> None:
        """`client` is one of `tritonclient.grpc`; `sent` and `given` are bytes. Raises OSError where there is no room,
        and what the client raises where the server does not see the memory. Close it."""
        self.name, self._client = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(6)}", client
        self._sent, self._slot = sent, sent + given
        self.given = given
        size = slots * self._slot
        if not _FOLDER.is_dir():
            raise OSError(f"there is no {_FOLDER} here")
        # Of a process that is killed, multiprocessing removes it.
        self._memory = SharedMemory(self.name, create=True, size=size)
        try:
            with (_FOLDER / self.name).open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # or a file system that is full would end the process
            _forget_dead(client)
            client.register_system_shared_memory(self.name, f"/{self.name}", size)
        except BaseException:
            self._remove()
            raise

    def place(self, slot: int) -> tuple[int, int]:
        """Offset of what a request sends, and of what its answer gives."""
        return slot * self._slot, slot * self._slot + self._sent

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """What is there, to be read or written; not kept until `close`."""
        return np.ndarray(shape, dtype, self._memory.buf, offset)

    def close(self) -> None:
        """Takes it from the server, and removes it. May be called twice."""
        if self._memory is not None:
            with contextlib.suppress(Exception):  # a server that has gone has none either
                self._client.unregister_system_shared_memory(self.name, client_timeout=5)
            self._remove()

    def _remove(self) -> None:
        memory, self._memory = self._memory, None  # type: ignore[assignment]
        with contextlib.suppress(BufferError):
            memory.close()
        memory.unlink()


def _forget_dead(client: Any) -> None:
    """Takes from the server what clients have left there that were killed: their memory has no name any more."""
    for name in client.get_system_shared_memory_status().regions:
        if name.startswith(_PREFIX) and not (_FOLDER / name).exists():
            with contextlib.suppress(Exception):  # another client did
                client.unregister_system_shared_memory(name)
