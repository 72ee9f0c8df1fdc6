"""The kernel of CorrelationArgmaxWarp by the emulator: what its cases do not show."""

from __future__ import annotations

import numpy as np
import pytest
from tests.plugins.emulated import emulators, poisoned, run
from tests.plugins.subjects import WARP

from mtu.plugins.correlation_argmax_warp import OP, cuda_op
from mtu.plugins.correlation_argmax_warp.cases import CASES
from mtu.plugins.correlation_argmax_warp.reference import correlation_argmax_warp, warp

__all__ = ["emulators"]  # a fixture

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("types", [("float16", "float32"), ("float32", "float16")], ids=" ".join)
def test_types_of_motion_and_detail_are_independent(emulators, types):
    case = BY_NAME["channels_3"]
    inputs = {name: array.astype(types[name == "detail_prev"]) for name, array in case.inputs.items()}
    expected = correlation_argmax_warp(*inputs.values(), **case.attributes)
    warped, displacement = run(emulators, WARP, inputs, case.attributes, expected)
    np.testing.assert_array_equal(displacement, expected[1])
    np.testing.assert_array_equal(warped, expected[0])


def test_motion_that_is_not_finite_stays_inside_the_arrays(emulators):
    case = BY_NAME["one_hot_batch"]
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    inputs["motion"][0, :, 2:4] = np.nan
    inputs["motion_prev"][1] = np.inf
    warped, displacement = run(emulators, WARP, inputs, case.attributes, case.expected)
    span = 2 * case.max_displacement + 1
    assert displacement.min() >= 0 and displacement.max() < span**2
    dy, dx = np.divmod(displacement, span)
    moved = warp(inputs["detail_prev"], dy - case.max_displacement, dx - case.max_displacement, case.scale)
    np.testing.assert_array_equal(warped, moved)


STALE, CURRENT_DEVICE, ATTRIBUTE, FIRST_LAUNCH, SECOND_LAUNCH = range(5)


@pytest.fixture
def failing(emulators):
    """Starts one problem where a call fails or an earlier one has left its error: what `launch` returned."""
    case, emulator = BY_NAME["one_hot_batch"], emulators[WARP.kernel]
    shapes, kinds = zip(*((array.shape, array.dtype.name) for array in case.inputs.values()), strict=True)
    problem = cuda_op.problem_of(case.attributes, shapes, kinds)
    outputs = [poisoned(case.inputs["detail_prev"].shape, np.float16), poisoned(case.expected[1].shape, np.int32)]
    workspace = poisoned((cuda_op.workspace_bytes(problem),), np.uint8)
    pointers = [array.ctypes.data for array in (*case.inputs.values(), *outputs, workspace)]

    def launch(call, code=700, stale=0, multiprocessors=4):
        emulator.setup(0, multiprocessors)
        emulator.fail(call, code, stale)
        try:
            return emulator.launch_cpp(problem, pointers)
        finally:
            assert emulator.last_error() == 0  # nothing is left for the next call
            emulator.fail(0, 0, 0)

    yield launch
    emulator.setup()


def test_an_error_of_an_earlier_call_fails_no_launch(failing):
    assert failing(STALE, stale=900) == 0


@pytest.mark.parametrize("stale", [0, 900])
@pytest.mark.parametrize("call", [CURRENT_DEVICE, ATTRIBUTE, FIRST_LAUNCH, SECOND_LAUNCH])
def test_an_error_of_a_call_is_its_own(failing, call, stale):
    assert failing(call, stale=stale) == 700
    assert failing(STALE) == 0


def test_a_device_without_multiprocessors_is_an_error(failing):
    assert failing(STALE, multiprocessors=0) == 999


def test_python_and_cpp_need_the_same_workspace(emulators):
    emulator = emulators[WARP.kernel]
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = [int(random.integers(1, high)) for high in (5, 129, 300, 300, 60, 21)]
        pool, scale = int(random.choice(OP.limits["pool_size"].allowed)), int(random.integers(1, 9))
        for kind in ("float16", "float32"):
            problem = cuda_op.Problem(*sizes, pool, scale, motion_type=kind)
            assert emulator.workspace_bytes(problem) == cuda_op.workspace_bytes(problem)
            assert emulator.check(problem) is None
