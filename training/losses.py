"""The losses of training (paper, section 3.5, and the authors' released configuration). Imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mtu.models.mtu.architecture import Inner
from mtu.models.mtu.config import MAX_DISPLACEMENT, POOL_SIZE, SIZE_MULTIPLE
from mtu.plugins.correlation_argmax_warp.torch_op import cost_volume
from mtu.training.options import ImageLoss, Options

INNER_WEIGHT = 0.1
"""Weight of the image loss of every unit but the last (lambda_n of equation 1)."""

UNKNOWN = -1
"""Target of a position without a match within reach."""


EASY = (1e-3, 3e-5)
"""Squared error below which a crop counts as easy, at the beginning and at the end of a run: 30 and 45 dB."""


HARM = 2.0
"""How much more, at the end of a run, the "psnr" loss counts a decibel by which a picture is worse than the input."""


def image_loss(image: Tensor, sharp: Tensor, blurred: Tensor, kind: ImageLoss, progress: float = 1.0) -> Tensor:
    """How far `image` is from `sharp`, all [B, 3, H, W], RGB 0 to 1, at `progress` (0 to 1) of a run.

    "l1+mse": mean absolute plus mean squared error (equation 1 has the first alone, the authors' training both).
    "psnr": the mean over the batch of the log of the squared error, so that a decibel counts the same in a hard crop as
    in one with little blur, flattened in easy ones, and with a penalty for being further from `sharp` than `blurred`,
    the input, is. Both change over the run: at first the easy crops and the penalty would pull the network to the
    identity for good. Scaled so that the motion loss weighs about the same against either.
    """
    error = image.float() - sharp
    if kind == "psnr":
        easy: float = EASY[0] ** (1 - progress) * EASY[1] ** progress
        after, before = ((e.square().mean((1, 2, 3)) + easy).log() for e in (error, blurred - sharp))
        return 0.02 * (after + HARM * progress * (after - before).relu()).mean()
    return error.abs().mean() + error.square().mean()


def motion_loss(costs: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of a `cost_volume` of two motion maps against `target` (equation 2), a mean over positions.

    target int64 [B, h, w] as `displacement_targets` gives it. 0 without any target.
    """
    total = F.cross_entropy(costs, target, ignore_index=UNKNOWN, reduction="sum")
    return total / (target != UNKNOWN).sum().clamp(min=1)


def displacement_targets(motion: Tensor) -> Tensor:
    """The displacement index that the op should find at each position, from the true motion of each pixel.

    motion [..., H, W, 2]: (dy, dx) in pixels to where the point was one frame before, NaN if it was not to be seen.
    Returns int16 [..., H/4, W/4]: (dy + D) * (2D + 1) + (dx + D) in positions, or -1 where that is out of reach or
    outside the map.
    """
    centre = SIZE_MULTIPLE // 2
    steps = (motion[..., centre::SIZE_MULTIPLE, centre::SIZE_MULTIPLE, :].float() / SIZE_MULTIPLE).round()
    dy, dx = steps.unbind(-1)  # comparisons with NaN are false
    y = torch.arange(dy.shape[-2], device=dy.device)[:, None] + dy
    x = torch.arange(dy.shape[-1], device=dy.device) + dx
    known = (dy.abs() <= MAX_DISPLACEMENT) & (dx.abs() <= MAX_DISPLACEMENT)
    known &= (y >= 0) & (y < dy.shape[-2]) & (x >= 0) & (x < dy.shape[-1])
    index = (dy + MAX_DISPLACEMENT) * (2 * MAX_DISPLACEMENT + 1) + dx + MAX_DISPLACEMENT
    return torch.where(known, index, torch.full_like(index, UNKNOWN)).to(torch.int16)


def frame_losses(
    out: Tensor,
    inner: Sequence[Inner],
    sharp: Tensor,
    blurred: Tensor,
    motion_prev: Tensor | None,
    target: Tensor,
    options: Options,
    progress: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The image loss over all units and the motion loss of a frame, both weighted; their sum is minimised.

    `out` and `inner` as `Network.train_step` gives them; `motion_prev` is the state of the frame before, None for the
    first frame, which has no motion loss; `progress` is how much of the run is done, 0 to 1.
    """
    kind = options.image_loss
    images = image_loss(out, sharp, blurred, kind, progress)
    for unit in inner:
        images = images + INNER_WEIGHT * image_loss(unit.image, sharp, blurred, kind, progress)
    motion = torch.zeros_like(images)
    for unit in inner:
        if motion_prev is None or options.motion_weight == 0:
            # In the loss all the same: several processes would wait for the gradient of a parameter that has none.
            motion = motion + 0 * unit.motion.float().mean()
            continue
        costs = cost_volume(unit.motion, motion_prev, MAX_DISPLACEMENT, POOL_SIZE) if unit.costs is None else unit.costs
        motion = motion + options.motion_weight * motion_loss(costs, target)
    return images, motion
