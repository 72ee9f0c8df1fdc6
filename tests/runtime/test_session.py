"""The recurrent loop over a backend that only records: window, clamping, states, padding, cuts, refusals."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, State, Tensor
from mtu.core.window import pad
from mtu.models.mtu import PRESETS, describe
from mtu.runtime import deblur
from mtu.runtime.backends import Finished
from mtu.runtime.chain import restore
from mtu.runtime.scenes import SceneDetector
from mtu.runtime.session import Session


class Recorder:
    """A backend whose output is the middle frame, and which writes down what it was given."""

    name, device, in_flight = "recorder", "none", 0

    def __init__(self, interface: str | Interface = "mtu2"):
        self.interface = interface if isinstance(interface, Interface) else describe(PRESETS[interface])
        self.calls: list[tuple[list[int], object]] = []

    def submit(self, graph, frames, states):
        taken = self.interface.graph(graph)
        window = [int(frames[name][0, 0, 0, 0]) for name in taken.frames]
        memory = {states[name] for name in taken.states.values()}
        assert len(memory) <= 1 and taken == self.interface.graph_for(states)
        self.calls.append((window, memory.pop() if memory else None))
        middle = next(frames[name] for name, frame in taken.frames.items() if frame.offset == 0)
        height, width = middle.shape[1:3]
        scale = self.interface.scale
        outputs = {
            output.tensor.name: middle.repeat(scale, 1).repeat(scale, 2)
            if output.role == "picture"
            else np.zeros(output.tensor.at(height, width), output.tensor.dtype)
            for output in self.interface.outputs
        }
        return Finished(dict.fromkeys(self.interface.states, int(middle[0, 0, 0, 0])), outputs, [])

    def close(self):
        pass


def frames(*values: int, height: int = 4, width: int = 8):
    return [np.full((height, width, 3), value, np.uint8) for value in values]


def test_the_window_is_clamped_at_both_ends_and_the_state_threads_through():
    backend = Recorder()
    results = list(restore(frames(1, 2, 3, 4, 5, 6), backend, scene_threshold=None))
    assert [r.index for r in results] == [0, 1, 2, 3, 4, 5]
    assert [int(r.rgb[0, 0, 0]) for r in results] == [1, 2, 3, 4, 5, 6]
    assert backend.calls == [
        ([1, 1, 1, 2, 3], None),
        ([1, 1, 2, 3, 4], 1),
        ([1, 2, 3, 4, 5], 2),
        ([2, 3, 4, 5, 6], 3),
        ([3, 4, 5, 6, 6], 4),
        ([4, 5, 6, 6, 6], 5),
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_short_streams(count):
    backend = Recorder()
    assert len(list(restore(frames(*range(count)), backend))) == count
    assert all(memory is None for _, memory in backend.calls[:1])


def test_a_frame_comes_two_frames_late():
    session = Session(Recorder(), scene_threshold=None)
    assert [len(session.push(frame)) for frame in frames(1, 2, 3, 4)] == [0, 0, 1, 1]
    assert [r.index for r in session.flush()] == [2, 3]
    assert session.flush() == []


def test_push_and_flush_act_without_being_asked_for_their_results():
    """As statements: the frame is taken, the backend is given it, and no frame is lost."""
    backend = Recorder()
    session = Session(backend)
    for frame in frames(1, 2, 3):
        session.push(frame)
    assert len(backend.calls) == 1
    session.flush()
    assert len(backend.calls) == 3
    session.push(frames(7)[0])
    (last,) = session.flush()
    assert (last.index, int(last.rgb[0, 0, 0])) == (3, 7)
    assert backend.calls[-1] == ([7, 7, 7, 7, 7], None)
    for value in (10, 11, 12, 200, 201):  # a cut acts at once too
        session.push(frames(value)[0])
    assert session.cuts == [7] and len(backend.calls) == 7


@pytest.mark.parametrize("preset", ["mtu1", "mtu2"])
def test_after_a_cut_the_result_is_that_of_a_fresh_start(preset):
    dark, bright = frames(10, 11, 12, 13), frames(200, 201, 202, 203, 204)
    whole, first, second = Recorder(preset), Recorder(preset), Recorder(preset)
    session = Session(whole)
    results = [r for frame in dark + bright for r in session.push(frame)] + session.flush()
    list(restore(dark, first))
    list(restore(bright, second))
    assert session.cuts == [4]
    assert whole.calls == first.calls + second.calls
    assert [r.index for r in results] == list(range(9))
    assert results[0].displacement is None if preset == "mtu1" else results[0].displacement.shape == (1, 2)


def test_reset_forgets_and_allows_another_size():
    backend = Recorder()
    session = Session(backend)
    for frame in frames(1, 2, 3):
        session.push(frame)
    session.reset()
    session.push(frames(9, height=8)[0])
    assert [r.index for r in session.flush()] == [3]
    assert backend.calls[-1] == ([9, 9, 9, 9, 9], None)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"frame 1 is float32 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]; frames are uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), "frames are uint8"),
        (np.zeros((0, 4, 3), np.uint8), "frames are uint8"),
        (np.zeros((4, 12, 3), np.uint8), r"frame 1 is 12x4, the frames before are 8x4"),
        ([[[0, 0, 0]]], "frame 1 is a list; frames are numpy arrays"),
        (None, "frame 1 is a NoneType; frames are numpy arrays"),
    ],
)
def test_wrong_frames(frame, message):
    session = Session(Recorder())
    session.push(frames(1)[0])
    with pytest.raises(InvalidInputError, match=message):
        session.push(frame)


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_size_comes_back_as_it_was(height, width, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    padded = pad(picture, Size(4, 4))
    assert padded.shape[0] % 4 == padded.shape[1] % 4 == 0
    assert padded.shape[0] - height < 4 and padded.shape[1] - width < 4
    assert (padded[height:] == padded[height - 1]).all() and (padded[:, width:] == padded[:, width - 1 : width]).all()
    (result,) = restore([picture], Recorder())
    assert np.array_equal(result.rgb, picture)


def test_scene_score_ignores_steady_change_and_sees_jumps():
    steady = SceneDetector(10.0)
    assert [steady.is_cut(frame) for frame in frames(0, 20, 40, 60, 80, 100)] == [False] * 6
    fast = SceneDetector(10.0)
    # A change of 40 of 255 is 16 %: out of the blue a cut, going on as before it is motion.
    assert [fast.is_cut(frame) for frame in frames(0, 0, 40, 80, 120)] == [False, False, True, False, False]
    moving = SceneDetector(10.0)
    assert [moving.is_cut(frame) for frame in frames(0, 40, 80, 120)] == [False] * 4
    flash = SceneDetector(10.0)
    assert [flash.is_cut(frame) for frame in frames(5, 5, 250, 250)] == [False, False, True, False]
    with pytest.raises(InvalidInputError, match="must be above 0"):
        SceneDetector(0)


def test_sessions_share_a_backend_without_mixing():
    backend = Recorder()
    a, b = Session(backend), Session(backend)
    for left, right in zip(frames(1, 2, 3), frames(101, 102, 103), strict=True):
        a.push(left)
        b.push(right)
    assert [int(r.rgb[0, 0, 0]) for r in a.flush()] == [2, 3]
    assert [int(r.rgb[0, 0, 0]) for r in b.flush()] == [102, 103]
    assert all(
        max(window) - min(window) < 10 and (memory is None or abs(memory - window[2]) == 1)
        for window, memory in backend.calls
    )


class Delayed:
    """What a Recorder with frames in flight gives, when it is asked for."""

    def __init__(self, backend, frame, is_bad, finished):
        self.states = finished.states
        self._backend, self._frame, self._is_bad, self._finished = backend, frame, is_bad, finished

    def result(self):
        self._backend.log.append(f"result {self._frame}")
        if self._is_bad:
            raise NonFiniteError(["motion"])
        return self._finished.outputs


class InFlight(Recorder):
    """Values from 200 on are not finite, unless the frame is a first frame; from 250 on, even then.

    A memory that is not finite makes everything after it so.
    """

    in_flight = 1

    def __init__(self):
        super().__init__()
        self.log = []

    def submit(self, graph, frames, states):
        frame = int(frames["frame"][0, 0, 0, 0])
        self.log.append(f"submit {frame}")
        finished = super().submit(graph, frames, states)
        memory = self.calls[-1][1]
        is_bad = frame >= 250 or memory == -1 or (frame >= 200 and memory is not None)
        if is_bad:
            finished = Finished(dict.fromkeys(finished.states, -1), finished.outputs, [])
        return Delayed(self, frame, is_bad, finished)


def test_the_next_frame_is_submitted_before_the_result_of_the_last_is_asked_for():
    backend = InFlight()
    session = Session(backend, scene_threshold=None)
    assert [len(session.push(frame)) for frame in frames(1, 2, 3, 4, 5)] == [0, 0, 0, 1, 1]
    assert backend.log == ["submit 1", "submit 2", "result 1", "submit 3", "result 2"]
    assert [int(r.rgb[0, 0, 0]) for r in session.flush()] == [3, 4, 5]
    assert backend.log[5:] == ["submit 4", "result 3", "submit 5", "result 4", "result 5"]


def test_a_frame_that_is_not_finite_is_redone_and_what_was_made_of_it_too():
    backend = InFlight()
    session = Session(backend, scene_threshold=None)
    results = [r for frame in frames(1, 2, 203, 4, 5, 206, 207) for r in session.push(frame)] + session.flush()
    assert [int(r.rgb[0, 0, 0]) for r in results] == [1, 2, 203, 4, 5, 206, 207]
    assert session.redone == [2, 5, 6]
    # 203 is not finite; 4 was made of it. 203 again as a first frame, from its window, and 4 with the memory of that.
    assert backend.calls[2:6] == [
        ([1, 2, 203, 4, 5], 2),
        ([2, 203, 4, 5, 206], -1),
        ([1, 2, 203, 4, 5], None),
        ([2, 203, 4, 5, 206], 203),
    ]
    assert backend.log.count("result 4") == 1


def test_strict_raises_at_the_first_frame_that_is_not_finite():
    session = Session(InFlight(), scene_threshold=None, strict=True)
    with pytest.raises(NonFiniteError, match="non-finite values in motion at frame 2: its weights overflow"):
        list(restore_with(session, frames(1, 2, 203, 4, 5)))
    assert session.redone == []


@pytest.mark.parametrize("values", [(251, 2, 3, 4), (1, 252, 3, 4, 5)])
def test_a_frame_that_is_not_finite_as_a_first_frame_either_is_an_error(values):
    session = Session(InFlight(), scene_threshold=None)
    with pytest.raises(NonFiniteError, match=rf"at frame {values.index(max(values))}: its weights overflow"):
        list(restore_with(session, frames(*values)))


def test_an_error_goes_from_one_process_to_another():
    error = pickle.loads(pickle.dumps(NonFiniteError(["motion_out"], 7)))
    assert (error.states, error.frame) == (["motion_out"], 7) and "at frame 7" in str(error)


def restore_with(session, pictures):
    for picture in pictures:
        yield from session.push(picture)
    yield from session.flush()


def other(
    offsets: tuple[int, ...], *, scale: int = 1, size: Size | None = None, role: str = "picture", states: bool = False
) -> Interface:
    """A network that is not ours."""
    frames = tuple(
        Input(Tensor(f"at{number}", "uint8", (1, "H", "W", 3)), Frame("image", offset))
        for number, offset in enumerate(offsets)
    )
    sides = ("H", "W") if scale == 1 else (f"{scale}*H", f"{scale}*W")
    tensor = Tensor("y", "uint8", (1, *sides, 3)) if role == "picture" else Tensor("y", "float32", (1, "H", "W"))
    outputs = (Output(tensor, role),)  # type: ignore[arg-type]
    memory = tuple(Tensor(f"memory{number}", "float32", (1, 2, "H", "W")) for number in range(3 * states))
    outputs += tuple(Output(each, "state") for each in memory)
    taken = tuple(Input(Tensor(f"{each.name}_in", each.dtype, each.shape), State(each.name)) for each in memory)
    # With two of its three states there is a graph as well.
    graphs = [Graph("begin", frames, outputs)]
    graphs += [Graph("some", frames + taken[:2], outputs), Graph("all", frames + taken, outputs)] if states else []
    return Interface("test", "custom", {}, tuple(graphs), size=size or Size(), scale=scale)


def test_a_picture_at_a_time_needs_no_other_frame_and_no_state():
    backend = Recorder(other((0,)))
    session = Session(backend, scene_threshold=None)
    assert [len(session.push(frame)) for frame in frames(1, 2, 3)] == [1, 1, 1]
    assert session.flush() == [] and backend.calls == [([1], None), ([2], None), ([3], None)]
    assert session.max_displacement == 0


def test_a_window_that_looks_far_ahead_and_not_back():
    backend = Recorder(other((0, 3)))
    results = list(restore(frames(1, 2, 3, 4, 5), backend, scene_threshold=None))
    assert [int(r.rgb[0, 0, 0]) for r in results] == [1, 2, 3, 4, 5]
    assert backend.calls == [([1, 4], None), ([2, 5], None), ([3, 5], None), ([4, 5], None), ([5, 5], None)]


def test_the_graph_is_the_one_that_uses_the_most_of_the_states():
    interface = other((-1, 0), states=True)
    assert interface.graph_for(()).name == interface.graph_for(("memory0",)).name == "begin"
    assert interface.graph_for(("memory0", "memory1")).name == "some"
    assert interface.graph_for(interface.states).name == "all"
    backend = Recorder(interface)
    list(restore(frames(1, 2, 3), backend, scene_threshold=None))
    assert backend.calls == [([1, 1], None), ([1, 2], 1), ([2, 3], 2)]


def test_an_enlarged_picture_is_cut_back_where_its_frame_ends():
    (result,) = restore(frames(7, height=5, width=9), Recorder(other((0,), scale=2, size=Size(8, 16))))
    assert result.rgb.shape == (10, 18, 3) and result.displacement is None


def test_a_map_in_place_of_a_picture():
    (result,) = restore(frames(7, height=5, width=9), Recorder(other((0,), role="map", size=Size(8, 8))))
    assert result.picture is None and result.map is not None
    assert (result.map.shape, result.map.dtype) == ((5, 9), np.float32)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ("clip.mp4", "frame 0 is a str; frames are numpy arrays"),
        ([[1, 2, 3]], "frame 0 is a list; frames are numpy arrays"),
        (np.zeros((8, 12, 3), np.uint8), r"frame 0 is uint8 \[12, 3\]; frames are uint8 \[H, W, 3\]"),
        (np.zeros((2, 8, 12, 3), np.float32), r"frame 0 is float32 \[8, 12, 3\]"),
    ],
)
def test_what_is_no_frame_is_refused_before_the_model_is_looked_for(frames, message):
    with pytest.raises(InvalidInputError, match=message):
        next(deblur(frames, model="nowhere"))
