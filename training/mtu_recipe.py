"""How MTU is trained (`mtu.training.recipe`): clips, an image loss and a motion loss for every frame. Imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from mtu.calib.datasets import LAYOUTS
from mtu.models.checkpoint import Checkpoint
from mtu.models.mtu.architecture import Network
from mtu.models.mtu.config import LOOK_AHEAD, WINDOW, preset_config
from mtu.training.batches import Batch, Batches, Source, floats
from mtu.training.data.scene import Clip
from mtu.training.losses import frame_losses
from mtu.training.muon import Muon
from mtu.training.options import VIDEOS, Options, Say
from mtu.training.sources import training_clips, validation_clips
from mtu.training.validation import validate as validate
from mtu.training.weights import centre, initialise, is_centred
from mtu.training.weights import revive as revive_channels

LOSSES = ("image", "motion")
CLIP_NORM = 1.0
"""Largest norm of a gradient, as in the authors' released configuration."""


def training_source(options: Options, say: Say) -> Source:
    """See `Recipe`."""
    return Batches(options, training_clips(options, say))


def validation_samples(options: Options, say: Say) -> list[Clip]:
    """See `Recipe`."""
    return validation_clips(options, say)


def remark(options: Options, source: Source) -> str:
    """See `Recipe`."""
    if options.motion_weight and any(each.kind in (VIDEOS, *LAYOUTS) for each in options.sources):
        return "the motion loss takes optical flow between the sharp frames (OpenCV DIS), an estimate, for the truth"
    return ""


def new_network(options: Options) -> Network:
    """See `Recipe`."""
    network = Network(preset_config(options.preset), auxiliary=True)
    initialise(network, torch.Generator().manual_seed(options.seed))
    network.motion_layer.requires_grad_(network.config.units > 1)  # one unit does not use it
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def new_optimiser(parameters: Iterable[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    """See `Recipe`."""
    if options.optimiser == "muon":
        return Muon(parameters, options.rate)
    return torch.optim.Adam(parameters, options.rate, fused=True)


def begin_with(network: Network, found: Checkpoint) -> None:
    """See `Recipe`; the auxiliary layers stay as they are."""
    network.load_state_dict(found.weights, strict=False)


def check_start(found: Checkpoint, options: Options) -> str:
    """See `Recipe`."""
    if options.centre and not is_centred(found.network()):
        return "its kernels are not centred, and centring would ruin them: add --no-centre"
    return ""


def revive(network: Network, samples: Sequence[Clip], options: Options) -> int:
    """See `Recipe`."""
    count = revive_channels(network, samples, torch.Generator().manual_seed(options.seed))
    settle(network, options)  # what reads a new channel begins with zeros
    return count


def steps(
    network: Network, batch: Batch, options: Options, step: int
) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor | None]]:
    """See `Recipe`: the frames of the clips in order, with the state of the one before."""
    blurred, sharp, target = batch
    frames = [floats(frame) for frame in blurred]
    device = blurred.device
    states: tuple[Tensor, ...] | None = None
    total = torch.zeros((), device=device)
    count = min(len(sharp), options.max_steps - step)
    for t in range(count):
        window = [frames[t + LOOK_AHEAD + offset] for offset in WINDOW.values()]
        # Fabric's own mixed precision would round the pictures too.
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
            out, new_states, inner = network.train_step(window, states, with_costs=options.motion_weight > 0)
        motion_prev = states[1] if states is not None and len(states) > 1 else None
        truth, matches, progress = floats(sharp[t]), target[t].long(), (step + t) / options.max_steps
        loss = frame_losses(out, inner, truth, frames[t + LOOK_AHEAD], motion_prev, matches, options, progress)
        states, total = (new_states[0].clamp(0, 1), *new_states[1:]), total + loss[0] + loss[1]
        if (t + 1) % options.unroll == 0 or t + 1 == count:
            yield loss, total / (t % options.unroll + 1)
            states, total = tuple(state.detach() for state in states), torch.zeros_like(total)
        else:
            yield loss, None


def settle(network: Network, options: Options) -> None:
    """See `Recipe`."""
    if options.centre:
        centre(network)


def exported(network: Network) -> Mapping[str, Tensor]:
    """See `Recipe`; with the auxiliary layers."""
    weights: Mapping[str, Tensor] = network.state_dict()
    return weights
