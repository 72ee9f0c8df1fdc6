"""Options of `mtu-farm` that no other command has. Imports typer."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from mtu.runtime.console.options import OUTPUT
from mtu.runtime.scenes import WARM_UP

WORK = "Workers"

FilmsArgument = Annotated[list[str], typer.Argument(metavar="INPUT", help="Video files or directories of images.")]
FolderOption = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Directory in which each input has an output of its name.",
        rich_help_panel=OUTPUT,
    ),
]
UnitOption = Annotated[int, typer.Option("--unit", metavar="N", help="Frames that a unit has at least.", min=1)]
WorkersOption = Annotated[int, typer.Option("--workers", metavar="N", help="How many work.", rich_help_panel=WORK)]
GpusOption = Annotated[
    float,
    typer.Option("--gpus-per-worker", metavar="F", help="GPUs of each; a fraction shares.", rich_help_panel=WORK),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Of a Ray cluster that is there, as HOST:6379; else one is started here.",
        rich_help_panel=WORK,
    ),
]
SplitOption = Annotated[
    float | None,
    typer.Option("--split-long", metavar="SECONDS", help="Restore longer scenes in parts; changes pictures a little."),
]
WarmUpOption = Annotated[
    int | None,
    typer.Option("--warm-up", metavar="N", help=f"Frames restored before a part, and dropped. [default: {WARM_UP}]"),
]
JoinOption = Annotated[
    Literal["exact", "fast"],
    typer.Option(metavar="HOW", help="exact: one encode at the end; fast: each unit encoded by its worker."),
]
