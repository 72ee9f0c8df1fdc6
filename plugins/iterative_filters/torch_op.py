"""The op in torch: for training, for inference without ONNX, and as the baseline of comparisons. Imports torch only.

Under torch.onnx.export it stands for itself as one custom node.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mtu.plugins.iterative_filters import OP
from mtu.plugins.iterative_filters.rules import SLOPE, check_attributes, check_shapes, parts
from mtu.plugins.torch_node import custom_node


def iterative_filters(x: Tensor, filters: Tensor, shared_taps: int = 1) -> Tensor:
    """x [B, C, h, w], filtered by taps of each position and channel's own; see README.md for `filters`.

    Any floating types; computes in fp32 and gives the type and shape of x. Differentiable in both. Works under
    torch.compile(fullgraph=True). Raises InvalidInputError for shapes or attributes outside the rules.
    """
    check_attributes(shared_taps)
    if torch.onnx.is_in_onnx_export():
        # No shape check: sizes are symbols here, and a comparison would become a constraint on the export.
        (node,) = custom_node(OP, (x, filters), {"shared_taps": shared_taps}, [(x.dtype, x.shape)])
        return node
    return F.leaky_relu(filtered(x, filters, shared_taps), SLOPE).to(x.dtype)


def filtered(x: Tensor, filters: Tensor, shared_taps: int = 1) -> Tensor:
    """The op without its LeakyReLU, in fp32; for training, whose network that blurs again ends so."""
    check_shapes(x.shape, filters.shape, shared_taps)
    above, here, below, *rest = filters.float().chunk(parts(shared_taps), 1)
    left, middle, right = (above, here, below) if shared_taps else rest[:3]
    padded = F.pad(x.float(), (0, 0, 1, 1), "replicate")
    y = padded[:, :, :-2] * above + padded[:, :, 1:-1] * here + padded[:, :, 2:] * below
    padded = F.pad(y, (1, 1, 0, 0), "replicate")
    y = padded[..., :-2] * left + padded[..., 1:-1] * middle + padded[..., 2:] * right
    return y + rest[-1]
