"""The TensorRT backends on a GPU that is not there (tests/fake_cuda.py).

What they give is what onnxruntime gives, bit for bit; every wait is needed; what cannot run is refused before the
library sees it.

The tests at the end need a GPU and the library.
"""

from __future__ import annotations

import ast
import atexit
import functools
import gc
import importlib.util
import itertools
import json
import sys
import threading
import types
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
from onnx import TensorProto, helper, numpy_helper

from mtu.calib.rollout import windows
from mtu.export.engine import BuildOptions, build_engine
from mtu.export.to_onnx import export_bundle
from mtu.models.checkpoint import random_checkpoint
from mtu.models.errors import InvalidInputError, MissingExtraError, MissingFileError, NonFiniteError
from mtu.models.interface import FRAME_NAMES, PRESETS, WINDOW, Interface, NetworkConfig
from mtu.plugins.correlation_argmax_warp.cuda_op import keep
from mtu.runtime import Session, TiledSession, Tiling, deblur, open_backend, open_bundle, open_model, read_frames
from mtu.runtime.backends import FACTORIES
from mtu.runtime.engine import Profile, Sizes
from mtu.runtime.gpu import find_gpu
from mtu.runtime.tensorrt_library import load_library
from mtu.runtime.video import write_png
from tests import cli, fake_cuda
from tests.conftest import ROOT
from tests.frames import moving_frames

ANY_SIZE = Profile(Sizes(4, 4), Sizes(32, 48), Sizes(128, 128))


@pytest.fixture
def make_gpu(monkeypatch, tmp_path):
    """Makes a GPU with a library; at the end, whatever the backends held has to be free again."""
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path / "cache"))
    made = []

    def make(**options):
        gpu = fake_cuda.Gpu(**options)
        fake_cuda.install(monkeypatch, gpu)
        made.append(gpu)
        return gpu

    yield make
    fake_cuda.uninstall()
    gc.collect()
    for gpu in made:
        assert gpu.contexts == [] and gpu.faults == [] and gpu.freed_outside == 0


@pytest.fixture
def gpu(make_gpu):
    return make_gpu()


@pytest.fixture(scope="module")
def overflowing(small, tmp_path_factory):
    """The small model, whose `step` gives an infinity in `motion` where the frame has a pixel of 255."""
    directory = tmp_path_factory.mktemp("overflowing")
    (directory / "first.onnx").write_bytes(small.graph("first").read_bytes())
    model = onnx.load(small.graph("step"))
    for node in model.graph.node:
        for number, name in enumerate(node.output):
            if name == "motion_out":
                node.output[number] = "motion_finite"
    values = {"top": np.float32(255), "zero": np.float32(0), "infinity": np.float32(np.inf)}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in values.items())
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["frame"], ["frame_float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["frame_float"], ["brightest"], keepdims=0),
            helper.make_node("Equal", ["brightest", "top"], ["is_top"]),
            helper.make_node("Where", ["is_top", "infinity", "zero"], ["added"]),
            helper.make_node("Add", ["motion_finite", "added"], ["motion_out"]),
        ]
    )
    onnx.save(model, directory / "step.onnx")
    return open_bundle(directory)


def dim_frames(count, height=32, width=48, seed=0):
    """Frames without a pixel of 255."""
    return [np.minimum(frame, 254) for frame in moving_frames(count, height, width, seed)]


def flashing(count, *flashes):
    frames = dim_frames(count)
    for flash in flashes:
        frames[flash][3, 5] = 255
    return frames


def truth(bundle, frames, **options):
    return collect(Session(opened(bundle), **options), frames)


@functools.cache
def opened(bundle):
    return open_backend("onnxruntime", bundle, "cpu")


def collect(session, frames):
    results = [r for frame in frames for r in session.push(frame)] + list(session.flush())
    return results, session


def assert_same(got, expected):
    assert [r.index for r in got] == [r.index for r in expected]
    for ours, theirs in zip(got, expected, strict=True):
        assert np.array_equal(ours.rgb, theirs.rgb), ours.index
        if theirs.displacement is None:
            assert ours.displacement is None
        else:
            assert np.array_equal(ours.displacement, theirs.displacement), ours.index


@pytest.fixture
def engine(small, tmp_path):
    return fake_cuda.write_engine(small, tmp_path / "engine", ANY_SIZE)


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


def test_one_unit(gpu, tmp_path):
    bundle = export_bundle(random_checkpoint(NetworkConfig(1, 4, 1)), tmp_path / "one")
    engine = fake_cuda.write_engine(bundle, tmp_path / "e", ANY_SIZE, plugin=False, plugin_revision=0)
    gpu.registered = True
    frames = dim_frames(7)
    got, _ = collect(Session(open_backend("tensorrt", engine)), frames)
    assert_same(got, truth(bundle, frames)[0])


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
    frames = [frame[None] for frame in dim_frames(9)]

    def window(number):
        return dict(zip(FRAME_NAMES, frames[number : number + 5], strict=True))

    first = backend.submit(window(0))
    once = backend.submit({**window(1), **first.states}).result()
    later = first
    for number in range(1, 5):
        later = backend.submit({**window(number), **later.states})
    again = backend.submit({**window(1), **first.states}).result()
    assert np.array_equal(once["output"], again["output"])
    assert np.array_equal(once["displacement"], again["displacement"])


def test_a_library_that_cannot_be_captured_runs_and_says_so(make_gpu, small, tmp_path):
    gpu = make_gpu(flavour="tensorrt-rtx", capturable=False)
    version = fake_cuda.VERSIONS["tensorrt-rtx"]
    engine = fake_cuda.write_engine(small, tmp_path / "e", ANY_SIZE, library="tensorrt-rtx", library_version=version)
    backend = open_backend("tensorrt-rtx", engine)
    frames = dim_frames(8)
    got, _ = collect(Session(backend), frames)
    assert_same(got, truth(small, frames)[0])
    assert gpu.executions.count("step") == 7
    assert backend.remarks == [
        "without CUDA graphs, so each step cost more time of the host: tensorrt-rtx says that step.engine cannot be"
        " captured"
    ]


def test_a_capture_that_fails_leaves_a_stream_that_works(make_gpu, small, engine, monkeypatch):
    make_gpu(capturable=False)
    backend = open_backend("tensorrt", engine)
    backend_frames = dim_frames(8)
    # This library has no `is_stream_capturable` to ask: it fails in the middle of the capture.
    monkeypatch.delattr(fake_cuda.ExecutionContext, "is_stream_capturable")
    got, _ = collect(Session(backend), backend_frames)
    assert_same(got, truth(small, backend_frames)[0])
    assert backend.remarks == [
        "without CUDA graphs, so each step cost more time of the host: tensorrt could not put step.engine into a graph:"
        " operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_capture_is_tried_twice(make_gpu, small, engine, failures):
    """The error that the first leaves in the library fails its next call, which is made again."""
    gpu = make_gpu(failing_captures=failures)
    frames = dim_frames(12)
    backend = open_backend("tensorrt", engine)
    got, _ = collect(Session(backend, scene_threshold=None), frames)
    assert_same(got, truth(small, frames, scene_threshold=None)[0])
    assert (gpu.replays > 0) == (failures == 1) == (backend.remarks == [])
    if failures == 2:
        assert backend.remarks[0].endswith("cuStreamEndCapture answered CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
        assert gpu.executions.count("step") == 11


def test_failed_captures_far_apart_turn_nothing_off(make_gpu, engine):
    gpu = make_gpu()
    backend = open_backend("tensorrt", engine)
    for height in (16, 32):
        session = Session(backend, scene_threshold=None)
        gpu.failing_captures = 1
        collect(session, dim_frames(8, height, 24))
    assert gpu.failing_captures == 0 and backend.remarks == [] and gpu.replays == 2 * (8 - 4)


def captured_all(gpu, backend):
    return backend.remarks == [] and gpu.executions.count("capture step") == 2


def test_the_collector_frees_nothing_during_a_capture(gpu, engine):
    backend = open_backend("tensorrt", engine)

    class Garbage:
        def __init__(self):
            with backend.gpu:
                self.memory, self.itself = backend.gpu.memory(64), self

        def __del__(self):
            with backend.gpu:
                del self.memory

    session = Session(backend, scene_threshold=None)
    for frame in dim_frames(8):
        Garbage()
        session.push(frame)
    assert captured_all(gpu, backend) and gc.isenabled()
    backend.close()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was(gpu, engine, enabled):
    backend = open_backend("tensorrt", engine)
    try:
        (gc.enable if enabled else gc.disable)()
        collect(Session(backend, scene_threshold=None), dim_frames(6))
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_work_of_others_on_the_default_stream_disturbs_no_capture_and_is_not_waited_for(gpu, engine):
    backend = open_backend("tensorrt", engine)
    others = []

    def work():
        others.append(gpu.append(gpu.legacy, fake_cuda.Work("of somebody else", [], lambda: None), []))

    gpu.in_capture = work
    session = Session(backend, scene_threshold=None)
    work()
    for frame in dim_frames(8):
        session.push(frame)
    assert captured_all(gpu, backend)
    assert len(others) > 1


def test_a_result_waits_for_nothing_on_the_default_stream(gpu, engine):
    backend = open_backend("tensorrt", engine, size=(32, 48))
    other = gpu.append(gpu.legacy, fake_cuda.Work("of somebody else", [], lambda: None), [])
    backend.submit(dict(zip(FRAME_NAMES, [frame[None] for frame in dim_frames(5)], strict=True))).result()
    assert not other.done


def test_other_threads_allocate_and_free_during_a_capture(gpu, engine):
    backend = open_backend("tensorrt", engine)

    def allocate():
        with backend.gpu:
            backend.gpu.memory(64)

    def in_capture():
        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()

    gpu.in_capture = in_capture
    collect(Session(backend, scene_threshold=None), dim_frames(8))
    assert captured_all(gpu, backend)


def test_no_thread_waits_for_the_device_during_a_capture(gpu, engine):
    backend = open_backend("tensorrt", engine)
    threads, errors = [], []

    def wait():
        try:
            with backend.gpu:
                backend.gpu.synchronize()
        except Exception as error:
            errors.append(error)

    def in_capture():
        threads.append(threading.Thread(target=wait))
        threads[-1].start()
        threads[-1].join(0.05)  # without the lock it would be through by now, with an error

    gpu.in_capture = in_capture
    session = Session(backend, scene_threshold=None)
    for frame in dim_frames(6):
        session.push(frame)
    for thread in threads:
        thread.join()
    assert errors == [] and captured_all(gpu, backend)


def test_only_addresses_that_changed_are_set(gpu, engine):
    backend = open_backend("tensorrt", engine, cuda_graph=False)
    session = Session(backend, scene_threshold=None)
    for frame in dim_frames(5):
        session.push(frame)
    before = gpu.addresses_set
    for frame in dim_frames(6, seed=1):
        session.push(frame)
    # Of 15 in a step, the five places stay; the setting of one that is set already is a fault of the fixture.
    states, outputs = len(backend.interface.states), len(backend.interface.outputs)
    assert gpu.addresses_set - before == 6 * (states + outputs)


# The end


def test_what_is_there_after_close(gpu, engine):
    backend = open_backend("tensorrt", engine)
    inputs = dict(zip(FRAME_NAMES, [frame[None] for frame in dim_frames(5)], strict=True))
    pending = backend.submit(inputs)
    arrays = backend.read_states(pending.states)
    backend.close()
    assert pending.result()["output"].shape == (1, 32, 48, 3)  # outputs stay valid
    for call in (
        partial(backend.submit, inputs),
        partial(backend.read_states, pending.states),
        partial(backend.write_states, arrays),
    ):
        with pytest.raises(InvalidInputError, match="backend tensorrt is closed: open another with open_backend"):
            call()
    del call
    backend.close()
    del pending
    assert gpu.used == 0


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("frames", [0, 5])
def test_streams_events_and_memory_go_while_the_device_is_current(gpu, engine, times, frames):
    backend = open_backend("tensorrt", engine)
    pending = [
        backend.submit(dict(zip(FRAME_NAMES, [frame[None] for frame in dim_frames(5)], strict=True)))
        for _ in range(frames)
    ]
    pending.clear()
    for _ in range(times):
        backend.close()
    if not times:
        del backend  # nobody closes it
    assert gpu.used == 0 and len(gpu.streams) == 3  # those of the library


def test_another_size_waits_for_what_is_under_way(gpu, engine):
    backend = open_backend("tensorrt", engine)
    for height, width in ((32, 48), (16, 24), (32, 48)):
        inputs = dict(zip(FRAME_NAMES, [frame[None] for frame in dim_frames(5, height, width)], strict=True))
        backend.submit(inputs)  # nobody asks for the result
    assert gpu.faults == []


def test_a_backend_is_closed_in_another_thread(gpu, engine):
    backend = open_backend("tensorrt", engine)
    collect(Session(backend), dim_frames(6))
    thread = threading.Thread(target=backend.close)
    thread.start()
    thread.join()
    assert gpu.used == gpu.freed_outside == 0


@pytest.mark.parametrize("with_states", [True, False])
def test_the_context_outlives_what_the_process_leaves_open(make_gpu, engine, monkeypatch, with_states):
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    gpu = make_gpu()
    backends = [open_backend("tensorrt", engine) for _ in range(2)]
    inputs = dict(zip(FRAME_NAMES, [frame[None] for frame in dim_frames(5)], strict=True))
    states = [backend.submit(inputs).states for backend in backends if with_states]
    (give_up,) = at_exit
    give_up()
    assert gpu.is_detached and not any(name in str(gpu.faults) for name in ("way", "stream"))
    del backends
    assert with_states or gpu.used == 0
    # States that somebody holds even now: pycuda frees nothing in a context that is gone, and says nothing.
    assert with_states == bool(gpu.used)
    del states
    gpu.faults.clear()
    gpu.freed_outside = 0


def test_a_backend_that_cannot_be_opened_leaves_nothing(gpu, small, engine, tmp_path, monkeypatch):
    wrong = fake_cuda.write_engine(small, tmp_path / "e", ANY_SIZE, interface=Interface(PRESETS["mtu1"]))
    refused("its tensors are", "tensorrt", wrong)
    assert gpu.used == 0
    monkeypatch.setattr(fake_cuda.ExecutionContext, "set_input_shape", lambda *_: False)
    refused("could not be set", "tensorrt", engine, size=(32, 48))
    assert gpu.used == 0


# What the library says, and what it compiles


def test_an_error_of_an_earlier_operation_is_no_reason(gpu, engine, monkeypatch):
    backend = open_backend("tensorrt", engine)
    for method in ("set_tensor_address", "execute_async_v3"):
        with monkeypatch.context() as patch:
            patch.setattr(fake_cuda.ExecutionContext, method, lambda *_: False)
            load_library("tensorrt").logger.record("ERROR", "something that went wrong before")
            with pytest.raises(InvalidInputError, match="for frames of 48x32: it gives no reason; build it again"):
                collect(Session(backend), dim_frames(5))
    monkeypatch.setattr(sys.modules["tensorrt"].Runtime, "deserialize_cuda_engine", lambda *_: None)
    load_library("tensorrt").logger.record("ERROR", "something that went wrong before")
    refused("cannot load .*: it gives no reason", "tensorrt", engine)


@pytest.mark.parametrize("damage", [None, "cut", "of another version", "unwritable"])
def test_rtx_compiles_once_for_a_gpu_and_a_size(make_gpu, small, tmp_path, damage, recwarn):
    version = fake_cuda.VERSIONS["tensorrt-rtx"]
    engine = fake_cuda.write_engine(small, tmp_path / "e", ANY_SIZE, library="tensorrt-rtx", library_version=version)

    def compilations(*sizes):
        gpu = make_gpu(flavour="tensorrt-rtx")
        backend = open_backend("auto", engine)
        for height, width in sizes:
            collect(Session(backend), dim_frames(4, height, width))
        backend.close()
        return gpu.compilations

    folder = tmp_path / "cache" / "rtx"
    if damage == "unwritable":
        folder.parent.mkdir()
        folder.write_text("")
    assert compilations((32, 48)) == 2  # two graphs
    if damage == "unwritable":
        assert "what TensorRT-RTX compiled cannot be kept" in str(recwarn.pop(UserWarning).message)
        assert compilations((32, 48)) == 2
        return
    for path in folder.iterdir():
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        elif damage is not None:
            keep(path, b"of another version", "it")
    assert compilations((32, 48)) == (0 if damage is None else 2)
    assert compilations((32, 48), (16, 24)) == 2
    assert compilations((16, 24), (32, 48)) == 0
    assert len(list(folder.iterdir())) == 2


# Every wait is needed


STREAMS = {"upload": 0, "compute": 1, "download": 2}


def forget(gpu, backend, recorded, waiting):
    """Leaves out the waits of one kind."""
    handles = {name: getattr(backend, name).handle for name in STREAMS} | {"host": None}
    gpu.forget = lambda *kind: kind == (handles[recorded], handles[waiting])


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize(
    ("recorded", "waiting"),
    [("upload", "compute"), ("compute", "upload"), ("compute", "download"), ("download", "compute")],
)
def test_without_one_of_the_four_waits_there_is_a_race(gpu, engine, recorded, waiting, cuda_graph):
    backend = open_backend("tensorrt", engine, cuda_graph=cuda_graph)

    def run():
        states = {}
        frames = [frame[None] for frame in dim_frames(5)]
        for number in range(12):
            # Nobody asks for a result, so nothing but events keeps the order; every frame is a new one.
            states = backend.submit({**dict(zip(FRAME_NAMES, frames, strict=True)), **states}).states
            frames = [*frames[1:], dim_frames(1, seed=number)[0][None]]

    run()
    forget(gpu, backend, recorded, waiting)
    with pytest.raises(fake_cuda.Race):
        run()
    assert gpu.forgotten


@pytest.mark.parametrize("recorded", ["upload", "download"])
def test_without_a_wait_of_the_host_the_pixels_are_wrong(gpu, engine, recorded):
    backend = open_backend("tensorrt", engine)
    windows = [[frame[None] for frame in dim_frames(5, seed=number)] for number in range(6)]

    def run(windows):
        # With arrays of its own, each window pushes the one before off the device, and takes its pinned memory.
        pending = [
            backend.submit(dict(zip(FRAME_NAMES, [frame.view() for frame in window], strict=True)))
            for window in windows
        ]
        return [each.result()["output"] for each in pending]

    right = run(windows)
    assert all(np.array_equal(a, b) for a, b in zip(run(windows[::-1])[::-1], right, strict=True))
    forget(gpu, backend, recorded, "host")
    wrong = run(windows)
    assert gpu.forgotten
    assert not all(np.array_equal(a, b) for a, b in zip(wrong, right, strict=True))


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
    for flash in flashes:
        window = [frames[min(max(flash + offset, 0), 19)][None] for offset in WINDOW]
        alone = opened(overflowing).submit(dict(zip(FRAME_NAMES, window, strict=True))).result()
        assert np.array_equal(got[flash].rgb, alone["output"][0])


def test_strict_stops_instead(gpu, overflowing, tmp_path):
    engine = fake_cuda.write_engine(overflowing, tmp_path / "e", ANY_SIZE)
    session = Session(open_backend("tensorrt", engine), scene_threshold=None, strict=True)
    with pytest.raises(NonFiniteError, match=r"non-finite values in motion_out at frame 6: its weights overflow"):
        collect(session, flashing(20, 6))


def test_weights_that_overflow_in_the_first_frame_too_are_an_error(gpu, overflowing, tmp_path):
    bundle = tmp_path / "b"
    bundle.mkdir()
    for graph in ("first", "step"):
        model = onnx.load(overflowing.graph(graph))
        tensor = next(t for t in model.graph.initializer if t.name == "HGs.1.enc1.0.weight")
        tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, np.nan, np.float32), tensor.name))
        onnx.save(model, bundle / f"{graph}.onnx")
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
    for index, _, inputs in windows(frames):
        if index % 2:
            arrays = backend.read_states(states)
            for name, array in reference.read_states(its).items():
                assert array.dtype == arrays[name].dtype and np.array_equal(array, arrays[name])
            states = backend.write_states(arrays)
            for name, array in backend.read_states(states).items():
                assert np.array_equal(array, arrays[name])
        pending, its = backend.submit({**inputs, **states}), reference.submit({**inputs, **its}).states
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
        _, _, inputs = next(windows(dim_frames(3, height, width)))
        pending = backend.submit(inputs)
        pending.result()
        pairs.append((inputs, pending.states))
    (inputs, states), _ = pairs
    arrays = backend.read_states(states)
    assert arrays["restored_in"].shape == (1, 3, 32, 48) and arrays["motion_in"].shape == (1, 8, 8, 12)
    again = backend.submit({**inputs, **backend.write_states(arrays)}).result()
    expected = opened(small).submit({**inputs, **opened(small).write_states(arrays)}).result()
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


# What cannot run


def refused(match, *arguments, **options):
    with pytest.raises(InvalidInputError, match=match) as caught:
        open_backend(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_an_engine_that_is_not_what_was_built_is_refused_before_the_library_sees_it(gpu, engine, monkeypatch):
    monkeypatch.setattr(sys.modules["tensorrt"], "Runtime", None)
    for graph, damage in (
        ("step", lambda content: content[:-1]),
        ("first", lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:]),
        ("step", lambda content: b""),
    ):
        path = engine.file(graph)
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        refused(rf"{graph}.engine is damaged or of another build .*: mtu-build-engine", "tensorrt", engine)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"gpu": "NVIDIA A10"}, "built for NVIDIA A10 .* here is Fake GPU .*: mtu-build-engine"),
        ({"compute_capabilities": ("8.6",)}, r"compute capability 8.6\), here is Fake GPU"),
        ({"library_version": "10.3.0"}, "built with tensorrt 10.3.0, here is 10.16.1.11"),
        ({"plugin_revision": 99}, "revision 99 of the plugin"),
        ({"library": "tensorrt-rtx"}, "was built with tensorrt-rtx: use --backend tensorrt-rtx"),
    ],
)
def test_an_engine_for_something_else_is_refused(gpu, small, tmp_path, monkeypatch, changes, match):
    monkeypatch.setattr(sys.modules["tensorrt"], "Runtime", None)
    refused(match, "tensorrt", fake_cuda.write_engine(small, tmp_path / "e", ANY_SIZE, **changes))


def test_a_size_outside_the_profile(gpu, small, tmp_path):
    engine = fake_cuda.write_engine(small, tmp_path / "e", Profile.fixed(32, 48))
    command = "mtu-build-engine BUNDLE -o DIR --size 64x32 --runtime tensorrt"
    match = rf"64x32 do not fit engine .* which is for 48x32: build one with {command}"
    refused(match, "tensorrt", engine, size=(30, 62))
    session = Session(open_backend("tensorrt", engine), scene_threshold=None)
    with pytest.raises(InvalidInputError, match=match):
        collect(session, dim_frames(5, 30, 62))
    assert open_backend("tensorrt", engine, size=(29, 46))


def test_an_engine_the_library_cannot_load(gpu, small, tmp_path):
    engine = fake_cuda.write_engine(small, tmp_path / "e", ANY_SIZE, plugin=False, plugin_revision=0)
    refused("cannot load .*first.engine: Cannot find plugin: .*; build it again", "tensorrt", engine)


def test_an_engine_of_another_model_than_its_manifest_says(gpu, small, tmp_path):
    interface = Interface(PRESETS["mtu1"])
    engine = fake_cuda.write_engine(small, tmp_path / "e", ANY_SIZE, interface=interface)
    refused("its tensors are .*, its manifest says", "tensorrt", engine)


def test_not_enough_memory_is_said_before_anything_is_loaded(make_gpu, engine):
    gpu = make_gpu(total=100_000)
    match = r"not enough memory on Fake GPU: \d+ MiB are needed, 0 MiB are free; .*use smaller frames"
    refused(match, "tensorrt", engine, size=(128, 128))
    assert gpu.used == 0
    # An allocation that fails although the estimate did not.
    gpu = make_gpu(total=400_000)
    backend = open_backend("tensorrt", engine)
    with pytest.raises(InvalidInputError, match="not enough memory on Fake GPU"):
        collect(Session(backend), dim_frames(5, 128, 128))


def test_there_has_to_be_a_gpu(monkeypatch, gpu, engine):
    refused("leave out --device cpu", "tensorrt", engine, "cpu")
    refused("none answers as cuda:1", "tensorrt", engine, "cuda:1")
    monkeypatch.setattr("mtu.runtime.gpu.driver_library", lambda: None)
    find_gpu.cache_clear()
    refused("needs an NVIDIA GPU, and none answers as cuda:0: mtu-doctor", "tensorrt", engine)


def test_an_engine_is_not_for_the_other_backends(engine):
    for name in ("onnxruntime", "torch"):
        refused(f"is an engine, which backend {name} cannot run: use --backend tensorrt", name, engine, "cpu")


@pytest.mark.parametrize("package", ["tensorrt", "pycuda", "cuda.core"])
def test_a_missing_package_names_the_extra(gpu, engine, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(MissingExtraError, match=rf"'{package}', which is not installed: pip install \"mtu-trt\[gpu\]"):
        open_backend("tensorrt", engine)


def test_pycuda_without_a_driver(gpu, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.delattr(sys.modules["pycuda"], "driver")
    refused("pycuda cannot be loaded .* mtu-doctor says which is missing", "tensorrt", engine)


def test_a_plugin_library_that_is_none(gpu, engine, tmp_path, monkeypatch):
    registry = types.SimpleNamespace(get_creator=lambda *identity: None, load_library=lambda path: None)
    monkeypatch.setattr(sys.modules["tensorrt"], "get_plugin_registry", lambda: registry, raising=False)
    with pytest.raises(MissingFileError, match="does not exist: build it with mtu-build-plugin"):
        open_backend("tensorrt", engine, plugin_library=tmp_path / "none.so")
    (tmp_path / "some.so").write_bytes(b"")
    refused(
        r"some.so is no CorrelationArgmaxWarp plugin for tensorrt 10",
        "tensorrt",
        engine,
        plugin_library=tmp_path / "some.so",
    )


def test_a_bundle_needs_a_size(gpu, small):
    refused(r"give open_backend\(..., size=\(height, width\)\), or an engine", "tensorrt", small)


def test_what_a_directory_holds(small, engine):
    assert open_model(small.directory) == small
    assert open_model(engine.directory) == engine


def test_the_guard_compiles():
    pytest.importorskip("cuda.core")
    pytest.importorskip("mtu.plugins.correlation_argmax_warp.cuda_op")
    source = next(
        node.value.value
        for node in ast.parse((ROOT / "runtime/backends/non_finite.py").read_text()).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "GUARD"
    )
    from cuda.core import Program, ProgramOptions

    for arch in ("sm_75", "sm_90", "sm_120"):
        assert Program(source, "c++", ProgramOptions(arch=arch, std="c++17")).compile("cubin").code


# On a GPU


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def build(request, tmp_path_factory):
    """Builds an engine with a library, if that and what the backend needs is installed."""
    for package in FACTORIES[request.param][1]:
        pytest.importorskip(package)
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
    (_, _, first), (_, _, second) = itertools.islice(windows(demo_frames), 2)
    pending = backend.submit(first)
    pending.result()
    arrays = backend.read_states(pending.states)
    written = backend.write_states(arrays)
    assert all(np.array_equal(array, arrays[name]) for name, array in backend.read_states(written).items())
    plain, other = (backend.submit({**second, **states}).result() for states in (pending.states, written))
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
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_guard_on_a_gpu_finds_one_bad_value_anywhere(dtype):
    for package in ("pycuda", "cuda.bindings", "cuda.core"):
        pytest.importorskip(package)
    from mtu.plugins.correlation_argmax_warp.cuda_op import compiled
    from mtu.runtime.backends import cuda_device as cuda
    from mtu.runtime.backends.non_finite import EXPONENTS, GUARD

    device = cuda.open_device(0)
    with device:
        stream = cuda.new_stream()
        arch = f"sm_{device.compute_capability.replace('.', '')}"
        kernel = cuda.load_kernel(compiled(GUARD, arch), "non_finite", "PQIIP")
        values, flag = device.pinned((1 << 20,), dtype), device.pinned((1,), "int32")
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
            kernel.prepared_async_call(
                (64, 1), (256, 1, 1), stream, int(memory), values.nbytes // 16, *EXPONENTS[dtype], int(flag_memory)
            )
            cuda.download(flag, flag_memory, stream)
            stream.synchronize()
            assert flag[0] == expected, (place, bad)
        del kernel, memory, flag_memory, stream
