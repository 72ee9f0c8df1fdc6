"""What the op accepts, said once for every executor: the attribute, shapes of the inputs. Plain Python."""

from __future__ import annotations

from collections.abc import Sequence

from mtu.core.errors import InvalidInputError
from mtu.plugins.iterative_filters import OP

SLOPE = 0.1
"""Of the LeakyReLU at the end."""


def check_attributes(shared_taps: int) -> None:
    """Raises InvalidInputError unless shared_taps is 0 or 1."""
    if shared_taps not in (0, 1):
        raise InvalidInputError(f"{OP.name}: shared_taps is {shared_taps}, it must be 0 or 1")


def parts(shared_taps: int) -> int:
    """Blocks of C channels in `filters`: three taps, or three and three, and the bias."""
    return 4 if shared_taps else 7


def check_shapes(x: Sequence[int], filters: Sequence[int], shared_taps: int) -> None:
    """Raises InvalidInputError unless the shapes are [B, C, h, w] and [B, parts * C, h, w], all >= 1."""
    got = f"x {list(x)}, filters {list(filters)}"
    if len(x) != 4 or len(filters) != 4 or min(*x, *filters) < 1:
        raise InvalidInputError(
            f"{OP.name}: inputs must be [batch, channels, height, width], none of them empty; got {got}"
        )
    batch, channels, h, w = x
    wanted = [batch, parts(shared_taps) * channels, h, w]
    if list(filters) != wanted:
        raise InvalidInputError(
            f"{OP.name}: filters must be {wanted}, {parts(shared_taps)} times the channels of x with shared_taps"
            f" {shared_taps}; got {got}"
        )
