"""Draws the validation curves of training runs: `python -m mtu.benchmarks.training_curves RUN... -o curves.png`.

Reads the TensorBoard logs that mtu-train writes. Imports tensorboard and matplotlib.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.core.extras import require
from mtu.runtime.console import new_app, run_app

PROGRAM = "mtu.benchmarks.training_curves"
CURVES = {
    "validation/gain_db": "gain, mean of the clips (dB)",
    "validation/worst_gain_db": "gain, worst clip (dB)",
    "validation/sharp_kept_db": "sharp frames to themselves, worst (dB)",
}
app = new_app()


@app.command()
def main_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that mtu-train wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG or SVG to write.")],
) -> None:
    """Draws gain, worst gain and how well sharp frames are kept, over the steps."""
    require("dev", PROGRAM, "tensorboard", "matplotlib")
    from matplotlib.figure import Figure
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    for axes, (tag, title) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for run in runs:
            events = EventAccumulator(str(run / "logs")).Reload()
            if tag not in events.Tags()["scalars"]:
                raise InvalidInputError(
                    f"{run} has no log of mtu-train with {tag}: name the folder given to mtu-train -o"
                )
            points = events.Scalars(tag)
            axes.plot([point.step for point in points], [point.value for point in points], label=run.name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("frame steps")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(output, dpi=100)
    print(output)


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
