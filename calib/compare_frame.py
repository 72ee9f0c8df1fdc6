"""How far apart what two models gave for one frame is: quantiles of differences, agreement of displacements.

Imports numpy.

Note [ties]
    A displacement that comes from the op that matches is that of the highest score, an average of cosines: 0 to 1.
    Where two scores are nearly the same, rounding decides, and another choice is no error. So where A and B differ, the
    scores of their two choices are computed again, in double precision from A's states, and a gap of at most `TIE` is a
    tie. A displacement from elsewhere has no ties.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtu.calib.rollout import Array
from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Interface
from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.correlation_argmax_warp.reference import displacement_vectors, normalised

QUANTILES = (0.5, 0.99, 0.999)
TIE = 1e-3
"""Largest gap of two scores that counts as a tie: about what fp16 features are rounded by."""


@dataclass(frozen=True)
class Difference:
    """How far two tensors are apart: absolute differences of their elements, in the tensors' own units."""

    largest: float
    quantiles: tuple[float, ...]
    """At `QUANTILES`: that share of the elements differs by no more."""


@dataclass(frozen=True)
class Agreement:
    """How far two displacement maps agree; shares of all positions, 0 to 1. See Note [ties]."""

    equal: float
    ties: float
    """Different, and a tie."""
    gap: float | None
    """Largest gap of scores of the positions that differ; 0 where none does, None where nobody knows the scores."""

    @property
    def share(self) -> float:
        """Equal or a tie."""
        return self.equal + self.ties


def compare_tensors(a: Mapping[str, Array], b: Mapping[str, Array]) -> dict[str, Difference]:
    """The differences of all tensors that `a` and `b` both have, but of a displacement index, which is no quantity.

    Both map names to arrays; Polygraphy's IterationResult will do. Raises InvalidInputError if they have no tensor in
    common, or one of two shapes; NonFiniteError if a difference is not finite.
    """
    names = [name for name in a if name in b and a[name].dtype != np.int32]
    if not names:
        raise InvalidInputError(
            f"nothing to compare: one side gives {', '.join(a) or 'nothing'}, the other {', '.join(b) or 'nothing'};"
            " compare two exports of the same model"
        )
    return {name: _difference(name, a[name], b[name]) for name in names}


def _difference(name: str, a: Array, b: Array) -> Difference:
    if a.shape != b.shape:
        raise InvalidInputError(
            f"{name} is {list(a.shape)} on one side and {list(b.shape)} on the other: compare models of one preset on"
            " frames of one size"
        )
    with np.errstate(invalid="ignore"):
        apart = np.abs(a.astype(np.float32) - b.astype(np.float32)).ravel()
    largest = float(apart.max())
    if not math.isfinite(largest):
        raise NonFiniteError([name])
    quantiles = np.quantile(apart, QUANTILES, method="higher", overwrite_input=True)
    return Difference(largest, tuple(float(value) for value in quantiles))


@dataclass(frozen=True)
class Matching:
    """What a displacement's scores are computed from."""

    state: str
    """Name of the state that is matched with that of the frame before."""
    max_displacement: int
    pool_size: int


def find_matching(a: Interface, b: Interface) -> Matching | None:
    """How the displacement of A comes about, by the ops that A or else B names; None where no op says it."""
    displacement, op = a.the("displacement"), (a.ops or b.ops).get(OP.name)
    if displacement is None or op is None:
        return None
    grid = displacement.tensor.shape[-2:]
    matched = [name for name, tensor in a.states.items() if len(tensor.shape) == 4 and tensor.shape[-2:] == grid]
    return Matching(matched[0], op["max_displacement"], op["pool_size"]) if matched else None


def compare_displacements(
    a: NDArray[np.int32],
    b: NDArray[np.int32],
    matching: Matching | None,
    states: Mapping[str, Array],
    before: Mapping[str, Array],
) -> Agreement:
    """How far two displacement indices [h, w] agree.

    `states` and `before` are those that A made of the frame and of the one before, which for a first frame are its own.
    See Note [ties].
    """
    differs = a != b
    rows, columns = np.nonzero(differs)
    if not len(rows):
        return Agreement(1.0, 0.0, 0.0)
    equal = 1 - len(rows) / differs.size
    if matching is None:
        return Agreement(equal, 0.0, None)
    maps = states[matching.state], before[matching.state]
    score_a, score_b = (scores(*maps, rows, columns, index[differs], matching) for index in (a, b))
    gaps = np.abs(score_a - score_b)
    ties = int((gaps <= TIE).sum())
    return Agreement(equal, ties / differs.size, float(gaps.max()))


def scores(
    motion: Array,
    motion_prev: Array,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    index: NDArray[np.int32],
    matching: Matching,
) -> NDArray[np.float64]:
    """The pooled cost of one displacement at each of n positions, float64 [n].

    `motion` and `motion_prev` are [1, C, h, w]; `rows`, `columns` and `index` are [n]. The same as `pooled_costs` of
    the op's reference, which computes all displacements everywhere.
    """
    here, before = (np.moveaxis(normalised(value)[0], 0, -1) for value in (motion, motion_prev))
    height, width = here.shape[:2]
    dy, dx = displacement_vectors(index, matching.max_displacement)
    total = np.zeros(len(rows))
    pool_size = matching.pool_size
    reach = range(-(pool_size // 2), pool_size // 2 + 1)
    for j, i in itertools.product(reach, reach):
        y, x = rows + j, columns + i
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        inside &= (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        y, x = y[inside], x[inside]
        total[inside] += np.einsum("nc,nc->n", here[y, x], before[y + dy[inside], x + dx[inside]])
    return total / pool_size**2
