"""Trains a preset on made clips: `python -m mtu.models.training --preset mtu2 --out DIR --minutes 90`. Imports torch.

The project's own small training script, made for two CPU cores and an hour or two; it needs the extra [train]. It
writes only under --out: `weights.safetensors` (the averaged weights of the best validation, keys as in `Network`, with
`deblur_layer.*`), `last.safetensors` (those of the last one), `last.pt` (for --resume) and `log.csv`. SIGTERM saves
and ends. The motion layer is NOT trained here: nothing supervises its argmax, so it keeps its initial random
projection. Supervision by the true displacement of the made scenes is a later task.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mtu.calib.clips import Clip, make_clip
from mtu.models.errors import InvalidInputError, MissingFileError, MtuError
from mtu.models.interface import WINDOW, preset_config
from mtu.models.network import Network

FRAMES, CLIP_SIZE = 11, 128
POOL = 512
"""Clips that batches are drawn from; one new clip every second sequence pushes the oldest out."""
VALIDATION_SEEDS, VALIDATION_SIZE = (2, 5, 8, 11, 15, 21), 160


@dataclass(frozen=True)
class Options:
    """How to train; the fields are the options of the command line."""

    preset: str = "mtu2"
    minutes: float = 0.0
    """Length of the run by the clock; 0 if `steps` says it."""
    steps: int = 0
    """Length of the run in optimiser steps, one for each frame of a batch; 0 if `minutes` says it."""
    seed: int = 0
    batch: int = 4
    crop: int = 64
    """Side of the square crops in pixels; for the last two fifths of the run it grows by half and the batch halves."""
    rate: float = 4e-4
    """Learning rate after the warm-up."""
    workers: int = 2
    """Processes of one thread, each with batches and an optimiser of its own, that step the same weights in turn or at
    once (Hogwild, Niu et al., 2011). On a shared machine twice as fast as one process of as many threads."""
    precision: str = "bfloat16"
    """Of the convolutions: bfloat16 or float32."""
    validate_every: float = 10.0
    """Minutes between validations; each saves."""


def initialise(network: Network, generator: torch.Generator) -> None:
    """He's normal weights, centred, and zero biases; residual branches, decoders and image layers are scaled down.

    The network starts near the identity, yet every layer but the motion layer has a gradient.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            weight, transposed = module.weight.data, isinstance(module, nn.ConvTranspose2d)
            # A transposed convolution of stride 2 reaches each output pixel with a quarter of its kernel.
            fan_in = weight[:, 0].numel() / 4 if transposed else weight[0].numel()
            residual = "RB_end" in name or (".RBs." in name and name.endswith(".2"))
            scale = 0.02 if name.startswith(("out", "deblur")) else 0.3 if residual else 0.4 if transposed else 1.0
            weight.normal_(0, scale * math.sqrt(2 / fan_in), generator=generator)
            module.bias.data.zero_()
    centre(network)


def centre(network: Network) -> None:
    """Makes every kernel of the units and image layers blind to a common shift of its inputs (all >= 0).

    Without it a step moves all of a layer's outputs at once, and within 500 steps most units are off for every input.
    Source: weight standardisation (Qiao et al., 2019), its centring only, as a projection after each step.
    """
    with torch.no_grad():
        for name, module in network.named_modules():
            if name.startswith(("HGs", "out", "deblur")):
                if isinstance(module, nn.ConvTranspose2d):
                    # Each output pixel sees the taps of one parity of rows and one of columns.
                    taps = module.weight.reshape(*module.weight.shape[:2], 2, 2, 2, 2)
                    module.weight -= taps.mean((0, 2, 4), keepdim=True).expand_as(taps).reshape(module.weight.shape)
                elif isinstance(module, nn.Conv2d):
                    module.weight -= module.weight.mean((1, 2, 3), keepdim=True)


def windows(frames: Sequence[Tensor]) -> list[list[Tensor]]:
    """The five frames around each frame; indices outside the clip are clamped, as at inference."""
    return [[frames[min(max(t + offset, 0), len(frames) - 1)] for offset in WINDOW] for t in range(len(frames))]


def image_loss(image: Tensor, sharp: Tensor) -> Tensor:
    """Mean over the batch of the log of the squared error (PSNR, flattened above 30 dB); both [B, 3, H, W], RGB 0 to 1.

    Absolute error stays at the identity for over a thousand steps; plain squared error is ruled by the hardest crops.
    """
    return 0.1 * (((image.float() - sharp) ** 2).mean((1, 2, 3)) + 1e-3).log().mean()


def train_frame(
    network: Network,
    optimiser: torch.optim.Optimizer,
    window: Sequence[Tensor],
    states: tuple[Tensor, ...] | None,
    sharp: Tensor,
    precision: str = "float32",
) -> tuple[float, tuple[Tensor, ...]]:
    """One optimiser step on one frame of a batch; returns the loss and the detached states for the next frame.

    The loss is that of the output plus 0.1 times that of each inner unit's image. Raises MtuError, with the weights
    as they were, if the loss is not finite.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        out, new_states, inner = network.train_step(window, states)
    loss = image_loss(out, sharp) + 0.1 * sum(image_loss(image, sharp) for image in inner)
    value = loss.item()
    if not math.isfinite(value):
        raise MtuError(f"the loss is {value}: resume from the last checkpoint with a lower --rate or another --seed")
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimiser.step()
    centre(network)
    detached = tuple(state.detach().float() for state in new_states)
    return value, (detached[0].clamp(0, 1), *detached[1:])


@functools.lru_cache(POOL + 64)
def pooled_clip(seed: int) -> Clip:
    """A training clip; made when first drawn."""
    return make_clip(seed, FRAMES, CLIP_SIZE, CLIP_SIZE)


def draw_batch(seed: int, sequence: int, batch: int, crop: int) -> tuple[list[Tensor], list[Tensor]]:
    """Blurred and sharp frames, each [B, 3, crop, crop] in [0, 1], of the given sequence of a run; augmented."""
    rng, newest, parts = np.random.default_rng((seed, sequence)), 32 + sequence // 2, []
    for _ in range(batch):
        clip = pooled_clip(seed * 1_000_000 + int(rng.integers(max(0, newest - POOL), newest)))
        top, left = rng.integers(CLIP_SIZE - crop + 1, size=2)
        part = np.stack((clip.blurred, clip.sharp))[:, :, top : top + crop, left : left + crop]
        part = np.rot90(part, int(rng.integers(4)), (2, 3))[:, :: rng.choice((-1, 1)), :, :: rng.choice((-1, 1))]
        parts.append(part[..., rng.permutation(3)])
    pair = torch.from_numpy(np.stack(parts)).permute(1, 2, 0, 5, 3, 4).float() / 255  # [2, T, B, 3, H, W]
    blurred, sharp = ([frame.contiguous(memory_format=torch.channels_last) for frame in frames] for frames in pair)
    return blurred, sharp


def validate(network: Network) -> list[float]:
    """PSNR gain in dB (mean over frames) of recurrent inference on each of the fixed held-out clips."""
    network.eval()
    gains = []
    for seed in VALIDATION_SEEDS:
        clip = make_clip(seed, FRAMES, VALIDATION_SIZE, VALIDATION_SIZE, split="validation")
        blurred, sharp = (
            torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255 for part in (clip.blurred, clip.sharp)
        )
        states, ratios = None, []
        with torch.no_grad():
            for window, before, truth in zip(windows(list(blurred[:, None])), blurred, sharp, strict=True):
                out, states, _ = network.first(window) if states is None else network.step(window, states)
                after = (out[0] * 255).round() / 255
                ratios.append(((before - truth) ** 2).mean() / ((after - truth) ** 2).mean())
        gains.append(float(10 * torch.stack(ratios).log10().mean()))
    return gains


def save_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write with a temporary path beside `path`, then renames it: `path` is the old file or the whole new one."""
    temporary = path.with_name(path.name + ".part")
    try:
        write(temporary)
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)


class Run:
    """A training run: network, optimiser, averaged weights and how far it has come."""

    def __init__(self, options: Options, out: Path, *, resume: bool = False) -> None:
        """Starts a run or, with resume, goes on from `last.pt` in out. Raises MissingFileError without one."""
        if (options.minutes > 0) == (options.steps > 0):
            raise InvalidInputError("give either --minutes or --steps, above 0")
        self.options, self.out, self.stop = options, out, False
        config = preset_config(options.preset)
        self.network, self.average = Network(config, auxiliary=True), Network(config, auxiliary=True)
        initialise(self.network, torch.Generator().manual_seed(options.seed))
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average.load_state_dict(self.network.state_dict())
        self.optimiser = torch.optim.Adam(self.network.parameters(), options.rate, fused=True)
        self.step, self.sequence, self.best = 0, 0, -math.inf
        self.before, self.started = 0.0, time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        if resume:
            if not (out / "last.pt").is_file():
                raise MissingFileError(f"{out / 'last.pt'} does not exist: nothing to resume")
            saved: dict[str, Any] = torch.load(out / "last.pt", weights_only=True)
            for name in ("network", "average", "optimiser"):
                getattr(self, name).load_state_dict(saved[name])
            self.step, self.sequence, self.best, self.before = (
                saved[k] for k in ("step", "sequence", "best", "elapsed")
            )

    @property
    def elapsed(self) -> float:
        """Minutes since the start, without the gaps that --resume ended."""
        return self.before + (time.monotonic() - self.started) / 60

    @property
    def progress(self) -> float:
        """How much of the schedule is done, 0 to 1."""
        done = self.elapsed / self.options.minutes if self.options.minutes else self.step / self.options.steps
        return min(1.0, done)

    def train_sequence(self) -> float:
        """Trains on every frame of one batch of clips; returns the mean loss."""
        self.network.train()
        options, late = self.options, self.progress > 0.6
        batch, crop = (max(1, options.batch // 2), options.crop * 3 // 2) if late else (options.batch, options.crop)
        blurred, sharp = draw_batch(options.seed, self.sequence, batch, crop)
        states, losses = None, []
        for window, target in zip(windows(blurred), sharp, strict=True):
            warm_up, cosine = min(1.0, (self.step + 1) / 400), (1 + math.cos(math.pi * self.progress)) / 2
            for group in self.optimiser.param_groups:
                group["lr"] = options.rate * warm_up * (0.02 + 0.98 * cosine)
            loss, states = train_frame(self.network, self.optimiser, window, states, target, options.precision)
            losses.append(loss)
            self.step += 1
            decay = min(0.999, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)
        self.sequence += 1
        return float(np.mean(losses))

    def save(self, loss: float) -> None:
        """Validates the averaged weights, writes the checkpoints and a line of the log."""
        gains = validate(self.average)
        gain, state = float(np.mean(gains)), self.average.state_dict()
        save_atomically(self.out / "last.safetensors", lambda part: save_file(state, part))
        if gain > self.best:
            self.best = gain
            save_atomically(self.out / "weights.safetensors", lambda part: save_file(state, part))
        saved = {name: getattr(self, name).state_dict() for name in ("network", "average", "optimiser")}
        saved |= {"step": self.step, "sequence": self.sequence, "best": self.best, "elapsed": self.elapsed}
        save_atomically(self.out / "last.pt", functools.partial(torch.save, saved))
        values = (self.elapsed, self.step, self.optimiser.param_groups[0]["lr"], loss, gain, *gains)
        line = ",".join(f"{value:.6g}" for value in values)
        log = self.out / "log.csv"
        if not log.exists():
            clips = ",".join(f"clip{seed}" for seed in VALIDATION_SEEDS)
            log.write_text(f"minutes,step,rate,loss,gain_db,{clips}\n")
        with log.open("a") as file:
            file.write(line + "\n")
        print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)

    def go(self) -> None:
        """Trains to the end of the schedule or until `stop` is set, then saves."""
        context = torch.multiprocessing.get_context("spawn")
        shared = [value.data.share_memory_() for value in self.network.parameters()]  # type: ignore[no-untyped-call]
        arguments = (self.options, self.out, self.step > 0, shared, os.getpid())
        helpers = [context.Process(target=_help, args=(n, *arguments)) for n in range(1, self.options.workers)]
        for helper in helpers:
            helper.start()
        try:
            self._train(helpers)
        finally:
            for helper in helpers:
                helper.terminate()

    def _train(self, helpers: Sequence[BaseProcess]) -> None:
        saved_at, losses = self.elapsed, []
        while self.progress < 1 and not self.stop:
            losses.append(self.train_sequence())
            if not all(helper.is_alive() for helper in helpers):
                raise MtuError("a worker ended, see above: resume from the last checkpoint")
            if self.elapsed - saved_at > self.options.validate_every:
                self.save(float(np.mean(losses)))
                saved_at, losses = self.elapsed, []
        self.save(float(np.mean(losses)) if losses else math.nan)


def _help(worker: int, options: Options, out: Path, resume: bool, shared: Sequence[Tensor], parent: int) -> None:
    """Steps the shared weights until the parent process ends this one, or has ended."""
    torch.set_num_threads(1)
    run = Run(dataclasses.replace(options, seed=options.seed + 1000 * worker), out, resume=resume)
    for parameter, value in zip(run.network.parameters(), shared, strict=True):
        parameter.data = value
    while os.getppid() == parent:
        run.train_sequence()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mtu.models.training", description="Train a preset on made clips.")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights.safetensors, log.csv, last.pt")
    parser.add_argument("--resume", action="store_true", help="go on from last.pt in --out")
    for name, default in vars(Options()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default)
    given = vars(parser.parse_args(arguments))
    out, resume = given.pop("out"), given.pop("resume")
    torch.set_num_threads(1)
    try:
        run = Run(Options(**given), out, resume=resume)
        signal.signal(signal.SIGTERM, lambda *_: setattr(run, "stop", True))
        run.go()
    except MtuError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
