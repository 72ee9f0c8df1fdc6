"""OpenVINO gives what onnxruntime gives: any model, any size, whatever is held, dropped, shared or used again."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests import small_models
from tests.frames import moving_frames, submit, windows
from tests.processes import LIMIT, environment

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.runtime import Session, open_backend
from mtu.runtime.backends.openvino_models import Target
from mtu.runtime.session import ROLES
from mtu.runtime.tiles import TiledSession, Tiling

pytestmark = pytest.mark.needs_library("openvino", "onnx", "onnxruntime")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """`small` in fp16."""
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import random_checkpoint

    checkpoint = random_checkpoint("mtu", {"units": 2, "channels": 4, "blocks": 1})
    return export_bundle(checkpoint, tmp_path_factory.mktemp("half") / "bundle", precision="fp16")


@pytest.fixture(scope="module")
def backend(small):
    with contextlib.closing(open_backend("openvino", small, "cpu", size=(16, 24))) as opened:
        yield opened


def restored(backend, frames, **how):
    session = Session(backend, scene_threshold=None, **how)
    return [each for frame in frames for each in session.push(frame)] + session.flush()


def pictures(backend, seed, count=6):
    return [each.rgb for each in restored(backend, moving_frames(count, 16, 24, seed=seed))]


def assert_near(found, expected, levels=1, motion=1.0):
    """Pictures within a level, `motion` of the displacements equal, maps alike."""
    assert [each.index for each in found] == [each.index for each in expected]
    for a, b in zip(found, expected, strict=True):
        assert [getattr(a, role) is None for role in ROLES] == [getattr(b, role) is None for role in ROLES]
        if a.picture is not None:
            assert a.rgb.shape == b.rgb.shape and a.rgb.dtype == np.uint8
            assert np.abs(a.rgb.astype(int) - b.rgb).max() <= levels
        if a.displacement is not None:
            assert a.displacement.dtype == np.int32
            assert (a.displacement == b.displacement).mean() >= motion
        if a.map is not None:
            assert a.map.dtype == b.map.dtype and np.allclose(a.map, b.map, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 24), (1, 1), (17, 31), (48, 64)])
def test_every_frame_and_state_is_that_of_onnxruntime(small, size):
    """Each frame from onnxruntime's states, which go in and come out as they are."""
    with (
        contextlib.closing(open_backend("openvino", small, "cpu")) as ours,
        contextlib.closing(open_backend("onnxruntime", small, "cpu")) as other,
    ):
        assert (ours.name, ours.device, ours.arithmetic) == ("openvino", "cpu", "fp32")
        states, given = {}, {}
        for window in windows(small.interface, moving_frames(4, *small.interface.size.padded(*size))):
            a, b = submit(ours, window, given), submit(other, window, states)
            found, expected = a.result(), b.result()
            assert list(found) == list(expected)
            for name, value in expected.items():
                assert found[name].dtype == value.dtype and np.abs(found[name].astype(int) - value).max() <= 1
            mine, states = ours.read_states(a.states), b.states
            arrays = other.read_states(states)
            for name, value in arrays.items():
                assert mine[name].dtype == value.dtype and np.allclose(mine[name], value, atol=1e-4)
            given = ours.write_states(arrays)
            back = ours.read_states(given)
            assert all(np.array_equal(back[name], value) for name, value in arrays.items())


@pytest.mark.parametrize("model", ["mimo", "single", "opposite", "difference", "trail"])
def test_any_model(model, request, tmp_path):
    made = getattr(small_models, model, None)
    bundle = made(tmp_path / "m") if made else request.getfixturevalue(model)
    frames = [np.minimum(frame, 254) for frame in moving_frames(6, 20, 26)]
    found, expected = (restored(open_backend(name, bundle, "cpu"), frames) for name in ("openvino", "onnxruntime"))
    assert_near(found, expected)


def test_a_bundle_in_fp16_is_computed_in_fp32_and_says_so(half, small):
    frames = moving_frames(5, 16, 24)
    with contextlib.closing(open_backend("openvino", half, "cpu")) as backend:
        assert backend.arithmetic == "fp16 computed in fp32"
        found = restored(backend, frames)
        _, second = windows(half.interface, frames[:2])
        states = backend.read_states(submit(backend, second).states)
        assert {name: value.dtype for name, value in states.items()} == {
            name: np.dtype(state.dtype) for name, state in half.interface.states.items()
        }
    assert_near(found, restored(open_backend("onnxruntime", half, "cpu"), frames), levels=2, motion=0.98)


def test_sizes_come_and_go(small, monkeypatch):
    """More of them than are kept compiled, each used again."""
    monkeypatch.setattr("mtu.runtime.backends.openvino_backend.SIZES", 2)
    sizes = [(16, 24), (24, 16), (16, 16), (16, 24), (24, 16)]
    with contextlib.closing(open_backend("openvino", small, "cpu")) as backend:
        found = [restored(backend, moving_frames(3, *size)) for size in sizes]
        assert len(backend._pools) == 2
    assert all(
        np.array_equal(a.rgb, b.rgb)
        for first, again in ((0, 3), (1, 4))
        for a, b in zip(found[first], found[again], strict=True)
    )
    assert [each[0].rgb.shape[:2] for each in found] == sizes


def test_frames_of_a_size_that_was_dropped_meanwhile_are_still_fetched(small, monkeypatch):
    monkeypatch.setattr("mtu.runtime.backends.openvino_backend.SIZES", 1)
    with contextlib.closing(open_backend("openvino", small, "cpu")) as backend:
        (window, *_) = windows(small.interface, moving_frames(2, 16, 24))
        expected = submit(backend, window).result()
        early = submit(backend, window)
        restored(backend, moving_frames(3, 24, 16))
        assert all(np.array_equal(early.result()[name], value) for name, value in expected.items())


# States and requests


def test_states_that_are_held_are_not_written_over(backend):
    """While another stream runs, frames are dropped unfetched, and the states are used again."""
    ahead = list(windows(backend.interface, moving_frames(4, 16, 24, seed=1)))
    held = submit(backend, ahead[0])
    first = held.result()
    states = backend.read_states(held.states)
    nexts = [submit(backend, ahead[1], held.states) for _ in range(3)]
    del nexts[1:]
    pictures(backend, seed=2)
    for _ in range(10):
        submit(backend, ahead[2], nexts[0].states)
    expected = nexts[0].result()
    again = submit(backend, ahead[1], held.states).result()
    assert all(np.array_equal(again[name], value) for name, value in expected.items())
    assert all(np.array_equal(value, states[name]) for name, value in backend.read_states(held.states).items())
    assert all(np.array_equal(held.result()[name], value) for name, value in first.items())


def test_results_may_be_fetched_in_any_order(backend):
    frames = list(windows(backend.interface, moving_frames(5, 16, 24)))
    in_order, late, states = [], [], {}
    for window in frames:
        pending = submit(backend, window, states)
        states = pending.states
        in_order.append(pending.result())
    states = {}
    for window in frames:
        late.append(submit(backend, window, states))
        states = late[-1].states
    fetched = {number: late[number].result() for number in (4, 0, 2, 3, 1)}
    assert all(np.array_equal(fetched[n][name], value) for n in fetched for name, value in in_order[n].items())


def test_requests_come_back(backend):
    """As many as are held at one time, and none more however many frames come."""
    pictures(backend, seed=0)
    free = {name: len(pool._free) for name, pool in backend._pools[16, 24].items()}
    pictures(backend, seed=0, count=20)
    assert {name: len(pool._free) for name, pool in backend._pools[16, 24].items()} == free
    assert min(free.values()) > 0


def test_what_is_computed_keeps_its_frames(backend):
    """OpenVINO does not; whoever holds the states alone need not."""
    (window, *_) = windows(backend.interface, moving_frames(2, 16, 24))
    window = {name: frame.copy() for name, frame in window.items()}
    seen = [weakref.ref(frame) for frame in window.values()]
    pending = submit(backend, window)
    states = pending.states
    del pending, window
    gc.collect()
    assert sum(each() is not None for each in seen) == len(backend.interface.graph_for({}).frames)
    next(iter(states.values())).lease.wait()
    gc.collect()
    assert not any(each() is not None for each in seen)


def test_frames_that_may_not_be_written_to(backend):
    frames = moving_frames(4, 16, 24)
    expected = restored(backend, frames)
    for frame in frames:
        frame.flags.writeable = False
    assert_near(restored(backend, frames), expected, levels=0)


# Values that are not finite


# OpenVINO's activations make a number of NaN, and some of infinity; then what they give is finite.


@pytest.mark.parametrize(
    ("state", "value"), [("detail_out", np.inf), ("detail_out", -np.inf), ("restored_out", -np.inf)]
)
def test_states_that_are_not_finite_are_found(backend, state, value):
    (window, *_) = windows(backend.interface, moving_frames(2, 16, 24))
    first = submit(backend, window)
    first.result()
    arrays = backend.read_states(first.states)
    arrays[state].flat[0] = value
    pending = submit(backend, window, backend.write_states(arrays))
    with pytest.raises(NonFiniteError, match="detail_out"):
        pending.result()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_frame_that_is_not_finite_is_redone(tmp_path, strict, value):
    frames = moving_frames(10, 16, 24)
    with contextlib.closing(open_backend("openvino", small_models.trail(tmp_path / "m"), "cpu")) as backend:
        session = Session(backend, scene_threshold=None, strict=strict)
        found = [each for frame in frames[:6] for each in session.push(frame)]
        arrays = backend.read_states(session._states)
        arrays["trace"].flat[0] = value
        session._states = backend.write_states(arrays)
        with pytest.raises(NonFiniteError, match="trace at frame 3") if strict else contextlib.nullcontext():
            found += [each for frame in frames[6:] for each in session.push(frame)] + session.flush()
        if not strict:
            assert session.redone == [3]
            expected = restored(backend, frames)[:3] + restored(backend, frames[3:])
            assert [each.index for each in found] == [*range(10)]
            assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(found, expected, strict=True))


def test_a_map_that_is_not_finite_is_refused(tmp_path):
    frames = moving_frames(3, 8, 8)
    frames[1][:] = 255
    backend = open_backend("openvino", small_models.difference(tmp_path / "m"), "cpu")
    with contextlib.closing(backend), pytest.raises(NonFiniteError, match="non-finite values in change at frame 1"):
        restored(backend, frames)


# Streams


@pytest.mark.parametrize("at_once", [2, 4])
def test_sessions_at_once_give_what_one_gives(small, at_once, backend):
    alone = [pictures(backend, seed) for seed in range(4)]
    with contextlib.closing(open_backend("openvino", small, "cpu", size=(16, 24), at_once=at_once)) as several:
        with ThreadPoolExecutor(at_once) as threads:
            assert np.array_equal(list(threads.map(lambda seed: pictures(several, seed), range(4))), alone)
        sessions = [Session(several, scene_threshold=None) for _ in range(4)]
        streams = [moving_frames(6, 16, 24, seed=seed) for seed in range(4)]
        in_turns: list[list] = [[] for _ in sessions]
        for number in range(6):
            for session, stream, found in zip(sessions, streams, in_turns, strict=True):
                found += [each.rgb for each in session.push(stream[number])]
        for session, found in zip(sessions, in_turns, strict=True):
            found += [each.rgb for each in session.flush()]
    assert np.array_equal(in_turns, alone)


@pytest.mark.parametrize(("device", "at_once", "pinned"), [("CPU", 1, False), ("CPU", 2, None), ("GPU.1", 1, None)])
def test_one_stream_leaves_the_cores_to_the_system(device, at_once, pinned):
    """Where others compute beside it; several have a core each. None is what OpenVINO does unasked."""
    assert Target(device, "f32", at_once).settings.get("ENABLE_CPU_PINNING") is pinned


def test_tiles(small):
    frames = moving_frames(5, 32, 56)
    tiling = Tiling((32, 56), (32, 32), 8)
    found = []
    for name in "openvino", "onnxruntime":
        with contextlib.closing(open_backend(name, small, "cpu", size=tiling.tile, streams=tiling.count)) as opened:
            session = TiledSession(opened, tiling, scene_threshold=None)
            found.append([each for frame in frames for each in session.push(frame)] + session.flush())
    assert_near(*found)


def test_what_is_under_way_at_the_end_is_still_fetched(small):
    backend = open_backend("openvino", small, "cpu", size=(16, 24))
    (window, *_) = windows(small.interface, moving_frames(2, 16, 24))
    expected = submit(backend, window).result()
    pending = submit(backend, window)
    backend.close()
    assert all(np.array_equal(pending.result()[name], value) for name, value in expected.items())
    with pytest.raises(InvalidInputError, match="backend openvino is closed"):
        submit(backend, window, pending.states)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_memory_stays_what_it_is(backend):
    """Over 600 frames: nothing of a frame is left behind, of one that was never fetched either."""
    frames = moving_frames(3, 48, 64)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def some(count):
        session = Session(backend, scene_threshold=None)
        for number in range(count):
            session.push(frames[number % 3])

    some(100)
    gc.collect()
    before = resident()
    for _ in range(5):
        some(100)
    assert resident() - before < 10 * 2**20, resident() - before


STACK = """
import ctypes, gc
from pathlib import Path
from mtu.runtime import open_backend, open_bundle
backends = [open_backend("openvino", open_bundle(), "cpu") for _ in range(2)]
while backends:
    backends.pop(0).close()
    gc.collect()
class SignalStack(ctypes.Structure):
    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))
stack = SignalStack()
ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
areas = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
is_there = any(int(first, 16) <= (stack.start or 0) < int(last, 16) for first, last in areas)
assert stack.flags & 2 or is_there, "a signal would write over memory of somebody else"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_signals_have_a_stack_when_backends_are_gone():
    subprocess.run([sys.executable, "-c", STACK], check=True, timeout=LIMIT, env=environment())
