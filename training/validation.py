"""What a network makes of clips or pictures, as at inference: frame by frame, rounded to 8 bits. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from mtu.calib.quality import psnr
from mtu.models.mtu.architecture import Network
from mtu.models.mtu.config import WINDOW
from mtu.runtime import Picture
from mtu.training.data.scene import Clip

KEPT_CLIPS = 4
"""Clips whose sharp frames are restored too: they should come back as they are."""

HIGHEST = 80.0
"""PSNR in dB of equal pictures, for means; one 8-bit step at every thirtieth value is about as much."""


class Sample(Protocol):
    """A clip, or a picture as a clip of one frame; both uint8 [T, H, W, 3]."""

    @property
    def blurred(self) -> Picture:
        """What the network is given."""
        ...

    @property
    def sharp(self) -> Picture:
        """What it should give."""
        ...


S = TypeVar("S", bound=Sample)


@dataclass(frozen=True)
class Validation:
    """How a network did, in dB; each figure is the mean over the frames of a clip."""

    gains: tuple[float, ...]
    """PSNR of the restored clip less that of the blurred one."""
    kept: tuple[float, ...]
    """PSNR of restored sharp frames to themselves."""
    picture: Picture
    """The middle frame of the first clip, [H, 3W, 3]: blurred, restored, sharp."""

    @property
    def gain(self) -> float:
        """Mean over the clips; the figure that chooses the weights to keep."""
        return float(np.mean(self.gains))


def validate(network: Network, clips: Sequence[Clip]) -> Validation:
    """Restores each clip with the network, on the device it is on. The network is left in evaluation mode."""
    network.eval()

    def restored(clip: Clip, of_sharp: bool) -> Sequence[Picture]:
        return [picture for picture, _ in restore(network, clip.sharp if of_sharp else clip.blurred)]

    return judged(restored, clips)


def judged(restored: Callable[[S, bool], Sequence[Picture]], samples: Sequence[S]) -> Validation:
    """How a network did whose frames for a sample `restored` gives: of the blurred ones, or of the sharp ones."""
    gains, kept, pictures = [], [], []
    for number, sample in enumerate(samples):
        frames = restored(sample, False)
        gains.append(mean_psnr(frames, sample.sharp) - mean_psnr(sample.blurred, sample.sharp))
        if number < KEPT_CLIPS:
            kept.append(mean_psnr(restored(sample, True), sample.sharp))
        middle = len(frames) // 2
        pictures.append(np.concatenate((sample.blurred[middle], frames[middle], sample.sharp[middle]), 1))
    return Validation(tuple(gains), tuple(kept), pictures[0])


@torch.no_grad()
def restore(network: Network, frames: Picture) -> Iterator[tuple[Picture, Picture | None]]:
    """The restored frames of a clip, uint8 [T, H, W, 3] with H and W multiples of 4, and their displacement indices."""
    device = network.out.weight.device
    tensors = [torch.from_numpy(frame).to(device).permute(2, 0, 1)[None].float() / 255 for frame in frames]
    states: tuple[Tensor, ...] | None = None
    for t in range(len(tensors)):
        window = [tensors[min(max(t + offset, 0), len(tensors) - 1)] for offset in WINDOW.values()]
        out, states, found = network.first(window) if states is None else network.step(window, states)
        yield (
            (out[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy(),
            None if found is None else found[0].cpu().numpy(),
        )


def mean_psnr(frames: Iterable[Picture], truth: Iterable[Picture]) -> float:
    """Mean over frames of the PSNR in dB, each at most `HIGHEST`, so that it stays finite."""
    return float(np.mean([min(HIGHEST, psnr(*pair)) for pair in zip(frames, truth, strict=True)]))
