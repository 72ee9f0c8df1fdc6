"""Draws comparisons of models over time: `python -m mtu.benchmarks.accuracy_curves REPORT... -o curves.png`.

Reads the JSON files that mtu-compare writes. Imports matplotlib.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.core.extras import require
from mtu.runtime.console import new_app, run_app

PROGRAM = "mtu.benchmarks.accuracy_curves"
app = new_app()


@app.command()
def main_command(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT...", help="Files that mtu-compare --json wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG or SVG to write.")],
) -> None:
    """Draws the PSNR of every frame and the displacements that agree, a curve for each report and mode."""
    require("dev", PROGRAM, "matplotlib")
    from matplotlib.figure import Figure

    if output.suffix not in (".png", ".svg"):
        raise InvalidInputError(f"-o {output}: give a name that ends in .png or .svg")
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    pictures, displacements = figure.subplots(1, 2)
    for path in reports:
        for mode, (psnr, shares) in _read(path).items():
            style = {"label": f"{path.stem}, {mode}", "linewidth": 1.0, "linestyle": "-" if mode == "rollout" else ":"}
            pictures.plot(psnr, **style)
            displacements.plot(shares, **style)
    for axes, title in ((pictures, "PSNR of B against A (dB)"), (displacements, "equal or tied displacements (%)")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("frame")
        axes.grid(alpha=0.3)
    figure.legend(*pictures.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(output, dpi=100)
    print(output)


def _read(path: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Of each mode, frame by frame, the PSNR (NaN where the pictures are equal) and the percentage that agrees."""
    try:
        modes = json.loads(path.read_text(encoding="utf-8"))["modes"]
        return {
            mode: (
                [math.nan if frame["psnr"] is None else float(frame["psnr"]) for frame in run["frames"]],
                [100 * float(d["equal"] + d["ties"]) for frame in run["frames"] if (d := frame["displacement"])],
            )
            for mode, run in modes.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InvalidInputError(f"{path} is no report of mtu-compare --json") from None


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
