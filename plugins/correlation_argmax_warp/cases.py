"""The cases of the op, declared once and run by every executor. Imports numpy and the truth only.

A case is data: sizes, attributes, the name of a pattern and a seed. Its arrays and its expected result are made when
they are first asked for. Every executor must agree with every element of both outputs, which is fair because

- cases with `exact_ties` use vectors that normalisation keeps exact (one entry of 1, four of 0.5), so that equal costs
  are equal in any order of summation, and
- in all others the best cost leads the second best by more than `MIN_GAP` everywhere; a test asserts it. An executor in
  single precision is off by about 1e-6. One that multiplies in TF32 or half precision cannot be held to these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtu.plugins.correlation_argmax_warp.reference import correlation_argmax_warp, pooled_costs

Array = NDArray[Any]
MIN_GAP = 1e-5


@dataclass(frozen=True)
class Case:
    """One case: what goes in, and why it is there. Sizes are those of `motion`, [batch, channels, height, width]."""

    name: str
    why: str
    height: int
    width: int
    pattern: str
    """A key of `PATTERNS`: how motion and motion_prev are made."""
    channels: int = 4
    detail_channels: int = 2
    batch: int = 1
    max_displacement: int = 2
    pool_size: int = 5
    scale: int = 4
    dtype: Literal["float16", "float32"] = "float32"
    exact_ties: bool = False
    """Equal best costs are wanted, and exact."""
    seed: int = 0
    by_hand: tuple[tuple[int, ...], ...] | None = None
    """The displacement index of the first batch entry as worked out by a person."""

    @property
    def attributes(self) -> dict[str, int]:
        """The attributes that change the result, by their names."""
        return {"max_displacement": self.max_displacement, "pool_size": self.pool_size, "scale": self.scale}

    @cached_property
    def inputs(self) -> dict[str, Array]:
        """motion, motion_prev [B, C, h, w] and detail_prev [B, c, scale*h, scale*w], of type `dtype`, by name."""
        random = np.random.default_rng(self.seed)
        motion, motion_prev = PATTERNS[self.pattern](self, random)
        shape = (self.batch, self.detail_channels, self.scale * self.height, self.scale * self.width)
        detail = random.standard_normal(shape)
        if self.pattern == "special":
            detail.flat[:4] = np.nan, np.inf, -np.inf, -0.0
        arrays = {"motion": motion, "motion_prev": motion_prev, "detail_prev": detail}
        return {name: np.ascontiguousarray(array, self.dtype) for name, array in arrays.items()}

    @cached_property
    def expected(self) -> tuple[Array, NDArray[np.int32]]:
        """(warped, displacement) by the truth."""
        arrays = self.inputs
        return correlation_argmax_warp(
            arrays["motion"], arrays["motion_prev"], arrays["detail_prev"], **self.attributes
        )

    def smallest_gap(self) -> float:
        """By how much the best pooled cost leads the second best, at the position where it leads least."""
        inputs = self.inputs
        costs = pooled_costs(inputs["motion"], inputs["motion_prev"], self.max_displacement, self.pool_size)
        second, best = np.partition(costs, -2, axis=0)[-2:]
        return float((best - second).min())


def _shape(case: Case) -> tuple[int, int, int, int]:
    return case.batch, case.channels, case.height, case.width


def _zeros(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """Black: nothing matches anything."""
    return np.zeros(_shape(case)), np.zeros(_shape(case))


def _flat(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """One vector everywhere: the first channels are equal, four of them if there are so many."""
    motion = np.zeros(_shape(case))
    motion[:, : 4 if case.channels >= 4 else 1] = 0.5
    return motion, motion


def _opposed(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """As flat, with the previous map negative: no displacement beats one that leaves the map."""
    motion, _ = _flat(case, random)
    return motion, -motion


def _one_hot(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """Each position has one channel set to 1, at random: many exact ties."""
    maps = [
        np.eye(case.channels)[random.integers(0, case.channels, _shape(case)[:1] + _shape(case)[2:])] for _ in range(2)
    ]
    return maps[0].transpose(0, 3, 1, 2), maps[1].transpose(0, 3, 1, 2)


def _stripes(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """Columns repeat every three: several displacements match equally well."""
    motion = np.zeros(_shape(case))
    motion[:, np.arange(case.width) % 3, :, np.arange(case.width)] = 1
    return motion, motion


def _checks(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """A chess board of two vectors, (.5, .5, .5, .5) and (.5, .5, -.5, -.5), which are orthogonal."""
    y, x = np.mgrid[: case.height, : case.width]
    sign = np.where((y + x) % 2, -0.5, 0.5)
    motion = np.zeros(_shape(case))
    motion[:, :2] = 0.5
    motion[:, 2:4] = sign
    return motion, motion


def _dot(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """One position is set: the centre of motion, and in motion_prev one row up and two columns right of it."""
    motion, motion_prev = np.zeros(_shape(case)), np.zeros(_shape(case))
    y, x = case.height // 2, case.width // 2
    motion[:, 0, y, x] = 1
    motion_prev[:, 0, y - 1, x + 2] = 1
    return motion, motion_prev


def _random(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """Two unrelated maps, as after a ReLU but without its zeros."""
    return np.abs(random.standard_normal(_shape(case))), np.abs(random.standard_normal(_shape(case)))


def _signed(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """Two unrelated maps of both signs."""
    return random.standard_normal(_shape(case)), random.standard_normal(_shape(case))


def _moved(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """The upper half moves by (-D, +D), the lower by (D, -D), as far as a match may be; what enters is new."""
    d, h, w = case.max_displacement, case.height, case.width
    world = random.standard_normal((case.batch, case.channels, h + 2 * d, w + 2 * d))
    motion = world[:, :, d : d + h, d : d + w].copy()
    motion[:, :, : h // 2] = world[:, :, : h // 2, 2 * d :]
    motion[:, :, h // 2 :] = world[:, :, 2 * d + h // 2 :, :w]
    noise = 0.1 * random.standard_normal(_shape(case))
    return motion, world[:, :, d : d + h, d : d + w] + noise


def _inward(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """Content that was outside the map: the best match of most positions at the border is poor, of the rest perfect."""
    d, h, w = case.max_displacement, case.height, case.width
    world = np.abs(random.standard_normal((case.batch, case.channels, h + d, w + d)))
    return world[:, :, :h, :w], world[:, :, d:, d:]


def _large(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """As moved, at the upper end of half precision: the squares do not fit in it."""
    motion, motion_prev = _moved(case, random)
    return 1e4 * motion, 1e4 * motion_prev


def _small(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """As moved, at the lower end of half precision: the squares are zero in it."""
    motion, motion_prev = _moved(case, random)
    return 1e-4 * motion, 1e-4 * motion_prev


def _half_black(case: Case, random: np.random.Generator) -> tuple[Array, Array]:
    """The left half is black, the right half one-hot: zero vectors next to others."""
    motion, motion_prev = _one_hot(case, random)
    motion[..., : case.width // 2] = 0
    motion_prev[..., : case.width // 2] = 0
    return motion, motion_prev


PATTERNS: dict[str, Callable[[Case, np.random.Generator], tuple[Array, Array]]] = {
    "zeros": _zeros,
    "flat": _flat,
    "opposed": _opposed,
    "one_hot": _one_hot,
    "stripes": _stripes,
    "checks": _checks,
    "dot": _dot,
    "random": _random,
    "signed": _signed,
    "moved": _moved,
    "inward": _inward,
    "large": _large,
    "small": _small,
    "half_black": _half_black,
    "special": _moved,
}

# fmt: off
CASES: tuple[Case, ...] = (
    # Small enough to be worked out by a person.
    Case("hand_black", "all costs are zero, index 0 wins everywhere", 2, 3, "zeros",
         max_displacement=1, exact_ties=True, by_hand=((0, 0, 0), (0, 0, 0))),
    Case("hand_one_position", "a single position matches only itself", 1, 1, "flat",
         max_displacement=1, exact_ties=True, by_hand=((4,),)),
    Case("hand_opposed", "the only position inside is worse than the zeros outside", 1, 1, "opposed",
         exact_ties=True, by_hand=((0,),)),
    Case("hand_flat", "not pooled, all displacements within the map tie: the first of them wins", 2, 3, "flat",
         max_displacement=1, pool_size=1, exact_ties=True, by_hand=((4, 3, 3), (1, 0, 0))),
    Case("hand_flat_row", "pooled over three: terms that leave the map count as zeros, (0, -1) ties at the right end",
         1, 3, "flat", max_displacement=1, pool_size=3, exact_ties=True, by_hand=((4, 4, 3),)),
    Case("hand_dot", "one match at (-1, +2), seen by the 3 x 3 positions that pool it", 5, 7, "dot",
         pool_size=3, exact_ties=True,
         by_hand=((0,) * 7, (0, 0, 9, 9, 9, 0, 0), (0, 0, 9, 9, 9, 0, 0), (0, 0, 9, 9, 9, 0, 0), (0,) * 7)),
    Case("hand_stripes", "a period of three within D = 3: the match furthest left that the map has", 1, 7, "stripes",
         max_displacement=3, pool_size=1, exact_ties=True, by_hand=((24, 24, 24, 21, 21, 21, 21),)),
    # Ties that must come out exactly.
    Case("black", "what a frame of night gives after the ReLU; a naive division makes NaN", 9, 13, "zeros",
         channels=52, max_displacement=10, exact_ties=True),
    Case("black_half", "the same in fp16, where 1e-12 is zero", 9, 13, "zeros",
         channels=52, max_displacement=10, dtype="float16", exact_ties=True),
    Case("flat", "a constant region: ties between sums of differently shaped overlaps", 12, 17, "flat",
         max_displacement=10, exact_ties=True),
    Case("flat_half", "the same in fp16", 12, 17, "flat", max_displacement=3, dtype="float16", exact_ties=True),
    Case("flat_wide", "the same over several blocks of a row", 5, 67, "flat", max_displacement=7, exact_ties=True),
    Case("flat_pool3", "the same pooled over three, where 1/9 is not exact either", 11, 25, "flat",
         max_displacement=8, pool_size=3, exact_ties=True),
    Case("opposed", "every match inside is worse than the zeros outside", 8, 9, "opposed", max_displacement=3,
         exact_ties=True),
    Case("one_channel", "with one channel, vectors are 1 or -1: nearly everything ties", 10, 23, "signed",
         channels=1, max_displacement=7, exact_ties=True),
    Case("one_channel_unpooled", "the same not pooled", 6, 21, "signed",
         channels=1, detail_channels=1, max_displacement=2, pool_size=1, scale=1, exact_ties=True),
    Case("one_hot", "random exact ties", 13, 22, "one_hot", channels=3, max_displacement=8, exact_ties=True),
    Case("one_hot_batch", "the same for a batch, half precision", 7, 19, "one_hot",
         batch=2, max_displacement=3, dtype="float16", exact_ties=True),
    Case("one_hot_unpooled", "most positions have many perfect matches, the first must win", 9, 41, "one_hot",
         channels=26, max_displacement=9, pool_size=1, exact_ties=True),
    Case("half_black", "zero vectors next to others", 9, 24, "half_black", max_displacement=7, exact_ties=True),
    Case("stripes", "a periodic pattern", 8, 43, "stripes", max_displacement=10, exact_ties=True),
    Case("checks", "a pattern periodic in both directions", 12, 22, "checks", max_displacement=7, exact_ties=True),
    # Sizes.
    Case("one_by_one", "the smallest map", 1, 1, "random", max_displacement=10),
    Case("one_row", "a map of one row", 1, 30, "random", max_displacement=7),
    Case("one_column", "a map of one column", 30, 1, "random", max_displacement=7),
    Case("lower_than_reach", "height smaller than D", 3, 26, "random", max_displacement=10),
    Case("narrower_than_reach", "width smaller than D", 26, 3, "random", max_displacement=10),
    Case("smaller_than_pool", "map smaller than the pooling square", 2, 2, "random", max_displacement=3),
    Case("one_block", "exactly one block of a row", 6, 20, "random", max_displacement=3),
    Case("one_more_than_a_block", "one position in the second block", 6, 21, "random", max_displacement=3, seed=2),
    Case("warp_sizes", "one more and one less than powers of two", 17, 31, "moved", channels=8, max_displacement=3),
    Case("batch", "entries of a batch do not mix", 7, 11, "moved", batch=2, channels=8, max_displacement=3),
    Case("batch_of_three", "an odd batch of one-row maps", 1, 23, "random", batch=3, max_displacement=2, scale=2,
         seed=1),
    # Channels.
    Case("channels_2", "fewest channels that can tell vectors apart", 6, 9, "random", channels=2, max_displacement=3),
    Case("channels_3", "not a multiple of anything", 7, 10, "random", channels=3, detail_channels=3,
         max_displacement=3),
    Case("channels_26", "half of what the published networks have", 10, 24, "moved", channels=26, detail_channels=13,
         max_displacement=7, seed=1),
    Case("published", "channels and attributes of the published networks", 23, 37, "moved", channels=52,
         detail_channels=26, max_displacement=10, seed=13),
    Case("published_half", "the same in half precision", 23, 37, "moved", channels=52, detail_channels=26,
         max_displacement=10, dtype="float16", seed=1),
    Case("published_large", "channels of the largest published network", 14, 22, "moved", channels=96,
         detail_channels=48, max_displacement=10, seed=1),
    Case("published_large_half", "the same in half precision", 14, 22, "moved", channels=96, detail_channels=48,
         max_displacement=10, dtype="float16", seed=4),
    # Attributes.
    Case("reach_1", "the smallest search, smaller than the pooling margin", 9, 22, "moved", channels=8,
         max_displacement=1),
    Case("reach_2", "search as wide as the pooling square", 9, 22, "moved", channels=8),
    Case("reach_8", "a power of two", 20, 27, "moved", channels=26, max_displacement=8, seed=4),
    Case("reach_9", "one more", 20, 27, "moved", channels=26, max_displacement=9),
    Case("reach_11", "more than the published search", 25, 30, "moved", channels=26, max_displacement=11),
    Case("reach_16", "wide search", 34, 41, "moved", channels=52, max_displacement=16),
    Case("reach_20", "the widest search of the paper's table but one, reaching two blocks away", 24, 45, "inward",
         channels=52, max_displacement=20, pool_size=3, seed=10),
    Case("pool_1", "no pooling", 12, 25, "moved", channels=26, max_displacement=7, pool_size=1),
    Case("pool_3", "a smaller square", 12, 25, "moved", channels=26, max_displacement=7, pool_size=3, seed=1),
    Case("pool_7", "a larger square, wider than the search", 12, 25, "moved", channels=8, pool_size=7),
    Case("scale_1", "detail of the size of motion", 9, 14, "moved", channels=8, max_displacement=3, scale=1),
    Case("scale_2", "detail twice the size", 9, 14, "moved", channels=8, max_displacement=3, scale=2),
    Case("scale_3", "detail three times the size, no power of two", 9, 14, "moved", channels=8, max_displacement=3,
         scale=3),
    # Values.
    Case("signed", "costs of both signs compete with the zeros outside", 9, 14, "signed", channels=8,
         max_displacement=3),
    Case("inward", "content that comes in from outside", 15, 26, "inward", channels=26, max_displacement=7, seed=1),
    Case("large", "squares that overflow half precision", 9, 21, "large", channels=26, max_displacement=7,
         dtype="float16"),
    Case("small", "squares that vanish in half precision", 9, 21, "small", channels=26, max_displacement=7,
         dtype="float16"),
    Case("special", "NaN, infinities and minus zero in detail are copied, and stay out of what is outside", 8, 12,
         "special", channels=8, max_displacement=3),
)
# fmt: on
"""All cases, by kind. Names are unique."""
