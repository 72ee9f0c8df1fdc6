"""What a training run is told, with the published values as defaults. Imports no torch: the command line reads it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtu.calib.datasets import LAYOUTS, Layout
from mtu.core.errors import InvalidInputError
from mtu.models.mtu.config import SIZE_MULTIPLE, preset_config

ImageLoss = Literal["l1+mse", "psnr"]
Schedule = Literal["steps", "cosine"]
Precision = Literal["fp32", "bf16"]
Say = Callable[[str], None]

SYNTHETIC: Literal["synthetic"] = "synthetic"
PHOTOS: Literal["photos"] = "photos"
WARM_UP = 400
"""Steps over which the learning rate rises from zero: Adam's first estimates are poor."""


@dataclass(frozen=True)
class Options:
    """How to train. Source of the defaults: paper, section 4.1, and the authors' released configuration.

    The same options give the same run: a batch is a pure function of `data`, `seed` and its number. Raises
    InvalidInputError for values outside the ranges named here.
    """

    data: str = SYNTHETIC
    """"synthetic", "photos:DIR" (made clips of the photographs in a folder), or a data set's layout and folder:
    "dvd:DIR", "gopro:DIR", "reds:DIR"."""
    preset: str = "mtu2"
    max_steps: int = 1_300_000
    """Frame steps of the run, >= 1; the learning-rate schedule ends there."""
    batch: int = 8
    """Crops in a batch on each device, >= 1."""
    crop: int = 256
    """Side of the square crops in pixels, a multiple of 4, >= 16."""
    frames: int = 13
    """Consecutive frames trained on in a sequence, >= 2; two more are read on either side."""
    rate: float = 1e-4
    """Learning rate after the warm-up, > 0."""
    schedule: Schedule = "steps"
    """"steps": a quarter of it after 77 % and again after 96 % of the run, as published; "cosine": down to 2 %."""
    image_loss: ImageLoss = "l1+mse"
    """"l1+mse" as published; "psnr": the log of the squared error, for short runs (it leaves the identity sooner)."""
    motion_weight: float = 0.01
    """Weight of the motion loss, >= 0; 0 leaves it out, and no displacement is worked out for the data."""
    unroll: int = 1
    """Frames that an optimiser step reaches back through, >= 1. 1: a step a frame, as published."""
    centre: bool = True
    """Keep every kernel of the units centred (see `initialise`): without it ReLUs die at rates above 1e-4."""
    average: float = 0.999
    """Decay of the moving average of the weights, [0, 1)."""
    precision: Precision = "fp32"
    """Of the convolutions; bf16 keeps weights, matching and losses in fp32."""
    seed: int = 0
    """Of the first weights and of every batch, >= 0."""
    validate_every: int = 2000
    """Frame steps between validations, >= 1; each also writes the checkpoint that --resume reads."""

    def __post_init__(self) -> None:
        preset_config(self.preset)
        lowest = {"max_steps": 1, "batch": 1, "crop": 16, "frames": 2, "unroll": 1, "seed": 0, "validate_every": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise InvalidInputError(f"{option(name)} is {getattr(self, name)}: the least is {least}")
        if self.crop % SIZE_MULTIPLE:
            raise InvalidInputError(f"--crop is {self.crop}: it must be a multiple of {SIZE_MULTIPLE}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise InvalidInputError(f"--rate is {self.rate}: it must be above 0")
        if not (math.isfinite(self.motion_weight) and self.motion_weight >= 0):
            raise InvalidInputError(f"--motion-weight is {self.motion_weight}: it must be 0 or above")
        if not 0 <= self.average < 1:
            raise InvalidInputError(f"--average is {self.average}: it must be at least 0 and below 1")

    def rate_at(self, step: int) -> float:
        """The learning rate of frame step `step`, counted from 0."""
        done = step / self.max_steps
        if self.schedule == "cosine":
            factor = 0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, done))) / 2
        else:
            # Published: 1.0 and 1.25 of 1.3 million steps.
            factor = 0.25 ** sum(done >= milestone for milestone in (1.0 / 1.3, 1.25 / 1.3))
        return self.rate * factor * min(1.0, (step + 1) / WARM_UP)


def option(name: str) -> str:
    """The command-line spelling of a field of `Options`."""
    return "--" + name.replace("_", "-")


def data_folder(data: str) -> tuple[Layout | Literal["photos"], Path] | None:
    """The layout and the folder of `Options.data`, None for synthetic clips. Raises InvalidInputError."""
    if data == SYNTHETIC:
        return None
    given, _, folder = data.partition(":")
    layout = next((name for name in (PHOTOS, *LAYOUTS) if name == given), None)
    if layout is None or not folder:
        allowed = ", ".join(f"{name}:DIR" for name in (PHOTOS, *LAYOUTS))
        raise InvalidInputError(f"--data is '{data}': it must be {SYNTHETIC} or one of {allowed}")
    return layout, Path(folder)


FIXED = ("data", "preset", "seed")
"""Options that a resumed run keeps: with another value it would be another run."""


def resumed(saved: Options, given: dict[str, object]) -> Options:
    """The options of a run that goes on: those saved, changed by those given. Raises InvalidInputError."""
    for name in FIXED:
        if name in given and given[name] != getattr(saved, name):
            raise InvalidInputError(
                f"the run to resume has {option(name)} {getattr(saved, name)}, and {option(name)} {given[name]} was"
                " given: leave it out, or start a new run with -o; to go on from its weights use --start-from"
            )
    return dataclasses.replace(saved, **given)  # type: ignore[arg-type]
