"""Measures a bundle on made clips that no training saw: `python -m mtu.benchmarks.weights [BUNDLE]`. Imports torch.

The clips are drawn from the photographs and seeds that training holds out (`mtu.calib.clips`, split "validation"), from
seeds that have chosen no checkpoint either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer

from mtu.calib.quality import Quality, mean, measure_clip
from mtu.runtime.bundle import BUNDLED
from mtu.runtime.console import new_app, require, run_app

PROGRAM = "mtu.benchmarks.weights"
FIRST_SEED = 1000
FRAMES = 11
app = new_app()


@app.command()
def main_command(
    model: Annotated[
        Path | None, typer.Argument(metavar="[BUNDLE]", help="Directory made by mtu-export onnx.", show_default=BUNDLED)
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips to measure.")] = 16,
    size: Annotated[int, typer.Option(min=32, help="Width and height of a clip in pixels.")] = 192,
) -> None:
    """Prints PSNR and SSIM of each clip before and after, and what becomes of frames that are sharp already."""
    require("train", PROGRAM, "torch", "skimage")
    from mtu.calib.clips import make_clip
    from mtu.runtime import deblur

    print("| seed | blurred dB | restored dB | gain dB | blurred SSIM | restored SSIM | sharp input to itself dB |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for seed in range(FIRST_SEED, FIRST_SEED + clips):
        clip = make_clip(seed, FRAMES, size, size, split="validation")
        blurred, sharp = list(clip.blurred), list(clip.sharp)
        before = mean(measure_clip(blurred, sharp))
        after = mean(measure_clip(list(deblur(blurred, model=model, scene_threshold=None)), sharp))
        kept = mean(measure_clip(list(deblur(sharp, model=model, scene_threshold=None)), sharp))
        rows.append((before, after, kept))
        _print_row(str(seed), before, after, kept)
    _print_row("mean", *(mean(column) for column in zip(*rows, strict=True)))
    gains = [after.psnr - before.psnr for before, after, _ in rows]
    print(
        f"\n{clips} clips of {FRAMES} frames, {size}x{size}: gain {np.mean(gains):+.2f} dB, worst {min(gains):+.2f} dB"
    )


def _print_row(name: str, before: Quality, after: Quality, kept: Quality) -> None:
    gain = after.psnr - before.psnr
    print(
        f"| {name} | {before.psnr:.2f} | {after.psnr:.2f} | {gain:+.2f} | {before.ssim:.4f} | {after.ssim:.4f}"
        f" | {kept.psnr:.2f} |",
        flush=True,
    )


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
