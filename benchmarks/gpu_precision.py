"""Fp16 against fp32 on a clip. Imports numpy; torch and av inside the functions that need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.benchmarks.gpu_report import GpuReport, Skip

CLIP = Path(__file__).resolve().parent.parent / "calib" / "demo" / "blurred.mp4"


def read_clip(path: Path) -> list[NDArray[np.uint8]]:
    """The frames of a video, or of an array [T, H, W, 3] of uint8 in a .npy file, which needs no av."""
    if path.suffix == ".npy":
        return list(np.load(path))
    if not path.exists():
        raise Skip(f"{path} is not there: give a clip with --clip")
    from mtu.runtime import read_frames

    return list(read_frames(path))


def decibels(error: float) -> float:
    """PSNR of pictures whose mean square error this is; 999 if they are equal."""
    return float(10 * np.log10(255**2 / error)) if error else 999.0


def compare_backends(report: GpuReport, name: str, frames: Sequence[NDArray[np.uint8]], half: Any, full: Any) -> None:
    """PSNR of the pictures and share of equal displacements of two backends on the same frames."""
    from mtu.runtime import restore

    squares, equal = [], []
    pairs = zip(*(restore(frames, backend, scene_threshold=None) for backend in (half, full)), strict=True)
    for one, other in pairs:
        squares.append(np.square(one.rgb.astype(np.float64) - other.rgb).mean())
        equal.append(np.mean(one.displacement == other.displacement))
    report.value(f"{name}, PSNR in dB", "fp16 PSNR", decibels(float(np.mean(squares))))
    report.value(f"{name}, equal displacements in %", "fp16 equal displacements", 100 * float(np.mean(equal)))


def compare_torch(report: GpuReport, *, device: str = "cuda", clip: Path = CLIP, limit: int | None = None) -> None:
    """The bundled mtu2 in torch, fp16 against fp32 (without TF32), on the first `limit` frames of `clip`."""
    import torch

    frames = read_clip(clip)[:limit]
    from mtu.export.precision import in_fp16
    from mtu.runtime.backends.torch_backend import open_network, read_checkpoint
    from mtu.runtime.bundle import open_bundle

    torch.backends.cudnn.allow_tf32 = False
    bundle = open_bundle()
    checkpoint = read_checkpoint(bundle)
    half, full = (
        open_network(checkpoint, interface, device) for interface in (in_fp16(bundle.interface), bundle.interface)
    )
    compare_backends(report, f"torch: fp16 against fp32 on {clip.name}", frames, half, full)
