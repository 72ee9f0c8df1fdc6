"""The TensorRT backends on a GPU. Skipped without one; a failure under MTU_REQUIRE_CUDA=1."""

# ruff: noqa: E402
from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests import needs

needs.library("av", "onnx", "onnxruntime", "torch")

from tests import small_models
from tests.conftest import ROOT
from tests.frames import submit, windows
from tests.tensorrt_sessions import (
    assert_same,
    collect,
    dim_frames,
    engine,
    flashing,
    gpu,
    make_gpu,
    overflowing,
    truth,
)

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.export.engine import build_engine
from mtu.export.engine_options import BuildOptions
from mtu.runtime import Session, open_backend, open_bundle, read_frames
from mtu.runtime.backends import FACTORIES
from mtu.runtime.engine import Profile
from mtu.runtime.tensorrt_library import load_library

__all__ = ["engine", "gpu", "make_gpu", "overflowing"]  # fixtures


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def build(request, tmp_path_factory):
    """Builds an engine with a library, if that and what the backend needs is installed."""
    needs.library(*FACTORIES[request.param][1])
    library = load_library(request.param)

    def make(bundle, size, *, fp16):
        has_plugin = hasattr(library.module, "IPluginV3")
        options = BuildOptions(Profile.fixed(*size), fp16=fp16, runtime=library.name, plugin=has_plugin)
        try:
            return build_engine(bundle, tmp_path_factory.mktemp("engine") / "e", options)
        except InvalidInputError as error:
            if "does not support" in str(error):  # RTX and a GPU that is no RTX
                pytest.skip(str(error))
            raise

    return make


@pytest.fixture(scope="module")
def demo_engine(build):
    return build(open_bundle(), (216, 384), fp16=True)


@pytest.fixture(scope="module")
def demo_frames():
    return list(itertools.islice(read_frames(ROOT / "calib" / "demo" / "blurred.mp4"), 30))


def run_on_gpu(engine, frames, **options):
    backend = open_backend("auto", engine, size=frames[0].shape[:2], **options)
    results, session = collect(Session(backend, scene_threshold=None), frames)
    remarks = backend.remarks
    backend.close()
    return results, session, remarks


@pytest.mark.needs_cuda
def test_fp16_on_a_gpu_is_close_to_fp32_on_a_cpu(demo_engine, demo_frames):
    got, session, _ = run_on_gpu(demo_engine, demo_frames)
    expected, _ = truth(open_bundle(), demo_frames, scene_threshold=None)
    assert session.redone == []
    error = np.mean([np.mean((a.rgb.astype(float) - b.rgb) ** 2) for a, b in zip(got, expected, strict=True)])
    assert 10 * np.log10(255**2 / error) >= 50
    same = np.mean([np.mean(a.displacement == b.displacement) for a, b in zip(got, expected, strict=True)])
    assert same >= 0.995


@pytest.mark.needs_cuda
def test_graphs_on_a_gpu_change_nothing(demo_engine, demo_frames):
    with_graphs, _, remarks = run_on_gpu(demo_engine, demo_frames)
    assert remarks == []
    assert_same(run_on_gpu(demo_engine, demo_frames, cuda_graph=False)[0], with_graphs)
    assert_same(run_on_gpu(demo_engine, demo_frames)[0], with_graphs)


@pytest.mark.needs_cuda
def test_states_on_a_gpu_go_out_and_in(demo_engine, demo_frames):
    backend = open_backend("auto", demo_engine)
    first, second = itertools.islice(windows(backend.interface, demo_frames), 2)
    pending = submit(backend, first)
    pending.result()
    arrays = backend.read_states(pending.states)
    written = backend.write_states(arrays)
    assert all(np.array_equal(array, arrays[name]) for name, array in backend.read_states(written).items())
    plain, other = (submit(backend, second, states).result() for states in (pending.states, written))
    assert np.array_equal(plain["output"], other["output"])
    del pending, written
    backend.close()


@pytest.mark.needs_cuda
def test_sessions_share_a_gpu(demo_engine, demo_frames):
    backend = open_backend("auto", demo_engine)
    streams = [demo_frames[:20], demo_frames[10:]]
    sessions = [Session(backend, scene_threshold=None) for _ in streams]
    got = [[], []]
    for number in range(20):
        for session, frames, results in zip(sessions, streams, got, strict=True):
            results += session.push(frames[number])
    for session, frames, results in zip(sessions, streams, got, strict=True):
        results += session.flush()
        assert_same(results, run_on_gpu(demo_engine, frames)[0])
    backend.close()


@pytest.mark.needs_cuda
def test_memory_on_a_gpu_does_not_grow(demo_engine, demo_frames):
    backend = open_backend("auto", demo_engine)
    session = Session(backend, scene_threshold=None)
    free = []
    for number in range(300):
        list(session.push(demo_frames[number % 30].copy()))
        with backend.gpu:
            free.append(backend.gpu.free_memory())
    backend.close()
    assert free[-1] == free[20]


@pytest.mark.needs_cuda
def test_a_frame_that_is_not_finite_on_a_gpu_is_redone(build, overflowing):
    engine = build(overflowing, (32, 48), fp16=False)
    frames = flashing(20, 5, 6, 19)
    got, session, _ = run_on_gpu(engine, frames)
    expected, reference = truth(overflowing, frames, scene_threshold=None)
    assert session.redone == reference.redone == [5, 6, 19]
    assert max(np.abs(a.rgb.astype(int) - b.rgb).max() for a, b in zip(got, expected, strict=True)) <= 2


@pytest.mark.needs_cuda
@pytest.mark.parametrize(
    ("kind", "size"),
    [(small_models.opposite, (32, 48)), (small_models.difference, (6, 8)), (small_models.trail, (8, 12))],
)
def test_models_that_are_not_ours_on_a_gpu(build, tmp_path, kind, size):
    """Without states, with a map, with another window: and one value that is not finite."""
    bundle = kind(tmp_path / "b")
    frames = dim_frames(12, *size)
    got, session, remarks = run_on_gpu(build(bundle, size, fp16=False), frames)
    expected, _ = truth(bundle, frames, scene_threshold=None)
    assert session.redone == remarks == []
    for ours, theirs in zip(got, expected, strict=True):
        if theirs.picture is not None:
            assert np.abs(ours.picture.astype(int) - theirs.picture).max() <= 1
        if theirs.map is not None:
            assert np.abs(ours.map.astype(float) - theirs.map).max() <= 1e-3
    if kind is small_models.difference:
        frames[3][-1, -1] = 255
        with pytest.raises(NonFiniteError, match="in change at frame 3"):
            run_on_gpu(build(bundle, size, fp16=False), frames)


@pytest.mark.needs_cuda
@pytest.mark.needs_library("pycuda", "cuda.bindings", "cuda.core")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_guard_on_a_gpu_finds_one_bad_value_anywhere(dtype):
    from mtu.runtime.backends import cuda_device as cuda
    from mtu.runtime.backends.tensorrt_finite import NonFiniteCheck

    device = cuda.open_device(0)
    with device:
        stream = cuda.new_stream()
        check = NonFiniteCheck(device)
        values, flag = device.pinned((1 << 22,), dtype), device.pinned((1,), "int32")
        memory, flag_memory = device.memory(values.nbytes), device.memory(4)
        largest = np.finfo(dtype).max
        for place, bad, expected in [
            (0, largest, 0),
            *((place, bad, 1) for place in (0, 1, 7, 12345, values.size - 1) for bad in (np.inf, -np.inf, np.nan)),
        ]:
            values[:] = largest
            values[place] = bad
            cuda.upload(memory, values, stream)
            cuda.clear(flag_memory, 1, stream)
            check.enqueue(memory, values.nbytes, dtype, int(flag_memory), stream)
            cuda.download(flag, flag_memory, stream)
            stream.synchronize()
            assert flag[0] == expected, (place, bad)
        del check, memory, flag_memory, stream
