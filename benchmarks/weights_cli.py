"""`python -m mtu.benchmarks.weights_cli [MODEL...]`: measures weights on made clips that no training saw, and prints.

The clips are drawn from the photographs and seeds that training holds out (`mtu.training.data.clips`, split
"validation"), from seeds that have chosen no checkpoint either.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, median
from typing import Annotated, NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.core.extras import require
from mtu.models.mtu.config import SIZE_MULTIPLE
from mtu.runtime.bundle import BUNDLED, open_bundle
from mtu.runtime.console import new_app, run_app

PROGRAM = "mtu.benchmarks.weights_cli"
FIRST_SEED, FRAMES = 1000, 11
WORST = -0.05
"""dB below which a clip counts as worse than its input."""
app = new_app()


@app.command()
def weights(
    models: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[MODEL]...", help="Bundles (directories) or checkpoints (files).", show_default=BUNDLED
        ),
    ] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips to measure.")] = 16,
    size: Annotated[int, typer.Option(min=32, help="Width and height of a clip in pixels, a multiple of 4.")] = 192,
    by_blur: Annotated[bool, typer.Option("--by-blur", help="The gain by kind and length of blur instead.")] = False,
) -> None:
    """Prints for each clip PSNR, SSIM, how well motion is found, and what becomes of frames that are sharp already."""
    if size % SIZE_MULTIPLE:
        raise InvalidInputError(f"--size is {size}: it must be a multiple of {SIZE_MULTIPLE}")
    require("train", PROGRAM, "torch", "skimage", "onnx")
    from mtu.benchmarks.weights import HEADER, load, measure, table_row
    from mtu.training.data.clips import make_clip

    seeds = range(FIRST_SEED, FIRST_SEED + clips)
    if by_blur:
        from mtu.benchmarks.blurs import table

        for model in models or [open_bundle().directory]:
            network = load(model)
            print(f"\n{model.name}, gain in dB, mean of {clips} clips each, {size}x{size}:\n")
            for line in table(network, seeds, size):
                print(line, flush=True)
        return
    made = [make_clip(seed, FRAMES, size, size, split="validation") for seed in seeds]
    for model in models or [open_bundle().directory]:
        network = load(model)
        print(f"\n{model.name}, {clips} clips of {FRAMES} frames, {size}x{size}:\n")
        print(HEADER)
        rows = []
        for seed, clip in zip(seeds, made, strict=True):
            rows.append(measure(network, clip))
            print(table_row(str(seed), rows[-1:]), flush=True)
        print(table_row("mean", rows))
        gains, kept = [row.gain for row in rows], [row.kept for row in rows]
        print(
            f"\ngain {fmean(gains):+.2f} dB, median {median(gains):+.2f}, worst {min(gains):+.2f},"
            f" {sum(gain < WORST for gain in gains)} clips below {WORST};"
            f" sharp input kept to {min(kept):.1f} dB at worst"
        )


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
