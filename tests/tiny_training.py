"""What the tests of training share: a tiny network, small validation, a clip that slides. Nothing here is a test.

As a program it is `mtu-train` with the tiny network: `python -m tests.tiny_training -o RUN`. With MTU_WATCH=FILE each
of its processes writes a line for each batch to FILE and its rank: hashes of the batch and of the weights after it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtu.models.ifan import PRESETS as IFAN_PRESETS
from mtu.models.mtu.config import PRESETS, NetworkConfig
from mtu.runtime.video import write_png
from mtu.training import batches, options, pulse, run, start
from mtu.training.batches import Batch
from mtu.training.data.scene import Clip
from mtu.training.options import Options
from tests import ifan

TINY = {"mtu1": NetworkConfig(1, 4, 1), "mtu2": NetworkConfig(2, 4, 1)}
SMALL = {"VALIDATION_CLIPS": 1, "VALIDATION_FRAMES": 3, "VALIDATION_SIZE": 16, "MARGIN": 8}
OPTIONS: dict[str, Any] = {"max_steps": 6, "crop": 16, "frames": 3, "batch": 2, "rate": 1e-2}
CPU = start.Machine("cpu")


def make_tiny(patch: pytest.MonkeyPatch) -> None:
    """The presets become tiny networks, and validation a matter of a moment; on a busy machine no line more is said."""
    for preset, config in TINY.items():
        patch.setitem(PRESETS, preset, dataclasses.asdict(config))
    for preset, settings in (("ifan", ifan.TINY), ("ifan-dual", ifan.DUAL)):
        patch.setitem(IFAN_PRESETS, preset, settings)
    patch.setattr(pulse, "SILENCE", 3600.0)
    for name, value in SMALL.items():
        patch.setattr(batches, name, value)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch)
    monkeypatch.setattr(options, "WARM_UP", 1)


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


def write_gopro(folder: Path, frames: int = 11, size: tuple[int, int] = (24, 32)) -> Path:
    """A GoPro folder whose frames say where they are from."""
    clip = sliding_clip(frames, *size, (0, 4))
    for part in ("train", "test"):
        for kind, pictures in (("blur_gamma", clip.blurred), ("sharp", clip.sharp)):
            place = folder / part / f"GOPR_{part}" / kind
            place.mkdir(parents=True)
            for number, picture in enumerate(pictures):
                write_png(place / f"{number:06d}.png", picture)
    return folder


def noted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The runs of this test write no TensorBoard log but into this list."""
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(run.Run, "_log", lambda self, values, picture=None: logged.append(values))
    return logged


def new_run(folder: Path, **changes: object) -> run.Run:
    wanted = Options(**{**OPTIONS, "max_steps": 1000, **changes})
    return run.Run(folder, wanted, start.new_fabric(CPU, folder), say=lambda text: None)


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
