"""What the tests of training share: a tiny network, small validation, a clip that slides. Nothing here is a test.

As a program it is `mtu-train` with the tiny network: `python -m tests.tiny_training -o RUN`. With MTU_WATCH=FILE each
of its processes writes a line for each batch to FILE and its rank: hashes of the batch and of the weights after it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtu.core.interface import NetworkConfig
from mtu.training import data, pulse, run
from mtu.training.batches import Batch
from mtu.training.data.clips import Clip

TINY = {"mtu1": NetworkConfig(1, 4, 1), "mtu2": NetworkConfig(2, 4, 1)}
SMALL = {"VALIDATION_CLIPS": 1, "VALIDATION_FRAMES": 3, "VALIDATION_SIZE": 16, "MARGIN": 8}
OPTIONS: dict[str, Any] = {"max_steps": 6, "crop": 16, "frames": 3, "batch": 2, "rate": 1e-2}
CPU = run.Machine("cpu")


def make_tiny(patch: pytest.MonkeyPatch) -> None:
    """The presets become tiny networks, and validation a matter of a moment; on a busy machine no line more is said."""
    patch.setattr(run, "preset_config", TINY.__getitem__)
    patch.setattr(pulse, "SILENCE", 3600.0)
    for name, value in SMALL.items():
        patch.setattr(data, name, value)


def sliding_clip(frames: int, height: int, width: int, step: tuple[int, int], seed: int = 0) -> Clip:
    """Noise that moves by whole pixels: sharp[t, y, x] is sharp[t - 1, y + step[0], x + step[1]]; blurred: negative."""
    (down, right), rng = step, np.random.default_rng(seed)
    world = rng.integers(0, 256, (height + frames * abs(down), width + frames * abs(right), 3), np.uint8)
    tops = [t * down + (frames * -down if down < 0 else 0) for t in range(frames)]
    lefts = [t * right + (frames * -right if right < 0 else 0) for t in range(frames)]
    sharp = np.stack([world[y : y + height, x : x + width] for y, x in zip(tops, lefts, strict=True)])
    motion = np.full((frames, height, width, 2), step, np.float16)
    y, x = np.mgrid[:height, :width] + np.array(step)[:, None, None]
    motion[:, (y < 0) | (y >= height) | (x < 0) | (x >= width)] = np.nan
    return Clip(255 - sharp, sharp, motion)


def digest(tensors: Iterable[Tensor]) -> str:
    """A hash of values."""
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()


def watch(patch: pytest.MonkeyPatch, file: Path) -> None:
    """See the head of this file."""
    train_batch = run.Run.train_batch

    def watched(self: run.Run, batch: Batch) -> None:
        train_batch(self, batch)
        with file.with_name(f"{file.name}{self.fabric.global_rank}").open("a") as lines:
            print(digest(batch), digest(self.plain.state_dict().values()), file=lines)

    patch.setattr(run.Run, "train_batch", watched)


if __name__ in ("__main__", "__mp_main__"):
    torch.set_num_threads(1)
    make_tiny(pytest.MonkeyPatch())

if __name__ == "__main__":
    from mtu.training.cli import main

    if "MTU_WATCH" in os.environ:
        watch(pytest.MonkeyPatch(), Path(os.environ["MTU_WATCH"]))
    main()
