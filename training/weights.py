"""First weights of a network, the centring that keeps its ReLUs alive, and help for those that died. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mtu.models.mtu.architecture import Network
from mtu.training.data.scene import Clip
from mtu.training.validation import restore

ON = 1e-3
"""A channel that is above 0 in a smaller share of every frame is dead: hardly a gradient reaches it."""

FAINT = 0.1
"""Times He's normal weights: features that are matched by their cosine then hardly change."""

FRAMES = 4
"""First frames of each clip that are looked at for dead channels."""


def initialise(network: Network, generator: torch.Generator) -> None:
    """He's normal weights, centred, and zero biases; residual branches, decoders and image layers are scaled down.

    The network starts near the identity, yet every layer has a gradient.
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


@torch.no_grad()
def centre(network: Network) -> None:
    """Makes every kernel of the units and image layers blind to a common shift of its inputs (all >= 0).

    Without it a step moves all of a layer's outputs at once, and within 500 steps most units are off for every input.
    Source: weight standardisation (Qiao et al., 2019), its centring only, as a projection after each step.
    """
    for name, module in network.named_modules():
        if name.startswith(("HGs", "out", "deblur")):
            if isinstance(module, nn.ConvTranspose2d):
                # Each output pixel sees the taps of one parity of rows and one of columns.
                taps = module.weight.reshape(*module.weight.shape[:2], 2, 2, 2, 2)
                module.weight -= taps.mean((0, 2, 4), keepdim=True).expand_as(taps).reshape(module.weight.shape)
            elif isinstance(module, nn.Conv2d):
                module.weight -= module.weight.mean((1, 2, 3), keepdim=True)


def is_centred(network: Network) -> bool:
    """Whether `centre` would leave the network's inference layers as they are, to rounding."""
    centred = Network(network.config)
    known = {name: value for name, value in network.state_dict().items() if not name.startswith("deblur")}
    centred.load_state_dict(known)
    centre(centred)
    return all(torch.allclose(known[name], value, atol=1e-4) for name, value in centred.state_dict().items())


@torch.no_grad()
def revive(network: Network, clips: Sequence[Clip], generator: torch.Generator) -> int:
    """Gives He's normal weights, centred, and no bias to channels that are dead in all the clips; returns how many.

    Of the layers that one other alone reads: the convolution of the frames around and the first ones of the residual
    blocks. What reads such a channel begins with zeros, so the pictures change by what centring makes of that alone.
    Channels of the motion layer, which are matched, begin `FAINT`.
    """
    readers = _readers(network)
    most_on = {layer: torch.zeros(layer.out_channels) for layer in readers}

    def see(layer: nn.Conv2d, given: object, result: Tensor) -> None:
        most_on[layer] = torch.maximum(most_on[layer], (result > 0).float().mean((0, 2, 3)).cpu())

    hooks = [layer.register_forward_hook(see) for layer in readers]
    for clip in clips:
        for _ in restore(network, clip.blurred[:FRAMES]):
            pass
    for hook in hooks:
        hook.remove()
    count = 0
    for layer, (reader, offset) in readers.items():
        assert layer.bias is not None
        for channel in (most_on[layer] < ON).nonzero()[:, 0].tolist():
            kernel = torch.randn(tuple(layer.weight.shape[1:]), generator=generator)
            kernel = (kernel - kernel.mean()) * math.sqrt(2 / kernel.numel())
            layer.weight[channel] = kernel if reader else FAINT * kernel
            layer.bias[channel] = 0
            if reader:
                reader.weight[:, offset + channel] = 0
            count += 1
    return count


def _readers(network: Network) -> dict[nn.Conv2d, tuple[nn.Conv2d | None, int]]:
    """The layers that `revive` looks at: what reads each, None for the matching, and which of its inputs is the layer's
    first channel."""
    found: dict[nn.Module, tuple[nn.Module | None, int]] = {}
    modules = dict(network.named_modules())
    for name, module in modules.items():
        if name == "inp_prev_conv.0":  # behind the channels of the frame itself
            found[module] = (modules["HGs.0.enc1.0"], network.config.channels)
        elif isinstance(module, nn.Conv2d) and ".RBs." in name and name.endswith(".0"):
            found[module] = (modules[name[:-1] + "2"], 0)
        elif name == "motion_layer.0.0" and network.config.units > 1:  # one unit matches nothing
            found[module] = (None, 0)
    return cast(dict[nn.Conv2d, tuple[nn.Conv2d | None, int]], found)
