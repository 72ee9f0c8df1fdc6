"""What TensorRT-RTX compiles for the GPU at hand, kept from run to run beside the engine cache.

The library is an argument. It looks itself whether what was kept is for this GPU, driver and version, and compiles it
again where it is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from mtu.core.cache import cache_directory, keep, read_kept


class RuntimeCache:
    """The runtime cache of one engine. To be used with the device current."""

    def __init__(self, config: Any, key: Sequence[str]) -> None:
        """`config` is an `IRuntimeConfig` of the engine, `key` all that the compiled kernels are for."""
        name = hashlib.sha256(chr(0).join(key).encode()).hexdigest()
        self._path = cache_directory() / "rtx" / f"{name}.cache"
        self.cache = config.create_runtime_cache()
        """The library's `IRuntimeCache`."""
        self._kept = read_kept(self._path)
        if self._kept is not None and not self.cache.deserialize(self._kept):
            self._kept = None

    def keep(self) -> None:
        """Writes what has been compiled since it was read; warns if that is impossible."""
        content = self.cache.serialize()
        if content is not None and bytes(content) != self._kept:
            self._kept = bytes(content)
            keep(self._path, self._kept, "what TensorRT-RTX compiled")
