"""How a training run begins: its options, data, devices and first weights. Imports torch and Lightning Fabric."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mtu.core.errors import InvalidInputError, MissingExtraError, OutputError
from mtu.models.checkpoint import Checkpoint, load_checkpoint
from mtu.models.families import find_preset, in_words, variant
from mtu.training.batches import batches
from mtu.training.options import Options, Say, new_options, refuse_foreign, resumed
from mtu.training.pulse import Pulse
from mtu.training.recipe import find_recipe
from mtu.training.run import Outcome, Run
from mtu.training.run_folder import CHECKPOINT, LOGS, read_checkpoint, run_folder

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@dataclass(frozen=True)
class Machine:
    """Where a run computes. It changes nothing in what a run is but rounding and how many batches a step sees."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1
    """Processes on each machine: one for each GPU, or as many as asked for on CPUs."""
    nodes: int = 1
    """Machines."""
    workers: int = 0
    """Processes for each device that make or read batches ahead; 0: none."""


def train(
    folder: Path,
    given: dict[str, Any],
    machine: Machine,
    *,
    resume: bool = False,
    start_from: Path | None = None,
    revive: bool = False,
    say: Say = lambda text: None,
) -> Outcome:
    """Trains until the last step or the first SIGINT or SIGTERM, which saves and ends.

    `given` are fields of `Options`; with `resume` those that are to change. `start_from` is a checkpoint of the same
    network whose weights the run begins with; `revive` gives their channels that are never on new kernels. Raises
    MtuError: InvalidInputError for options, data or checkpoints that cannot be used, OutputError if the folder cannot
    be written, MtuError itself for a loss that is not finite.
    """
    if resume and start_from:
        raise InvalidInputError("--resume goes on with the weights of the run: leave --start-from out")
    if revive and not start_from:
        raise InvalidInputError("--revive is for weights to begin with: add --start-from, or leave it out")
    saved = read_checkpoint(folder) if resume else None
    options = resumed(Options(**saved["options"]), given) if saved else new_options(given)
    if revive:
        refuse_foreign(options.preset, ("revive",))
    if not resume and (folder / CHECKPOINT).exists():
        raise OutputError(f"{folder} holds a run already: add --resume to go on with it, or choose another name")
    start = load_start(start_from, options) if start_from else None
    with run_folder(folder), Pulse(say) as pulse:
        pulse.doing = lambda: "reading or making what validation is of"
        # All that can be wrong with the data is found before there are other processes.
        recipe = find_recipe(options.preset)
        source, samples = recipe.training_source(options, pulse.say), recipe.validation_samples(options, pulse.say)
        fabric = new_fabric(machine, folder)
        fabric.launch()
        if not fabric.is_global_zero:
            pulse.quiet()
        run = Run(folder, options, fabric, say=pulse.say if fabric.is_global_zero else lambda text: None)
        pulse.doing = run.words
        if saved:
            run.restore(saved)
        elif start:
            run.begin_with(start)
            if revive:
                run.revive(samples)
        if remark := recipe.remark(options, source):
            run.say(remark)
        first = run.batch + fabric.global_rank
        with contextlib.closing(batches(source, first, fabric.world_size, machine.workers)) as loader:
            return run.go(loader, samples)


def new_fabric(machine: Machine, folder: Path) -> Fabric:
    """Lightning Fabric with a run's devices and TensorBoard log. Raises InvalidInputError."""
    try:
        import tensorboard  # noqa: F401
        from lightning_fabric import Fabric
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger
    except ImportError as error:
        raise MissingExtraError(error.name or "lightning-fabric", "train", "training") from None
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # else it tells the user of its own workings
    found = torch.cuda.device_count()
    device = machine.device if machine.device != "auto" else "cuda" if found else "cpu"
    if device == "cuda" and found < machine.devices:
        raise InvalidInputError(
            f"{machine.devices} CUDA devices are needed and {found} found: use --device cpu, or fewer"
        )
    return Fabric(
        accelerator=device,
        devices=machine.devices,
        num_nodes=machine.nodes,
        strategy="ddp" if machine.devices * machine.nodes > 1 else "auto",
        loggers=TensorBoardLogger(folder, name=LOGS, version=""),
    )


def load_start(path: Path, options: Options) -> Checkpoint:
    """Weights to begin with. Raises as `load_checkpoint` does, and InvalidInputError for those of another network."""
    found, (family, wanted) = load_checkpoint(path), find_preset(options.preset)

    def said(family: str, settings: Mapping[str, Any]) -> str:
        return f"{variant(family, settings)} ({in_words(settings)})"

    if (found.family, dict(found.settings)) != (family, dict(wanted)):
        raise InvalidInputError(
            f"{path} is of {said(found.family, found.settings)}, and --preset asks for {said(family, wanted)}"
        )
    if why := find_recipe(options.preset).check_start(found, options):
        raise InvalidInputError(f"{path} cannot be begun with: {why}")
    return found
