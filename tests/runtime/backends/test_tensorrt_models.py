"""The TensorRT backends with models that are not ours: all they know is the description."""

# ruff: noqa: E402
from __future__ import annotations

import numpy as np
import pytest
from tests import fake_cuda, needs

needs.library("av", "onnx", "onnxruntime")

from tests import small_models
from tests.bundles import map_bundle, views_bundle
from tests.frames import submit, windows
from tests.tensorrt_sessions import collect, dim_frames, gpu, make_gpu, opened, truth

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Unit
from mtu.runtime import GatedBackend, Session, open_backend, open_session
from mtu.runtime.engine import Profile, Sizes

__all__ = ["gpu", "make_gpu"]  # fixtures

SIZES = Profile(Sizes(2, 2), Sizes(32, 48), Sizes(128, 128))


def run(bundle, directory, frames, **options):
    """What TensorRT gives, which is what onnxruntime gives, and the backend, which is to be closed."""
    engine = fake_cuda.write_engine(bundle, directory / "engine", SIZES)
    expected, _ = truth(bundle, frames, scene_threshold=None)
    backend = open_backend("tensorrt", engine, **options)
    got, _ = collect(Session(backend, scene_threshold=None), frames)
    assert [result.index for result in got] == [result.index for result in expected] == list(range(len(frames)))
    for ours, theirs in zip(got, expected, strict=True):
        for role in ("picture", "map", "displacement"):
            one, other = getattr(ours, role), getattr(theirs, role)
            assert (one is None) == (other is None), role
            assert one is None or (one.dtype == other.dtype and np.array_equal(one, other)), (ours.index, role)
    assert backend.remarks == []
    return got, backend


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_one_graph_without_states(make_gpu, tmp_path, seed, cuda_graph):
    gpu = make_gpu(seed=seed)
    bundle = small_models.opposite(tmp_path / "b")
    frames = dim_frames(9, 15, 25)
    got, backend = run(bundle, tmp_path, frames, cuda_graph=cuda_graph)
    assert all(np.array_equal(result.picture[::2, ::2], 255 - frame) for result, frame in zip(got, frames, strict=True))
    assert gpu.uploads == 9
    if cuda_graph:  # for each of the two sets of buffers
        assert gpu.executions == ["only", "capture only"] * 2 and gpu.replays == 9 - 2
    else:
        assert gpu.executions == ["only"] * 9
    backend.close()
    assert gpu.used == 0


@pytest.mark.parametrize("seed", [None, 0])
def test_a_map_of_two_frames(make_gpu, tmp_path, seed):
    gpu = make_gpu(seed=seed)
    got, backend = run(small_models.difference(tmp_path / "b"), tmp_path, dim_frames(9, 5, 7))
    assert got[0].map.shape == (5, 7) and got[0].picture is None
    assert got[0].map.any() and not got[-1].map.any()  # the last frame is its own next one
    assert gpu.uploads == 9 and gpu.executions == ["compare", "capture compare"] * 2
    backend.close()
    assert gpu.used == 0


@pytest.mark.parametrize("offsets", [(0, 0), (1, -2)])
def test_three_streams_and_every_frame_uploaded_once(make_gpu, tmp_path, offsets):
    gpu = make_gpu(seed=0)
    bundle = views_bundle(tmp_path / "b", right=offsets[0], left=offsets[1])
    clips = {name: dim_frames(9, 15, 25, seed) for seed, name in enumerate(bundle.interface.streams)}
    _, backend = run(
        bundle, tmp_path, [dict(zip(clips, each, strict=True)) for each in zip(*clips.values(), strict=True)]
    )
    assert gpu.uploads == 3 * 9 - sum(map(abs, offsets))  # the others are never read
    backend.close()
    assert gpu.used == 0


@pytest.mark.parametrize("offset", [0, 2])
def test_a_gate_of_two_engines(make_gpu, tmp_path, offset):
    gpu = make_gpu(seed=0)
    pair = small_models.trail(tmp_path / "t"), map_bundle(tmp_path / "m", Unit("sigma", 7.5, -0.5), offset)
    frames = dim_frames(9, 16, 24)
    expected, _ = collect(open_session(GatedBackend(*map(opened, pair)), scene_threshold=None), frames)
    engines = [fake_cuda.write_engine(each, tmp_path / f"engine{n}", SIZES) for n, each in enumerate(pair)]
    gated = GatedBackend(*(open_backend("tensorrt", engine) for engine in engines))
    got, _ = collect(open_session(gated, scene_threshold=None), frames)
    assert [each.index for each in got] == list(range(9))
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(got, expected, strict=True))
    gated.close()
    assert gpu.used == 0


def test_a_network_with_another_op_registers_that_one(make_gpu, tmp_path):
    pytest.importorskip("torch")
    from tests.ifan import TINY

    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import random_checkpoint

    gpu = make_gpu()
    bundle = export_bundle(random_checkpoint("ifan", TINY), tmp_path / "b")
    _, backend = run(bundle, tmp_path, dim_frames(4, 32, 40))
    assert gpu.registered == {"IterativeFilters"}
    backend.close()
    assert gpu.used == 0


@pytest.mark.parametrize("flash", [(0, 0), (4, 6)])
def test_a_map_that_is_not_finite_is_an_error(gpu, tmp_path, flash):
    """35 values in fp16 end in the middle of what the check reads at a time."""
    engine = fake_cuda.write_engine(small_models.difference(tmp_path / "b"), tmp_path / "engine", SIZES)
    frames = dim_frames(6, 5, 7)
    frames[3][flash] = 255
    backend = open_backend("tensorrt", engine)
    with pytest.raises(NonFiniteError, match="non-finite values in change at frame 3: its weights overflow"):
        collect(Session(backend, scene_threshold=None), frames)
    backend.close()


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("count", [1, 3, 14])
def test_another_window_and_other_graphs(make_gpu, tmp_path, seed, count):
    gpu = make_gpu(seed=seed)
    _, backend = run(small_models.trail(tmp_path / "b"), tmp_path, dim_frames(count, 7, 12))
    assert gpu.uploads == len({0, *(min(number + 3, count - 1) for number in range(count))})  # what no graph takes, not
    captured = ["go_on", "capture go_on", "go_on", "capture go_on"]
    assert gpu.executions == ["begin", *captured[: 2 * (count - 1)]]
    backend.close()
    assert gpu.used == 0


@pytest.mark.parametrize("prepared", [True, False])
def test_states_go_out_and_in_whatever_their_shapes(gpu, tmp_path, prepared):
    bundle = small_models.trail(tmp_path / "b")
    engine = fake_cuda.write_engine(bundle, tmp_path / "engine", SIZES)
    reference, backend = opened(bundle), open_backend("tensorrt", engine, size=(8, 8) if prepared else None)
    first, second, *_ = windows(bundle.interface, dim_frames(6, 8, 12))
    arrays = reference.read_states(submit(reference, first).states)
    assert {name: array.shape for name, array in arrays.items()} == {"level": (1, 3), "trace": (1, 8, 12, 3)}
    assert backend.read_states({}) == backend.write_states({}) == {}  # before the first frame
    states = backend.write_states(arrays)
    assert all(np.array_equal(array, arrays[name]) for name, array in backend.read_states(states).items())
    expected = submit(reference, second, reference.write_states(arrays)).result()
    assert np.array_equal(submit(backend, second, states).result()["picture"], expected["picture"])
    backend.close()


def test_states_that_have_no_size(gpu, tmp_path):
    engine = fake_cuda.write_engine(small_models.trail(tmp_path / "b"), tmp_path / "engine", SIZES)
    backend = open_backend("tensorrt", engine)
    with pytest.raises(
        InvalidInputError, match=r"size of the frames cannot be told .*: run a frame before writing them"
    ):
        backend.write_states({"level": np.zeros((1, 3), np.float32)})
    backend.prepare(8, 12)
    backend.write_states({"level": np.zeros((1, 3), np.float32)})
    backend.close()


def test_memory_is_counted_for_the_model_at_hand(make_gpu, tmp_path):
    """`trail` has six frames of a stream and two slots; a frame of 128x128 is 48 KiB, its outputs 48 + 192 KiB."""
    engine = fake_cuda.write_engine(small_models.trail(tmp_path / "b"), tmp_path / "engine", SIZES)
    needed = (6 + 2) * 49152 + 3 * (5 * 49152 + 16) + fake_cuda.SCRATCH
    needed += sum(path.stat().st_size for path in engine.files)
    make_gpu(total=needed)
    open_backend("tensorrt", engine, size=(128, 128)).close()
    make_gpu(total=needed - 1)
    with pytest.raises(InvalidInputError, match="not enough memory on Fake GPU"):
        open_backend("tensorrt", engine, size=(128, 128))


def test_an_engine_that_lacks_a_graph_of_its_description(gpu, tmp_path):
    engine = fake_cuda.write_engine(small_models.trail(tmp_path / "b"), tmp_path / "engine", SIZES)
    backend = open_backend("tensorrt", engine)
    with pytest.raises(InvalidInputError, match="the model has no graph 'step': it has begin, go_on"):
        backend.submit("step", {}, {})
    backend.close()
