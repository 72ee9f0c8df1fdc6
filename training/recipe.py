"""What differs between the trainings of the families: a recipe is a module with the names of `Recipe`. Imports torch.

`mtu.training.run` has what they share: the loop, the checkpoint, the moving average, the log.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mtu.models.checkpoint import Checkpoint
from mtu.training.batches import Source
from mtu.training.options import Options, Say, family_of
from mtu.training.validation import Validation

RECIPES: Mapping[str, str] = {"mtu": "mtu.training.mtu_recipe", "ifan": "mtu.training.ifan_recipe"}
"""Family: module."""


class Recipe(Protocol):
    """How a family is trained. `network` is what `new_network` gives, `samples` what `validation_samples` gives."""

    LOSSES: tuple[str, ...]
    """Names of the losses, for the log."""
    CLIP_NORM: float
    """Largest norm of a gradient."""

    def training_source(self, options: Options, say: Say) -> Source:
        """The batches of a run; says what is left out. Raises InvalidInputError or MissingFileError for the data."""
        ...

    def validation_samples(self, options: Options, say: Say) -> Sequence[Any]:
        """What a run is judged by. Raises as `training_source`."""
        ...

    def remark(self, options: Options, source: Source) -> str:
        """What the user should know of the losses on this data; empty: nothing."""
        ...

    def new_network(self, options: Options) -> nn.Module:
        """The network as it is trained, with first weights of the seed, for pictures that are channels last; what needs
        no gradient is not trained."""
        ...

    def new_optimiser(self, parameters: Iterable[nn.Parameter], options: Options) -> torch.optim.Optimizer:
        """The optimiser of these."""
        ...

    def begin_with(self, network: nn.Module, found: Checkpoint) -> None:
        """Takes weights of a file for those of inference."""
        ...

    def check_start(self, found: Checkpoint, options: Options) -> str:
        """Why a run cannot begin with these weights, those of its network; empty: it can."""
        ...

    def revive(self, network: Any, samples: Any, options: Options) -> int:
        """Gives channels that none of the samples turns on another beginning; returns how many. Not there
        where "revive" is foreign to the family."""
        ...

    def steps(
        self, network: Any, batch: Any, options: Options, step: int
    ) -> Iterator[tuple[Sequence[Tensor], Tensor | None]]:
        """Trains on a batch, which is on the network's device, from this step on, and not beyond the last.

        Gives for each step the losses, and what to minimise now; None: a later step will. What of the batch is
        computed next is computed after that.
        """
        ...

    def settle(self, network: Any, options: Options) -> None:
        """After each step of the optimiser: what the weights must keep to."""
        ...

    def validate(self, network: Any, samples: Any) -> Validation:
        """How the network does on samples."""
        ...

    def exported(self, network: Any) -> Mapping[str, Tensor]:
        """The weights as `load_checkpoint` takes them from a file."""
        ...


def find_recipe(preset: str) -> Recipe:
    """The recipe of a preset's family. Raises InvalidInputError for one that is not trained."""
    return cast(Recipe, importlib.import_module(RECIPES[family_of(preset)]))
