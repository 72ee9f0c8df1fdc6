"""First weights of a network, and the centring that keeps its ReLUs alive. Imports torch."""

from __future__ import annotations

import math

import torch
from torch import nn

from mtu.models.mtu.architecture import Network


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
