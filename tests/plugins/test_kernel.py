"""The CUDA kernels of all ops without a GPU: executed by an emulator on the CPU, compiled for every architecture by
NVRTC."""

from __future__ import annotations

import io
import itertools
import re

import pytest
from tests.plugins.emulated import emulators, run
from tests.plugins.subjects import FILTERS, SUBJECTS, WARP, cases_where, every_case
from tests.plugins.test_nvrtc import needs_nvrtc

from mtu.core.errors import InvalidInputError
from mtu.plugins import nvrtc

__all__ = ["emulators"]  # a fixture

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
UNALIGNED = ("batch", "one_hot_batch", "scale_1", "scale_2", "scale_3", "special")
FROM_CPP = ("reach_16", "batch_of_three", "one_hot_unpooled", "pool_7", "published_half")

half_cases = cases_where(lambda subject, case: case.dtype == "float16")
every_subject = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.folder)


def check(emulators, subject, case, **how):
    subject.check(case, run(emulators, subject, case.inputs, case.attributes, case.expected, **how))


@every_case
def test_case(emulators, subject, case):
    check(emulators, subject, case)


@half_cases
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "unaligned"])
def test_channels_last(emulators, subject, case, misaligned):
    check(emulators, subject, case, layout="hwc8", misaligned=misaligned)


@cases_where(lambda subject, case: subject is FILTERS or case.name in UNALIGNED)
def test_unaligned(emulators, subject, case):
    check(emulators, subject, case, misaligned=True)


@cases_where(lambda subject, case: subject is WARP and case.name in FROM_CPP)
@pytest.mark.parametrize("multiprocessors", [1, 24, 1000])
def test_started_from_cpp_with_any_number_of_blocks(emulators, subject, case, multiprocessors):
    check(emulators, subject, case, through="c++", multiprocessors=multiprocessors, seed=multiprocessors)


@cases_where(lambda subject, case: subject is FILTERS)
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "unaligned"])
def test_started_from_cpp(emulators, subject, case, misaligned):
    for layout in ("linear", "hwc8") if case.dtype == "float16" else ("linear",):
        check(emulators, subject, case, through="c++", layout=layout, misaligned=misaligned, seed=1)


IMPOSSIBLE = {
    WARP: [
        {"batch": 0},
        {"motion_channels": 129},
        {"max_displacement": 0},
        {"max_displacement": 21},
        {"pool_size": 4},
        {"pool_size": 9},
        {"scale": 0},
        {"scale": 65},
        {"motion_layout": "hwc8", "motion_type": "float32"},
        {"detail_layout": "hwc8", "detail_type": "float32"},
        {"height": 50000, "width": 50000},
        {"height": 1, "width": 2**24},
        {"height": 65536, "width": 1},
        {"batch": 40000},
    ],
    FILTERS: [
        {"batch": 0},
        {"channels": -1},
        {"width": 0},
        {"batch": 65536},
        {"channels": 65536},
        {"height": 65536},
        {"shared_taps": 2},
        {"layout": "hwc8", "type": "float32"},
        {"height": 50000, "width": 50000},
        {"height": 1, "width": 2**24},
    ],
}


def problem_of(subject):
    """A small problem."""
    case = subject.part("cases").CASES[0]
    shapes, kinds = zip(*((array.shape, array.dtype.name) for array in case.inputs.values()), strict=True)
    return subject.kernel.problem_of(case.attributes, shapes, kinds)


@pytest.mark.parametrize(
    ("subject", "changes"), [(subject, changes) for subject, each in IMPOSSIBLE.items() for changes in each], ids=str
)
def test_python_and_cpp_refuse_the_same(emulators, subject, changes):
    possible = problem_of(subject)
    assert emulators[subject.kernel].check(possible) is None
    problem = problem_of(subject)
    for name, value in changes.items():
        object.__setattr__(problem, name, value)
    reason = emulators[subject.kernel].check(problem)
    assert reason
    with pytest.raises(InvalidInputError, match=re.escape(reason)):
        type(possible)(**{**vars(possible), **changes})


@every_subject
def test_python_and_cpp_have_one_revision(emulators, subject):
    assert emulators[subject.kernel].revision == subject.op.revision


# --- compiling ------------------------------------------------------------------------------------------------------


def typical(subject, kind):
    """Problems of the published networks at 1280x720 that have kernels of their own, and the registers they may use."""
    if subject is WARP:
        return {WARP.part("cuda_op").Problem(1, 52, 180, 320, 26, motion_type=kind): 168}
    return {FILTERS.part("cuda_op").Problem(1, 128, 90, 160, shared, kind): 80 for shared in (0, 1)}


# On a multiprocessor: two blocks of `match`, three warps in each of its quarters; 768 threads of planes or pixels.
# 48 KiB of shared memory are there without asking.


@needs_nvrtc
@pytest.mark.parametrize(
    ("subject", "kind", "arch"),
    list(itertools.product(SUBJECTS, ("float16", "float32"), ARCHITECTURES)),
    ids=lambda value: value if isinstance(value, str) else value.folder,
)
def test_compiles_without_spills(subject, kind, arch, record_property):
    for problem, most in typical(subject, kind).items():
        log = io.StringIO()
        cubin = nvrtc.compile_source(subject.kernel.text(), arch, subject.kernel.defines(problem), log)
        assert cubin[:4] == b"\x7fELF"
        report = log.getvalue()
        assert [int(count) for count in re.findall(r"(\d+) bytes spill", report)] == [0] * 4, report
        registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
        shared = [int(count) for count in re.findall(r"(\d+) bytes smem", report)]
        assert max(registers) <= most and max(shared) <= 48 * 1024, report
        record_property("registers", registers)
        record_property("shared", shared)


@needs_nvrtc
@pytest.mark.parametrize("pool", [1, 3, 7])
def test_compiles_for_the_other_pooling_squares(pool):
    for kind in ("float16", "float32"):
        problem = WARP.part("cuda_op").Problem(1, 52, 180, 320, 26, pool_size=pool, motion_type=kind)
        assert nvrtc.compile_source(WARP.kernel.text(), "sm_90", WARP.kernel.defines(problem))
