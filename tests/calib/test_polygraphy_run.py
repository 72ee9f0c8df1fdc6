"""The scripts for stock `polygraphy run`: what they feed, how they judge, and whole runs of both graphs of a bundle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("polygraphy")
pytest.importorskip("skimage")
pytest.importorskip("torch")

import onnx
import onnxruntime
from polygraphy.exception import PolygraphyException
from tests.calib.comparing import altered, one_graph, one_weight
from tests.conftest import ROOT
from tests.frames import moving_frames, write_clip
from tests.runtime.test_lean import run as run_lean

from mtu.calib import polygraphy_data, polygraphy_psnr, quality
from mtu.export.precision import to_fp16
from mtu.models.mtu.config import WINDOW
from mtu.runtime import open_bundle
from mtu.runtime.bundle import bundle_json

HEIGHT, WIDTH, COUNT = 32, 48, 5
GRAPHS = ("first", "step")
DATA, PSNR = ROOT / "calib/polygraphy_data.py", ROOT / "calib/polygraphy_psnr.py"
TENSORS = ("output", "restored_out", "motion_out", "detail_out", "displacement")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"), COUNT, HEIGHT, WIDTH)


@pytest.fixture
def asked(monkeypatch, clip, small):
    """The environment of the scripts in this process; a function sets more of it."""
    for name in ("MTU_MIN_PSNR", "MTU_MIN_AGREEMENT"):
        monkeypatch.delenv(name, raising=False)

    def ask(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    ask(MTU_CLIP=clip, MTU_FRAMES=3, MTU_MODEL=small.directory)
    return ask


def polygraphy(model: Path, *arguments: object, cwd: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    """`polygraphy run MODEL --onnxrt ARGUMENTS` as a user would type it, with these variables in the environment.

    Without torch, which nothing here needs and which Polygraphy imports for seconds where it finds it.
    """
    (cwd / "path").mkdir(exist_ok=True)
    (cwd / "path" / "torch.py").write_text("raise ModuleNotFoundError('torch is blocked', name='torch')")
    return subprocess.run(
        [Path(sys.executable).with_name("polygraphy"), "run", "-q", model, "--onnxrt", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("MTU_")},
            "PYTHONPATH": os.pathsep.join([str(cwd / "path"), str(ROOT / ".links")]),
            **{name: str(value) for name, value in variables.items()},
        },
        timeout=120,
    )


def judged(model: Path, cwd: Path, **floors: object) -> subprocess.CompletedProcess[str]:
    """A run on the saved inputs, compared with the saved outputs."""
    saved = ("--load-inputs", "inputs", "--load-outputs", "golden", "--compare-func-script", PSNR)
    return polygraphy(model, *saved, cwd=cwd, **floors)


def lines(done: subprocess.CompletedProcess[str], level: str) -> list[str]:
    """What the compare script said at a level of Polygraphy's log: "I" for a pass, "E" for a failure."""
    said = (line.removeprefix(f"[{level}]").strip() for line in done.stdout.splitlines() if line[1:2] == level)
    return [line for line in said if line.split(":")[0] in TENSORS]


def in_fp16(path: Path, directory: Path) -> Path:
    """A graph with the weights, states and arithmetic in fp16."""
    model = onnx.load(path)
    to_fp16(model)
    onnx.save(model, directory / "half.onnx")
    return directory / "half.onnx"


# Whole runs


@pytest.mark.parametrize("graph", GRAPHS)
def test_golden_outputs_pass_their_own_model_and_fail_a_broken_one(tmp_path, clip, small, graph):
    """And what was saved of fp32 is cast to the types of an fp16 graph, whose states are inputs of `step` alone."""
    saved = polygraphy(
        small.graph(graph),
        *("--data-loader-script", f"{DATA}:{graph}", "--save-inputs", "inputs", "--save-outputs", "golden"),
        cwd=tmp_path,
        MTU_CLIP=clip,
        MTU_FRAMES=2,
        MTU_MODEL=small.directory,
    )
    assert saved.returncode == 0, saved.stdout + saved.stderr

    same = judged(small.graph(graph), tmp_path, MTU_MIN_PSNR=200, MTU_MIN_AGREEMENT=100)
    assert same.returncode == 0, same.stdout + same.stderr
    assert [line.split(":")[0] for line in lines(same, "I")] == [*TENSORS] * 2
    assert lines(same, "I")[: len(TENSORS) - 1] == [f"{name}: equal" for name in TENSORS[:-1]]

    if graph == "step":
        half = judged(in_fp16(small.graph(graph), tmp_path), tmp_path, MTU_MIN_AGREEMENT=90)
        assert half.returncode == 0, half.stdout + half.stderr
        assert "attempting to cast" in half.stdout
        assert any("dB" in line for line in lines(half, "I"))

    broken = judged(altered(small, tmp_path / "broken", one_weight).graph(graph), tmp_path)
    assert broken.returncode == 1
    assert {line.split(":")[0] for line in lines(broken, "E")} == {"output", "restored_out"}


def test_the_model_of_the_package(tmp_path, clip):
    """Two runners in one go; the model that makes the states is not named."""
    done = polygraphy(
        open_bundle().graph("step"),
        *("--onnxrt", "--data-loader-script", f"{DATA}:step", "--compare-func-script", PSNR),
        cwd=tmp_path,
        MTU_CLIP=clip,
        MTU_FRAMES=2,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines(done, "I")) == 2 * len(TENSORS)


def test_what_is_wrong_is_one_line_and_no_traceback(tmp_path, small):
    done = polygraphy(small.graph("first"), "--data-loader-script", f"{DATA}:first", cwd=tmp_path)
    assert done.returncode == 1
    assert "[!] MTU_CLIP is not set" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_the_scripts_import_nothing_heavy():
    """Polygraphy imports the second one again for every frame."""
    done = run_lean("import mtu.calib.polygraphy_data, mtu.calib.polygraphy_psnr")
    assert done.returncode == 0, done.stderr


# What is fed


def test_the_states_are_those_of_the_frame_before(asked, small):
    sessions = {graph: onnxruntime.InferenceSession(str(small.graph(graph))) for graph in GRAPHS}

    def states(graph, feed):
        names = [node.name for node in sessions[graph].get_outputs() if node.name.endswith("_out")]
        return {name.replace("_out", "_in"): a for name, a in zip(names, sessions[graph].run(names, feed), strict=True)}

    opening = next(polygraphy_data.first())
    expected = states("first", opening)
    feeds = list(polygraphy_data.step())
    assert len(feeds) == 3
    for feed in feeds:
        assert list(feed) == [node.name for node in sessions["step"].get_inputs()]
        for name, value in expected.items():
            np.testing.assert_array_equal(feed[name], value)
        expected = states("step", feed)


def test_the_windows_are_those_of_the_clip(asked):
    """`first` from frame 0 on, `step` from frame 1 on, both as far as they are asked."""
    frames = moving_frames(COUNT, HEIGHT, WIDTH)
    for begin, feeds in enumerate((polygraphy_data.first(), polygraphy_data.step())):
        given = list(feeds)
        assert len(given) == 3
        for index, feed in enumerate(given, begin):
            for name, offset in WINDOW.items():
                np.testing.assert_array_equal(feed[name][0], frames[min(max(index + offset, 0), COUNT - 1)])


def test_the_graphs_are_those_of_the_model(asked, tmp_path):
    """A network of one graph, whose name no script knows."""
    (tmp_path / "bundle.json").write_bytes(bundle_json(one_graph("picture")))
    (tmp_path / "all.onnx").touch()
    asked(MTU_MODEL=tmp_path)
    frames = moving_frames(COUNT, HEIGHT, WIDTH)
    for index, feed in enumerate(polygraphy_data.all()):
        assert list(feed) == ["frame"] and np.array_equal(feed["frame"][0], frames[index])
    with pytest.raises(PolygraphyException, match="the model has no graph 'step': it has all"):
        list(polygraphy_data.step())
    assert not hasattr(polygraphy_data, "__path__")


@pytest.mark.parametrize(
    ("graph", "variables", "message"),
    [
        ("first", {"MTU_CLIP": ""}, "MTU_CLIP is not set"),
        ("step", {"MTU_CLIP": "nowhere.mp4"}, "nowhere.mp4 does not exist"),
        ("first", {"MTU_FRAMES": "0"}, "MTU_FRAMES is '0': it must be a whole number from 1"),
        ("step", {"MTU_FRAMES": "1.5"}, "MTU_FRAMES is '1.5'"),
        ("first", {"MTU_FRAMES": COUNT + 1}, f"has frames for {COUNT} runs of the graph, and MTU_FRAMES asks for"),
        ("step", {"MTU_FRAMES": COUNT}, f"has frames for {COUNT - 1} runs of the graph, and MTU_FRAMES asks for"),
        ("step", {"MTU_MODEL": "nowhere"}, "model nowhere does not exist"),
    ],
)
def test_what_cannot_be_fed_is_said(asked, graph, variables, message):
    asked(**variables)
    with pytest.raises(PolygraphyException, match=message):
        list(getattr(polygraphy_data, graph)())


# How it is judged


def outputs(**changed):
    rng = np.random.default_rng(0)
    made = {
        "output": rng.integers(0, 256, (1, 20, 20, 3)).astype(np.uint8),
        "detail_out": rng.random((1, 4, 20, 20), dtype=np.float32),
        "displacement": np.arange(100, dtype=np.int32).reshape(1, 10, 10),
    }
    return {**made, **changed}


def test_each_tensor_has_its_measure(asked, capsys):
    reference = outputs()
    output, detail, displacement = (value.copy() for value in reference.values())
    output[0, 0, 0, 0] ^= 16
    detail += 1e-3
    displacement[0, 0, 0] += 1
    found = {"output": output, "detail_out": detail, "displacement": displacement, "another": detail}
    assert polygraphy_psnr.compare_outputs(found, reference) == dict.fromkeys(reference, True)
    said = capsys.readouterr().out
    assert f"output: PSNR {quality.psnr(output, reference['output']):.2f} dB, floor 50 dB" in said
    assert "detail_out: PSNR 60.00 dB, floor 50 dB" in said  # 0.001 of a peak of nearly 1
    assert "displacement: 99.00% equal, floor 99%" in said
    asked(MTU_MIN_PSNR=61, MTU_MIN_AGREEMENT=99.5)
    assert polygraphy_psnr.compare_outputs(found, reference) == dict.fromkeys(reference, False)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_state_is_measured_against_its_own_size(asked, scale):
    reference = {"detail_out": outputs()["detail_out"]}
    for error, passed in ((1e-3, True), (1e-2, False)):
        found = {"detail_out": (reference["detail_out"] + np.float32(error)) * np.float32(scale)}
        scaled = {"detail_out": reference["detail_out"] * np.float32(scale)}
        assert polygraphy_psnr.compare_outputs(found, scaled) == {"detail_out": passed}


def test_what_cannot_be_measured_fails(asked, capsys):
    reference = outputs(motion_out=np.zeros((1, 8, 5, 5), np.float32))
    assert polygraphy_psnr.compare_outputs(reference, reference) == dict.fromkeys(reference, True)
    found = outputs(output=reference["output"][:, :16], displacement=reference["displacement"][:, :1])
    for value in (np.inf, -np.inf, np.nan):
        found["detail_out"] = reference["detail_out"].copy()
        found["detail_out"][0, 0, 0, 0] = value
        assert not any(polygraphy_psnr.compare_outputs(found, reference).values())
        assert not polygraphy_psnr.compare_outputs(reference, found)["detail_out"]
    said = capsys.readouterr().out
    assert "output: of shape [1, 16, 20, 3], expected one of shape [1, 20, 20, 3]" in said
    assert "motion_out: missing" in said
    assert said.count("detail_out: has values that are not finite") == 3
    off = {"motion_out": np.full((1, 8, 5, 5), 1e-6, np.float32)}
    assert polygraphy_psnr.compare_outputs(off, {"motion_out": reference["motion_out"]}) == {"motion_out": False}


@pytest.mark.parametrize("variable", ["MTU_MIN_PSNR", "MTU_MIN_AGREEMENT"])
def test_a_floor_is_a_number(asked, variable):
    asked(**{variable: "nan"})
    with pytest.raises(PolygraphyException, match=f"{variable} is 'nan': it must be a number"):
        polygraphy_psnr.compare_outputs(outputs(), outputs())
