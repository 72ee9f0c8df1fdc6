"""How far apart two frames are: quantiles, agreement, ties."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from mtu.calib.compare_frame import (
    TIE,
    Agreement,
    Matching,
    compare_displacements,
    compare_tensors,
    find_matching,
    scores,
)
from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.models.mtu import PRESETS, describe
from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.correlation_argmax_warp.reference import pooled_costs


def test_differences_are_those_of_the_elements():
    a = {"x": np.arange(1000, dtype=np.float32), "only a": np.zeros(1), "displacement": np.zeros((1, 2, 2), np.int32)}
    b = {"x": np.zeros(1000, np.float16), "displacement": np.ones((1, 2, 2), np.int32)}
    found = compare_tensors(a, b)
    assert list(found) == ["x"]
    assert found["x"].largest == 999
    assert found["x"].quantiles == (500, 990, 999)
    pictures = np.array([[0, 255]], np.uint8), np.array([[255, 0]], np.uint8)
    assert compare_tensors({"p": pictures[0]}, {"p": pictures[1]})["p"].largest == 255


def test_what_cannot_be_compared_is_said():
    one = np.zeros((1, 2), np.float32)
    with pytest.raises(InvalidInputError, match="nothing to compare: one side gives x, the other y"):
        compare_tensors({"x": one}, {"y": one})
    with pytest.raises(InvalidInputError, match=r"x is \[1, 2\] on one side and \[2, 1\]"):
        compare_tensors({"x": one}, {"x": one.T})
    for value in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="non-finite values in x"):
            compare_tensors({"x": one}, {"x": np.full((1, 2), value, np.float32)})


def test_scores_are_the_costs_of_the_reference():
    rng = np.random.default_rng(0)
    motion, before = (rng.random((1, 6, 9, 11)).astype(np.float32) for _ in range(2))
    motion[0, :, 2:5, 3] = 0
    costs = pooled_costs(motion, before, 3, 5)[:, 0]
    rows, columns = (axis.ravel() for axis in np.indices((9, 11)))
    index = rng.integers(0, 49, 99).astype(np.int32)
    found = scores(motion, before, rows, columns, index, Matching("motion", 3, 5))
    np.testing.assert_allclose(found, costs[index, rows, columns], rtol=0, atol=1e-12)


def test_ties_are_told_from_errors():
    here = np.zeros((1, 2, 1, 3))
    before = here.copy()
    here[0, 0] = 1
    before[0, :, 0, 0] = 1, 0  # the cosines with `here` are 1, cos(0.01) and 0
    before[0, :, 0, 1] = math.cos(0.01), math.sin(0.01)
    before[0, :, 0, 2] = 0, 1
    still, left, right = 4, 3, 5
    a = np.array([[still, left, left]], np.int32)
    tied, wrong = a.copy(), a.copy()
    tied[0, 1], wrong[0, 1] = still, right

    def found(b, is_known=True):
        matching = Matching("motion", 1, 1) if is_known else None
        return compare_displacements(a, b, matching, {"motion": here}, {"motion": before})

    same, tie, error = found(a), found(tied), found(wrong)
    assert (same.equal, same.ties, same.gap) == (1, 0, 0)
    assert (tie.equal, tie.ties) == pytest.approx((2 / 3, 1 / 3)) and tie.gap == pytest.approx(1 - math.cos(0.01))
    assert error.ties == 0 and error.gap == pytest.approx(1) and error.share == error.equal
    assert 0 < tie.gap < TIE < error.gap
    assert found(tied, False) == Agreement(tie.equal, 0, None), "not of the op that matches"


def test_what_was_matched_is_found():
    mtu = describe(PRESETS["mtu2"])
    assert find_matching(mtu, mtu) == Matching("motion_out", 10, 5)
    of_graph = replace(mtu, ops={OP.name: {"version": 1, "max_displacement": 10, "pool_size": 3, "scale": 4}})
    assert (
        find_matching(of_graph, mtu) == find_matching(replace(mtu, ops={}), of_graph) == Matching("motion_out", 10, 3)
    )
    elsewhere = replace(mtu, ops={})
    single = describe(PRESETS["mtu1"])
    assert find_matching(elsewhere, elsewhere) is None and find_matching(single, single) is None
