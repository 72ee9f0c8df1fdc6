"""Where a training step's time goes. Imports torch.

One frame step as mtu-train takes it, on random pictures, under torch's profiler: the convolutions are what cannot be
spared, and everything else is held against them.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Literal

import torch
from torch.profiler import ProfilerActivity, profile

from mtu.models.mtu.config import LOOK_AHEAD, SIZE_MULTIPLE
from mtu.training.batches import Batch
from mtu.training.options import Options, Say
from mtu.training.run import Run
from mtu.training.start import Machine, new_fabric

PARTS = {
    "convolutions": ("conv",),
    "matching and motion loss": ("bmm", "max", "pool", "log_softmax", "nll", "gather", "scatter"),
    "optimiser, clipping, average": ("_foreach", "_fused_adam", "vector_norm"),
}
"""Words in the names of torch's operators, by what they are for here. What has none of them is "the rest"."""


def time_step(options: Options, device: Literal["cpu", "cuda"], *, say: Say) -> tuple[float, dict[str, float]]:
    """Seconds of a frame step, and by part the time that its operators took, in one unit.

    A batch of `options.frames` frames is trained on once to warm up, once for the time and once for the parts.
    """
    frames, crop = options.frames, options.crop
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(256, (frames + 2 * LOOK_AHEAD, options.batch, 3, crop, crop), generator=generator).byte()
    side = crop // SIZE_MULTIPLE
    target = torch.randint(441, (frames, options.batch, side, side), generator=generator).short()
    sequence = Batch(pictures, pictures[LOOK_AHEAD:-LOOK_AHEAD], target)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), options, new_fabric(Machine(device), Path(folder)), say=say)
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
    return plain, times
