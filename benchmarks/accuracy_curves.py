"""Draws comparisons of models over time: `python -m mtu.benchmarks.accuracy_curves REPORT... -o curves.png`.

Reads the JSON files that mtu-compare writes. Imports matplotlib.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mtu.models.errors import InvalidInputError
from mtu.runtime.console import new_app, require, run_app

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

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    pictures, displacements = figure.subplots(1, 2)
    for path in reports:
        for mode, frames in _read(path).items():
            places = [frame["frame"] for frame in frames]
            style = {"label": f"{path.stem}, {mode}", "linewidth": 1.0, "linestyle": "-" if mode == "rollout" else ":"}
            pictures.plot(places, [frame["psnr"] for frame in frames], **style)
            shares = [100 * (d["equal"] + d["ties"]) for frame in frames if (d := frame["displacement"])]
            displacements.plot(places[: len(shares)], shares, **style)
    for axes, title in ((pictures, "PSNR of B against A (dB)"), (displacements, "equal or tied displacements (%)")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("frame")
        axes.grid(alpha=0.3)
    figure.legend(*pictures.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(output, dpi=100)
    print(output)


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The frames of each mode."""
    try:
        modes = json.loads(path.read_text(encoding="utf-8"))["modes"]
        return {mode: run["frames"] for mode, run in modes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InvalidInputError(f"{path} is no report of mtu-compare --json") from None


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
