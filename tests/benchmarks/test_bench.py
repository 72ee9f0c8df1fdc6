"""mtu-bench: what it times, for every kind of model."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from tests import cli
from tests.calib.comparing import Made, one_graph
from tests.small_models import opposite

from mtu.benchmarks import bench
from mtu.benchmarks.arithmetic import frame_gflop
from mtu.benchmarks.bench import _noise, _seconds, contestants, environment
from mtu.core.errors import InvalidInputError
from mtu.export.chain_files import write_chain
from mtu.runtime import backends
from mtu.runtime.backends import open_model

pytest.importorskip("onnxruntime")


def test_each_frame_is_a_new_array_and_the_states_are_handed_on():
    """The same array would be the same frame, and not be uploaded again."""
    backend = Made(one_graph("picture"))
    assert len(list(itertools.islice(_seconds(backend, _noise(12, 16)), 7))) == 7
    assert [graph for graph, _ in backend.seen] == ["all"] * 7
    assert len({id(frames["frame"]) for _, frames in backend.seen}) == 7
    assert not np.array_equal(backend.seen[0][1]["frame"], backend.seen[1][1]["frame"])


def test_a_chain_and_a_model_without_motion(capsys, small, single, tmp_path):
    chain = write_chain([single.directory, small.directory], tmp_path / "chain").directory
    for model in (single.directory, chain):
        ended = cli.run(capsys, "mtu-bench", model, "--size", "15x9", "--backends", "onnxruntime", "--rounds", 1)
        assert ended.code == 0 and f"| 16x12 | {model} | onnxruntime cpu | fp32 | " in ended.out, ended


def test_backends_that_refuse_the_model_are_left_out_unless_named(capsys, tmp_path, monkeypatch):
    model = opposite(tmp_path / "m").directory
    monkeypatch.setattr(backends, "installed_backends", lambda: ["torch", "onnxruntime"])
    ended = cli.run(capsys, "mtu-bench", model, "--size", "16x16", "--rounds", 1, "--frames", 1)
    assert ended.code == 0 and f"| 16x16 | {model} | onnxruntime cpu | fp32 | " in ended.out, ended.err
    assert "left out: the network family 'by hand' is none of this release" in ended.err
    ended = cli.run(capsys, "mtu-bench", model, "--size", "16x16", "--backends", "torch,onnxruntime")
    assert ended.code == 2 and ended.out == "" and "error: the network family" in ended.err


@pytest.mark.parametrize("installed", [["torch"], []])
def test_no_backend_at_all(capsys, tmp_path, monkeypatch, installed):
    model = opposite(tmp_path / "m").directory
    monkeypatch.setattr(backends, "installed_backends", lambda: installed)
    ended = cli.run(capsys, "mtu-bench", model, "--size", "16x16")
    assert ended.code == 2 and ended.err.count("error:") == 1 and ended.out == "", ended.err


def test_models_and_precisions_in_one_run(capsys, small, single, tmp_path):
    """A backend without a choice has one row for each model."""
    pytest.importorskip("openvino")
    report = tmp_path / "report.json"
    args = ("--backends", "onnxruntime,openvino", "--precision", "fp32,auto", "--streams", 2)
    turns = ("--size", "16x12", "--rounds", 1, "--frames", 2, "--json", report)
    ended = cli.run(capsys, "mtu-bench", small.directory, single.directory, *args, *turns)
    assert ended.code == 0, ended.err
    rows = json.loads(report.read_text())["rows"]
    each = ["onnxruntime", "openvino", "openvino"]
    assert [(row["model"], row["backend"]) for row in rows] == [
        (str(model.directory), name) for model in (small, single) for name in each
    ]
    assert {(row["streams"], row["frames"]) for row in rows} == {(2, 4)}
    assert all(row["fps"] == pytest.approx(1000 / row["median_ms"]) and row["gflops"] > 0 for row in rows)
    assert min(row["speed_up"] for row in rows) == 1


def test_a_precision_that_no_backend_can_choose(capsys, small):
    ended = cli.run(capsys, "mtu-bench", small.directory, "--backends", "onnxruntime,torch", "--precision", "bf16")
    assert ended.code == 2 and "onnxruntime, torch can only compute in the model's own types" in ended.err
    ended = cli.run(capsys, "mtu-bench", small.directory, "--precision", "fp32,fp61")
    assert ended.code == 2 and "--precision 'fp32,fp61': write one or more of auto, fp32, bf16" in ended.err


def test_what_is_timed(small):
    """Sizes are rounded up for each model, and only those that can choose have a row for each precision."""
    asked = contestants([small.directory], ["torch", "openvino"], ["fp32", "bf16"], 9, 15, streams=3)
    assert [(each.backend, each.precision) for each in asked] == [
        ("torch", None),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
    ]
    assert {(each.size, each.streams) for each in asked} == {((12, 16), 3)}
    with pytest.raises(InvalidInputError):
        contestants([small.directory], ["torch"], ["bf16"], 9, 15)


def test_streams_are_submitted_before_any_result(monkeypatch):
    backend, order = Made(one_graph("picture")), []
    submit, result = backend.submit, backends.Finished.result
    monkeypatch.setattr(backend, "submit", lambda *args: order.append("submit") or submit(*args))
    monkeypatch.setattr(backends.Finished, "result", lambda pending: order.append("result") or result(pending))
    assert len(list(itertools.islice(_seconds(backend, _noise(12, 16), 3), 2))) == 2
    assert order == (["submit"] * 3 + ["result"] * 3) * 2


def test_the_arithmetic_of_a_frame(single, tmp_path):
    """A frame four times as large takes four times as much; a chain as much as its stages; mtu2 what was counted."""
    assert frame_gflop(open_model(), 360, 640) == pytest.approx(64.06, abs=0.01)
    one = frame_gflop(open_model(single.directory), 24, 32)
    assert one and frame_gflop(open_model(single.directory), 48, 64) == pytest.approx(4 * one)
    chain = write_chain([single.directory, single.directory], tmp_path / "chain").directory
    assert frame_gflop(open_model(chain), 24, 32) == pytest.approx(2 * one)


def test_what_the_figures_depend_on():
    found = environment()
    assert set(found["that has"].split()) <= {*bench.PROCESSOR_FLAGS, "nothing", "known"}
    assert found["numpy"] == np.__version__ and found["processor"]
