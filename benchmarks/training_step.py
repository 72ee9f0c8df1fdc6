"""Where a training step's time goes: `python -m mtu.benchmarks.training_step [--device cuda]`. Imports torch.

One frame step as mtu-train takes it, on random pictures, under torch's profiler: the convolutions are what cannot be
spared, and everything else is held against them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from mtu.core.extras import require
from mtu.core.interface import LOOK_AHEAD, SIZE_MULTIPLE
from mtu.runtime.console import new_app, run_app
from mtu.training.options import Options, Precision

PROGRAM = "mtu.benchmarks.training_step"
PARTS = {
    "convolutions": ("conv",),
    "matching and motion loss": ("bmm", "max", "pool", "log_softmax", "nll", "gather", "scatter"),
    "optimiser, clipping, average": ("_foreach", "_fused_adam", "vector_norm"),
}
"""Words in the names of torch's operators, by what they are for here. What has none of them is "the rest"."""

app = new_app()


@app.command()
def main_command(
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
    from torch.profiler import ProfilerActivity, profile

    from mtu.training.batches import Batch
    from mtu.training.run import Machine, Run, new_fabric

    options = Options(preset=preset, crop=crop, batch=batch, precision=precision, frames=frames)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (frames + 2 * LOOK_AHEAD, batch, 3, crop, crop), generator=generator).byte()
    side = crop // SIZE_MULTIPLE
    target = torch.randint(441, (frames, batch, side, side), generator=generator).short()
    sequence = Batch(pictures, pictures[LOOK_AHEAD:-LOOK_AHEAD], target)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), options, new_fabric(Machine(device), Path(folder)), say=print)
        run.train_batch(sequence)
        begun = time.perf_counter()
        run.train_batch(sequence)  # ends with the losses on the host
        plain = (time.perf_counter() - begun) / frames
        with profile(activities=kinds) as profiler:
            run.train_batch(sequence)
        run.fabric.logger.finalize("success")
    times = dict.fromkeys((*PARTS, "the rest"), 0.0)
    for event in profiler.key_averages():
        if device == "cuda" and not event.key.startswith("aten::"):
            continue  # kernels are listed once more by their own names
        part = next((name for name, words in PARTS.items() if any(word in event.key for word in words)), "the rest")
        times[part] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    total, convolutions = sum(times.values()), times["convolutions"]
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{preset}, {batch} crops of {crop}x{crop}, {precision}, {where}, torch {torch.__version__}")
    print(f"one step: {plain * 1e3:.1f} ms, {total / convolutions:.2f} times its convolutions")
    for name, value in times.items():
        print(f"  {name:30} {value / total:6.1%}")


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
