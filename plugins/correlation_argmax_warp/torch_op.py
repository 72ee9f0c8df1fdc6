"""The op in torch: for training, for inference without ONNX, and as the baseline of the benchmarks. Imports torch only.

It never holds the cost volume: one row offset dy at a time is correlated by small matrix products, pooled, and reduced
to a maximum. Under torch.onnx.export it stands for itself as one custom node. `cost_volume` is that volume, whole and
with a gradient, for the motion loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.correlation_argmax_warp.rules import check_attributes, check_shapes
from mtu.plugins.torch_node import custom_node

BLOCK = 20
"""Positions of a row that share a matrix product: larger wastes arithmetic, smaller wastes calls."""


def correlation_argmax_warp(
    motion: Tensor,
    motion_prev: Tensor,
    detail_prev: Tensor,
    max_displacement: int = 10,
    pool_size: int = 5,
    scale: int = 4,
) -> tuple[Tensor, Tensor]:
    """Warps detail_prev by the displacement that best matches motion with motion_prev.

    motion, motion_prev [B, C, h, w] and detail_prev [B, c, scale*h, scale*w]: any floating type. Returns warped (type
    and shape of detail_prev) and the displacement index (dy + D) * (2D + 1) + (dx + D), int32 [B, h, w]; among equal
    costs the smallest index. The matching is in fp32 and has no gradient; warped is differentiable in detail_prev.
    Works under torch.compile(fullgraph=True). Raises InvalidInputError for shapes or attributes outside the rules.
    Source: "Real-Time Video Deblurring via Lightweight Motion Compensation" (Son et al., 2022), with the pooling of
    the released implementation.
    """
    check_attributes(max_displacement, pool_size, scale)
    if torch.onnx.is_in_onnx_export():
        # No shape check: sizes are symbols here, and a comparison would become a constraint on the export.
        warped, index = custom_node(
            OP,
            (motion, motion_prev, detail_prev),
            {"max_displacement": max_displacement, "pool_size": pool_size, "scale": scale},
            [(detail_prev.dtype, detail_prev.shape), (torch.int32, (motion.shape[0], *motion.shape[2:]))],
        )
        return warped, index
    check_shapes(motion.shape, motion_prev.shape, detail_prev.shape, scale)
    # Autocast would match in half precision.
    with torch.no_grad(), torch.autocast(motion.device.type, enabled=False):
        row, column = _best_displacement(motion, motion_prev, max_displacement, pool_size)
    return _moved(detail_prev, row, column, max_displacement, scale)


def warp_by_costs(
    costs: Tensor, detail_prev: Tensor, max_displacement: int = 10, scale: int = 4
) -> tuple[Tensor, Tensor]:
    """What `correlation_argmax_warp` gives, by the `cost_volume` of its maps, for training that needs both: costs are
    means here and sums there, so that among almost equal ones another may be the largest."""
    best = costs.detach().argmax(1)  # the first of equals, as documented
    span = 2 * max_displacement + 1
    row = torch.div(best, span, rounding_mode="floor")
    return _moved(detail_prev, row, best - row * span, max_displacement, scale)


def _moved(
    detail_prev: Tensor, row: Tensor, column: Tensor, max_displacement: int, scale: int
) -> tuple[Tensor, Tensor]:
    """detail_prev moved by (row - D, column - D), int64 [B, h, w], and the displacement index."""
    source = _source_elements(row - max_displacement, column - max_displacement, scale)
    # Element H * W of each plane is the zero that stands for everything outside.
    planes = F.pad(detail_prev.flatten(2), (0, 1))
    warped = planes.gather(2, source.expand(-1, detail_prev.shape[1], -1))
    return warped.reshape(detail_prev.shape), (row * (2 * max_displacement + 1) + column).int()


def cost_volume(motion: Tensor, motion_prev: Tensor, max_displacement: int = 10, pool_size: int = 5) -> Tensor:
    """Every pooled cost that the op takes its maximum of: fp32 [B, (2D + 1)^2, h, w], differentiable in both maps.

    motion, motion_prev [B, C, h, w] of any floating type; channel (dy + D) * (2D + 1) + (dx + D). The cost lies in
    [-1, 1]; positions outside the map count as zero. Training only: it holds all costs in memory.
    """
    d, span = max_displacement, 2 * max_displacement + 1
    batch, _, h, w = motion.shape
    with torch.autocast(motion.device.type, enabled=False):
        a, b = (F.normalize(m.float(), dim=1, eps=1e-12) for m in (motion, motion_prev))
        # [h, B, w + 1, C] (the extra place makes the longer rows fit) and [h + 2D, B, C, w + 2D]: rows come first, so
        # that a stretch of them is no copy.
        a = F.pad(a.permute(2, 0, 3, 1), (0, 0, 0, 1))
        b = F.pad(b, (d, d, d, d)).permute(2, 0, 1, 3).contiguous()
        rows = []
        for row in range(span):
            product = torch.matmul(a, b[row : row + h]).flatten(2)[..., : w * (w + span)]  # all pairs of a row
            # Entry [x, x + dx + D]: in rows that are one longer each dx is a column.
            rows.append(product.view(h, batch, w, w + span)[..., :span])
        costs = torch.stack(rows, 1).permute(2, 1, 4, 0, 3).reshape(batch, span * span, h, w)
        # Two products with band matrices, which are faster than avg_pool2d and its gradient.
        return _band(h, pool_size, costs) @ costs @ _band(w, pool_size, costs)


def _band(size: int, width: int, like: Tensor) -> Tensor:
    """[size, size]: 1 / width where row and column differ by at most width // 2, else 0."""
    places = torch.arange(size, device=like.device)
    return ((places - places[:, None]).abs() <= width // 2).to(like.dtype) / width


def _best_displacement(
    motion: Tensor, motion_prev: Tensor, max_displacement: int, pool_size: int
) -> tuple[Tensor, Tensor]:
    """(dy + D, dx + D) of the best match at each position, int64 [B, h, w].

    A row of the map is cut into blocks. A block and the pooling margin around it (`size` positions) is multiplied with
    the stretch of a row of motion_prev that it can reach (`reach` positions). Entry [i, i + dx + D] of the product is
    the similarity at displacement dx; reading it as rows that are one longer puts each dx into a column.
    """
    batch, _, h, w = motion.shape
    d, span, r = max_displacement, 2 * max_displacement + 1, pool_size // 2
    size, reach = BLOCK + 2 * r, BLOCK + 2 * r + 2 * d
    count = -(-w // BLOCK)
    fill = count * BLOCK - w
    a, b = (F.normalize(m.float(), dim=1, eps=1e-12) for m in (motion, motion_prev))
    # [h, B, count, size + 1, C] (the extra row makes the longer rows fit) and [h + 2D, B, count, C, reach]
    a = F.pad(a, (r, fill + r + 1)).unfold(3, size + 1, BLOCK).permute(2, 0, 3, 4, 1).contiguous()
    b = F.pad(b, (r + d, fill + r + d, d, d)).unfold(3, reach, BLOCK).permute(2, 0, 3, 1, 4).contiguous()
    values, columns = [], []
    for row in range(span):
        product = torch.matmul(a, b[row : row + h]).flatten(3)[..., : size * (reach + 1)]
        cost = product.view(h, batch, count, size, reach + 1)[..., :span]
        if r:
            # Sums rank like means, and are exact where equal costs must stay equal.
            cost = _sum_of_columns(cost, pool_size)
            cost = _sum_of_rows(cost, r)
        value, column = cost.max(-1)  # the first of equals, as documented
        values.append(value)
        columns.append(column)
    best_row = torch.stack(values).argmax(0)
    best_column = torch.stack(columns).gather(0, best_row[None])[0]
    to_map = (batch, h, count * BLOCK)
    return (
        best_row.transpose(0, 1).reshape(to_map)[..., :w],
        best_column.transpose(0, 1).reshape(to_map)[..., :w],
    )


def _sum_of_columns(x: Tensor, terms: int) -> Tensor:
    """out[:, :, :, i] = x[:, :, :, i] + ... + x[:, :, :, i + terms - 1] for every i that has them all; terms >= 2."""
    length = x.shape[3] - terms + 1
    total = x[:, :, :, :length] + x[:, :, :, 1 : length + 1]
    for start in range(2, terms):
        total += x[:, :, :, start : start + length]
    return total


def _sum_of_rows(x: Tensor, reach: int) -> Tensor:
    """out[y] = x[y - reach] + ... + x[y + reach], without those that do not exist."""
    total = x.clone()
    for step in range(1, min(reach, len(x) - 1) + 1):
        total[step:] += x[:-step]
        total[:-step] += x[step:]
    return total


def _source_elements(dy: Tensor, dx: Tensor, scale: int) -> Tensor:
    """Where each element of a plane comes from: int64 [B, 1, H*W], H*W itself for "outside". dy, dx [B, h, w]."""
    _, h, w = dy.shape
    offsets = torch.arange(scale, device=dy.device)
    y = torch.arange(h, device=dy.device)[:, None] + dy
    x = torch.arange(w, device=dy.device) + dx
    inside = ((y >= 0) & (y < h) & (x >= 0) & (x < w))[:, :, None, :, None]
    corner = (y * (scale * w) + x)[:, :, None, :, None] * scale
    element = corner + offsets[:, None, None] * (scale * w) + offsets
    return torch.where(inside, element, scale * h * scale * w).flatten(1)[:, None]
