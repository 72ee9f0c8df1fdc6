"""`mtu-train`: parses, calls `mtu.training.start.train`, prints. Imports torch inside the command."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.core.extras import require_for
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.console.options import OUTPUT, VersionOption
from mtu.training.options import TRAININGS, ImageLoss, Optimiser, Options, Precision, Schedule, new_options, training_of

PROGRAM = "mtu-train"
DEFAULTS = Options()
WORKERS = (0, 1, 2, 2, 4, 4, 4, 4, 8)[min(8, (os.cpu_count() or 1) - 1)]
"""By the cores but one: as many as make no clip twice (`mtu.training.batches.SHARDS`)."""
NETWORK, LOSS, MACHINE = "Network and schedule", "Data and losses", "Machine"
app = new_app()


@app.command()
def main_command(
    context: typer.Context,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="RUN", help="Folder of the run.", rich_help_panel=OUTPUT)
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help=" ".join(f"For {name}: {', '.join(each.data.values())}." for name, each in TRAININGS.items())
            + " May be repeated; *N behind one is its weight.",
            show_default=DEFAULTS.data[0],
            rich_help_panel=LOSS,
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help=f"One of {', '.join(name for each in TRAININGS.values() for name in each.presets)}.",
            rich_help_panel=NETWORK,
        ),
    ] = DEFAULTS.preset,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run; options not given stay as they were.")
    ] = False,
    start_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Checkpoint whose weights to begin with.")
    ] = None,
    revive: Annotated[
        bool, typer.Option("--revive", help="Give channels of --start-from that are never on new kernels.")
    ] = False,
    max_steps: Annotated[
        int, typer.Option(help="Frame steps of the run.", rich_help_panel=NETWORK)
    ] = DEFAULTS.max_steps,
    batch: Annotated[
        int, typer.Option(help="Crops in a batch, on each device.", rich_help_panel=LOSS)
    ] = DEFAULTS.batch,
    crop: Annotated[int, typer.Option(help="Side of the crops in pixels.", rich_help_panel=LOSS)] = DEFAULTS.crop,
    frames: Annotated[int, typer.Option(help="Frames of a sequence.", rich_help_panel=LOSS)] = DEFAULTS.frames,
    rate: Annotated[float, typer.Option(help="Learning rate.", rich_help_panel=NETWORK)] = DEFAULTS.rate,
    schedule: Annotated[
        Schedule,
        typer.Option(help="steps: a quarter of the rate at 77 % and 96 % of the run.", rich_help_panel=NETWORK),
    ] = DEFAULTS.schedule,
    optimiser: Annotated[
        Optimiser, typer.Option(help="adam as published; muon for short runs.", rich_help_panel=NETWORK)
    ] = DEFAULTS.optimiser,
    image_loss: Annotated[
        ImageLoss, typer.Option(help="l1+mse as published; psnr for short runs.", rich_help_panel=LOSS)
    ] = DEFAULTS.image_loss,
    motion_weight: Annotated[
        float, typer.Option(help="Weight of the motion loss; 0: none.", rich_help_panel=LOSS)
    ] = DEFAULTS.motion_weight,
    unroll: Annotated[
        int, typer.Option(help="Frames that a step reaches back through.", rich_help_panel=NETWORK)
    ] = DEFAULTS.unroll,
    centre: Annotated[
        bool,
        typer.Option(
            "--centre/--no-centre", help="Keep kernels centred; not for foreign weights.", rich_help_panel=NETWORK
        ),
    ] = DEFAULTS.centre,
    average: Annotated[
        float, typer.Option(help="Decay of the moving average of the weights.", rich_help_panel=NETWORK)
    ] = DEFAULTS.average,
    precision: Annotated[
        Precision, typer.Option(help="Of the convolutions.", rich_help_panel=MACHINE)
    ] = DEFAULTS.precision,
    seed: Annotated[
        int, typer.Option(help="Of the first weights and the batches.", rich_help_panel=LOSS)
    ] = DEFAULTS.seed,
    validate_every: Annotated[
        int, typer.Option(help="Steps between validations; each saves.", rich_help_panel=NETWORK)
    ] = DEFAULTS.validate_every,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.", rich_help_panel=MACHINE)
    ] = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Processes on each machine.", rich_help_panel=MACHINE)] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.", rich_help_panel=MACHINE)] = 1,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that prepare batches.", rich_help_panel=MACHINE)
    ] = WORKERS,
    version: VersionOption = False,
) -> None:
    """Trains a network on made clips or on a data set: writes RUN/weights.safetensors, for mtu-export, and a log.

    The defaults are those of mtu2; docs/training.md has those of other networks.

    Ctrl-C saves and ends; --resume goes on. Watch it with: tensorboard --logdir RUN
    """
    if not output:
        raise InvalidInputError("the folder of the run has no name: -o '' is given (an unset variable?)")
    values = context.params
    names = [field.name for field in dataclasses.fields(Options)]
    given = {n: values[n] for n in names if getattr(context.get_parameter_source(n), "name", "") != "DEFAULT"}
    if data is not None:
        given["data"] = tuple(data)
    if not resume:  # else they are changes to those of the run
        new_options(given)
    require_for(PROGRAM)
    from mtu.training.run_folder import WEIGHTS
    from mtu.training.start import Machine, train

    outcome = train(
        Path(output),
        given,
        Machine(device, devices, nodes, workers),
        resume=resume,
        start_from=start_from,
        revive=revive,
        say=lambda text: say(PROGRAM, text),
    )
    if outcome.signal is not None:
        raise typer.Exit(128 + outcome.signal)
    if outcome.speaks:
        samples = f"{training_of(outcome.preset).sample[0]}s"
        print(
            f"{Path(output) / WEIGHTS}: {outcome.best:+.2f} dB on the validation {samples} after {outcome.step} steps"
        )


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
