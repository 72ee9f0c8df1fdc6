"""The CUDA kernel without a GPU: executed by an emulator on the CPU, compiled for every architecture by NVRTC."""

import ctypes
import dataclasses
import importlib.util
import io
import re

import numpy as np
import pytest
from tests.plugins.emulated import CProblem, emulator

from mtu.core.errors import InvalidInputError
from mtu.plugins import nvrtc
from mtu.plugins.correlation_argmax_warp import OP, cuda_op
from mtu.plugins.correlation_argmax_warp.cases import CASES, Case
from mtu.plugins.correlation_argmax_warp.reference import correlation_argmax_warp, warp

__all__ = ["emulator"]  # a fixture

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
BY_NAME = {case.name: case for case in CASES}


def unchecked(**changes) -> cuda_op.Problem:
    """A problem that may be impossible."""
    problem = cuda_op.Problem(1, 8, 6, 7, 4, 3)
    for name, value in changes.items():
        object.__setattr__(problem, name, value)
    return problem


def problem_of(inputs: dict[str, np.ndarray], attributes: dict[str, int], layout: str = "linear") -> cuda_op.Problem:
    batch, channels, height, width = inputs["motion"].shape
    return cuda_op.Problem(
        batch,
        channels,
        height,
        width,
        inputs["detail_prev"].shape[1],
        **attributes,
        motion_type=inputs["motion"].dtype.name,
        detail_type=inputs["detail_prev"].dtype.name,
        motion_layout=layout,
        detail_layout=layout,
    )


def poisoned(shape, dtype, misaligned: bool = False) -> np.ndarray:
    """An array full of garbage, aligned to 64 bytes or only to its element."""
    itemsize, count = np.dtype(dtype).itemsize, int(np.prod(shape))
    memory = np.full(count * itemsize + 128, 0xA5, np.uint8)
    start = -memory.ctypes.data % 64 + (itemsize if misaligned else 0)
    return memory[start : start + count * itemsize].view(dtype).reshape(shape)


def laid_out(array: np.ndarray, layout: str, misaligned: bool) -> np.ndarray:
    """The array in a layout; HWC8's pads are NaN."""
    if layout == "hwc8":
        batch, channels, height, width = array.shape
        out = poisoned((batch, height, width, -(-channels // 8) * 8), array.dtype, misaligned)
        out[:] = np.nan
        out[..., :channels] = array.transpose(0, 2, 3, 1)
        return out
    out = poisoned(array.shape, array.dtype, misaligned)
    out[:] = array
    return out


def run(
    emulator,
    inputs,
    attributes,
    *,
    through="python",
    layout="linear",
    misaligned=False,
    multiprocessors=4,
    seed=0,
):
    """The op by the emulator: (warped, displacement) as the truth gives them."""
    problem = problem_of(inputs, attributes, layout)
    motion, motion_prev, detail = (laid_out(array, layout, misaligned) for array in inputs.values())
    warped = poisoned(detail.shape, detail.dtype, misaligned)
    displacement = poisoned((problem.batch, problem.height, problem.width), np.int32)
    workspace = poisoned((cuda_op.workspace_bytes(problem) + 64,), np.uint8)
    fence = workspace[-64:].copy()
    arrays = (motion, motion_prev, detail, warped, displacement, workspace)
    before = [array.tobytes() for array in arrays[:3]]
    emulator.emulator_setup(seed, multiprocessors)
    if through == "c++":
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        assert emulator.emulator_launch(ctypes.byref(CProblem(problem)), *pointers) == 0
    else:
        prepare, match = cuda_op.launches(problem, *(array.ctypes.data for array in arrays), multiprocessors)
        half = int(problem.motion_type == "float16")
        for start, launch in ((emulator.emulator_prepare, prepare), (emulator.emulator_match, match)):
            extra = [half] if launch is prepare else [half, problem.pool_size]
            values = [kind(value) for kind, value in zip(launch.types, launch.arguments, strict=True)]
            start(*extra, *launch.grid, launch.threads, *values)
    assert [array.tobytes() for array in arrays[:3]] == before
    assert (workspace[-64:] == fence).all()
    if layout == "hwc8":
        channels = problem.detail_channels
        assert not warped[..., channels:].any()
        warped = warped[..., :channels].transpose(0, 3, 1, 2)
    return warped, displacement


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(emulator, case: Case):
    warped, displacement = run(emulator, case.inputs, case.attributes)
    np.testing.assert_array_equal(displacement, case.expected[1])
    np.testing.assert_array_equal(warped, case.expected[0])


@pytest.mark.parametrize("name", [case.name for case in CASES if case.dtype == "float16"])
@pytest.mark.parametrize("misaligned", [False, True], ids=["aligned", "unaligned"])
def test_channels_last(emulator, name, misaligned):
    case = BY_NAME[name]
    warped, displacement = run(emulator, case.inputs, case.attributes, layout="hwc8", misaligned=misaligned)
    np.testing.assert_array_equal(displacement, case.expected[1])
    np.testing.assert_array_equal(warped, case.expected[0])


@pytest.mark.parametrize("name", ["batch", "one_hot_batch", "scale_1", "scale_2", "scale_3", "special"])
def test_unaligned(emulator, name):
    case = BY_NAME[name]
    warped, displacement = run(emulator, case.inputs, case.attributes, misaligned=True)
    np.testing.assert_array_equal(displacement, case.expected[1])
    np.testing.assert_array_equal(warped, case.expected[0])


@pytest.mark.parametrize("name", ["reach_16", "batch_of_three", "one_hot_unpooled", "pool_7", "published_half"])
@pytest.mark.parametrize("multiprocessors", [1, 24, 1000])
def test_started_from_cpp_with_any_number_of_blocks(emulator, name, multiprocessors):
    case = BY_NAME[name]
    options = {"through": "c++", "multiprocessors": multiprocessors, "seed": multiprocessors}
    warped, displacement = run(emulator, case.inputs, case.attributes, **options)
    np.testing.assert_array_equal(displacement, case.expected[1])
    np.testing.assert_array_equal(warped, case.expected[0])


@pytest.mark.parametrize("types", [("float16", "float32"), ("float32", "float16")], ids=" ".join)
def test_types_of_motion_and_detail_are_independent(emulator, types):
    case = BY_NAME["channels_3"]
    inputs = {name: array.astype(types[name == "detail_prev"]) for name, array in case.inputs.items()}
    expected = correlation_argmax_warp(*inputs.values(), **case.attributes)
    warped, displacement = run(emulator, inputs, case.attributes)
    assert warped.dtype == types[1]
    np.testing.assert_array_equal(displacement, expected[1])
    np.testing.assert_array_equal(warped, expected[0])


def test_motion_that_is_not_finite_stays_inside_the_arrays(emulator):
    case = BY_NAME["one_hot_batch"]
    inputs = {name: array.copy() for name, array in case.inputs.items()}
    inputs["motion"][0, :, 2:4] = np.nan
    inputs["motion_prev"][1] = np.inf
    warped, displacement = run(emulator, inputs, case.attributes)
    span = 2 * case.max_displacement + 1
    assert displacement.min() >= 0 and displacement.max() < span**2
    dy, dx = np.divmod(displacement, span)
    moved = warp(inputs["detail_prev"], dy - case.max_displacement, dx - case.max_displacement, case.scale)
    np.testing.assert_array_equal(warped, moved)


STALE, CURRENT_DEVICE, ATTRIBUTE, FIRST_LAUNCH, SECOND_LAUNCH = range(5)


@pytest.fixture
def failing(emulator):
    """Starts one problem where a call fails or an earlier one has left its error: what `launch` returned."""
    case = BY_NAME["one_hot_batch"]
    problem = problem_of(case.inputs, case.attributes)
    memory = [array.ctypes.data for array in case.inputs.values()]
    outputs = [poisoned(case.inputs["detail_prev"].shape, np.float16), poisoned(case.expected[1].shape, np.int32)]
    workspace = poisoned((cuda_op.workspace_bytes(problem),), np.uint8)
    pointers = [ctypes.c_void_p(p) for p in (*memory, *(a.ctypes.data for a in (*outputs, workspace)))]

    def launch(call, code=700, stale=0, multiprocessors=4):
        emulator.emulator_setup(0, multiprocessors)
        emulator.emulator_fail(call, code, stale)
        try:
            return emulator.emulator_launch(ctypes.byref(CProblem(problem)), *pointers)
        finally:
            assert emulator.emulator_last_error() == 0  # nothing is left for the next call
            emulator.emulator_fail(0, 0, 0)

    yield launch
    emulator.emulator_setup(0, 4)


def test_an_error_of_an_earlier_call_fails_no_launch(failing):
    assert failing(STALE, stale=900) == 0


@pytest.mark.parametrize("stale", [0, 900])
@pytest.mark.parametrize("call", [CURRENT_DEVICE, ATTRIBUTE, FIRST_LAUNCH, SECOND_LAUNCH])
def test_an_error_of_a_call_is_its_own(failing, call, stale):
    assert failing(call, stale=stale) == 700
    assert failing(STALE) == 0


def test_a_device_without_multiprocessors_is_an_error(failing):
    assert failing(STALE, multiprocessors=0) == 999


IMPOSSIBLE = [
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
]


@pytest.mark.parametrize("changes", IMPOSSIBLE, ids=str)
def test_python_and_cpp_refuse_the_same(emulator, changes):
    reason = emulator.emulator_check(ctypes.byref(CProblem(unchecked(**changes))))
    assert reason
    with pytest.raises(InvalidInputError, match=re.escape(reason.decode())):
        dataclasses.replace(cuda_op.Problem(1, 8, 6, 7, 4, 3), **changes)


def test_python_and_cpp_need_the_same_workspace(emulator):
    assert emulator.emulator_revision() == OP.revision
    random = np.random.default_rng(0)
    for _ in range(200):
        sizes = [int(random.integers(1, high)) for high in (5, 129, 300, 300, 60, 21)]
        pool, scale = int(random.choice(OP.limits["pool_size"].allowed)), int(random.integers(1, 9))
        for kind in ("float16", "float32"):
            problem = cuda_op.Problem(*sizes, pool, scale, motion_type=kind)
            needed = emulator.emulator_workspace_bytes(ctypes.byref(CProblem(problem)))
            assert needed == cuda_op.workspace_bytes(problem)
            assert emulator.emulator_check(ctypes.byref(CProblem(problem))) is None


# --- compiling ------------------------------------------------------------------------------------------------------

needs_nvrtc = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.core") is None,
    reason="the package cuda-core is not installed",
)


@needs_nvrtc
@pytest.mark.parametrize("kind", ["float16", "float32"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_compiles_without_spills(arch, kind, record_property):
    log = io.StringIO()
    problem = cuda_op.Problem(1, 52, 180, 320, 26, motion_type=kind)
    cubin = nvrtc.compile_source(cuda_op.kernel_source(), arch, cuda_op.defines(problem), log)
    assert cubin[:4] == b"\x7fELF"
    report = log.getvalue()
    assert [int(count) for count in re.findall(r"(\d+) bytes spill", report)] == [0] * 4, report
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", report)]
    shared = [int(count) for count in re.findall(r"(\d+) bytes smem", report)]
    # Two blocks of `match` on a multiprocessor: three warps in each of its quarters. 48 KiB are there without asking.
    assert max(registers) <= 168 and max(shared) <= 48 * 1024
    record_property("registers", registers)
    record_property("shared", shared)


@needs_nvrtc
@pytest.mark.parametrize("pool", [1, 3, 7])
def test_compiles_for_the_other_pooling_squares(pool):
    for kind in ("float16", "float32"):
        problem = cuda_op.Problem(1, 52, 180, 320, 26, pool_size=pool, motion_type=kind)
        assert nvrtc.compile_source(cuda_op.kernel_source(), "sm_90", cuda_op.defines(problem))


@needs_nvrtc
def test_compiled_kernels_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path))
    source = 'extern "C" __global__ void nothing() {}'
    cubin = nvrtc.compiled(source, "sm_90")
    (kept,) = (tmp_path / "kernels").iterdir()
    monkeypatch.setattr(nvrtc, "compile_source", lambda *_: b"compiled again")
    assert nvrtc.compiled(source, "sm_90") == cubin
    assert nvrtc.compiled(source, "sm_80") == b"compiled again"
    kept.write_bytes(kept.read_bytes()[:-1])
    assert nvrtc.compiled(source, "sm_90") == b"compiled again"


@needs_nvrtc
def test_what_a_kept_kernel_depends_on(tmp_path, monkeypatch):
    """The source, the GPU, every option, and the compiler that this process loads."""
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(nvrtc, "compile_source", lambda source, arch, macros: b"cubin")

    def kept(source="source", arch="sm_90", macros=None):
        nvrtc.compiled(source, arch, macros)
        return len(list((tmp_path / "kernels").iterdir()))

    assert re.fullmatch(r"\d+\.\d+", nvrtc.compiler_version())
    assert [kept(), kept()] == [1, 1]
    assert kept(source="other") == 2
    assert kept(arch="sm_80") == 3
    assert kept(macros={"A": "1"}) == 4
    assert kept(macros={"A": "2"}) == 5
    monkeypatch.setattr(nvrtc, "STANDARD", "c++20")
    assert kept() == 6
    monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", lambda: (0, 12, 2))
    assert [kept(), kept()] == [7, 7]


@needs_nvrtc
def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path / "file"))
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert nvrtc.compiled('extern "C" __global__ void nothing() {}', "sm_90")


@needs_nvrtc
def test_an_architecture_nvrtc_does_not_know():
    with pytest.raises(InvalidInputError, match="cannot compile for sm_12"):
        nvrtc.compile_source("", "sm_12", {})
