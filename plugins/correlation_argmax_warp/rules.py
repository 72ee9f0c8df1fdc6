"""What the op accepts, said once for every executor: limits of the attributes, shapes of the inputs. Plain Python."""

from __future__ import annotations

from collections.abc import Sequence

from mtu.core.errors import InvalidInputError
from mtu.plugins.correlation_argmax_warp import OP


def check_attributes(max_displacement: int, pool_size: int, scale: int) -> None:
    """Raises InvalidInputError unless max_displacement >= 1, pool_size is odd and >= 1, and scale >= 1."""
    if max_displacement < 1:
        raise InvalidInputError(f"{OP.name}: max_displacement is {max_displacement}, it must be at least 1")
    if pool_size < 1 or pool_size % 2 == 0:
        raise InvalidInputError(f"{OP.name}: pool_size is {pool_size}, it must be odd and at least 1")
    if scale < 1:
        raise InvalidInputError(f"{OP.name}: scale is {scale}, it must be at least 1")


def check_shapes(motion: Sequence[int], motion_prev: Sequence[int], detail_prev: Sequence[int], scale: int) -> None:
    """Raises InvalidInputError unless the shapes are [B, C, h, w] twice and [B, c, scale*h, scale*w], all >= 1."""
    got = f"motion {list(motion)}, motion_prev {list(motion_prev)}, detail_prev {list(detail_prev)}"
    if len(motion) != 4 or len(detail_prev) != 4 or min(*motion, *detail_prev) < 1:
        raise InvalidInputError(
            f"{OP.name}: inputs must be [batch, channels, height, width], none of them empty; got {got}"
        )
    if list(motion) != list(motion_prev):
        raise InvalidInputError(f"{OP.name}: motion and motion_prev must have one shape; got {got}")
    batch, _, h, w = motion
    if detail_prev[0] != batch or detail_prev[2] != scale * h or detail_prev[3] != scale * w:
        raise InvalidInputError(
            f"{OP.name}: detail_prev must be [{batch}, c, {scale * h}, {scale * w}], "
            f"{scale} times the size of motion; got {got}"
        )
