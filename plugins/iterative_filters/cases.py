"""The cases of the op, declared once and run by every executor. Imports numpy and the truth only.

A case is data: sizes, the attribute, the name of a pattern and a seed. Its arrays and its expected result are made when
they are first asked for. Every executor must be within `allowed` of it in every element: 1e-6 of the sum of the
magnitudes of what is added up (an element may be near zero where large ones cancel), and one step of the result's type.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtu.plugins.iterative_filters.reference import iterative_filters
from mtu.plugins.iterative_filters.rules import parts

Array = NDArray[Any]
RELATIVE = 1e-6


@dataclass(frozen=True)
class Case:
    """One case: what goes in, and why it is there. Sizes are those of `x`, [batch, channels, height, width]."""

    name: str
    why: str
    height: int
    width: int
    pattern: str = "random"
    """A key of `PATTERNS`: how x and filters are made."""
    channels: int = 4
    batch: int = 1
    shared_taps: int = 1
    dtype: Literal["float16", "float32"] = "float32"
    seed: int = 0
    by_hand: tuple[tuple[float, ...], ...] | None = None
    """The first channel of the result as worked out by a person."""

    @property
    def attributes(self) -> dict[str, int]:
        """The attributes that change the result, by their names."""
        return {"shared_taps": self.shared_taps}

    @cached_property
    def inputs(self) -> dict[str, Array]:
        """x [B, C, h, w] and filters [B, 4 C or 7 C, h, w], of type `dtype`, by name."""
        arrays = PATTERNS[self.pattern](self, np.random.default_rng(self.seed))
        return {
            name: np.ascontiguousarray(array, self.dtype) for name, array in zip(("x", "filters"), arrays, strict=True)
        }

    @cached_property
    def expected(self) -> tuple[Array]:
        """(filtered,) by the truth."""
        return (iterative_filters(self.inputs["x"], self.inputs["filters"], self.shared_taps),)

    @cached_property
    def allowed(self) -> tuple[Array]:
        """How far from `expected` an executor may be."""
        x, filters = (np.abs(array.astype(np.float64)) for array in self.inputs.values())
        step = np.abs(np.spacing(self.expected[0])).astype(np.float64)
        return (RELATIVE * iterative_filters(x, filters, self.shared_taps) + step,)


def _shapes(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    size = (case.height, case.width)
    return (case.batch, case.channels, *size), (case.batch, parts(case.shared_taps) * case.channels, *size)


def _random(case: Case, random: np.random.Generator) -> tuple[Array, ...]:
    """Both signs, nothing alike."""
    return tuple(random.standard_normal(shape) for shape in _shapes(case))


def _counting(case: Case, random: np.random.Generator) -> tuple[Array, ...]:
    """x is 1, 2, 3 ...; the taps are 1, 10 and 100 everywhere (across, where they differ, 2, 3 and 5), the bias 0."""
    x, filters = (np.zeros(shape) for shape in _shapes(case))
    x[:] = np.arange(1, x[0, 0].size + 1).reshape(x.shape[2:])
    for part, tap in enumerate((1, 10, 100) if case.shared_taps else (1, 10, 100, 2, 3, 5)):
        filters[:, part * case.channels : (part + 1) * case.channels] = tap
    return x, filters


def _own_taps(case: Case, random: np.random.Generator) -> tuple[Array, ...]:
    """The middle tap is 1 + y + x, the others 0; the bias is -50: each position has its own."""
    x, filters = (np.zeros(shape) for shape in _shapes(case))
    x[:] = 1
    y, across = np.mgrid[: case.height, : case.width]
    filters[:, case.channels : 2 * case.channels] = 1 + y + across
    filters[:, -case.channels :] = -50
    return x, filters


def _negative(case: Case, random: np.random.Generator) -> tuple[Array, ...]:
    """A bias below everything: all results come through the slope."""
    x, filters = _random(case, random)
    filters[:, -case.channels :] = -30
    return x, filters


def _cancelling(case: Case, random: np.random.Generator) -> tuple[Array, ...]:
    """Taps that nearly cancel, on values that hardly differ."""
    x, filters = _random(case, random)
    filters[:, : case.channels] = -filters[:, 2 * case.channels : 3 * case.channels]
    return 100 + 0.01 * x, filters


def _large(case: Case, random: np.random.Generator) -> tuple[Array, ...]:
    """Products beyond half precision, whose sums fit in it."""
    x, filters = _random(case, random)
    for part, tap in enumerate((10, 1, -10) * (1 if case.shared_taps else 2)):
        filters[:, part * case.channels : (part + 1) * case.channels] = tap
    return 2e4 + 10 * x, filters


def _huge(case: Case, random: np.random.Generator) -> tuple[Array, ...]:
    """As random, up to 1e12 of what single precision has room for."""
    x, filters = _random(case, random)
    return 1e12 * x, 1e6 * filters


def _small(case: Case, random: np.random.Generator) -> tuple[Array, ...]:
    """Products that are zero in half precision."""
    x, filters = _random(case, random)
    filters[:, : -case.channels] *= 1e-3
    return 1e-3 * x, filters


def _zeros(case: Case, random: np.random.Generator) -> tuple[Array, ...]:
    """Nothing but the bias."""
    x, filters = _random(case, random)
    return np.zeros_like(x), filters


PATTERNS: dict[str, Callable[[Case, np.random.Generator], tuple[Array, ...]]] = {
    "random": _random,
    "counting": _counting,
    "own_taps": _own_taps,
    "negative": _negative,
    "cancelling": _cancelling,
    "large": _large,
    "huge": _huge,
    "small": _small,
    "zeros": _zeros,
}

# fmt: off
CASES: tuple[Case, ...] = (
    # Small enough to be worked out by a person.
    Case("hand_one", "a single position is its own neighbour: 111 twice", 1, 1, "counting", by_hand=((12321,),)),
    Case("hand_row", "one row, the edges repeated: first down, 111 x, then across", 1, 3, "counting",
         by_hand=((111 * (1 + 10 + 200), 111 * (1 + 20 + 300), 111 * (2 + 30 + 300)),)),
    Case("hand_column", "one column", 3, 1, "counting",
         by_hand=((111 * (1 + 10 + 200),), (111 * (1 + 20 + 300),), (111 * (2 + 30 + 300),))),
    Case("hand_separate", "the second filter has taps of its own", 1, 2, "counting", shared_taps=0,
         by_hand=((111 * (2 + 3 + 10), 111 * (2 + 6 + 10)),)),
    Case("hand_own_taps", "each position has its taps, squared, and a bias: below zero a tenth", 2, 3, "own_taps",
         by_hand=((-4.9, -4.6, -4.1), (-4.6, -4.1, -3.4))),
    # Sizes.
    Case("one_by_one", "the smallest map", 1, 1, channels=5),
    Case("one_by_one_separate", "the same, taps of their own", 1, 1, channels=5, shared_taps=0),
    Case("one_row", "a map of one row", 1, 30),
    Case("one_column", "a map of one column", 30, 1, shared_taps=0),
    Case("two_by_two", "every position is at two edges", 2, 2),
    Case("odd", "odd sizes, one more than a power of two", 17, 33, channels=3),
    Case("odd_separate", "the same, taps of their own", 17, 33, channels=3, shared_taps=0),
    Case("one_channel", "the fewest channels", 6, 7, channels=1),
    Case("batch", "entries of a batch do not mix", 5, 6, batch=3),
    Case("batch_separate", "the same, taps of their own", 5, 6, batch=2, shared_taps=0),
    Case("wide", "a long row", 2, 131, channels=2),
    Case("wide_half", "a long row, channels that are no multiple of 8", 2, 131, channels=70, dtype="float16"),
    Case("vectors", "rows that are multiples of 16 bytes, longer than 32 of them", 3, 132, channels=2),
    Case("vectors_half", "the same in half precision", 3, 272, channels=2, dtype="float16", batch=2),
    Case("vectors_half_separate", "the same, taps of their own, short rows", 9, 16, channels=8, dtype="float16",
         shared_taps=0),
    # What the published networks have.
    Case("published", "channels of the published networks", 12, 20, channels=128),
    Case("published_half", "the same in half precision", 12, 20, channels=128, dtype="float16"),
    Case("published_separate", "the form of the paper", 11, 13, channels=128, shared_taps=0),
    Case("published_separate_half", "the same in half precision", 11, 13, channels=128, shared_taps=0,
         dtype="float16"),
    # Values.
    Case("zeros", "nothing but the bias", 5, 7, "zeros"),
    Case("negative", "all results come through the slope", 7, 9, "negative"),
    Case("negative_half", "the same in half precision", 7, 9, "negative", dtype="float16", shared_taps=0),
    Case("cancelling", "sums that are small beside what is added up", 9, 8, "cancelling"),
    Case("large_half", "products that overflow half precision", 6, 9, "large", dtype="float16"),
    Case("large_half_separate", "the same, taps of their own", 6, 9, "large", dtype="float16", shared_taps=0),
    Case("small_half", "products that vanish in half precision", 6, 9, "small", dtype="float16"),
    Case("huge", "far from 1, within single precision", 8, 11, "huge"),
    Case("one_by_one_half", "the smallest map in half precision", 1, 1, dtype="float16"),
    Case("odd_half", "odd sizes in half precision", 15, 31, channels=3, dtype="float16"),
)
# fmt: on
"""All cases, by kind. Names are unique."""
