"""Several streams pushed together, their frames computed in batches: over a backend that counts, and over real ones."""

from __future__ import annotations

import contextlib
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tests.bundles import doubling_bundle, map_bundle
from tests.frames import moving_frames

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.models.mtu import PRESETS, describe
from mtu.runtime import Session, TiledSession, Tiling, open_backend, open_session
from mtu.runtime.backends import Finished
from mtu.runtime.chain import StagedBackend
from mtu.runtime.stacked import push_together, stacked


class Adder:
    """A stacking backend over MTU's description: the picture is the frame plus the state, which counts the frames since
    the first. 255 in a frame that is not the first of a scene makes the stream's state NaN; more than `memory` streams
    at once are too many."""

    name, device, arithmetic, stacks = "adder", "none", "fp32", True

    def __init__(self, memory: int = 100, in_flight: int = 0):
        self.in_flight = in_flight
        self.remarks = ["of the adder"]
        self.interface, self.memory = describe(PRESETS["mtu2"]), memory
        self.calls: list[tuple[str, int]] = []
        self.moved = 0

    def submit(self, graph, frames, states):
        described = self.interface.graph(graph)
        assert set(frames) == set(described.frames)
        streams, height, width, _ = frames["frame"].shape
        self.calls.append((graph, streams))
        if streams > self.memory:
            raise InvalidInputError("too many")
        before = next((states[name] for name in described.states.values()), np.full(streams, -1.0))
        assert len(before) == streams
        counts = before + 1
        if described.states:
            counts = np.where(frames["frame"][:, 0, 0, 0] == 255, np.nan, counts)
        outputs = {
            each.tensor.name: np.zeros(each.tensor.at(height, width, streams), each.tensor.dtype)
            for each in self.interface.outputs
        }
        outputs["output"] = frames["frame"] + np.nan_to_num(counts).astype(np.uint8)[:, None, None, None]
        wrong = ["motion_out"] if np.isnan(counts).any() else []
        return Finished(dict.fromkeys(self.interface.states, counts), outputs, wrong)

    def read_states(self, states):
        self.moved += 1
        return {name: np.array(value) for name, value in states.items()}

    def write_states(self, arrays):
        return dict(arrays)

    def close(self):
        self.name = "closed"


def clip(*values, height=4, width=8):
    return [np.full((height, width, 3), value, np.uint8) for value in values]


def alone(clips, backend=None, **options):
    """What a session of each gives: the results, the cuts, the frames done again."""
    found = []
    for frames in clips:
        session = Session(backend or Adder(), **options)
        results = [each for frame in frames for each in session.push(frame)] + session.flush()
        found.append((values(results), session.cuts, session.redone))
    return found


def values(results):
    return [(each.index, each.rgb.tobytes(), each.displacement.tobytes()) for each in results]


def together(clips, backend, starts=None, **options):
    """The same, of streams that begin at these rounds."""
    sessions = [Session(backend, **options) for _ in clips]
    starts = starts or [0] * len(clips)
    results = [[] for _ in clips]
    for turn in range(max(start + len(frames) for start, frames in zip(starts, clips, strict=True))):
        live = [n for n, start in enumerate(starts) if 0 <= turn - start < len(clips[n])]
        for n, given in zip(
            live, push_together([(sessions[n], clips[n][turn - starts[n]]) for n in live]), strict=True
        ):
            results[n] += given
    for session, given in zip(sessions, results, strict=True):
        given += session.flush()
    return [(values(given), session.cuts, session.redone) for session, given in zip(sessions, results, strict=True)]


def test_streams_are_computed_in_batches_and_their_states_stay_stacked():
    clips = [clip(*range(n, n + 6)) for n in (1, 50, 100)]
    backend = Adder()
    assert together(clips, stacked(backend, 8)) == alone(clips)
    assert backend.calls[:4] == [("first", 3), ("step", 3), ("step", 3), ("step", 3)]
    assert set(backend.calls[4:]) == {("step", 1)}  # the ends
    assert backend.moved == 1  # taken apart for these, once


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(1, [1] * 5), (2, [2, 2, 1]), (4, [4, 1]), (5, [5])],
)
def test_no_batch_is_larger_than_allowed(most, sizes):
    clips = [clip(*range(n, n + 5)) for n in (1, 40, 80, 120, 160)]
    backend = Adder()
    wanted = alone(clips)
    assert together(clips, stacked(backend, most)) == wanted
    assert [count for _, count in backend.calls[: 3 * len(sizes)]] == sizes * 3
    assert backend.moved <= 5  # the groups stay the same; none is taken apart before the ends


@pytest.mark.parametrize("in_flight", [0, 1, 2])
def test_streams_anywhere_in_their_sequences(in_flight):
    """Some begin later, some end sooner, one is cut; sizes differ."""
    clips = [
        clip(*range(1, 12)),
        clip(10, 11, 12, 13, 200, 201, 202, 203, 204),
        clip(*range(60, 66)),
        clip(*range(90, 99), height=8),
        clip(33),
        clip(*range(120, 128), height=7, width=5),  # padded to 8x8, and so not beside 8x8 of another size
    ]
    backend = Adder(in_flight=in_flight)
    wanted = alone(clips)
    assert wanted[1][1] == [4]
    assert together(clips, stacked(backend, 4), starts=[0, 0, 3, 1, 2, 2]) == wanted
    assert max(count for _, count in backend.calls) >= 3


def test_an_order_that_changes_moves_no_states():
    clips = [clip(*range(n, n + 8)) for n in (1, 50, 100)]
    backend = Adder()
    sessions = [Session(stacked_backend) for stacked_backend in [stacked(backend, 8)] * 3]
    for turn, order in enumerate([(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1), (2, 0, 1), (1, 0, 2)]):
        push_together([(sessions[n], clips[n][turn]) for n in order])
    assert backend.moved == 0 and {count for _, count in backend.calls} == {3}


@pytest.mark.parametrize("in_flight", [0, 1, 2])
def test_a_stream_that_is_not_finite_is_done_again_alone(in_flight):
    """And the others are not touched, whatever comes after."""
    clips = [clip(1, 2, 3, 4, 5, 6, 7), clip(250, 251, 252, 255, 254, 253, 252), clip(9, 10, 11, 12, 13, 14, 15)]
    wanted = alone(clips)
    assert [redone for *_, redone in wanted] == [[], [3], []]
    assert together(clips, stacked(Adder(in_flight=in_flight), 8)) == wanted


def test_errors_of_one_stream_are_its_own():
    backend = stacked(Adder(), 8)
    sessions = [Session(backend, strict=n == 1, scene_threshold=None) for n in range(4)]
    given = [
        clip(1, 2, 3, 4, 5, 6),
        clip(250, 251, 255, 254, 253, 252),
        [*clip(7, 8), *clip(9, height=5), None, *clip(10, 11)],
        clip(*range(90, 96)),
    ]
    rounds = [push_together(list(zip(sessions, moment, strict=True))) for moment in zip(*given, strict=True)]
    assert "frame 2 is 8x5, the frames before are 8x4" in str(rounds[2][2])
    assert "frame 2 is a NoneType" in str(rounds[3][2])
    assert isinstance(rounds[4][1], NonFiniteError) and rounds[4][1].frame == 2
    assert [each.index for turn in rounds if isinstance(turn[2], list) for each in turn[2]] == [0, 1]
    for n in (0, 3):
        results = [each for turn in rounds for each in turn[n]] + sessions[n].flush()
        assert values(results) == alone([given[n]])[0][0]


def test_a_batch_too_large_for_the_memory_is_computed_one_by_one():
    clips = [clip(*range(n, n + 6)) for n in (1, 50, 100)]
    backend = Adder(memory=1)
    assert together(clips, stacked(backend, 8)) == alone(clips)
    none = push_together([(Session(stacked(Adder(memory=0), 8)), frame) for frame in clip(1, 2)])
    assert none == [[], []]
    sessions = [Session(stacked(Adder(memory=0), 8)) for _ in range(2)]
    for value in (1, 2):
        push_together([(session, clip(value)[0]) for session in sessions])
    assert [str(each) for each in push_together([(session, clip(3)[0]) for session in sessions])] == ["too many"] * 2


def test_what_cannot_be_stacked_is_left_as_it_is(small):
    with contextlib.closing(open_backend("openvino", small, "cpu")) as backend:
        assert stacked(backend, 8) is backend
        clips = [moving_frames(6, 16, 24, seed=seed) for seed in range(2)]
        assert together(clips, backend) == alone(clips, backend)
    adder = Adder()
    assert stacked(adder, 1) is adder
    both = stacked(adder, 2)
    assert (both.name, both.device, both.in_flight, both.remarks) == ("adder", "none", 0, ["of the adder"])
    both.close()
    assert adder.name == "closed"


def test_a_stream_that_pauses_holds_its_own_states_alone():
    backend = stacked(Adder(), 8)
    sessions = [Session(backend, scene_threshold=None) for _ in range(3)]
    for value in range(4):
        push_together([(session, clip(value)[0]) for session in sessions])
    batch = weakref.ref(sessions[0]._states["motion_out"].batch)
    for value in range(4, 6):
        push_together([(session, clip(value)[0]) for session in sessions[1:]])
    gc.collect()
    assert batch() is None
    assert [len(array) for array in sessions[0]._states["motion_out"].arrays.values()] == [1, 1, 1]
    last = [*push_together([(session, clip(9)[0]) for session in sessions])]
    assert [each[0].index for each in last] == [2, 4, 4]


def test_streams_of_several_threads_wait_for_each_other(small, one_thread):
    clips = [moving_frames(8, 16, 24, seed=seed) for seed in range(4)]
    with contextlib.closing(open_backend("onnxruntime", small, "cpu")) as backend:
        wanted, both = alone(clips, backend), stacked(backend, 4)
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda frames: alone([frames], both), clips))
    assert found == [[each] for each in wanted]


def test_states_are_read_and_written_as_of_one_stream(small):
    clips = [moving_frames(4, 16, 24, seed=seed) for seed in range(2)]
    with contextlib.closing(open_backend("onnxruntime", small, "cpu")) as backend:
        both = stacked(backend, 2)
        sessions = [Session(each, scene_threshold=None) for each in (both, both, backend)]
        for frames in zip(*clips, clips[1], strict=True):
            push_together(list(zip(sessions, frames, strict=True)))
        found, wanted = (
            each.read_states(session._states) for each, session in zip((both, backend), sessions[1:], strict=True)
        )
        assert found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)
        sessions[0]._states = both.write_states(found)
        (one,), (two,), (three,) = (session.flush()[:1] for session in sessions)
        assert np.array_equal(two.rgb, three.rgb) and not np.array_equal(one.rgb, two.rgb)


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
@pytest.mark.parametrize("sides", [(64, 64), (60, 100)])
def test_frames_in_a_batch_are_those_alone(name, sides, small, one_thread):
    """Bit for bit with onnxruntime, which is what a server promises."""
    clips = [moving_frames(7, *sides, seed=seed) for seed in range(3)]
    with contextlib.closing(open_backend(name, small, "cpu")) as backend:
        wanted, found = alone(clips, backend), together(clips, stacked(backend, 3), starts=[0, 1, 0])
    if name == "onnxruntime":
        assert found == wanted
    for (a, *_), (b, *_) in zip(found, wanted, strict=True):
        for (_, picture, _), (_, other, _) in zip(a, b, strict=True):
            difference = np.frombuffer(picture, np.uint8).astype(int) - np.frombuffer(other, np.uint8)
            assert np.abs(difference).max() <= 1


def test_chains_and_tiles_are_pushed_together_too(tmp_path):
    """Their frames are computed one by one."""
    double = doubling_bundle(tmp_path / "double")
    seen = map_bundle(tmp_path / "map", offset=1)
    with contextlib.ExitStack() as stack:
        stages = [stack.enter_context(contextlib.closing(open_backend("onnxruntime", each))) for each in (double, seen)]
        tiling = Tiling(frame=(48, 64), tile=(48, 32), overlap=16, multiple=1)
        streams = [
            open_session(StagedBackend(stages), scene_threshold=None),
            TiledSession(stages[0], tiling, scene_threshold=None),
            Session(stages[1], scene_threshold=None),
        ]
        frames = moving_frames(3, 48, 64)
        rounds = [push_together([(stream, frame) for stream in streams]) for frame in frames]
        found = [[each for turn in rounds for each in turn[n]] + stream.flush() for n, stream in enumerate(streams)]
    assert [[each.index for each in results] for results in found] == [[0, 1, 2]] * 3
    assert found[0][0].map.shape == (96, 128) and found[1][2].rgb.shape == (96, 128, 3)
    assert np.array_equal(found[0][0].map[::2, ::2], found[2][0].map)
