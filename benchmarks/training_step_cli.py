"""`python -m mtu.benchmarks.training_step_cli [--device cuda]`: parses, calls `training_step`, prints."""

from __future__ import annotations

from typing import Annotated, Literal, NoReturn

import typer

from mtu.core.extras import require
from mtu.runtime.console import new_app, run_app
from mtu.training.options import Options, Precision

PROGRAM = "mtu.benchmarks.training_step_cli"
app = new_app()


@app.command()
def training_step(
    preset: Annotated[str, typer.Option(help="Network.")] = "mtu2",
    crop: Annotated[int, typer.Option(help="Side of the crops.")] = 256,
    batch: Annotated[int, typer.Option(help="Crops.")] = 8,
    precision: Annotated[Precision, typer.Option(help="Of the convolutions.")] = "fp32",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where.")] = "cpu",
    frames: Annotated[int, typer.Option(min=3, help="Frame steps measured, after as many to warm up.")] = 4,
) -> None:
    """Prints the time of a training step and its shares."""
    require("train", PROGRAM, "torch", "lightning_fabric", "tensorboard")
    import torch

    from mtu.benchmarks.training_step import time_step

    options = Options(preset=preset, crop=crop, batch=batch, precision=precision, frames=frames)
    step, times = time_step(options, device, say=print)
    total = sum(times.values())
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{preset}, {batch} crops of {crop}x{crop}, {precision}, {where}, torch {torch.__version__}")
    print(f"one step: {step * 1e3:.1f} ms, {total / times['convolutions']:.2f} times its convolutions")
    for name, value in times.items():
        print(f"  {name:30} {value / total:6.1%}")


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
