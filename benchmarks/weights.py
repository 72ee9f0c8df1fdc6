"""How well weights restore clips: what motion compensation brings, and what becomes of sharp frames. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mtu.calib.quality import Quality, mean, measure_clip
from mtu.models.mtu.config import MAX_DISPLACEMENT
from mtu.runtime.bundle import open_bundle

if TYPE_CHECKING:
    from mtu.models.mtu.architecture import Network
    from mtu.training.data.scene import Clip


@dataclass(frozen=True)
class Row:
    """What a network makes of a clip."""

    before: Quality
    after: Quality
    unmoved: float
    """Mean PSNR in dB of the same network with its motion compensation off."""
    kept: float
    """Mean PSNR in dB of the sharp frames, restored, to themselves."""
    matched: float
    """Share of the positions of known motion whose displacement is right to one position (4 pixels) each way."""

    @property
    def gain(self) -> float:
        """PSNR gained, in dB."""
        return self.after.psnr - self.before.psnr


def load(model: Path) -> Network:
    """The network of a bundle or a checkpoint. Raises as `read_checkpoint` and `load_checkpoint` do."""
    from mtu.models.checkpoint import load_checkpoint
    from mtu.runtime.backends.torch_backend import read_checkpoint

    checkpoint = load_checkpoint(model) if model.is_file() else read_checkpoint(open_bundle(model))
    network: Network = checkpoint.network()
    return network


def measure(network: Network, clip: Clip) -> Row:
    """Restores a clip, blurred and sharp, with motion compensation and, where there is any, without."""
    import torch

    from mtu.models.mtu.architecture import Network
    from mtu.plugins.correlation_argmax_warp.reference import displacement_vectors
    from mtu.training.losses import UNKNOWN, displacement_targets
    from mtu.training.validation import mean_psnr, restore

    class Unmoved(Network):
        """Takes the features of the frame before from where they are."""

        def compensate(
            self, motion: torch.Tensor, motion_prev: torch.Tensor, detail: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return detail, super().compensate(motion, motion_prev, detail)[1]

    sharp = list(clip.sharp)
    restored = list(restore(network, clip.blurred))
    after, matched = mean(measure_clip([picture for picture, _ in restored], sharp)), math.nan
    unmoved = after.psnr
    found = [index for _, index in restored[1:] if index is not None]
    if found:
        still = Unmoved(network.config).eval()
        still.load_state_dict(network.state_dict())
        unmoved = mean_psnr([picture for picture, _ in restore(still, clip.blurred)], sharp)
        true = displacement_targets(torch.from_numpy(clip.motion[1:])).numpy()
        known = true != UNKNOWN
        here = np.stack(displacement_vectors(np.stack(found)[known], MAX_DISPLACEMENT))
        matched = float((np.abs(here - displacement_vectors(true[known], MAX_DISPLACEMENT)).max(0) <= 1).mean())
    kept = mean_psnr([picture for picture, _ in restore(network, clip.sharp)], sharp)
    return Row(mean(measure_clip(list(clip.blurred), sharp)), after, unmoved, kept, matched)


def gain(network: Network, clip: Clip) -> float:
    """PSNR in dB that a network gains on a clip."""
    from mtu.training.validation import mean_psnr, restore

    sharp = list(clip.sharp)
    after = mean_psnr([picture for picture, _ in restore(network, clip.blurred)], sharp)
    return after - mean_psnr(list(clip.blurred), sharp)


HEADER = """\
| seed | blurred dB | restored dB | gain dB | blurred SSIM | restored SSIM | gain without motion compensation dB \
| displacements right | sharp input to itself dB |
|---|---|---|---|---|---|---|---|---|"""
"""Of the table whose lines `table_row` writes."""


def table_row(name: str, rows: Sequence[Row]) -> str:
    """One line of the table: the mean of `rows`."""
    before, after = mean([row.before for row in rows]), mean([row.after for row in rows])
    unmoved, kept, matched = (float(np.mean([getattr(row, n) for row in rows])) for n in ("unmoved", "kept", "matched"))
    moved = "| - | -" if math.isnan(matched) else f"| {unmoved - before.psnr:+.2f} | {matched:.1%}"
    return (
        f"| {name} | {before.psnr:.2f} | {after.psnr:.2f} | {after.psnr - before.psnr:+.2f} | {before.ssim:.4f}"
        f" | {after.ssim:.4f} {moved} | {kept:.2f} |"
    )
