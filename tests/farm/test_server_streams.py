"""Several streams over one backend, as a server has them: each gets what it would get alone, whatever the others do."""

from __future__ import annotations

import numpy as np
import pytest
from tests.bundles import views_bundle
from tests.frames import moving_frames
from tests.small_models import difference, trail

from mtu.core.errors import InvalidInputError, MtuError
from mtu.farm.streams import Answer, Asked, Streams
from mtu.runtime import open_backend, open_session

SIZES = {"a": (48, 64), "b": (48, 64), "c": (32, 40)}


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    opened = open_backend("onnxruntime", trail(tmp_path_factory.mktemp("models") / "trail"))
    yield opened
    opened.close()


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def clip(name, count=9, cut=None):
    frames = moving_frames(count, *SIZES[name], seed=ord(name))
    return [frame // 8 + (180 if cut is not None and number >= cut else 0) for number, frame in enumerate(frames)]


def alone(backend, frames, **how):
    session = open_session(backend, **how)
    return [each for frame in frames for each in session.push(frame)] + session.flush(), session.cuts


def asked(name, frames, number, **how):
    """The request with a frame of a clip; after the last one comes END, without a frame."""
    if number >= len(frames):
        return Asked(name, None, end=True)
    return Asked(name, {"image": frames[number]}, start=number == 0, **how)


def ask(streams, *requests):
    answers = streams.answer(requests)
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return answers


def refused(answer, *words):
    assert isinstance(answer, MtuError)
    assert all(word in str(answer) for word in words), answer


def test_streams_that_come_together_get_what_each_gets_alone(backend):
    clips = {"a": clip("a"), "b": clip("b", cut=5), "c": clip("c", 4)}
    streams, found, cuts = Streams(backend), {name: [] for name in clips}, {name: [] for name in clips}
    for number in range(max(map(len, clips.values())) + 1):
        going = [name for name, frames in clips.items() if number <= len(frames)]
        answers = ask(streams, *(asked(name, clips[name], number) for name in going))
        for name, answer in zip(going, answers, strict=True):
            found[name] += answer.restored
            cuts[name] += answer.cuts
    assert cuts == {"a": [], "b": [5], "c": []} and len(streams) == 0
    for name, frames in clips.items():
        expected, _ = alone(backend, frames)
        assert [each.index for each in found[name]] == list(range(len(frames)))
        for got, wanted in zip(found[name], expected, strict=True):
            np.testing.assert_array_equal(got.rgb, wanted.rgb)
    figures = streams.figures
    assert (figures.frames, figures.cuts, figures.batches, figures.errors) == (22, 1, 10, 0)


def test_a_cut_gives_all_that_waited_at_once(backend):
    streams, frames = Streams(backend), clip("b", 7, cut=5)
    counts = [len(ask(streams, asked("b", frames, number))[0].restored) for number in range(8)]
    assert counts == [0, 0, 0, 1, 1, 3, 0, 2]


def test_the_last_frame_may_come_with_the_end(backend):
    streams, frames = Streams(backend), clip("a", 3)
    requests = [Asked("a", {"image": frame}, start=n == 0, end=n == 2) for n, frame in enumerate(frames)]
    answers = [ask(streams, request)[0] for request in requests]
    assert [len(answer.restored) for answer in answers] == [0, 0, 3] and len(streams) == 0


@pytest.mark.parametrize("frames", [None, "one"])
def test_a_stream_may_start_and_end_in_one_request(backend, frames):
    given = None if frames is None else {"image": clip("a")[0]}
    answer = ask(Streams(backend), Asked("a", given, start=True, end=True))[0]
    assert [each.index for each in answer.restored] == ([] if frames is None else [0])


def test_a_stream_that_did_not_start_is_refused(backend):
    streams, frames = Streams(backend), clip("a")
    for number in (1, len(frames)):
        refused(streams.answer([asked("a", frames, number)])[0], "stream a is not open", "START")
    assert len(streams) == 0 and streams.figures.errors == 2


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((32, 64, 3), np.uint8), ["frame 2 is 64x32", "64x48"]),
        (np.zeros((48, 64, 3), np.float32), ["frame 2 is float32 [48, 64, 3]", "uint8 [H, W, 3]"]),
        (np.zeros((48, 64, 4), np.uint8), ["frame 2 is uint8 [48, 64, 4]"]),
        (np.zeros((48, 64), np.uint8), ["frame 2 is uint8 [48, 64]"]),
        (None, ["no frame", "END"]),
    ],
)
def test_a_wrong_frame_ends_its_stream_and_no_other(backend, frame, words):
    streams, clips, found = Streams(backend), {name: clip(name) for name in "ab"}, []
    for number in range(10):
        requests = [asked("b", clips["b"], number)]
        if number == 2:
            requests.insert(0, Asked("a", None if frame is None else {"image": frame}))
        elif number < 5:
            requests.insert(0, asked("a", clips["a"], number))
        answers = streams.answer(requests)
        found += answers[-1].restored
        if number == 2:
            refused(answers[0], *words)
        elif 2 < number < 5:
            refused(answers[0], "stream a is not open")  # sent before the client knew
    for got, wanted in zip(found, alone(backend, clips["b"])[0], strict=True):
        np.testing.assert_array_equal(got.rgb, wanted.rgb)
    assert len(streams) == 0


def test_an_ended_or_broken_stream_may_start_again(backend):
    streams, frames = Streams(backend), clip("a", 4)
    for number in range(3):
        ask(streams, asked("a", frames, number))
    refused(streams.answer([Asked("a", None)])[0], "no frame")
    again = [each for number in range(5) for each in ask(streams, asked("a", frames, number))[0].restored]
    assert [each.index for each in again] == [0, 1, 2, 3]
    # And in the middle, where Triton lets it.
    for number in (0, 1, 0, 1, 2, 3):
        answer = ask(streams, asked("a", frames, number))[0]
    assert [each.index for each in answer.restored] == [0]


def test_idle_streams_are_dropped_and_others_are_not(backend):
    clock, frames = Clock(), clip("a")
    streams = Streams(backend, idle=10, clock=clock)
    ask(streams, asked("a", frames, 0), asked("b", frames, 0))
    clock.now += 9
    ask(streams, asked("b", frames, 1))
    clock.now += 2
    streams.drop_idle()
    assert len(streams) == 1 and streams.figures.dropped == 1
    refused(streams.answer([asked("a", frames, 1)])[0], "sent nothing for 10 s")
    ask(streams, asked("b", frames, 2))
    clock.now += 11
    ask(streams, asked("c", frames, 0))  # without anybody who looks
    assert len(streams) == 1 and streams.figures.dropped == 2


def test_the_wait_for_later_frames_is_in_the_latency(backend):
    clock, frames = Clock(), clip("a", 5)
    streams = Streams(backend, idle=100, clock=clock)
    for number in range(6):
        ask(streams, asked("a", frames, number))
        clock.now += 1
    assert (streams.figures.frames, streams.figures.seconds) == (5, 3 + 3 + 3 + 2 + 1)


@pytest.mark.parametrize(("threshold", "cuts"), [(10.0, [5]), (None, []), (99.0, [])])
def test_a_stream_has_the_threshold_that_its_start_asks_for(backend, threshold, cuts):
    streams, frames = Streams(backend), clip("b", cut=5)
    found = [
        cut
        for number in range(10)
        for cut in ask(streams, asked("b", frames, number, scene_threshold=threshold))[0].cuts
    ]
    assert found == cuts


@pytest.mark.parametrize("strict", [False, True])
def test_values_that_are_not_finite_are_told_or_end_the_stream(tmp_path, strict):
    """A frame of 255 alone spoils the map of the frame."""
    frames = [np.full((16, 16, 3), level, np.uint8) for level in (10, 20, 255, 30)]
    opened = open_backend("onnxruntime", difference(tmp_path / "model"))
    streams = Streams(opened)
    answers = [streams.answer([asked("a", frames, number, strict=strict)])[0] for number in range(4)]
    refused(answers[-1], "non-finite values", "at frame 2")
    assert len(streams) == 0
    opened.close()


def test_a_model_that_reads_several_streams(tmp_path):
    opened = open_backend("onnxruntime", views_bundle(tmp_path / "model"))
    streams = Streams(opened)
    frames = {name: np.full((8, 8, 3), at, np.uint8) for at, name in enumerate(["image", "right", "left"], 1)}
    answer = ask(streams, Asked(7, frames, start=True))[0]
    assert answer.restored[0].rgb[0, 0].tolist() == [1, 2, 3]
    refused(streams.answer([Asked(8, {"image": frames["image"]}, start=True)])[0], "reads 3 streams")
    opened.close()


def test_an_engine_takes_frames_of_its_size_only(backend):
    streams = Streams(backend, frame_size=(48, 64))
    odd = moving_frames(1, 47, 63)[0]  # is padded to that
    answers = streams.answer([Asked("a", {"image": odd}, start=True), Asked("c", {"image": clip("c")[0]}, start=True)])
    assert isinstance(answers[0], Answer)
    refused(answers[1], "frames of 40x32", "takes 64x48 only")


def test_a_bug_ends_the_streams_that_it_met_and_is_no_silence(backend, monkeypatch, capsys):
    streams, frames = Streams(backend), clip("a")
    ask(streams, asked("a", frames, 0), asked("b", frames, 0))
    monkeypatch.setattr(streams._open["a"].session, "flush", lambda: 1 / 0)
    answers = streams.answer([Asked("a", None, end=True), asked("b", frames, 1)])
    refused(answers[0], "a bug", "ZeroDivisionError")
    assert not isinstance(answers[0], InvalidInputError) and isinstance(answers[1], Answer)
    assert "Traceback" in capsys.readouterr().err and len(streams) == 1
