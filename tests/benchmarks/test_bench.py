"""mtu-bench: what it times, for every kind of model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests import cli
from tests.calib.comparing import Made, one_graph
from tests.small_models import opposite

from mtu.benchmarks import bench
from mtu.benchmarks.bench import _noise, _seconds
from mtu.export.chain_files import write_chain

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
        assert ended.code == 0 and "| 16x12 | onnxruntime cpu | " in ended.out, ended


def test_backends_that_refuse_the_model_are_left_out_unless_named(capsys, tmp_path, monkeypatch):
    model = opposite(tmp_path / "m").directory
    monkeypatch.setattr(bench, "installed_backends", lambda: ["torch", "onnxruntime"])
    ended = cli.run(capsys, "mtu-bench", model, "--size", "16x16", "--rounds", 1, "--frames", 1)
    assert ended.code == 0 and "| 16x16 | onnxruntime cpu | " in ended.out, ended.err
    assert "left out: the network family 'by hand' is none of this release" in ended.err
    ended = cli.run(capsys, "mtu-bench", model, "--size", "16x16", "--backends", "torch,onnxruntime")
    assert ended.code == 2 and ended.out == "" and "error: the network family" in ended.err


@pytest.mark.parametrize("installed", [["torch"], []])
def test_no_backend_at_all(capsys, tmp_path, monkeypatch, installed):
    model = opposite(tmp_path / "m").directory
    monkeypatch.setattr(bench, "installed_backends", lambda: installed)
    ended = cli.run(capsys, "mtu-bench", model, "--size", "16x16")
    assert ended.code == 2 and ended.err.count("error:") == 1 and ended.out == "", ended.err
