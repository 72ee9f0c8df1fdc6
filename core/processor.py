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


def bf16_units(cpuinfo: Path = CPUINFO) -> str:
    """What of this processor multiplies bf16: "AMX", "AVX512-BF16", or nothing, also where the system does not say."""
    flags = processor_flags(cpuinfo)
    return "AMX" if "amx_bf16" in flags else "AVX512-BF16" if "avx512_bf16" in flags else ""


def int8_units(cpuinfo: Path = CPUINFO) -> str:
    """What of this processor multiplies int8: "AMX", "VNNI" of 512 bits, or nothing, also where nothing is known."""
    flags = processor_flags(cpuinfo)
    return "AMX" if "amx_int8" in flags else "VNNI" if "avx512_vnni" in flags else ""
