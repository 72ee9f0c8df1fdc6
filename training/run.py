"""A training run: the loop over batches, its checkpoint, validation and log. Imports torch and Lightning Fabric.

Writes into the run's folder alone: `last.ckpt` (everything --resume needs), `weights.safetensors` (the averaged
weights of the best validation, for `mtu-export onnx --checkpoint`) and `logs/` (TensorBoard).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mtu.core.errors import MtuError, OutputError
from mtu.core.files import write_whole
from mtu.models.checkpoint import Checkpoint
from mtu.training.options import Options, Say, training_of
from mtu.training.recipe import find_recipe
from mtu.training.run_folder import CHECKPOINT, FORMAT, LOGS, WEIGHTS

if TYPE_CHECKING:
    import numpy as np
    from lightning_fabric import Fabric
    from numpy.typing import NDArray
    from torch.utils.tensorboard import SummaryWriter


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    preset: str
    step: int
    best: float
    """Mean gain in dB of the best validation."""
    signal: int | None
    """The signal that ended it before its last step."""
    speaks: bool
    """Whether this is the first process of the run, which alone tells the user of it."""


class Run:
    """A run: the network, its optimiser, the averaged weights, and how far it has come."""

    def __init__(self, folder: Path, options: Options, fabric: Fabric, *, say: Say) -> None:
        """A new run with first weights of its seed. Nothing is written yet."""
        self.folder, self.options, self.fabric, self.say = folder, options, fabric, say
        self.step = self.batch = 0
        self.best = -math.inf
        self._signal = 0
        self.doing = "starting"
        self.recipe = find_recipe(options.preset)
        self.plain = self.recipe.new_network(options)
        self.plain.to(fabric.device)
        self._average = torch.optim.swa_utils.AveragedModel(self.plain, multi_avg_fn=self._follow)
        trained = [parameter for parameter in self.plain.parameters() if parameter.requires_grad]
        self.network, self.optimiser = fabric.setup(self.plain, self.recipe.new_optimiser(trained, options))
        self.network.mark_forward_method("train_step")

    def words(self) -> str:
        """What the run is doing."""
        return f"step {self.step} of {self.options.max_steps}: {self.doing}"

    @property
    def average(self) -> nn.Module:
        """The moving average of the weights: what is validated and kept."""
        return self._average.module

    @torch.no_grad()
    def _follow(self, means: Sequence[Tensor], values: Sequence[Tensor], count: object) -> None:
        # At first the mean of a short past: the first weights are soon forgotten.
        decay = min(self.options.average, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(means), list(values), 1 - decay)

    def begin_with(self, found: Checkpoint) -> None:
        """Takes other first weights, all but those that only training uses."""
        for network in (self.plain, self.average):
            self.recipe.begin_with(network, found)

    def revive(self, samples: Sequence[Any]) -> None:
        """Gives channels that none of the samples turns on another beginning."""
        count = self.recipe.revive(self.plain, samples, self.options)
        self.average.load_state_dict(self.plain.state_dict())
        self.say(f"{count} channels that are never on have new kernels")

    def restore(self, saved: dict[str, Any]) -> None:
        """Goes on where a checkpoint of the same preset was saved."""
        self.plain.load_state_dict(saved["network"])
        self.average.load_state_dict(saved["average"])
        self._average.n_averaged.fill_(1)  # 0 would make it copy the weights
        self.optimiser.load_state_dict(saved["optimiser"])
        self.step, self.batch, self.best = saved["step"], saved["batch"], saved["best"]

    def go(self, loader: Iterator[Any], samples: Sequence[Any]) -> Outcome:
        """Trains to the last step or to a signal. `samples` are for validation, which the first process does."""
        say, options = self.say, self.options
        place = f"{self.fabric.world_size} x {self.fabric.device.type}"
        say(f"{options.preset} on {place}, {options.precision}, from step {self.step} to {options.max_steps}")
        if self.step == 0:
            # First of all something to go on from, whenever the run is ended.
            self.save()
            self.keep(samples)
        self.doing = "training"
        started, first, trained = time.monotonic(), self.step, 0.0
        with self._signals():
            number = 0
            while self.step < options.max_steps and not (number := self._stop_asked()):
                waiting = time.monotonic()
                batch = next(loader)
                waited, before = time.monotonic() - waiting, self.step
                self.train_batch(batch)
                seconds = time.monotonic() - waiting
                trained += seconds
                self._log(
                    {"speed/step_seconds": seconds / (self.step - before), "speed/waiting_share": waited / seconds}
                )
                if (
                    self.step // options.validate_every > before // options.validate_every
                    or self.step >= options.max_steps
                ):
                    self.keep(samples)
                    done, left = self.step - first, options.max_steps - self.step
                    to_go = (time.monotonic() - started) / done * left / 60
                    say(f"{trained / done:.3f} s a step" + (f", {to_go:.0f} minutes to go" if left else ""))
            if number:
                self.save()
                say(f"stopped at step {self.step} and saved: --resume goes on")
        return Outcome(options.preset, self.step, self.best, number or None, self.fabric.is_global_zero)

    def train_batch(self, batch: Any) -> None:
        """Trains on a batch, step by step. Raises MtuError, naming the step, if a loss is not finite."""
        self.plain.train()
        batch = type(batch)(*(part.to(self.fabric.device, non_blocking=True) for part in batch))
        losses: list[Tensor] = []
        first = self.step
        for loss, total in self.recipe.steps(self.network, batch, self.options, first):
            losses.append(torch.stack(tuple(loss)).detach())
            if total is not None:
                self._optimise(total)
            self.step += 1
        self.batch += self.fabric.world_size
        means = self._over_processes(torch.stack(losses), "mean").cpu()
        finite = means.isfinite().all(1)
        if not finite.all():
            at = first + int(finite.int().argmin())
            raise MtuError(
                f"the loss is {float(means[at - first].sum())} at step {at}: {self.folder / CHECKPOINT} is from before;"
                " go on from there with --resume and a lower --rate"
            )
        each = dict(zip(self.recipe.LOSSES, means.mean(0).tolist(), strict=True))
        total = sum(each.values())
        self._log(
            {f"loss/{name}": value for name, value in each.items()}
            | {"loss/total": total, "rate": self.options.rate_at(self.step)}
        )

    def _optimise(self, loss: Tensor) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.rate_at(self.step)
        self.optimiser.zero_grad()
        self.fabric.backward(loss)
        self.fabric.clip_gradients(
            self.network, self.optimiser, max_norm=self.recipe.CLIP_NORM, error_if_nonfinite=False
        )
        self.optimiser.step()
        self.recipe.settle(self.plain, self.options)
        self._average.update_parameters(self.plain)

    def keep(self, samples: Sequence[Any]) -> None:
        """Validates the averaged weights, keeps them if they are the best yet, and saves. Raises as `save` does."""
        self._refuse_broken_weights()
        if self.fabric.is_global_zero:
            self.doing = "validating"
            found = self.recipe.validate(self.average, samples)
            self.doing = "training"
            self._log(
                {
                    "validation/gain_db": found.gain,
                    "validation/worst_gain_db": min(found.gains),
                    "validation/sharp_kept_db": min(found.kept),
                },
                found.picture,
            )
            one, of_it = training_of(self.options.preset).sample
            self.say(
                f"step {self.step}: gain {found.gain:+.3f} dB (worst {one} {min(found.gains):+.2f}), sharp {of_it} kept"
                f" to {min(found.kept):.1f} dB" + (", the best yet" if found.gain > self.best else "")
            )
            if found.gain > self.best:
                self.best = found.gain
                weights = {name: value.contiguous() for name, value in self.recipe.exported(self.average).items()}
                about = {"preset": self.options.preset, "step": str(self.step), "data": " ".join(self.options.data)}
                self._write(WEIGHTS, safetensors.torch.save(weights, about))
        self.save()

    def save(self) -> None:
        """Writes the checkpoint in one step.

        Raises OutputError if it cannot be written and MtuError for weights that are not finite; the old one is still
        whole.
        """
        self._refuse_broken_weights()
        if self.fabric.is_global_zero:
            content = io.BytesIO()
            saved = {"format": FORMAT, "options": dataclasses.asdict(self.options), "network": self.plain.state_dict()}
            saved |= {"average": self.average.state_dict(), "optimiser": self.optimiser.state_dict()}
            torch.save(saved | {"step": self.step, "batch": self.batch, "best": self.best}, content)
            self._write(CHECKPOINT, content.getvalue())
        self.fabric.barrier()

    def _refuse_broken_weights(self) -> None:
        if not all(parameter.isfinite().all() for parameter in self.plain.parameters()):
            raise MtuError(f"the weights are not finite at step {self.step}: {self.folder / CHECKPOINT} is from before")

    def _write(self, name: str, content: bytes) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / name, content)
        except OSError as error:
            raise OutputError(
                f"cannot write {self.folder / name}: {error.strerror}; what was there is as it was"
            ) from None

    def _over_processes(self, value: Tensor, operation: str) -> Tensor:
        reduced = self.fabric.all_reduce(value, reduce_op=operation)
        assert isinstance(reduced, Tensor)
        return reduced

    def _log(self, values: dict[str, float], picture: NDArray[np.uint8] | None = None) -> None:
        if not self.fabric.is_global_zero:
            return
        try:
            writer: SummaryWriter = self.fabric.logger.experiment  # type: ignore[attr-defined]
            for name, value in values.items():
                writer.add_scalar(name, value, self.step)
            if picture is not None:
                writer.add_image("validation/blurred_restored_sharp", picture, self.step, dataformats="HWC")
        except OSError as error:
            raise OutputError(f"cannot write {self.folder / LOGS}: {error.strerror}") from None

    def _stop_asked(self) -> int:
        """The signal that came to any of the processes, the same in all of them, or 0."""
        asked = torch.tensor(float(self._signal), device=self.fabric.device)
        return int(self._over_processes(asked, "max"))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask for an end after this batch; a second one ends at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, frame: FrameType | None) -> None:
            self._signal = number
            signal.signal(number, before[number])

        try:
            for number in before:
                signal.signal(number, ask)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
