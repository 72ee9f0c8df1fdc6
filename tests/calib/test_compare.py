"""Two models compared on a clip: broken copies fail the gate and are pointed at."""

from __future__ import annotations

import gc
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("polygraphy")
pytest.importorskip("torch")
pytest.importorskip("skimage")

from polygraphy.logger import G_LOGGER
from tests.calib.comparing import (
    COUNT,
    HEIGHT,
    WIDTH,
    Forgetful,
    Page,
    altered,
    frames,
    one_weight,
    reported,
    swapped_channels,
)
from tests.frames import moving_frames

from mtu.calib.compare import check_same_model, compare
from mtu.calib.compare_frame import Agreement
from mtu.calib.compare_page import page
from mtu.calib.compare_report import Floors, FrameResult
from mtu.calib.rollout import windows
from mtu.core.errors import InvalidInputError
from mtu.core.interface import Size
from mtu.export.precision import in_fp16
from mtu.models.mtu import PRESETS, describe
from mtu.models.mtu.config import WINDOW
from mtu.plugins.correlation_argmax_warp import OP
from mtu.runtime import open_backend, restore
from mtu.runtime.backends import Finished
from mtu.runtime.engine import Profile, Sizes

pytestmark = pytest.mark.usefixtures("one_thread")


def described(preset):
    return replace(describe(PRESETS[preset]), variant=preset)


def test_windows_are_those_of_the_session(small):
    class Recorder:
        name, device, in_flight, interface, remarks = "recorder", "cpu", 0, describe(PRESETS["mtu1"]), ()

        def __init__(self):
            self.windows = []

        def submit(self, graph, frames, states):
            self.windows.append([int(frames[name][0, 0, 0, 0]) for name in WINDOW])
            return Finished({}, {"output": frames["frame"]}, [])

    for count in range(1, 7):
        clip = [np.full((4, 4, 3), value, np.uint8) for value in range(count)]
        recorder = Recorder()
        assert len(list(restore(clip, recorder, scene_threshold=None))) == count
        found = [
            (index, [int(held[name][0, 0, 0, 0]) for name in WINDOW])
            for index, _, held in windows(recorder.interface, clip)
        ]
        assert found == list(enumerate(recorder.windows))


def test_a_model_equals_itself_and_what_mtu_run_gives(small):
    pair = [open_backend("onnxruntime", small), open_backend("torch", small)]
    step, rollout = compare(*pair, frames())
    for run in (step, rollout):
        assert [frame.index for frame in run.frames] == list(range(COUNT))
        assert all(frame.psnr == math.inf and frame.ssim == 1 for frame in run.frames)
        assert all(frame.displacement.share == 1 for frame in run.frames)
        assert all(frame.tensors["detail_out"].largest < 1e-6 for frame in run.frames)
        assert run.worst.index == 0 and run.first_missed(Floors(90, 1)) is None
    pair[0].close()
    restored = list(restore(frames(), open_backend("onnxruntime", small), scene_threshold=None))
    assert np.array_equal(rollout.shown[0].rgb, restored[0].rgb)


def test_a_runs_once_for_both_modes(small):
    class Counted:
        def __init__(self):
            backend = open_backend("onnxruntime", small)
            self.name, self.interface, self._submit, self.runs = backend.name, backend.interface, backend.submit, 0
            self.read_states, self.write_states = backend.read_states, backend.write_states

        def submit(self, graph, frames, states):
            self.runs += 1
            return self._submit(graph, frames, states)

    a, b, ticks = Counted(), Counted(), []
    compare(a, b, frames(), progress=lambda: ticks.append(a.runs))
    assert (a.runs, b.runs) == (COUNT, 2 * COUNT)
    assert ticks == [1, 2, 3, 4, 5, 6]


def test_polygraphy_says_nothing_and_is_left_as_it_was(small, capfd):
    before = G_LOGGER.module_severity.get()
    backend = open_backend("onnxruntime", small)
    compare(backend, backend, frames()[:2], ["rollout"])
    with pytest.raises(InvalidInputError, match="too small"):
        compare(backend, backend, moving_frames(3, 8, 12))
    gc.collect()
    assert capfd.readouterr() == ("", "") and G_LOGGER.module_severity.get() == before


def test_step_gives_b_the_states_of_a(small, half):
    """Frame by frame against sessions and single steps made by hand, between types."""
    a, b = open_backend("torch", small), open_backend("onnxruntime", half)
    step, rollout = compare(a, b, frames())
    alone = list(restore(frames(), b, scene_threshold=None))
    states_a, states_b = {}, {}
    for index, _, window in windows(a.interface, frames()):
        graph = "step" if index else "first"
        made = a.submit(graph, window, states_a)
        cast = {name: value.numpy().astype(np.float16) for name, value in states_a.items()}
        stepped, rolled = (b.submit(graph, window, states) for states in (b.write_states(cast), states_b))
        states_a, states_b = made.states, rolled.states
        for run, other in ((step, stepped), (rollout, rolled)):
            away = np.abs(
                made.states["detail_out"].numpy() - b.read_states(other.states)["detail_out"].astype(np.float32)
            )
            assert run.frames[index].tensors["detail_out"].largest == away.max()
        assert np.array_equal(rolled.outputs["output"][0, :HEIGHT, :WIDTH], alone[index].rgb)
    assert step.frames[3].tensors["detail_out"] != rollout.frames[3].tensors["detail_out"]
    assert all(55 < frame.psnr < 80 for run in (step, rollout) for frame in run.frames)
    worst = min(step.frames, key=lambda frame: frame.psnr)
    assert step.worst is worst


@pytest.mark.parametrize("change", [one_weight, swapped_channels])
def test_changed_weights_fail_the_gate_in_both_modes(small, tmp_path, change):
    broken = altered(small, tmp_path / "broken", change)
    runs = compare(open_backend("onnxruntime", small), open_backend("onnxruntime", broken), frames())
    report = reported(runs, Floors(psnr=45))
    assert not report.passed
    told = report.verdicts()
    assert told[0].startswith("step: below the floor from frame 0: PSNR ")
    assert "a single step is below the floor: look at the weights" in told[-1]
    assert runs[0].worst.tensors["restored_out"].largest > 0.05
    assert runs[0].worst.tensors["motion_out"].largest == runs[0].worst.tensors["detail_out"].largest == 0
    shown = Page(page(report))
    assert told[0] in shown.text and f"The worst frame: {runs[0].worst.index}" in shown.text


@pytest.mark.parametrize(
    ("state", "floors"),
    [
        ("restored_out", Floors(psnr=60)),
        ("motion_out", Floors(agreement=0.95)),
        ("detail_out", Floors(psnr=45)),
    ],
)
def test_a_state_that_is_not_threaded_fails_the_rollout_alone(small, state, floors):
    broken = Forgetful(open_backend("onnxruntime", small), state)
    runs = compare(open_backend("onnxruntime", small), broken, frames())
    report = reported(runs, floors)
    assert not report.passed
    assert runs[0].first_missed(floors) is None
    assert runs[1].first_missed(floors).index == 2  # the states of frame 0 are right for frame 1
    told = report.verdicts()
    assert len(told) == 2 and told[0].startswith("rollout: below the floor from frame 2: ")
    assert "look at the states" in told[1]
    shown = Page(page(report))
    assert told[0] in shown.text and told[1] in shown.text


def test_the_gate_asks_of_every_frame_what_it_asks():
    def frame(psnr, share):
        return FrameResult(0, psnr, 1.0, {}, Agreement(share, 0.0, 0.5))

    assert Floors(40, 0.9).missed(frame(39.9, 1.0)) and Floors(40, 0.9).missed(frame(50, 0.89))
    assert not Floors(40, 0.9).missed(frame(40, 0.9)) and not Floors().missed(frame(0, 0))
    assert not Floors(90, 1.0).missed(FrameResult(0, math.inf, 1.0, {}, None))


def test_models_of_different_shapes_are_refused(small):
    with pytest.raises(InvalidInputError, match=r"different networks \(A is mtu1, B is mtu2\)"):
        check_same_model(described("mtu1"), described("mtu2"))
    mtu2 = described("mtu2")
    check_same_model(mtu2, in_fp16(mtu2))
    displacement = replace(mtu2.the("displacement"), radius=5)
    narrow = replace(mtu2, graphs=tuple(replace(g, outputs=(*g.outputs[:-1], displacement)) for g in mtu2.graphs))
    for other, message in (
        (narrow, r"different outputs: .*, displacement .* of radius 10 and .* of radius 5"),
        (replace(mtu2, family="other"), "different families: mtu and other"),
        (replace(mtu2, size=Size(8, 8)), r"different size rules: a multiple of 4 from 4 and a multiple of 8 from 8"),
        (replace(mtu2, graphs=mtu2.graphs[:1]), "different graphs: first of .*; step of"),
        (
            replace(mtu2, ops={OP.name: {**mtu2.ops[OP.name], "pool_size": 3}}),
            "different CorrelationArgmaxWarp: .*'pool_size': 5.* and .*'pool_size': 3",
        ),
    ):
        with pytest.raises(InvalidInputError, match=message):
            check_same_model(mtu2, other)


def test_frames_that_cannot_be_compared_are_refused(small):
    backend = open_backend("onnxruntime", small)
    clip = [*frames()[:3], moving_frames(1, HEIGHT, WIDTH + 4)[0]]
    with pytest.raises(InvalidInputError, match="frame 3 is 54x30, the frames before are 50x30"):
        compare(backend, backend, clip)
    with pytest.raises(InvalidInputError, match="frames of 12x8 are too small: at least 11x11"):
        compare(backend, backend, moving_frames(3, 8, 12))


def test_memory_stays_flat():
    """Of a long clip no more arrays are held at any time than the windows and the worst frame need."""
    made = []

    class Counted:
        name, device, in_flight, interface = "onnxruntime", "cpu", 0, describe(PRESETS["mtu1"])

        def submit(self, graph, frames, states):
            picture = np.random.default_rng(len(made)).integers(0, 256, frames["frame"].shape, np.uint8)
            state = np.zeros((1, 3, *picture.shape[1:3]), np.float32)
            made.extend(map(weakref.ref, (picture, state)))
            return Finished({"restored_out": state}, {"output": picture}, [])

        def read_states(self, states):
            copies = {name: value.copy() for name, value in states.items()}
            made.extend(map(weakref.ref, copies.values()))
            return copies

        def write_states(self, arrays):
            return arrays

    most = []

    def clip():
        for value in range(24):
            frame = np.full((12, 16, 3), value, np.uint8)
            made.append(weakref.ref(frame))
            most.append(sum(reference() is not None for reference in made))
            yield frame

    runs = compare(Counted(), Counted(), clip())
    assert all(len(run.frames) == 24 for run in runs)
    assert max(most) <= max(most[:12]) + 4 < 30, most


@pytest.mark.parametrize("turned", [False, True])
def test_an_engine_takes_and_gives_states(monkeypatch, small, tmp_path, turned):
    from tests import fake_cuda

    engine = fake_cuda.write_engine(small, tmp_path / "engine", Profile(Sizes(4, 4), Sizes(32, 48), Sizes(128, 128)))
    gpu = fake_cuda.Gpu()
    fake_cuda.install(monkeypatch, gpu)
    try:
        pair = [open_backend("onnxruntime", small), open_backend("tensorrt", engine)]
        for run in compare(*(reversed(pair) if turned else pair), frames()):
            assert len(run.frames) == COUNT
            for frame in run.frames:
                assert all(found.largest == 0 for found in frame.tensors.values())
                assert frame.displacement.equal == 1
        pair[1].close()
        del pair
    finally:
        fake_cuda.uninstall()
    gc.collect()
    assert gpu.contexts == []
