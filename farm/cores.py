"""Several workers on one machine: each takes a share of the processor. Standard library only."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def share_cores(count: int) -> socket.socket | None:
    """Confines this process to one of `count` equal parts of the cores that it may use, the first that no other process
    holds; returns what holds it, None where there is nothing to share, or the system (not Linux) does not say.

    Libraries that start after this use as many threads as there are cores in it.
    """
    if count < 2 or not hasattr(os, "sched_setaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    for part in range(count):
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0mtu-farm-{os.getuid()}-{part}-of-{count}")  # a name in no directory, free when it ends
        except OSError:
            holder.close()
            continue
        mine = set(cores[part * len(cores) // count : (part + 1) * len(cores) // count]) or set(cores)
        for thread in Path("/proc/self/task").iterdir():
            os.sched_setaffinity(int(thread.name), mine)
        return holder
    return None
