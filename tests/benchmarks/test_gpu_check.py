"""The GPU check without a GPU: its arithmetic, its answers, how it lives through sections that do not."""

from __future__ import annotations

import json
import os
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.gpu_stand_ins import fails, records, report

from mtu.benchmarks import gpu_check, gpu_processes, gpu_results, gpu_sections, gpu_tests
from mtu.benchmarks.gpu_report import GpuReport, Skip
from mtu.core.errors import MissingExtraError
from mtu.runtime.gpu import Gpu, find_gpu

__all__ = ["records", "report"]  # fixtures


# --- the report -----------------------------------------------------------------------------------------------------


class OutOfMemoryError(Exception):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Skip("no"), "no"),
        (MissingExtraError("cuda-core", "gpu", "this"), "this needs the package 'cuda-core'"),
        (ModuleNotFoundError("x", name="pycuda"), "the package pycuda is not installed"),
        (OutOfMemoryError("tried\nmore"), "too little device memory: tried"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_missing_is_skipped(report, records, error, reason):
    assert report.run("part", partial(fails, error)) is None
    (record,) = records
    assert (record["kind"], record["name"]) == ("skip", "part")
    assert record["reason"].startswith(reason)


@pytest.mark.parametrize(
    "error",
    [ValueError("wrong"), ImportError("libx.so"), ModuleNotFoundError("x", name="mtu.runtime.nothing")],
    ids=repr,
)
def test_what_fails_is_an_error_and_the_rest_goes_on(report, records, error):
    report.run("part", partial(fails, error))
    assert report.run("next", lambda: 3) == 3
    (record,) = records
    assert record["kind"] == "error"
    assert str(error) in record["message"]
    assert record["where"].startswith("gpu_stand_ins.py:")


def test_what_takes_longer_than_is_left_is_not_begun(records):
    report = GpuReport(records.append, deadline=time.monotonic() + 1000)
    assert report.run("long", lambda: 1, seconds=2000) is None
    assert report.run("short", lambda: 1, seconds=5) == 1
    assert [record["kind"] for record in records] == ["skip"]
    assert "--minutes" in records[0]["reason"]


def test_times_are_medians_and_p90(report, records):
    report.time("x", "g", [float(i) for i in range(1, 101)], floor_us=3.0)
    (record,) = records
    assert (record["median_ms"], record["samples"], record["floor_us"]) == (50.5, 100, 3.0)
    assert record["p90_ms"] == 91.0


# --- tests that need a GPU ------------------------------------------------------------------------------------------

TESTS = """
import pytest
from tests import needs

pytestmark = pytest.mark.needs_cuda

@pytest.mark.needs_library("numpy", "nothing_like.this")
def test_library():
    assert False

@pytest.fixture
def other():
    needs.library("no_other")

def test_fixture(other):
    assert False

@pytest.mark.needs_library("numpy")
def test_passed():
    pass

def test_failed():
    assert 1 == 2

@pytest.mark.parametrize("reason", ["nothing is not installed", "there is no missing library: numpy"])
def test_skipped(reason):
    pytest.skip(reason)
"""
OTHERS = {
    "one/test_file.py": "from tests import needs\nneeds.library('no_such')\nimport no_such  # for mark.needs_cuda",
    "one/test_import.py": "import a_module_that_is_not  # for mark.needs_cuda",
    "test_other.py": "import nothing_that_is_needed",
    "conftest.py": "from tests.needs import pytest_runtest_setup",
}


def test_a_skip_is_a_failure_but_for_want_of_a_library(report, records, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / ".links")]))
    (tmp_path / "one").mkdir()
    for name, content in {"test_gpu.py": TESTS, **OTHERS}.items():
        (tmp_path / name).write_text(content)
    gpu_tests.run_tests(report, tmp_path)
    outcomes = {record["name"].split("test_")[-1]: record for record in records}
    assert len(outcomes) == len(records) == 8
    reasons = {name: record.get("reason") for name, record in outcomes.items() if record["kind"] == "skip"}
    assert reasons == {
        name: f"missing library: {library}: it is not installed"
        for name, library in {"library": "nothing_like.this", "fixture": "no_other", "file": "no_such"}.items()
    }
    assert [name for name, record in outcomes.items() if record.get("passed")] == ["passed"]
    assert "assert 1 == 2" in outcomes["failed"]["detail"]
    assert "'a_module_that_is_not'" in outcomes["import"]["detail"]
    assert outcomes["skipped[nothing is not installed]"]["detail"] == "skipped: nothing is not installed"


def test_without_tests_that_is_said(report, tmp_path):
    with pytest.raises(Skip, match="in a checkout"):
        gpu_tests.run_tests(report, tmp_path)


def test_every_gpu_test_is_found():
    found = [path for path in gpu_tests.TESTS.rglob("test_*.py") if "mark.needs_cuda" in path.read_text("utf-8")]
    assert {path.parent.name for path in found} >= {"backends", "export", "plugins"}


# --- figures and tables ---------------------------------------------------------------------------------------------


def timed(name, group, median):
    return {"kind": "time", "name": name, "group": group, "median_ms": median, "p90_ms": median, "samples": 5}


MEASURED = [
    timed("kernel linear", "kernel 1280x720 fp16", 0.070),
    timed("kernel hwc8", "kernel 1280x720 fp16", 0.060),
    timed("unfused", "unfused 1280x720 fp16", 0.59),
    timed("engine", "mtu2 tensorrt fp16", 1.6),
    timed("engine", "mtu2 tensorrt-rtx fp16", 1.5),
    timed("eager", "mtu2 torch eager AMP", 13.0),
    timed("eager", "mtu2 torch eager AMP", 12.0),
    timed("compiled", "mtu2 torch.compile AMP", 3.0),
    {"kind": "value", "name": "torch: PSNR", "group": "fp16 PSNR", "value": 40.0},
    {"kind": "value", "name": "tensorrt: PSNR", "group": "fp16 PSNR", "value": 51.0},
    {"kind": "value", "name": "tensorrt: equal", "group": "fp16 equal displacements", "value": 99.4},
]


def test_figures_are_reached_or_not():
    found = gpu_results.figures(MEASURED, "NVIDIA H200")
    assert [(f.value and round(f.value, 3), f.outcome) for f in found] == [
        (60.0, "reached"),
        (9.833, "not reached"),
        (1.5, "reached"),
        (8.0, "reached"),
        (2.0, "not reached"),
        (51.0, "reached"),
        (99.4, "not reached"),
    ]


def test_figures_that_were_not_measured():
    assert {figure.outcome for figure in gpu_results.figures([], "NVIDIA H200")} == {"not measured"}
    assert gpu_results.figures(MEASURED, "NVIDIA L4")[0].outcome == "not measured"


def test_the_table_shows_everything():
    records = [
        *MEASURED,
        {"kind": "fact", "name": "torch", "value": "2.9"},
        {"kind": "check", "name": "fine", "passed": True, "detail": ""},
        {"kind": "check", "name": "cases", "passed": False, "detail": "wrong: batch"},
        {"kind": "skip", "name": "engine", "reason": "no TensorRT"},
        {"kind": "error", "name": "part", "message": "ValueError: no", "where": "x.py:3"},
        {**timed("slow", "g", 2.5), "floor_bytes_us": 31.25},
    ]
    results = {
        "gpu": "NVIDIA X",
        "asked": [],
        "date": "2026",
        "commit": None,
        "sections": {"one": {"records": records, "ended": ""}, "two": {"records": [], "ended": "died of signal 6"}},
        "figures": [{"name": "kernel", "target": "<= 60 us", "value": None, "outcome": "not measured"}],
    }
    assert gpu_results.failures(results) == [
        "one: cases: wrong: batch",
        "one: part: ValueError: no (x.py:3)",
        "two: died of signal 6",
    ]
    text = gpu_results.as_markdown(results)
    for line in (
        "- torch: 2.9",
        "| kernel hwc8 | 60.0 us | 60.0 us | 5 |  |",
        "| slow | 2.500 ms | 2.500 ms | 5 | floor_bytes_us 31.2 |",
        "| tensorrt: PSNR | 51.00 | | | |",
        "| kernel | <= 60 us |  | not measured |",
        "SKIPPED one: engine: no TensorRT",
        "PASSED one: 1 checks",
        "FAILED one: cases: wrong: batch",
    ):
        assert line in text.splitlines()


# --- the run --------------------------------------------------------------------------------------------------------


def child(code):
    return [sys.executable, "-c", f"import os, time\nprint('{{\"name\": 1}}', flush=True)\n{code}"]


@pytest.mark.parametrize(
    ("code", "how"),
    [("", ""), ("os.abort()", "died of signal 6"), ("raise SystemExit(3)", "ended with exit code 3")],
)
def test_a_section_that_dies_leaves_what_it_found(records, code, how):
    assert gpu_processes.collect(child(code), 600, records.append) == how
    assert records == [{"name": 1}]


def test_a_section_that_hangs_is_ended(records, monkeypatch):
    """The time is over as soon as it has said something."""
    timers = []

    class Timer:
        def __init__(self, seconds, function):
            timers.append((seconds, function))

        def start(self):
            pass

        cancel = start

    def found(record):
        records.append(record)
        timers[0][1]()

    monkeypatch.setattr(gpu_processes.threading, "Timer", Timer)
    how = gpu_processes.collect(child("time.sleep(3600)"), 100, found)
    assert (how, timers[0][0]) == ("ended because it took more than 130 s", 130)
    assert records == [{"name": 1}]


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_without_a_gpu_there_is_one_line(tmp_path, capsys):
    assert gpu_check.main(["-o", str(tmp_path / "results.json")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gpu-check: error: no NVIDIA GPU answers") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_sections_are_refused(capsys):
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--only", "kernel,kernels"])
    assert end.value.code == 2
    assert "unknown section 'kernels'" in capsys.readouterr().err


@pytest.fixture
def made_up_gpu(monkeypatch):
    monkeypatch.setattr(gpu_check, "find_gpu", lambda index=0: Gpu(0, "NVIDIA Made Up (80GB)", "9.0", 2**36))


def test_an_output_that_cannot_be_written_is_refused(made_up_gpu, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert gpu_check.main(["-o", str(tmp_path / "file" / "results.json")]) == 2
    error = capsys.readouterr().err
    assert "give another with -o" in error and error.count("\n") == 1


@pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU")
def test_a_whole_run_on_a_host_that_lacks_everything(made_up_gpu, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    path = tmp_path / "new" / "results.json"
    arguments = ["-o", str(path), "--only", "environment,torch"]
    assert gpu_check.main(arguments) == 1  # what was asked for is left out
    results = json.loads(path.read_text())
    assert list(results["sections"]) == results["asked"] == ["environment", "torch"]
    assert (results["gpu"], results["arguments"]) == ("NVIDIA Made Up (80GB)", arguments)
    facts = {record["name"]: record.get("value") for record in results["sections"]["environment"]["records"]}
    assert facts["torch"] == torch.__version__
    (skipped,) = results["sections"]["torch"]["records"]
    assert skipped["kind"] == "skip" and "torch finds no CUDA device" in skipped["reason"]
    assert {figure["outcome"] for figure in results["figures"]} == {"not measured"}
    assert list(path.parent.iterdir()) == [path]
    said = capsys.readouterr()
    why = "this torch finds no CUDA device: install one built with CUDA"
    assert f"SKIPPED torch: torch: {why}" in said.out and f"FAILED torch: asked for and left out: {why}" in said.out
    assert f"gpu-check: torch: NOT PROVED: how long a step takes in torch: asked for and left out: {why}" in said.err


def test_a_failed_check_is_exit_code_1_and_results_grow(made_up_gpu, tmp_path, monkeypatch):
    path = tmp_path / "results.json"

    def collect(command, seconds, found):
        found({"kind": "check", "name": "it works", "passed": False, "detail": ""})
        assert json.loads(path.read_text())["sections"]["kernel"]["records"]
        return ""

    monkeypatch.setattr(gpu_check, "collect", collect)
    assert gpu_check.main(["-o", str(path), "--only", "kernel"]) == 1


def test_no_time_left_is_a_failure_of_what_was_asked_for(made_up_gpu, tmp_path):
    path = str(tmp_path / "results.json")
    assert gpu_check.main(["-o", path, "--only", "kernel", "--minutes", "0.01"]) == 1
    assert gpu_check.main(["-o", path, "--minutes", "0.01"]) == 0


def section(*records, ended=""):
    return {"records": list(records), "ended": ended}


PASSED = {"kind": "check", "name": "fine", "passed": True, "detail": ""}
LEFT_OUT = {"kind": "skip", "name": "racecheck", "reason": "the tool is not here"}


@pytest.mark.parametrize(
    ("found", "asked", "verdict"),
    [
        (section(PASSED), True, "PROVED: all"),
        (section(PASSED, LEFT_OUT), True, "PROVED: all (but not racecheck: the tool is not here)"),
        (section(LEFT_OUT), True, "NOT PROVED: all: asked for and left out: the tool is not here"),
        (section({"kind": "fact", "name": "x", "value": 1}), True, "NOT PROVED: all: asked for and left out: it found"),
        (section(LEFT_OUT), False, "left out: all: the tool is not here"),
        (section(PASSED, ended="died of signal 11"), False, "NOT PROVED: all: died of signal 11"),
        (section({**PASSED, "passed": False}), False, "NOT PROVED: all: fine: no"),
    ],
)
def test_what_a_section_proves_is_said(found, asked, verdict):
    assert gpu_results.verdict("it", found, "all", asked=asked).startswith(verdict)
    assert bool(gpu_results.failures({"asked": ["it"] * asked, "sections": {"it": found}})) == ("NOT" in verdict)


def test_the_first_run_is_one_sequence_of_steps(made_up_gpu, tmp_path, monkeypatch, capsys):
    """One that crashes costs the others nothing, and they share a folder, which is gone at the end."""
    folders, path = [], tmp_path / "first.json"

    def collect(command, seconds, found):
        name, given, folder = command[command.index("--child") + 1 :]
        assert float(given) == seconds <= 600 * gpu_sections.FIRST_RUN[name].share
        folders.append(Path(folder))
        assert folders[-1].is_dir()
        if name == "engines":
            return "died of signal 11"
        found(PASSED)
        return ""

    monkeypatch.setattr(gpu_check, "collect", collect)
    assert gpu_check.main(["-o", str(path), "--only", "first-run"]) == 1
    assert len(set(folders)) == 1 and not folders[0].exists()
    sections = json.loads(path.read_text())["sections"]
    assert list(sections) == list(gpu_sections.FIRST_RUN)
    proved = {name: found["verdict"].startswith("PROVED: ") for name, found in sections.items()}
    assert [name for name, well in proved.items() if not well] == ["engines"]
    assert "gpu-check: times-720p: PROVED: how long a step" in capsys.readouterr().err


def test_the_first_run_has_its_own_file_and_its_own_time():
    parsed = gpu_check.parse(["--only", "first-run"])
    assert (parsed.first_run, parsed.minutes, parsed.asked) == (True, 9, list(gpu_sections.FIRST_RUN))
    assert sum(part.share for part in gpu_sections.FIRST_RUN.values()) < 1.5
    with pytest.raises(SystemExit):
        gpu_check.parse(["--only", "first-run,torch"])
