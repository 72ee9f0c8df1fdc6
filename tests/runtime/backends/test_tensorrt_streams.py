"""Captures and waits of the TensorRT backends, on a GPU that is not there: captures hold, and every wait is needed."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")


from tests import fake_cuda
from tests.frames import submit, windows
from tests.tensorrt_sessions import ANY_SIZE, assert_same, collect, dim_frames, engine, gpu, make_gpu, truth

from mtu.core.errors import InvalidInputError
from mtu.runtime import Session, open_backend

__all__ = ["engine", "gpu", "make_gpu"]  # fixtures


# Captures


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


@pytest.mark.parametrize("failures", [1, 2])
def test_what_a_failed_capture_leaves_fails_nothing_else(make_gpu, small, engine, failures):
    """Another size is prepared right after the last failed capture."""
    gpu = make_gpu(failing_captures=failures)
    backend = open_backend("tensorrt", engine)
    window = next(windows(backend.interface, dim_frames(5)))
    states = submit(backend, window).states
    for _ in range(failures):  # other buffers each time, and so another capture
        states = submit(backend, window, states).states
    assert gpu.failing_captures == 0
    frames = dim_frames(6, 16, 24)
    assert_same(collect(Session(backend), frames)[0], truth(small, frames)[0])


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_real_error_is_not_hidden_by_a_failed_capture(make_gpu, engine, monkeypatch, failures):
    gpu = make_gpu(failing_captures=failures)
    backend = open_backend("tensorrt", engine, cuda_graph=failures > 0)
    session = Session(backend, scene_threshold=None)
    frames = dim_frames(12)
    for frame in frames[:8]:
        session.push(frame)
    assert gpu.failing_captures == 0
    execute = fake_cuda.ExecutionContext.execute_async_v3
    calls = []

    def fail_once(context, stream):
        calls.append(stream)
        if len(calls) > 1:
            return execute(context, stream)
        context.engine.log("the device has no memory left")
        return False

    monkeypatch.setattr(fake_cuda.ExecutionContext, "execute_async_v3", fail_once)
    session.reset()  # a first step, which no graph replays
    with pytest.raises(InvalidInputError, match=r"could not run .*the device has no memory left"):
        for frame in frames:
            session.push(frame)
    assert len(calls) == 1
    backend.close()


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_during_a_capture_ends_it(gpu, small, engine, interrupt):
    backend = open_backend("tensorrt", engine)

    def in_capture():
        gpu.in_capture = lambda: None
        raise interrupt

    gpu.in_capture = in_capture
    frames = dim_frames(8)
    with pytest.raises(interrupt):
        collect(Session(backend, scene_threshold=None), frames)
    assert gpu.capturing() == []
    got, _ = collect(Session(backend, scene_threshold=None), frames)
    assert_same(got, truth(small, frames, scene_threshold=None)[0])
    backend.close()


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
    submit(backend, next(windows(backend.interface, dim_frames(5)))).result()
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
    # Of 15 in a step, the five slots stay; the setting of one that is set already is a fault of the fixture.
    states, outputs = len(backend.interface.states), len(backend.interface.outputs)
    assert gpu.addresses_set - before == 6 * (states + outputs)


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
        for window in windows(backend.interface, dim_frames(14)):
            # Nobody asks for a result, so nothing but events keeps the order; every frame is a new one.
            states = submit(backend, window, states).states

    run()
    forget(gpu, backend, recorded, waiting)
    with pytest.raises(fake_cuda.Race):
        run()
    assert gpu.forgotten


@pytest.mark.parametrize("recorded", ["upload", "download"])
def test_without_a_wait_of_the_host_the_pixels_are_wrong(gpu, engine, recorded):
    backend = open_backend("tensorrt", engine)
    clips = [dim_frames(5, seed=number) for number in range(6)]

    def run(clips):
        # With arrays of its own, each window pushes the one before off the device, and takes its pinned memory.
        pending = [
            submit(backend, {name: frame.view() for name, frame in next(windows(backend.interface, clip)).items()})
            for clip in clips
        ]
        return [each.result()["output"] for each in pending]

    right = run(clips)
    assert all(np.array_equal(a, b) for a, b in zip(run(clips[::-1])[::-1], right, strict=True))
    forget(gpu, backend, recorded, "host")
    wrong = run(clips)
    assert gpu.forgotten
    assert not all(np.array_equal(a, b) for a, b in zip(wrong, right, strict=True))
