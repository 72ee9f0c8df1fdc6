"""mtu-compare: what it measures, what it refuses; broken copies of a model fail the gate and are pointed at."""

from __future__ import annotations

import base64
import errno
import gc
import html.parser
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("polygraphy")
pytest.importorskip("torch")
pytest.importorskip("skimage")

import onnx
import torch
from onnx import numpy_helper
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator
from polygraphy.logger import G_LOGGER
from tests import cli, fake_cuda
from tests.conftest import ROOT
from tests.frames import moving_frames, write_clip
from tests.processes import Terminal, environment
from tests.runtime.test_lean import run as run_lean

from mtu.calib.compare import check_same_model, compare, compare_displacements, compare_tensors, scores
from mtu.calib.compare_page import page
from mtu.calib.compare_report import MODES, TIE, Agreement, CompareReport, Floors, FrameResult
from mtu.calib.polygraphy_runner import BackendRunner, no_states
from mtu.calib.rollout import windows
from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import FRAME_NAMES, PRESETS, Interface, NetworkConfig
from mtu.export.to_onnx import export_bundle
from mtu.models.checkpoint import random_checkpoint
from mtu.plugins.correlation_argmax_warp.reference import pooled_costs
from mtu.runtime import open_backend, open_bundle, restore
from mtu.runtime.backends import Finished
from mtu.runtime.engine import Profile, Sizes
from mtu.runtime.report import check_report, write_report
from mtu.runtime.video import read_picture, write_png

pytestmark = pytest.mark.usefixtures("one_thread")
HEIGHT, WIDTH, COUNT = 30, 50, 6
DEMO = ROOT / "calib/demo/blurred.mp4"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"), COUNT, HEIGHT, WIDTH)


def altered(bundle, directory, change, graphs=("first", "step")):
    """A copy of a bundle in which `change(weights by name)` has been at some graphs."""
    shutil.copytree(bundle.directory, directory)
    for graph in graphs:
        path = directory / f"{graph}.onnx"
        model = onnx.load(path)
        weights = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
        change(weights)
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
        onnx.save(model, path)
    return open_bundle(directory)


def one_weight(weights):
    weights["out.weight"][0, 0, 1, 1] += 0.5


def swapped_channels(weights):
    for name in ("out.weight", "out.bias"):
        weights[name] = weights[name][::-1].copy()


class Forgetful:
    """A backend that gives one state of the first frame to every later one, unless it comes from outside."""

    def __init__(self, backend, state):
        self._backend, self._state, self._first, self._written = backend, state, None, {}
        self.name, self.device, self.interface, self.in_flight = backend.name, "cpu", backend.interface, 0
        self.read_states, self.close = backend.read_states, backend.close

    def write_states(self, arrays):
        self._written = self._backend.write_states(arrays)
        return self._written

    def submit(self, inputs):
        if self._state in inputs and inputs[self._state] is not self._written.get(self._state):
            inputs = {**inputs, self._state: self._first}
        pending = self._backend.submit(inputs)
        self._first = pending.states[self._state] if self._first is None else self._first
        return pending


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return export_bundle(
        random_checkpoint(NetworkConfig(2, 4, 1)), tmp_path_factory.mktemp("half") / "bundle", precision="fp16"
    )


def frames():
    return moving_frames(COUNT, HEIGHT, WIDTH)


def reported(runs, floors):
    return CompareReport({"model": "<a>"}, {"model": "<b>"}, "clip", WIDTH, HEIGHT, 10, floors, runs)


class Page(html.parser.HTMLParser):
    """Its text, its pictures by what they are of, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.text, self.pictures, self.open, self.links = "", {}, [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = self.attributes = dict(attributes)
        self.links += [value for key, value in attributes if key in ("href", "src") and not value.startswith("data:")]
        if tag == "img":
            kind, _, data = found["src"].partition(",")
            assert kind == "data:image/png;base64"
            self.pictures.setdefault(found["alt"], []).append(base64.b64decode(data))
        elif tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["text"] and self.attributes.get("text-anchor") == "end":
            assert float(self.attributes["x"]) >= 7.5 * len(data), "cut off at the left"
        self.text += data


# Two frames


def test_differences_are_those_of_the_elements():
    a = {"x": np.arange(1000, dtype=np.float32), "only a": np.zeros(1), "displacement": np.zeros((1, 2, 2), np.int32)}
    b = {"x": np.zeros(1000, np.float16), "displacement": np.ones((1, 2, 2), np.int32)}
    found = compare_tensors(a, b)
    assert list(found) == ["x"]
    assert found["x"].largest == 999
    assert found["x"].quantiles == (500, 990, 999)
    pictures = np.array([[0, 255]], np.uint8), np.array([[255, 0]], np.uint8)
    assert compare_tensors({"p": pictures[0]}, {"p": pictures[1]})["p"].largest == 255


def test_what_cannot_be_compared_is_said():
    one = np.zeros((1, 2), np.float32)
    with pytest.raises(InvalidInputError, match="nothing to compare: one side gives x, the other y"):
        compare_tensors({"x": one}, {"y": one})
    with pytest.raises(InvalidInputError, match=r"x is \[1, 2\] on one side and \[2, 1\]"):
        compare_tensors({"x": one}, {"x": one.T})
    for value in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match="non-finite values in x"):
            compare_tensors({"x": one}, {"x": np.full((1, 2), value, np.float32)})


def test_scores_are_the_costs_of_the_reference():
    rng = np.random.default_rng(0)
    motion, before = (rng.random((1, 6, 9, 11)).astype(np.float32) for _ in range(2))
    motion[0, :, 2:5, 3] = 0
    costs = pooled_costs(motion, before, 3, 5)[:, 0]
    rows, columns = (axis.ravel() for axis in np.indices((9, 11)))
    index = rng.integers(0, 49, 99).astype(np.int32)
    found = scores(motion, before, rows, columns, index, 3, 5)
    np.testing.assert_allclose(found, costs[index, rows, columns], rtol=0, atol=1e-12)


def test_ties_are_told_from_errors():
    interface = Interface(PRESETS["mtu2"], max_displacement=1, pool_size=1)
    here = np.zeros((1, 2, 1, 3))
    before = here.copy()
    here[0, 0] = 1
    before[0, :, 0, 0] = 1, 0  # the cosines with `here` are 1, cos(0.01) and 0
    before[0, :, 0, 1] = math.cos(0.01), math.sin(0.01)
    before[0, :, 0, 2] = 0, 1
    still, left, right = 4, 3, 5
    a = np.array([[[still, left, left]]], np.int32)
    tied, wrong = a.copy(), a.copy()
    tied[0, 0, 1], wrong[0, 0, 1] = still, right
    same = compare_displacements(a, a, here, before, interface)
    assert (same.equal, same.ties, same.gap) == (1, 0, 0)
    tie = compare_displacements(a, tied, here, before, interface)
    assert (tie.equal, tie.ties) == pytest.approx((2 / 3, 1 / 3)) and tie.gap == pytest.approx(1 - math.cos(0.01))
    error = compare_displacements(a, wrong, here, before, interface)
    assert error.ties == 0 and error.gap == pytest.approx(1) and error.share == error.equal
    assert 0 < tie.gap < TIE < error.gap


def test_polygraphy_compares_with_the_same_function(small, half):
    backend = open_backend("onnxruntime", small)
    _, _, inputs = next(iter(windows(frames())))
    states = backend.read_states(backend.submit(inputs).states)
    backend.close()
    runners = [OnnxrtRunner(SessionFromOnnx(str(bundle.graph("step"))), name=bundle.directory.parent.name)
               for bundle in (small, altered(small, half.directory.parent / "weight", one_weight))]  # fmt: skip
    seen = []

    def within(a, b):
        seen.append(compare_tensors(a, b))
        return {name: found.largest <= 1e-4 for name, found in seen[-1].items()}

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = Comparator.run(runners, data_loader=[{**inputs, **states}])
        passed = Comparator.compare_accuracy(results, compare_func=within)
    assert not bool(passed)
    assert seen[0]["output"].largest > 5 and seen[0]["motion_out"].largest == 0


def test_a_rollout_as_a_polygraphy_script_has_it(small, half, tmp_path):
    """The script: any two backends, each threading its own states, and a compare function of one's own."""
    clip = [inputs for _, _, inputs in windows(frames())]
    seen = []

    def close(a, b):
        seen.append(compare_tensors(a, b))
        return {name: found.quantiles[-1] <= (1 if name == "output" else 1e-2) for name, found in seen[-1].items()}

    def compared(*bundles):
        seen.clear()
        backends = [open_backend("onnxruntime", bundle) for bundle in bundles]
        runners = [BackendRunner(backend, threads_states=True) for backend in backends]
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            results = Comparator.run(runners, data_loader=clip)
            passed = Comparator.compare_accuracy(results, compare_func=close)
        assert len(seen) == COUNT and all(runtime > 0 for runtime in (each.runtime for each in results[0][1]))
        for backend in backends:
            backend.close()
        return results, bool(passed)

    results, passed = compared(small, half)
    assert passed
    assert any(found["detail_out"].largest > 0 for found in seen)
    alone = restore(frames(), open_backend("onnxruntime", small), scene_threshold=None)
    for made, restored in zip(results[0][1], alone, strict=True):
        assert np.array_equal(made["output"][0, :HEIGHT, :WIDTH], restored.rgb)
        assert np.array_equal(made["displacement"][0], restored.displacement)
    assert not compared(small, altered(half, tmp_path / "broken", one_weight))[1]


def test_a_runner_is_fed_what_another_gave(small):
    """Step by step with states from outside is the rollout; a first frame has states without pixels."""
    backend = open_backend("onnxruntime", small)
    states = no_states(backend.interface)
    assert {name: value.size for name, value in states.items()} == dict.fromkeys(
        ("restored_in", "motion_in", "detail_in"), 0
    )
    with BackendRunner(backend, threads_states=True) as rolling, BackendRunner(backend) as fed:
        for _, _, inputs in windows(frames()):
            expected, found = rolling.infer(inputs), fed.infer({**inputs, **states})
            assert list(found) == ["output", "restored_out", "motion_out", "detail_out", "displacement"]
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
            states = {name: found[name.replace("_in", "_out")] for name in states}
        rolling.deactivate()
        rolling.activate()  # and is at its first frame again
        _, _, inputs = next(windows(frames()))
        again = rolling.infer(inputs)
        assert np.array_equal(again["output"], fed.infer({**inputs, **no_states(backend.interface)})["output"])
        assert not np.array_equal(again["detail_out"], expected["detail_out"])


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_states_go_out_of_a_backend_and_into_it(small, name):
    backend = open_backend(name, small)
    (_, _, first), (_, _, second) = itertools.islice(windows(frames()), 2)
    made = backend.submit(first)
    arrays = backend.read_states(made.states)
    for state in backend.interface.states:
        array = arrays[state.input.name]
        assert (array.dtype, array.shape) == (state.dtype, state.input.at(HEIGHT + 2, WIDTH + 2))
    expected = backend.submit({**second, **made.states})
    found = backend.submit({**second, **backend.write_states(arrays)})
    assert np.array_equal(found.result()["output"], expected.result()["output"])
    after = backend.read_states(expected.states)
    for key, value in backend.read_states(found.states).items():
        assert np.array_equal(value, after[key]) and not np.array_equal(value, arrays[key])


# Two models


def test_windows_are_those_of_the_session(small):
    class Recorder:
        name, device, in_flight, interface, remarks = "recorder", "cpu", 0, Interface(PRESETS["mtu1"]), ()

        def __init__(self):
            self.windows = []

        def submit(self, inputs):
            self.windows.append([int(inputs[name][0, 0, 0, 0]) for name in FRAME_NAMES])
            return Finished({}, {"output": inputs["frame"]}, [])

    for count in range(1, 7):
        clip = [np.full((4, 4, 3), value, np.uint8) for value in range(count)]
        recorder = Recorder()
        assert len(list(restore(clip, recorder, scene_threshold=None))) == count
        found = [(index, [int(held[name][0, 0, 0, 0]) for name in FRAME_NAMES]) for index, _, held in windows(clip)]
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
    assert np.array_equal(rollout.pictures.a, restored[0].rgb)


def test_a_runs_once_for_both_modes(small):
    class Counted:
        def __init__(self):
            backend = open_backend("onnxruntime", small)
            self.name, self.interface, self._submit, self.runs = backend.name, backend.interface, backend.submit, 0
            self.read_states, self.write_states = backend.read_states, backend.write_states

        def submit(self, inputs):
            self.runs += 1
            return self._submit(inputs)

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
    for index, _, inputs in windows(frames()):
        made = a.submit({**inputs, **states_a})
        cast = {name: value.numpy().astype(np.float16) for name, value in states_a.items()}
        stepped, rolled = (b.submit({**inputs, **states}) for states in (cast, states_b))
        states_a, states_b = made.states, rolled.states
        for run, other in ((step, stepped), (rollout, rolled)):
            away = np.abs(made.states["detail_in"].numpy() - other.states["detail_in"].numpy().astype(np.float32))
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
        ("restored_in", Floors(psnr=60)),
        ("motion_in", Floors(agreement=0.95)),
        ("detail_in", Floors(psnr=45)),
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
        check_same_model(Interface(PRESETS["mtu1"]), Interface(PRESETS["mtu2"]))
    with pytest.raises(InvalidInputError, match="different search radii: 10 and 5"):
        check_same_model(Interface(PRESETS["mtu2"]), Interface(PRESETS["mtu2"], max_displacement=5))
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
        name, device, in_flight, interface = "onnxruntime", "cpu", 0, Interface(PRESETS["mtu1"])

        def submit(self, inputs):
            picture = np.random.default_rng(len(made)).integers(0, 256, inputs["frame"].shape, np.uint8)
            state = np.zeros((1, 3, *picture.shape[1:3]), np.float32)
            made.extend(map(weakref.ref, (picture, state)))
            return Finished({"restored_in": state}, {"output": picture}, [])

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


# The command


def test_the_command_writes_what_it_measured(capsys, tmp_path, small, half, clip):
    ended = cli.run(capsys, "mtu-compare", small.directory, half.directory, "--input", clip, "--frames", 4,
                    "--min-psnr", 50, "--min-agreement", 95, "--json", tmp_path / "r.json",
                    "--html", tmp_path / "r.html")  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.err == ""
    assert re.search(r"^step +4 +\d\d\.\d\d dB", ended.out, re.MULTILINE)
    assert re.search(r"^rollout +4 +\d\d\.\d\d dB", ended.out, re.MULTILINE)
    assert f"B  {half.directory}: custom fp16 on onnxruntime cpu" in ended.out
    report = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert report["passed"] is True and report["floors"] == {"psnr": 50.0, "agreement": 0.95}
    assert [report["a"]["precision"], report["b"]["precision"]] == ["fp32", "fp16"]
    for mode in MODES:
        (found, count) = (report["modes"][mode], len(report["modes"][mode]["frames"]))
        assert count == 4 and found["first_below_floor"] is None
        frame = found["frames"][found["worst_frame"]]
        assert frame["psnr"] == min(each["psnr"] for each in found["frames"]) > 50
        assert frame["tensors"].keys() == {"output", "restored_out", "motion_out", "detail_out"}
        assert frame["tensors"]["detail_out"].keys() == {"largest", "50%", "99%", "99.9%"}
        assert 0 <= frame["displacement"]["ties"] <= 1 - frame["displacement"]["equal"] + 1e-9
    text = (tmp_path / "r.html").read_text()
    shown = Page(text)
    assert shown.links == [] and "http" not in text
    assert set(shown.pictures) >= {"A", "B", "motion of A", "motion of B"} and text.count("<svg") == 6
    assert all(len(pictures) == 2 for name, pictures in shown.pictures.items() if not name.startswith("difference"))
    (tmp_path / "a.png").write_bytes(shown.pictures["A"][0])
    a, b = open_backend("onnxruntime", small), open_backend("onnxruntime", half)
    step, _ = compare(a, b, frames()[:4])
    assert np.array_equal(read_picture(tmp_path / "a.png"), step.pictures.a)
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r.html", "a.png"}


@pytest.mark.parametrize("change", [one_weight, swapped_channels])
def test_a_missed_floor_is_exit_code_1_and_the_reports_are_there(capsys, tmp_path, change):
    broken = altered(open_bundle("mtu2"), tmp_path / "broken", change)
    ended = cli.run(capsys, "mtu-compare", "mtu2", broken.directory, "--input", DEMO, "--mode", "rollout",
                    "--frames", 3, "--min-psnr", 60, "--json", tmp_path / "r.json",
                    "--html", tmp_path / "r.html")  # fmt: skip
    assert ended.code == 1, ended.err
    assert "rollout: below the floor from frame 0: PSNR" in ended.out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["passed"] is False and list(report["modes"]) == ["rollout"]
    assert report["modes"]["rollout"]["first_below_floor"] == 0
    shown = Page((tmp_path / "r.html").read_text())
    assert "Below the floor" in shown.text and report["verdicts"][0] in shown.text


def test_a_checkpoint_and_a_model_of_one_unit(capsys, tmp_path, clip, single):
    checkpoint = random_checkpoint(NetworkConfig(1, 4, 0))
    torch.save(dict(checkpoint.weights), tmp_path / "weights.pt")
    sides = [tmp_path / "weights.pt", single.directory, "--input", clip]
    ended = cli.run(capsys, "mtu-compare", *sides, "--frames", 3, "--min-psnr", 60, "--json", tmp_path / "r.json",
                    "--html", tmp_path / "r.html")  # fmt: skip
    assert ended.code == 0, ended.err + ended.out
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["a"]["backend"], report["b"]["backend"]) == ("torch", "onnxruntime")
    assert report["a"]["checkpoint"] == report["b"]["checkpoint"] == checkpoint.digest
    assert report["modes"]["step"]["frames"][0]["displacement"] is None
    text = (tmp_path / "r.html").read_text()
    assert "motion of A" not in Page(text).pictures
    assert text.count(f"<td>{checkpoint.digest[:12]}</td>") == 2  # as the commands print it, whole
    ended = cli.run(capsys, "mtu-compare", *sides, "--min-agreement", 90)
    assert ended.code == 2 and "estimates no motion" in ended.err
    ended = cli.run(capsys, "mtu-compare", *sides, "--backend-a", "onnxruntime")
    assert ended.code == 2 and "is a checkpoint, which backend onnxruntime cannot run" in ended.err


def test_bad_input_is_one_message(capsys, tmp_path, small, clip):
    infinite = altered(small, tmp_path / "nan", lambda w: w["motion_layer.0.0.bias"].fill(np.inf), graphs=["step"])
    small_frames = tmp_path / "mixed"
    small_frames.mkdir()
    for number, width in enumerate((24, 24, 28)):
        write_png(small_frames / f"{number}.png", moving_frames(1, 16, width)[0])
    directory, video = small.directory, small_frames / "clip.mp4"
    video.touch()
    for arguments, message in (
        ([directory, directory, "--input", clip, "--frames", 7], "has 6 frames, fewer than the 7 asked for"),
        ([directory, directory, "--input", small_frames], "is 28x16"),
        (
            [directory, "mtu2", "--input", clip],
            "A and B have different networks (A is custom, B is mtu2): 2 units, 4 channels, 1 block and 2 units, 26",
        ),
        ([directory, infinite.directory, "--input", clip], "motion_out of B in step at frame 1"),
        ([infinite.directory, directory, "--input", clip], "motion_out of A at frame 1"),
        (
            [directory, infinite.directory, "--input", clip, "--mode", "rollout"],
            "motion_out of B in rollout at frame 1",
        ),
        ([directory, directory, "--input", clip, "--json", tmp_path], f"--json {tmp_path}: is a directory"),
        ([directory, directory, "--input", clip, "--json", "-"], "--json -: give the name of a file"),
        ([directory, directory, "--input", clip, "--html", clip], f"--html {clip}: is a directory"),
        ([directory, directory, "--input", video, "--json", video], "is an input or the output of another"),
        ([directory, directory, "--input", clip, "--html", tmp_path / "no" / "r.html"], "the directory does not exist"),
        (
            [directory, directory, "--input", clip, "--html", tmp_path / "r", "--json", tmp_path / "r"],
            "the output of another option",
        ),
        ([directory, directory, "--input", clip, "--min-psnr", "nan"], "--min-psnr nan: give dB from 0"),
        ([directory, directory, "--input", clip, "--min-agreement", 101], "percent, 0 to 100"),
        ([directory, tmp_path / "none", "--input", clip], "does not exist"),
        ([directory, directory, "--input", tmp_path / "none.mp4"], "none.mp4"),
    ):
        ended = cli.run(capsys, "mtu-compare", *arguments)
        assert ended.code == 2 and message in ended.err and ended.out == "", (arguments, ended)
        assert ended.err.startswith("mtu-compare: error: ")
    assert {path.name for path in tmp_path.iterdir()} == {"nan", "mixed"}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_report_that_cannot_be_written_is_said_before_anything_runs(capsys, tmp_path, small, clip):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked.json").touch(0o400)
    (tmp_path / "locked").chmod(0o500)
    for option, path in (("--json", tmp_path / "locked" / "r"), ("--html", tmp_path / "locked.json")):
        ended = cli.run(capsys, "mtu-compare", small.directory, small.directory, "--input", clip, option, path)
        assert ended.code == 2 and f"{option} {path}: cannot be written; check" in ended.err and ended.out == ""


def test_a_report_that_fails_late_leaves_what_was_there(capsys, tmp_path, monkeypatch, small, clip):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "r.json").write_text("before")
    monkeypatch.setattr(Path, "write_bytes", full)
    ended = cli.run(capsys, "mtu-compare", small.directory, small.directory, "--input", clip, "--frames", 1,
                    "--json", tmp_path / "r.json")  # fmt: skip
    assert ended.code == 2 and "r.json: cannot be written (No space left on device)" in ended.err
    assert ended.out.startswith("A  ") and (tmp_path / "r.json").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_report_is_written_where_a_link_leads_and_into_a_pipe(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "r.json")
    os.mkfifo(tmp_path / "pipe")
    read = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for name in ("link.json", "pipe"):
        check_report(tmp_path / name)
        write_report(tmp_path / name, {"a": 1})
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "r.json").read_text()) == {"a": 1}
    assert json.loads(os.read(read, 100)) == {"a": 1}
    os.close(read)


def test_progress_is_shown_on_a_terminal_alone(tmp_path, small, clip):
    """The other tests see that stderr is empty without one."""
    terminal = Terminal()
    command = [small.directory, small.directory, "--input", clip, "--frames", "3", "--mode", "step"]
    code = "import sys\nsys.argv[0] = 'mtu-compare'\nfrom mtu.calib.compare_cli import main\nmain()"
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=terminal.end,
        env=environment(TERM="xterm", COLUMNS="100"),
    )
    shown = terminal.finish()
    assert process.returncode == 0, shown
    assert b"mtu-compare" in shown and b"3/3" in shown
    assert b"3/3" not in process.stdout and process.stdout.startswith(b"A  ")


def test_a_missing_extra_is_named_before_anything_is_written(tmp_path):
    code = "sys.argv[0] = 'mtu-compare'\nfrom mtu.calib.compare_cli import main\nmain()"
    done = run_lean(
        code, "mtu2", "mtu2", "--input", str(ROOT / "calib/demo/blurred.mp4"), "--html", str(tmp_path / "r.html")
    )
    assert done.returncode == 2 and 'pip install "mtu-trt[compare]"' in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []
