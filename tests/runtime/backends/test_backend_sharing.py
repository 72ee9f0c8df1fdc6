"""A backend shared and closed: two threads take turns, and after `close` every call is refused in words."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.frames import moving_frames

from mtu.core.errors import InvalidInputError
from mtu.runtime import Session, open_backend
from mtu.runtime.backends import Gate

BACKENDS = ("openvino", "onnxruntime", "torch", "torch-compile")


@pytest.mark.parametrize("name", BACKENDS)
def test_a_closed_backend_says_so(name, small):
    backend = open_backend(name, small, "cpu")
    session = Session(backend)
    session.push(moving_frames(1, 8, 12)[0])
    backend.close()
    backend.close()
    for call in (
        session.flush,
        lambda: backend.submit("first", {}, {}),
        lambda: backend.read_states({}),
        lambda: backend.write_states({}),
    ):
        with pytest.raises(InvalidInputError, match=f"backend {name} is closed: open another with open_backend"):
            call()


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "torch"])
def test_what_was_restored_before_the_end_stays(name, small, one_thread):
    backend = open_backend(name, small, "cpu")
    session = Session(backend, scene_threshold=None)
    result, *_ = [r for frame in moving_frames(4, 8, 12) for r in session.push(frame)]
    picture = result.rgb.copy()
    backend.close()
    assert np.array_equal(result.rgb, picture)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "torch"])
def test_two_threads_on_one_backend_give_what_one_gives(name, small, one_thread):
    streams = [moving_frames(12, 16, 24, seed=seed) for seed in range(4)]

    def restored(stream):
        session = Session(backend, scene_threshold=None)
        return [r.rgb for frame in stream for r in session.push(frame)] + [r.rgb for r in session.flush()]

    with contextlib.closing(open_backend(name, small, "cpu")) as backend:
        alone = [restored(stream) for stream in streams]
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(restored, streams))
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "torch"])
def test_calls_of_two_threads_never_overlap(name, small, monkeypatch):
    backend = open_backend(name, small, "cpu")
    inside, most = [], []
    method = "_start" if name == "openvino" else "_run"
    run = getattr(backend, method)

    def watched(*arguments):
        inside.append(threading.get_ident())
        most.append(len(set(inside)))
        try:
            return run(*arguments)
        finally:
            inside.remove(threading.get_ident())

    monkeypatch.setattr(backend, method, watched)
    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(_restore, backend, seed) for seed in range(2)]:
            future.result()
    assert len(most) == 24 and max(most) == 1
    backend.close()


def _restore(backend, seed):
    session = Session(backend, scene_threshold=None)
    for frame in moving_frames(12, 64, 64, seed=seed):
        session.push(frame)
    session.flush()


def test_close_waits_for_the_call_under_way():
    gate, entered, go = Gate("stand-in"), threading.Event(), threading.Event()
    ended = []

    def call():
        with gate:
            entered.set()
            go.wait(10)
            ended.append("call")

    def close():
        assert gate.close()
        ended.append("close")

    threads = [threading.Thread(target=call), threading.Thread(target=close)]
    threads[0].start()
    assert entered.wait(10)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert ended == ["call", "close"]
    assert not gate.close()
    with pytest.raises(InvalidInputError, match="stand-in is closed"), gate:
        pass


def test_a_call_that_fails_lets_the_next_in():
    gate = Gate("stand-in")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), gate:
            raise KeyboardInterrupt
