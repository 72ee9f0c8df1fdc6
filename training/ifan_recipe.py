"""How IFAN is trained (`mtu.training.recipe`): pictures, and three losses, each a mean squared error. Imports torch.

Source: "Iterative Filter Adaptive Network for Single Image Defocus Deblurring" (Lee et al., 2021), section 3.4, and the
released configuration; docs/training.md has what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtu.models.checkpoint import Checkpoint
from mtu.models.ifan import PRESETS
from mtu.models.pictures import to_float, to_frame
from mtu.runtime import Picture
from mtu.training.batches import Source, floats
from mtu.training.ifan_network import SHRINK, TrainedNetwork, initialise
from mtu.training.options import Options, Say
from mtu.training.stills import Sample, StillBatch, Stills, training_stills, validation_stills
from mtu.training.validation import Validation, judged

LOSSES = ("deblurring", "disparity", "reblurring")
CLIP_NORM = 0.5


def training_source(options: Options, say: Say) -> Source:
    """See `Recipe`."""
    return training_stills(options, PRESETS[options.preset]["streams"], say)


def validation_samples(options: Options, say: Say) -> list[Sample]:
    """See `Recipe`."""
    return validation_stills(options, PRESETS[options.preset]["streams"], say)


def remark(options: Options, source: Source) -> str:
    """See `Recipe`."""
    if isinstance(source, Stills) and not source.has_views:
        return "the data has no views of a dual-pixel sensor: the disparity loss is left out"
    return ""


def new_network(options: Options) -> TrainedNetwork:
    """See `Recipe`."""
    network = TrainedNetwork(PRESETS[options.preset])
    initialise(network, torch.Generator().manual_seed(options.seed))
    for value in network.parameters():
        if value.dim() == 4 and value.shape[-1] > 1:  # of 1x1 kernels the gradients would have other strides
            value.data = value.data.to(memory_format=torch.channels_last)
    return network


def new_optimiser(parameters: Iterable[nn.Parameter], options: Options) -> torch.optim.Optimizer:
    """See `Recipe`."""
    return torch.optim.RAdam(
        parameters, options.rate, betas=(0.9, 0.999), weight_decay=0.01, decoupled_weight_decay=True
    )


def begin_with(network: TrainedNetwork, found: Checkpoint) -> None:
    """See `Recipe`; the network that blurs again stays as it is."""
    network.Network.load_state_dict(found.arrays)


def check_start(found: Checkpoint, options: Options) -> str:
    """See `Recipe`."""
    return ""


def steps(
    network: TrainedNetwork, batch: StillBatch, options: Options, step: int
) -> Iterator[tuple[tuple[Tensor, Tensor, Tensor], Tensor]]:
    """See `Recipe`: one step a batch."""
    blurred, sharp, views = floats(batch.blurred), floats(batch.sharp), [floats(view) for view in batch.views]
    seen = (blurred, *views) if PRESETS[options.preset]["streams"] > 1 else (blurred,)
    with torch.autocast(blurred.device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        restored, disparity, blurred_again = network.train_step(sharp, *seen)
    losses = (
        F.mse_loss(restored.float(), sharp),
        disparity_loss(disparity.float(), *views) if views else torch.zeros((), device=blurred.device),
        F.mse_loss(blurred_again.float(), small(blurred)),
    )
    yield losses, torch.stack(losses).sum()


def small(picture: Tensor) -> Tensor:
    """[B, C, H, W] at the size of the filters, each position the mean of its pixels."""
    return F.avg_pool2d(picture, SHRINK)


def disparity_loss(disparity: Tensor, right: Tensor, left: Tensor) -> Tensor:
    """How far the right view is from the left one when each position is taken `disparity` positions to the right.

    disparity [B, 1, h, w]; views [B, 3, 8h, 8w]. Between positions linear, at the border the last one.
    """
    right, left = small(right), small(left)
    height, width = right.shape[2:]
    y, x = (torch.arange(side, device=right.device, dtype=torch.float32) for side in (height, width))
    across = (2 * (x + disparity[:, 0]) + 1) / width - 1
    down = ((2 * y + 1) / height - 1)[:, None].expand_as(across)
    moved = F.grid_sample(right, torch.stack((across, down), -1), padding_mode="border", align_corners=False)
    return F.mse_loss(moved, left)


def settle(network: TrainedNetwork, options: Options) -> None:
    """See `Recipe`: nothing."""


@torch.no_grad()
def validate(network: TrainedNetwork, samples: Sequence[Sample]) -> Validation:
    """See `Recipe`. What is sharp already has sharp views."""
    made = network.inference_network()
    reads = network.settings["streams"]
    parameter = next(made.parameters())

    def restored(sample: Sample, of_sharp: bool) -> Sequence[Picture]:
        picture = sample.sharp if of_sharp else sample.blurred
        views = sample.sharp.repeat(2, 0) if of_sharp else sample.views
        seen = np.concatenate((picture, views))[:reads, None]
        frames = (to_float(torch.from_numpy(each).to(parameter.device), parameter.dtype) for each in seen)
        return [to_frame(made(*frames).clamp(0, 1)).cpu().numpy()[0]]

    return judged(restored, samples)


def exported(network: TrainedNetwork) -> Mapping[str, Tensor]:
    """See `Recipe`; as in a released file, without the network that blurs again."""
    return {f"Network.{name}": value.detach() for name, value in network.arrays.items()}
