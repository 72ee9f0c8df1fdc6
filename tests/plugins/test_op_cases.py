"""The op's cases are what they claim: worked out by hand where marked, no near ties, every size and attribute there."""

import numpy as np
import pytest

from mtu.core.errors import InvalidInputError
from mtu.plugins.correlation_argmax_warp import reference
from mtu.plugins.correlation_argmax_warp.cases import CASES, MIN_GAP, Case


@pytest.mark.parametrize("case", [case for case in CASES if case.by_hand], ids=lambda case: case.name)
def test_truth_is_what_a_person_worked_out(case: Case):
    warped, displacement = case.expected
    np.testing.assert_array_equal(displacement[0], case.by_hand)
    assert displacement.dtype == np.int32 and warped.dtype == case.dtype


def test_warp_worked_out_by_hand():
    detail = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)  # four blocks of 2 x 2
    dy, dx = np.array([[[1, 0], [0, -2]]]), np.array([[[1, -1], [0, 0]]])
    expected = [[11, 12, 1, 2], [15, 16, 5, 6], [9, 10, 0, 0], [13, 14, 0, 0]]
    np.testing.assert_array_equal(reference.warp(detail, dy, dx, 2)[0, 0], expected)


def test_displacement_vectors():
    dy, dx = reference.displacement_vectors(np.array([[0, 12, 13], [9, 24, 4]], np.int32), 2)
    np.testing.assert_array_equal(dy, [[-2, 0, 0], [-1, 2, -2]])
    np.testing.assert_array_equal(dx, [[-2, 0, 1], [2, 2, 2]])
    assert dy.dtype == dx.dtype == np.int32


@pytest.mark.parametrize("case", [case for case in CASES if not case.exact_ties], ids=lambda case: case.name)
def test_no_near_ties(case: Case):
    assert case.smallest_gap() > MIN_GAP, "choose another seed: single precision could decide this case either way"


@pytest.mark.parametrize("case", [case for case in CASES if case.exact_ties], ids=lambda case: case.name)
def test_tied_cases_are_exact_in_half_precision(case: Case):
    for name in ("motion", "motion_prev"):
        vectors = reference.normalised(case.inputs[name])
        assert set(np.unique(np.abs(vectors))) <= {0.0, 0.5, 1.0}


def test_cases_cover_what_they_must():
    assert len({case.name for case in CASES}) == len(CASES)
    for field, wanted in {
        "max_displacement": {1, 2, 3, 7, 8, 9, 10, 11, 16, 20},
        "channels": {1, 2, 3, 26, 52, 96},
        "pool_size": {1, 3, 5},
        "scale": {1, 2, 4},
        "batch": {1, 2},
        "dtype": {"float16", "float32"},
    }.items():
        assert wanted <= {getattr(case, field) for case in CASES}, field
    assert any(case.height < case.max_displacement for case in CASES)
    assert any(case.width < case.max_displacement for case in CASES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_displacement": 0}, "max_displacement is 0"),
        ({"pool_size": 4}, "pool_size is 4, it must be odd"),
        ({"scale": 0}, "scale is 0"),
        ({"motion_prev": np.zeros((1, 4, 2, 4), np.float32)}, "must have one shape"),
        ({"detail_prev": np.zeros((1, 1, 8, 13), np.float32)}, r"must be \[1, c, 8, 12\]"),
        ({"motion": np.zeros((4, 2, 3), np.float32)}, "must be .batch, channels, height, width."),
    ],
)
def test_truth_refuses_what_the_rules_forbid(changes: dict[str, object], words: str):
    motion = np.zeros((1, 4, 2, 3), np.float32)
    arguments = {"motion": motion, "motion_prev": motion, "detail_prev": np.zeros((1, 1, 8, 12), np.float32)}
    with pytest.raises(InvalidInputError, match=words):
        reference.correlation_argmax_warp(**{**arguments, **changes})  # type: ignore[arg-type]
