"""A custom op as one node of a graph that torch exports. Imports torch only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtu.plugins.op import DOMAIN, Op


def custom_node(
    op: Op,
    inputs: Sequence[Tensor],
    attributes: Mapping[str, int],
    outputs: Sequence[tuple[torch.dtype, Sequence[int | torch.SymInt]]],
) -> Sequence[Tensor]:
    """The outputs, of these types and shapes, of the op's node; the exporter adds its function to the model later.

    For use where `torch.onnx.is_in_onnx_export()`.
    """
    dtypes, shapes = zip(*outputs, strict=True)
    found: Sequence[Tensor] = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{op.name}",
        tuple(inputs),
        op.node_attributes(attributes),
        dtypes=dtypes,
        shapes=shapes,
        version=op.version,
    )
    return found
