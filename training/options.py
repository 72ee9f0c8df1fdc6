"""What a training run is told, with the published values as defaults. Imports no torch: the command line reads it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mtu.calib.datasets import LAYOUTS
from mtu.core.errors import InvalidInputError
from mtu.models import ifan
from mtu.models.mtu.config import PRESETS, SIZE_MULTIPLE

ImageLoss = Literal["l1+mse", "psnr"]
Schedule = Literal["steps", "cosine"]
Optimiser = Literal["adam", "muon"]
Precision = Literal["fp32", "bf16"]
Say = Callable[[str], None]

SYNTHETIC: Literal["synthetic"] = "synthetic"
PHOTOS: Literal["photos"] = "photos"
VIDEOS: Literal["videos"] = "videos"
DEFOCUS: Literal["defocus"] = "defocus"
DPDD: Literal["dpdd"] = "dpdd"
WARM_UP = 400
"""Steps over which the learning rate rises from zero: Adam's first estimates are poor."""


@dataclass(frozen=True)
class Training:
    """What the trainings of families differ in, as far as options go."""

    presets: Mapping[str, Mapping[str, Any]]
    """Presets, and the options whose defaults are others for one of them."""
    data: Mapping[str, str]
    """Ways to spell --data, by what stands before the colon."""
    sample: tuple[str, str]
    """What validation is of and what that consists of, for messages."""
    multiple: int
    """The side of a crop is one of these."""
    milestones: tuple[float, float]
    """Shares of a run after which the "steps" schedule lowers the rate."""
    factor: float
    """What it then multiplies it with."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Of options that have others than `Options`."""
    foreign: tuple[str, ...] = ()
    """Options that mean nothing to it."""
    mixes: bool = False
    """Whether it takes several --data."""


TRAININGS: Mapping[str, Training] = {
    "mtu": Training(
        presets={name: {} for name in PRESETS},
        data={SYNTHETIC: SYNTHETIC, **{name: f"{name}:DIR" for name in (PHOTOS, VIDEOS, *LAYOUTS)}},
        sample=("clip", "frames"),
        multiple=SIZE_MULTIPLE,
        milestones=(1.0 / 1.3, 1.25 / 1.3),
        factor=0.25,
        mixes=True,
    ),
    "ifan": Training(
        presets={**{name: {} for name in ifan.PRESETS}, "ifan-35": {"crop": 576}, "ifan-44": {"crop": 704}},
        data={DEFOCUS: f"{DEFOCUS} or {DEFOCUS}:DIR", DPDD: f"{DPDD}:DIR"},
        sample=("picture", "pictures"),
        multiple=8,
        milestones=(5 / 6, 5.5 / 6),
        factor=0.5,
        defaults={"data": (DEFOCUS,), "max_steps": 600_000},
        foreign=("frames", "image_loss", "motion_weight", "optimiser", "revive", "unroll", "centre"),
    ),
}
"""By family. Sources: Son et al. 2022 and Lee et al. 2021, and the authors' released configurations."""


def family_of(preset: str) -> str:
    """The family of a preset; raises InvalidInputError naming those that can be trained."""
    for family, training in TRAININGS.items():
        if preset in training.presets:
            return family
    known = ", ".join(name for training in TRAININGS.values() for name in training.presets)
    raise InvalidInputError(f"unknown preset '{preset}': choose one of {known}")


def training_of(preset: str) -> Training:
    """That of the preset's family; raises as `family_of`."""
    return TRAININGS[family_of(preset)]


class Data(NamedTuple):
    """One of the things that a run draws from."""

    kind: str
    folder: Path | None
    weight: float
    """How often, relative to the others."""


@dataclass(frozen=True)
class Options:
    """How to train. Source of the defaults: paper, section 4.1, and the authors' released configuration; `new_options`
    has those of other families.

    The same options give the same run: a batch is a pure function of `data`, `seed` and its number. Raises
    InvalidInputError for values outside the ranges named here.
    """

    data: tuple[str, ...] = (SYNTHETIC,)
    """For videos "synthetic", "photos:DIR" (made clips of the photographs in a folder), "videos:DIR" (sharp footage,
    averaged), or a data set's layout and folder: "dvd:DIR", "gopro:DIR", "reds:DIR", one or several, each with *N
    behind it for a weight other than 1; for pictures out of focus one of "defocus", "defocus:DIR", which are made
    likewise, or "dpdd:DIR"."""
    preset: str = "mtu2"
    max_steps: int = 1_300_000
    """Steps of the run, for videos one a frame, >= 1; the learning-rate schedule ends there."""
    batch: int = 8
    """Crops in a batch on each device, >= 1."""
    crop: int = 256
    """Side of the square crops in pixels, >= 16, a multiple of 4 (of 8 for pictures out of focus)."""
    frames: int = 13
    """Consecutive frames trained on in a sequence, >= 2; two more are read on either side."""
    rate: float = 1e-4
    """Learning rate after the warm-up, > 0."""
    schedule: Schedule = "steps"
    """"steps": a quarter of it after 77 % and again after 96 % of the run, as published (IFAN: half of it
    after 83 and 92 %); "cosine": down to 2 %."""
    optimiser: Optimiser = "adam"
    """"adam" as published; "muon" (`mtu.training.muon`), a fifth slower a step, for short runs."""
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
    """Steps between validations, >= 1; each also writes the checkpoint that --resume reads."""

    def __post_init__(self) -> None:
        training = training_of(self.preset)
        lowest = {"max_steps": 1, "batch": 1, "crop": 16, "frames": 2, "unroll": 1, "seed": 0, "validate_every": 1}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise InvalidInputError(f"{option(name)} is {getattr(self, name)}: the least is {least}")
        if self.crop % training.multiple:
            raise InvalidInputError(f"--crop is {self.crop}: it must be a multiple of {training.multiple}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise InvalidInputError(f"--rate is {self.rate}: it must be above 0")
        if not (math.isfinite(self.motion_weight) and self.motion_weight >= 0):
            raise InvalidInputError(f"--motion-weight is {self.motion_weight}: it must be 0 or above")
        if not 0 <= self.average < 1:
            raise InvalidInputError(f"--average is {self.average}: it must be at least 0 and below 1")
        for text, (kind, _, _) in zip(self.data, self.sources, strict=True):
            if kind not in training.data:
                allowed = ", ".join(training.data.values())
                fitting = next(iter(next(each for each in TRAININGS.values() if kind in each.data).presets))
                raise InvalidInputError(
                    f"--data {text} is not what {self.preset} is trained on ({allowed}): choose one of these, or a"
                    f" preset for it, as --preset {fitting}"
                )
        if not self.data or (len(self.data) > 1 and not training.mixes):
            raise InvalidInputError(f"--data is given {len(self.data)} times: {self.preset} is trained on one")

    @property
    def sources(self) -> tuple[Data, ...]:
        """What `data` says. Raises InvalidInputError."""
        return tuple(map(read_data, self.data))

    def rate_at(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        done = step / self.max_steps
        if self.schedule == "cosine":
            factor = 0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, done))) / 2
        else:
            training = training_of(self.preset)
            factor = training.factor ** sum(done >= milestone for milestone in training.milestones)
        return self.rate * factor * min(1.0, (step + 1) / WARM_UP)


def option(name: str) -> str:
    """The command-line spelling of a field of `Options`."""
    return "--" + name.replace("_", "-")


def read_data(text: str) -> Data:
    """One of `Options.data`. Raises InvalidInputError."""
    kinds = {name: spelling for training in TRAININGS.values() for name, spelling in training.data.items()}
    what, _, weight = text.rpartition("*") if re.search(r"\*[\d.]+$", text) else (text, "", "1")
    kind, colon, folder = what.partition(":")
    spelling = kinds.get(kind, "").split(" or ")
    if (f"{kind}:DIR" if colon and folder else what) not in spelling:
        raise InvalidInputError(f"--data is '{text}': it must be one of {', '.join(kinds.values())}")
    if not (re.fullmatch(r"\d+(\.\d+)?", weight) and float(weight) > 0):
        raise InvalidInputError(f"--data is '{text}': the weight after * is a number above 0, such as *3 or *0.5")
    return Data(kind, Path(folder) if colon else None, float(weight))


def new_options(given: Mapping[str, Any]) -> Options:
    """The options of a run: those given, else the defaults of its preset. Raises InvalidInputError."""
    preset = given.get("preset", Options.preset)
    training = training_of(preset)
    refuse_foreign(preset, given)
    return Options(**{**training.defaults, **training.presets[preset], **given})


def refuse_foreign(preset: str, given: Collection[str]) -> None:
    """Raises InvalidInputError for the first of the options given that means nothing to the preset's training."""
    for name in training_of(preset).foreign:
        if name in given:
            raise InvalidInputError(f"{option(name)} means nothing to the training of {preset}: leave it out")


FIXED = ("data", "preset", "optimiser", "seed")
"""Options that a resumed run keeps: with another value it would be another run."""


def resumed(saved: Options, given: dict[str, object]) -> Options:
    """The options of a run that goes on: those saved, changed by those given. Raises InvalidInputError."""
    for name in FIXED:
        if name in given and given[name] != getattr(saved, name):
            raise InvalidInputError(
                f"the run to resume has {option(name)} {_said(getattr(saved, name))}, and {option(name)}"
                f" {_said(given[name])} was"
                " given: leave it out, or start a new run with -o; to go on from its weights use --start-from"
            )
    refuse_foreign(saved.preset, given)
    return dataclasses.replace(saved, **given)  # type: ignore[arg-type]


def _said(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
