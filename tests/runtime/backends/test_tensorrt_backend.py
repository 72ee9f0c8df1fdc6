"""The TensorRT backends on a GPU that is not there (tests/fake_cuda.py): what onnxruntime gives, bit for bit."""

from __future__ import annotations

import gc
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
from onnx import numpy_helper
from tests import cli, fake_cuda
from tests.frames import moving_frames, submit, windows
from tests.tensorrt_sessions import (
    ANY_SIZE,
    assert_same,
    collect,
    dim_frames,
    engine,
    flashing,
    gpu,
    make_gpu,
    opened,
    overflowing,
    truth,
)

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.runtime import Session, TiledSession, Tiling, deblur, open_backend, open_bundle
from mtu.runtime.engine import Profile
from mtu.runtime.video import write_png

__all__ = ["engine", "gpu", "make_gpu", "overflowing"]  # fixtures


# What it gives


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_what_comes_out_is_what_onnxruntime_gives(make_gpu, small, engine, seed, cuda_graph):
    gpu = make_gpu(seed=seed)
    frames = dim_frames(24)
    expected, _ = truth(small, frames, scene_threshold=None)
    backend = open_backend("tensorrt", engine, cuda_graph=cuda_graph)
    got, _ = collect(Session(backend, scene_threshold=None), frames)
    assert_same(got, expected)
    assert gpu.uploads == 24  # each frame once
    if cuda_graph:
        # Two buffers in turn: each way once plainly and once into a graph, everything else replayed.
        assert gpu.executions == ["first", "step", "capture step", "step", "capture step"]
        assert gpu.replays == 24 - 3
    else:
        assert gpu.executions == ["first"] + ["step"] * 23 and gpu.replays == 0
    assert backend.remarks == []
    backend.close()
    del backend, got
    gc.collect()
    assert gpu.used == gpu.freed_outside == 0


def test_a_backend_may_go_before_its_sessions(gpu, small, engine):
    backend = open_backend("tensorrt", engine)
    sessions = [Session(backend, scene_threshold=None) for _ in range(2)]
    for session in sessions:
        for frame in dim_frames(8):
            list(session.push(frame))
    backend.close()
    del backend
    assert gpu.used > 0
    sessions[0].reset()
    del session, sessions
    gc.collect()
    assert gpu.used == gpu.freed_outside == 0


@pytest.mark.parametrize("flavour", ["tensorrt-8", "tensorrt-rtx"])
def test_the_other_libraries(make_gpu, small, tmp_path, flavour):
    make_gpu(flavour=flavour)
    name = flavour if flavour == "tensorrt-rtx" else "tensorrt"
    version = fake_cuda.VERSIONS[flavour]
    engine = fake_cuda.write_engine(small, tmp_path / "e", ANY_SIZE, library=name, library_version=version)
    frames = dim_frames(8)
    backend = open_backend("auto", engine)
    assert backend.name == name and backend.device == "cuda:0 (Fake GPU)"
    got, _ = collect(Session(backend), frames)
    assert_same(got, truth(small, frames)[0])


def test_one_unit(gpu, single, tmp_path):
    engine = fake_cuda.write_engine(single, tmp_path / "e", ANY_SIZE)
    assert not engine.manifest.plugins
    frames = dim_frames(7)
    got, _ = collect(Session(open_backend("tensorrt", engine)), frames)
    assert_same(got, truth(single, frames)[0])


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_short_clips(gpu, small, engine, count):
    frames = dim_frames(count)
    got, _ = collect(Session(open_backend("tensorrt", engine)), frames)
    assert_same(got, truth(small, frames)[0])


@pytest.mark.parametrize("seed", [None, 3])
def test_scene_cuts_and_odd_sizes(make_gpu, small, engine, seed):
    make_gpu(seed=seed)
    dark = [frame // 4 for frame in dim_frames(9, 33, 46)]
    frames = [*dark, *dim_frames(9, 33, 46, seed=1), *dark]
    expected, reference = truth(small, frames)
    got, session = collect(Session(open_backend("tensorrt", engine)), frames)
    assert session.cuts == reference.cuts == [9, 10, 18]  # 9 is a scene of its own
    assert_same(got, expected)


def test_a_frame_comes_three_frames_late_and_all_of_a_scene_at_its_end(gpu, engine):
    session = Session(open_backend("tensorrt", engine), scene_threshold=None)
    assert [len(list(session.push(frame))) for frame in dim_frames(6)] == [0, 0, 0, 1, 1, 1]
    assert [r.index for r in session.flush()] == [3, 4, 5]


def test_a_reset_drops_what_is_under_way_and_allows_another_size(gpu, small, engine):
    backend = open_backend("tensorrt", engine)
    session = Session(backend, scene_threshold=None)
    for height, width in ((32, 48), (16, 24), (32, 48)):
        frames = dim_frames(6, height, width)
        for frame in frames[:4]:
            list(session.push(frame))
        session.reset()
        start = session._pushed
        got, _ = collect(session, frames)
        expected = [replace(r, index=r.index + start) for r in truth(small, frames, scene_threshold=None)[0]]
        assert_same(got, expected)
        session.reset()
    backend.close()
    del backend, session
    gc.collect()
    assert gpu.used == gpu.freed_outside == 0


@pytest.mark.parametrize("seed", [None, 2])
def test_tiles_of_the_size_of_an_engine(make_gpu, small, tmp_path, seed):
    gpu = make_gpu(seed=seed)
    engine = fake_cuda.write_engine(small, tmp_path / "engine", Profile.fixed(32, 48))
    frames = dim_frames(8, 50, 110)
    tiling = Tiling((50, 110), (32, 48), 8)
    expected, _ = collect(TiledSession(opened(small), tiling, scene_threshold=None), frames)
    backend = open_backend("tensorrt", engine, size=tiling.tile)
    got, _ = collect(TiledSession(backend, tiling, scene_threshold=None), frames)
    assert_same(got, expected)
    assert tiling.count == 6 and gpu.uploads == 6 * 8
    backend.close()


def test_any_number_of_tiles_is_uploaded_and_captured_once(gpu, engine):
    """More frames than `FRAMES_KEPT`, more pairs of buffers than `GRAPHS_KEPT`."""
    tiling = Tiling((8, 12 * 33 + 8), (8, 20), 8)
    backend = open_backend("tensorrt", engine, size=tiling.tile, streams=tiling.count)
    session = TiledSession(backend, tiling, scene_threshold=None)
    for frame in dim_frames(7, *tiling.frame):
        session.push(frame)
    assert tiling.count == 33 and gpu.uploads == 33 * 7
    assert gpu.executions.count("capture step") == 34 and gpu.replays == 4 * 33 - 34
    backend.close()


def test_a_closed_backend_says_so(gpu, engine):
    backend = open_backend("tensorrt", engine, size=(32, 48))
    session = Session(backend, scene_threshold=None)
    session.push(dim_frames(1)[0])
    backend.close()
    backend.close()
    for call in (session.flush, lambda: backend.read_states({}), lambda: backend.write_states({})):
        with pytest.raises(InvalidInputError, match="backend tensorrt is closed: open another with open_backend"):
            call()


@pytest.mark.parametrize("seed", [None, 4])
def test_sessions_share_a_backend(make_gpu, small, engine, seed):
    gpu = make_gpu(seed=seed)
    backend = open_backend("tensorrt", engine)
    streams = [dim_frames(20, seed=number) for number in range(3)]
    sessions = [Session(backend, scene_threshold=None) for _ in streams]
    got = [[] for _ in streams]
    for number in range(20):
        for session, frames, results in zip(sessions, streams, got, strict=True):
            results += session.push(frames[number])
    used = gpu.used
    for session, frames, results in zip(sessions, streams, got, strict=True):
        results += session.flush()
        assert_same(results, truth(small, frames, scene_threshold=None)[0])
    assert gpu.uploads == 60  # none is pushed out by another session's
    assert used < 40 * small_frame_memory()


def small_frame_memory():
    """Bytes of a frame and of what a step writes, at 32x48."""
    return 32 * 48 * 3 + 32 * 48 * (3 + 3 * 4 + 4 * 4) + 8 * 12 * (8 * 4 + 4)


def test_memory_does_not_grow(gpu, engine):
    session = Session(open_backend("tensorrt", engine), scene_threshold=None)
    used = []
    for frame in moving_frames(60, 16, 16):
        list(session.push(frame.copy()))
        used.append(gpu.used)
    assert len(set(used[10:])) == 1


def test_a_held_result_does_not_change(gpu, engine):
    session = Session(open_backend("tensorrt", engine), scene_threshold=None)
    held = []
    for frame in dim_frames(12):
        held += [(r, r.rgb.copy(), r.displacement.copy()) for r in session.push(frame)]
    assert all(np.array_equal(r.rgb, rgb) and np.array_equal(r.displacement, d) for r, rgb, d in held)


def test_states_are_not_changed_while_somebody_holds_them(gpu, engine):
    backend = open_backend("tensorrt", engine)
    window = list(windows(backend.interface, dim_frames(9)))
    first = submit(backend, window[2])
    once = submit(backend, window[3], first.states).result()
    later = first
    for number in range(3, 7):
        later = submit(backend, window[number], later.states)
    again = submit(backend, window[3], first.states).result()
    assert np.array_equal(once["output"], again["output"])
    assert np.array_equal(once["displacement"], again["displacement"])


# Values that are not finite


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize(
    "flashes",
    [[4], [1], [19], [18], [5, 6], [5, 7], [3, 4, 5, 6], [2, 19]],
    ids=lambda value: "-".join(map(str, value)),
)
def test_a_frame_that_is_not_finite_is_redone_without_memory(gpu, overflowing, tmp_path, flashes, cuda_graph):
    engine = fake_cuda.write_engine(overflowing, tmp_path / "e", ANY_SIZE)
    frames = flashing(20, *flashes)
    expected, reference = truth(overflowing, frames, scene_threshold=None)
    got, session = collect(
        Session(open_backend("tensorrt", engine, cuda_graph=cuda_graph), scene_threshold=None), frames
    )
    assert session.redone == reference.redone == flashes
    assert_same(got, expected)
    # It has no memory of what came before: what `first` makes of its window alone.
    window = list(windows(overflowing.interface, frames))
    for flash in flashes:
        alone = submit(opened(overflowing), window[flash]).result()
        assert np.array_equal(got[flash].rgb, alone["output"][0])


def test_strict_stops_instead(gpu, overflowing, tmp_path):
    engine = fake_cuda.write_engine(overflowing, tmp_path / "e", ANY_SIZE)
    session = Session(open_backend("tensorrt", engine), scene_threshold=None, strict=True)
    with pytest.raises(NonFiniteError, match=r"non-finite values in motion_out at frame 6: its weights overflow"):
        collect(session, flashing(20, 6))


def test_weights_that_overflow_in_the_first_frame_too_are_an_error(gpu, overflowing, tmp_path):
    bundle = tmp_path / "b"
    shutil.copytree(overflowing.directory, bundle)
    for path in bundle.glob("*.onnx"):
        model = onnx.load(path)
        tensor = next(t for t in model.graph.initializer if t.name == "HGs.1.enc1.0.weight")
        tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, np.nan, np.float32), tensor.name))
        onnx.save(model, path)
    engine = fake_cuda.write_engine(open_bundle(bundle), tmp_path / "e", ANY_SIZE)
    session = Session(open_backend("tensorrt", engine), scene_threshold=None)
    with pytest.raises(NonFiniteError, match=r"non-finite values in .*restored_out.* at frame 0"):
        collect(session, dim_frames(5))
    assert session.redone == []


# States outside


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_states_go_out_and_in_between_frames(make_gpu, small, engine, seed):
    """Every other frame gets its states by way of the host, which changes nothing, and nothing is kept."""
    gpu = make_gpu(seed=seed)
    frames = dim_frames(10)
    expected, _ = truth(small, frames, scene_threshold=None)
    reference, backend = opened(small), open_backend("tensorrt", engine)
    states, its = {}, {}
    for index, window in enumerate(windows(backend.interface, frames)):
        if index % 2:
            arrays = backend.read_states(states)
            for name, array in reference.read_states(its).items():
                assert array.dtype == arrays[name].dtype and np.array_equal(array, arrays[name])
            states = backend.write_states(arrays)
            for name, array in backend.read_states(states).items():
                assert np.array_equal(array, arrays[name])
        pending, its = submit(backend, window, states), submit(reference, window, its).states
        assert np.array_equal(pending.result()["output"][0], expected[index].rgb)
        states = pending.states
        del pending
    used = gpu.used
    backend.write_states(backend.read_states(states))
    assert gpu.used == used
    backend.close()
    del backend, states
    gc.collect()
    assert gpu.used == gpu.freed_outside == 0


def test_states_of_another_size_than_the_last_frame(gpu, small, engine):
    backend = open_backend("tensorrt", engine)
    pairs = []
    for height, width in ((32, 48), (16, 24)):
        window = next(windows(backend.interface, dim_frames(3, height, width)))
        pending = submit(backend, window)
        pending.result()
        pairs.append((window, pending.states))
    (window, states), _ = pairs
    arrays = backend.read_states(states)
    assert arrays["restored_out"].shape == (1, 3, 32, 48) and arrays["motion_out"].shape == (1, 8, 8, 12)
    again = submit(backend, window, backend.write_states(arrays)).result()
    expected = submit(opened(small), window, opened(small).write_states(arrays)).result()
    assert np.array_equal(again["output"], expected["output"])


# Through the command line


@pytest.fixture
def clip(tmp_path):
    directory = tmp_path / "clip"
    directory.mkdir()
    for number, frame in enumerate(flashing(9, 4)):
        write_png(directory / f"{number}.png", frame)
    return directory


def test_mtu_run_reports_what_was_redone_and_strict_stops(gpu, overflowing, tmp_path, clip, capsys):
    engine = fake_cuda.write_engine(overflowing, tmp_path / "e", ANY_SIZE)
    report = tmp_path / "report.json"
    arguments = (clip, "--model", engine.directory)
    ended = cli.run(capsys, "mtu-run", *arguments, "-o", tmp_path / "out", "--json", report)
    assert ended.code == 0, ended.err
    assert "mtu-run: note: the model gave non-finite values at 1 frame (4), which were restored" in ended.err
    assert "on tensorrt cuda:0 (Fake GPU)" in ended.err
    assert json.loads(report.read_text())["redone"] == [4]
    assert len(list((tmp_path / "out").iterdir())) == 9
    ended = cli.run(capsys, "mtu-run", *arguments, "-o", tmp_path / "strict", "--strict")
    assert ended.code == 2 and "motion_out at frame 4" in ended.err
    assert not (tmp_path / "strict").exists()


def test_mtu_run_without_graphs(gpu, small, tmp_path, clip, capsys, engine):
    ended = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "o", "--model", engine.directory, "--no-cuda-graph")
    assert ended.code == 0, ended.err
    assert gpu.replays == 0 and gpu.executions.count("step") == 8


def test_deblur_takes_an_engine(gpu, small, engine):
    frames = dim_frames(6)
    expected = [r.rgb for r in truth(small, frames)[0]]
    got = list(deblur(frames, model=engine.directory))
    assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))
    assert list(deblur([], model="nowhere")) == []
