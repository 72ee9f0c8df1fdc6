"""Axis 0 of exported graphs: streams that are computed at once; networks and bundles that take one alone."""

# ruff: noqa: E402
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from tests import cli, needs
from tests.frames import moving_frames

needs.library("torch")

from tests.engine_builds import half_bundle, of_one_stream
from tests.graphs_of_streams import axes, takes_streams

from mtu.core.errors import InvalidInputError
from mtu.export.bundle_files import load_graphs, save_bundle
from mtu.export.quantise import Limits, candidates, quantise
from mtu.export.verify import compare_streams
from mtu.models import families
from mtu.runtime import Session, open_backend, open_bundle, restore
from mtu.runtime.bundle import BUNDLE, bundled_directory
from mtu.runtime.stacked import stacked

FAMILY = """
import torch
from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, State, Tensor
from mtu.models.pictures import to_float, to_frame

PRESETS = {"mine": {}}

class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, frame, *states):
        x = to_float(frame, self.inner.weight.dtype)
        x = self.inner(x)
        CHANGE
        sums = x.mean((2, 3))
        return to_frame(x.clamp(0, 1)), STATE

def describe(settings):
    frame = Input(Tensor("frame", "uint8", (1, "H", "W", 3)), Frame("image", 0))
    state = Tensor("sums", "float32", SHAPE)
    taken = Input(Tensor("before", "float32", SHAPE), State("sums"))
    outputs = (Output(Tensor("picture", "uint8", (1, "H", "W", 3)), "picture"), Output(state, "state"))
    graphs = (Graph("begin", (frame,), outputs), Graph("go_on", (frame, taken), outputs))
    return Interface("mine", "custom", settings, graphs, size=Size(2, 8))

def settings_of(tensors):
    return {} if "inner.weight" in tensors else None

def network(settings):
    return Mine()

def graphs(network):
    return {"begin": network, "go_on": network}
"""


def own(directory, change="pass", state="sums + (states[0] if states else 0)", shape="(1, 3)"):
    path = directory / "mine.py"
    path.write_text(FAMILY.replace("CHANGE", change).replace("STATE", state).replace("SHAPE", shape))
    return path


@pytest.fixture(autouse=True)
def no_family_stays(monkeypatch):
    monkeypatch.setattr(families, "_own", {})


@pytest.mark.parametrize("name", ["small", "single", "mimo", "dmenet"])
def test_graphs_take_several_streams(request, name):
    assert takes_streams(request.getfixturevalue(name))


def test_the_bundled_model_takes_several_streams():
    assert open_bundle().interface.batched and axes(open_bundle()) == {"N"}
    assert json.loads((bundled_directory() / BUNDLE).read_text())["batched"] is True


def test_half_and_int8_graphs_take_several_streams(small, tmp_path):
    assert takes_streams(half_bundle(small, tmp_path / "half"))
    models = load_graphs(small)
    for model in models.values():
        quantise(model, {layer.name: Limits(4, 4) for layer in candidates(model)})
    layers = tuple(layer.name for layer in candidates(load_graphs(small)["step"]))
    (tmp_path / "int8").mkdir()
    save_bundle(tmp_path / "int8", replace(small.interface, int8_layers=layers), models)
    assert takes_streams(open_bundle(tmp_path / "int8"))


def test_a_network_of_one_s_own_that_is_made_for_batches(tmp_path, capsys):
    path = own(tmp_path, "x = x.reshape(x.shape[0], 3, -1).reshape(x.shape) - x.mean((1, 2, 3), keepdim=True)")
    ended = cli.run(capsys, "mtu-export", "onnx", "--family", path, "--preset", "mine", "-o", tmp_path / "b")
    assert ended.code == 0 and "note:" not in ended.err, ended.err
    assert takes_streams(open_bundle(tmp_path / "b"))


@pytest.mark.parametrize(
    "options",
    [
        {"change": "x = x[0][None]"},
        {"change": "x = x - x.mean()"},
        {"change": "assert x.shape[0] == 1"},
        {"change": "x = x + torch.zeros(x.shape[0], 3, 1, 1)"},  # becomes a constant of three streams
        {"state": "sums[0] + (states[0] if states else 0)", "shape": "(3,)"},
    ],
)
def test_a_network_that_takes_one_stream_is_exported_for_one(tmp_path, capsys, options):
    path = own(tmp_path, **options)
    ended = cli.run(capsys, "mtu-export", "onnx", "--family", path, "--preset", "mine", "-o", tmp_path / "b")
    assert ended.code == 0, ended.err
    assert "note: the network takes one stream at a time, so several are not computed together" in ended.err
    bundle = open_bundle(tmp_path / "b")
    assert not bundle.interface.batched and "batched" not in json.loads((tmp_path / "b" / BUNDLE).read_text())
    assert "N" not in axes(bundle)
    backend = open_backend("onnxruntime", bundle)
    assert stacked(backend, 8) is backend and len(list(restore(moving_frames(3, 8, 8), backend))) == 3
    backend.close()


def test_a_network_that_cannot_be_traced_with_several_streams(tmp_path, monkeypatch):
    """It computes them right, and its export says no."""
    from mtu.export import to_onnx

    traced = []

    def trace(module, example, graph, dynamic, plain=to_onnx._trace):
        traced.append(len(example[0]))
        if len(example[0]) > 1:
            raise InvalidInputError("a constraint")
        return plain(module, example, graph, dynamic)

    monkeypatch.setattr(to_onnx, "_trace", trace)
    checkpoint = to_onnx.random_checkpoint("mimo_unet", {"blocks": 1, "channels": 4})
    said = []
    bundle = to_onnx.export_bundle(checkpoint, tmp_path / "b", say=said.append)
    assert traced == [3, 1] and not bundle.interface.batched and axes(bundle) == {1}
    assert said[-1].startswith("note: the network takes one stream at a time")
    first, second = (number for number, text in enumerate(said) if text.startswith("exporting "))
    assert "again with one" in said[second - 1] and first < second


def old(bundle, directory):
    """As it was exported before graphs took several streams."""
    models = load_graphs(bundle)
    for model in models.values():
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 1
    directory.mkdir()
    save_bundle(directory, of_one_stream(bundle.interface), models)
    return open_bundle(directory)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "torch"])
def test_a_bundle_of_before_gives_what_it_gave(small, tmp_path, one_thread, name):
    before = old(small, tmp_path / "old")
    fields = json.loads((before.directory / BUNDLE).read_text())
    assert "batched" not in fields and axes(before) == {1}
    pictures = []
    for bundle in (before, small):
        backend = open_backend(name, bundle, "cpu")
        assert (stacked(backend, 4) is backend) == (bundle is before or name == "openvino")
        session = Session(backend, scene_threshold=None)
        pictures.append([r.rgb for f in moving_frames(5, 16, 24) for r in session.push(f)])
        backend.close()
    assert np.array_equal(*pictures)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_description_that_says_other_than_the_graphs_is_refused(small, tmp_path, name):
    for number, (claims, source) in enumerate([(True, old(small, tmp_path / "old")), (False, small)]):
        directory = tmp_path / str(number)
        directory.mkdir()
        save_bundle(directory, replace(source.interface, batched=claims), load_graphs(source))
        with pytest.raises(InvalidInputError, match=r"first.onnx: its inputs are .* bundle.json says .* export"):
            open_backend(name, open_bundle(directory), "cpu", size=(8, 8))


def test_streams_that_are_mixed_are_found(mimo, monkeypatch):
    """By what `verify` asks after an export."""
    backend = open_backend("onnxruntime", mimo, "cpu")
    plain = backend.submit
    mixed = {"mean": lambda array: array // 2 + array[::-1] // 2, "first": lambda array: array[:1]}
    for how, words in (("mean", "another output for two streams at once than for each"), ("first", r"output as \[1, ")):

        def submit(graph, frames, states, mix=mixed[how]):
            given = {name: mix(array) if len(array) > 1 else array for name, array in frames.items()}
            return plain(graph, given, states)

        monkeypatch.setattr(backend, "submit", submit)
        with pytest.raises(InvalidInputError, match=words):
            compare_streams(backend)
    backend.close()
