"""`mtu-eval`: parses, calls `mtu.calib.evaluate`, prints. Imports a backend and scikit-image inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from mtu.calib.datasets import Layout
from mtu.calib.picture_sets import PictureLayout
from mtu.core.extras import require_for
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.console.options import INPUT, OUTPUT, BackendOption, DeviceOption, ModelOption, VersionOption

PROGRAM = "mtu-eval"
AnyLayout = Literal[Layout, PictureLayout]
app = new_app()


@app.command()
def evaluate(
    root: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The data set: the folder that was unpacked, or the one that holds it."),
    ],
    layout: Annotated[AnyLayout, typer.Option(metavar="NAME", help="Which data set it is.", rich_help_panel=INPUT)],
    model: ModelOption = None,
    align: Annotated[
        bool, typer.Option("--align", help="Align each frame to the truth by a translation before it is measured.")
    ] = False,
    backend: BackendOption = "auto",
    device: DeviceOption = "auto",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for results.csv, results.json and results.md; one that was begun is gone on with.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    version: VersionOption = False,
) -> None:
    """Measures a model on the test part of a data set as its paper does: PSNR and SSIM, the blurred input beside."""
    require_for(PROGRAM)
    from mtu.calib.evaluate import evaluate as run

    evaluation = run(
        layout,
        root,
        model,
        aligned=align,
        backend=backend,
        device=device,
        output=output,
        say=lambda text: say(PROGRAM, text),
    )
    print(evaluation.markdown(), end="")


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
