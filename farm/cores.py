"""Several workers on one machine: each takes a share of the processor. Standard library only."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import IO


def share_cores(count: int) -> IO[str] | None:
    """Confines this process to one of `count` equal parts of the cores that it may use, the first that no other process
    holds; returns what holds it, None where there is nothing to share, or the system (not Linux) does not say.

    Libraries that start after this use as many threads as there are cores in it.
    """
    if count < 2 or not hasattr(os, "sched_setaffinity"):
        return None
    import fcntl

    cores = sorted(os.sched_getaffinity(0))
    for part in range(count):
        file = (Path(tempfile.gettempdir()) / f"mtu-farm-{os.getuid()}-{part}-of-{count}").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        mine = set(cores[part * len(cores) // count : (part + 1) * len(cores) // count]) or set(cores)
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), mine)
        return file
    return None
