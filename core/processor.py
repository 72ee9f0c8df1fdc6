"""What the processor can do. Standard library only."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """ "avx2", "amx_bf16" and so on, as Linux names them, among other words; empty where the system does not say."""
    try:
        return frozenset(cpuinfo.read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return frozenset()
