"""The recurrent loop over a backend that only records: window, clamping, states, padding, cuts, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtu.models.errors import InvalidInputError
from mtu.models.interface import FRAME_NAMES, PRESETS, Interface
from mtu.runtime.session import SceneDetector, Session, pad_to_multiple, restore


class Recorder:
    """A backend whose output is the middle frame, and which writes down what it was given."""

    name, device = "recorder", "none"

    def __init__(self, preset: str = "mtu2"):
        self.interface = Interface(PRESETS[preset])
        self.calls: list[tuple[list[int], object]] = []

    def run(self, inputs):
        window = [int(inputs[name][0, 0, 0, 0]) for name in FRAME_NAMES]
        states = {state.input.name for state in self.interface.states} & inputs.keys()
        assert not states or len(states) == len(self.interface.states)
        memory = {inputs[name] for name in states}
        assert len(memory) <= 1
        self.calls.append((window, memory.pop() if memory else None))
        height, width = inputs["frame"].shape[1:3]
        outputs = {tensor.name: np.zeros(tensor.at(height, width), tensor.dtype) for tensor in self.interface.outputs}
        outputs |= {state.output.name: window[2] for state in self.interface.states}
        outputs["output"] = inputs["frame"].copy()
        return outputs

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
    assert [len(list(session.push(frame))) for frame in frames(1, 2, 3, 4)] == [0, 0, 1, 1]
    assert [r.index for r in session.flush()] == [2, 3]
    assert list(session.flush()) == []


@pytest.mark.parametrize("preset", ["mtu1", "mtu2"])
def test_after_a_cut_the_result_is_that_of_a_fresh_start(preset):
    dark, bright = frames(10, 11, 12, 13), frames(200, 201, 202, 203, 204)
    whole, first, second = Recorder(preset), Recorder(preset), Recorder(preset)
    session = Session(whole)
    results = [r for frame in dark + bright for r in session.push(frame)] + list(session.flush())
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
        list(session.push(frame))
    session.reset()
    list(session.push(frames(9, height=8)[0]))
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
    ],
)
def test_wrong_frames(frame, message):
    session = Session(Recorder())
    list(session.push(frames(1)[0]))
    with pytest.raises(InvalidInputError, match=message):
        list(session.push(frame))


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_any_size_comes_back_as_it_was(height, width, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    padded = pad_to_multiple(picture)
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
        list(a.push(left))
        list(b.push(right))
    assert [int(r.rgb[0, 0, 0]) for r in a.flush()] == [2, 3]
    assert [int(r.rgb[0, 0, 0]) for r in b.flush()] == [102, 103]
    assert all(
        max(window) - min(window) < 10 and (memory is None or abs(memory - window[2]) == 1)
        for window, memory in backend.calls
    )
