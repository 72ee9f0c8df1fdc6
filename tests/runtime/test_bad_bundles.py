"""Bundles that are none, are damaged, or are not what they say: one message, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import cli

from mtu.core.errors import MtuError
from mtu.core.interface import Interface
from mtu.runtime import open_backend, open_bundle
from mtu.runtime.backends import open_model
from mtu.runtime.bundle import bundle_json
from mtu.runtime.video import write_png


@pytest.fixture
def copied(small, tmp_path):
    """A bundle to damage."""
    return Path(shutil.copytree(small.directory, tmp_path / "bundle"))


def refused(capsys, model: Path, *words: str) -> None:
    """By `mtu-run`, before anything is written."""
    write_png(model.parent / "in.png", np.zeros((8, 8, 3), np.uint8))
    before = sorted(model.parent.iterdir())
    ended = cli.run(capsys, "mtu-run", model.parent / "in.png", "-o", model.parent / "out.png", "--model", model)
    assert ended.code == 2 and ended.err.count("error:") == 1 and "Traceback" not in ended.err, ended.err
    assert len(ended.err) < 1000 and all(word in ended.err for word in words), ended.err
    assert sorted(model.parent.iterdir()) == before


DEEP = b'{"graphs": ' + b"[" * 100_000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "lacks bundle.json"),
        (b"", "describes no model, or is damaged"),
        (b"not JSON", "describes no model, or is damaged"),
        (b"[1, 2]", "describes no model, or is damaged"),
        (b'"text"', "describes no model, or is damaged"),
        (b"null", "describes no model, or is damaged"),
        (b"{}", "describes no model, or is damaged"),
        (b"\xff\xfe\x00", "describes no model, or is damaged"),
        (DEEP, "describes no model, or is damaged"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "bundle.json"),
        (b'{"format_version": "1"}', "is of format 1, this release reads 2"),
        (b'{"format_version": "3"}', "is of format 3, this release reads 2"),
        (b'{"format_version": 2}', "bundle.json is of format 2"),
        (b'{"format_version": "2"}', "has a broken description (lacks 'graphs')"),
        (b'{"format_version": "2", "graphs": 3}', "has a broken description"),
        (b'{"format_version": "2", "graphs": [{}]}', "has a broken description (lacks 'name')"),
        (b'{"format_version": "2", "graphs": [[]]}', "has a broken description"),
        (b'{"format_version": "2", "stages": null}', "stages is None"),
    ],
)
def test_a_bundle_json_that_is_none(copied, capsys, content, words):
    (copied / "bundle.json").unlink()
    if content is not None:
        for path in copied.glob("*.onnx"):
            path.rename(path.with_name("other-" + path.name))
        (copied / "bundle.json").write_bytes(content)
    elif (copied / "first.onnx").exists():
        (copied / "first.onnx").unlink()
    refused(capsys, copied, words)


def test_a_bundle_of_format_1(copied, capsys):
    (copied / "bundle.json").unlink()
    refused(capsys, copied, "format 1", "mtu-export onnx --checkpoint FILE -o", "--overwrite")


def test_bundle_json_is_a_directory(copied, capsys):
    (copied / "bundle.json").unlink()
    (copied / "bundle.json").mkdir()
    (copied / "first.onnx").unlink()
    refused(capsys, copied, "lacks bundle.json")


def edit(directory: Path, *keys, value) -> None:
    """Sets an entry of bundle.json."""
    fields = json.loads((directory / "bundle.json").read_text())
    inner = fields
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (directory / "bundle.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        # What is not there
        (("graphs", 1, "inputs", 5, "state"), "memory", "is state 'memory', which no output gives"),
        (("graphs", 0, "inputs", 0, "stream"), "depth", "is of stream 'depth', which there is not"),
        (("graphs", 1, "name"), "later", "lacks later.onnx"),
        (("graphs", 0, "outputs", 0, "role"), "photo", "role 'photo'"),
        (("ops", "SomeOp"), {"version": 1}, "uses the custom op SomeOp, which this release has not"),
        (("ops", "CorrelationArgmaxWarp", "version"), 9, "uses version 9 of CorrelationArgmaxWarp"),
        # Ways out of the directory
        (("graphs", 0, "name"), "../../first", "a name has 1 to 64"),
        (("graphs", 0, "name"), "/etc/passwd", "a name has 1 to 64"),
        (("graphs", 0, "name"), "first\0", "a name has 1 to 64"),
        (("graphs", 0, "name"), "", "a name has 1 to 64"),
        (("graphs", 0, "name"), ["first"], "bundle.json"),
        # Huge or of another type
        (("size", "multiple"), 10**12, "size and scale"),
        (("size", "multiple"), 1e3, "size and scale"),
        (("size",), {"multiple": 4, "minimum": 4, "maximum": 9}, "bundle.json"),
        (("size",), 4, "bundle.json"),
        (("scale",), 10**400, "size and scale"),
        (("scale",), -1, "size and scale"),
        (("graphs", 0, "inputs", 0, "offset"), 10**9, "offset 1000000000"),
        (("graphs", 0, "inputs", 0, "offset"), True, "offset"),
        (("graphs", 0, "inputs", 0, "shape"), 7, "bundle.json"),
        (("graphs", 0, "inputs", 0, "shape"), [1, "H" * 10_000, "W", 3], "the size 'HHH"),
        (("graphs", 0, "inputs", 0, "shape", 0), -1, "bundle.json"),
        (("graphs", 0, "outputs", 4, "radius"), 0, "radius 0"),
        (("graphs", 0, "inputs", 0, "dtype"), "complex64", "complex64"),
        (("working_bytes",), 1.5, "working_bytes"),
        (("streams",), [], "streams"),
        (("streams",), "image", "'image' is no list"),
        (("int8_layers",), [1], "int8_layers"),
        (("precision",), "int4", "precision"),
        (("settings",), None, "settings"),
        (("ops",), [], "bundle.json"),
        (("something",), 1, "bundle.json"),
    ],
)
def test_a_description_nobody_could_run(copied, capsys, keys, value, words):
    edit(copied, *keys, value=value)
    refused(capsys, copied, words, "bundle.json" if words != "lacks later.onnx" else str(copied))
    with pytest.raises(MtuError):
        open_model(copied)


def described(directory: Path, interface: Interface) -> None:
    (directory / "bundle.json").write_bytes(bundle_json(interface))


def swapped(directory: Path, small, mimo) -> None:
    (directory / "first.onnx").rename(directory / "x")
    (directory / "step.onnx").rename(directory / "first.onnx")
    (directory / "x").rename(directory / "step.onnx")


CONTRADICTIONS = {
    "the graphs' files swapped": (swapped, ".onnx is not the graph"),
    "the graph of another bundle": (
        lambda d, small, mimo: shutil.copy(mimo.graph("picture"), d / "first.onnx"),
        "first.onnx is not the graph first that bundle.json describes",
    ),
    "the description of other weights": (
        lambda d, small, mimo: described(d, replace(small.interface, weights="00" * 32)),
        "is not the graph first that bundle.json describes (mtu.interface is",
    ),
    "the description of another network": (
        lambda d, small, mimo: (described(d, mimo.interface), (d / "first.onnx").rename(d / "picture.onnx")),
        "is not the graph picture that bundle.json describes",
    ),
    "graphs in another order": (
        lambda d, small, mimo: described(d, replace(small.interface, graphs=small.interface.graphs[::-1])),
        "that bundle.json describes",
    ),
    "another rule for sizes": (
        lambda d, small, mimo: edit(d, "size", "minimum", value=8),
        "that bundle.json describes",
    ),
    "a graph that is missing": (lambda d, small, mimo: (d / "step.onnx").unlink(), "lacks step.onnx"),
    "a graph that is a directory": (
        lambda d, small, mimo: ((d / "step.onnx").unlink(), (d / "step.onnx").mkdir()),
        "lacks step.onnx",
    ),
    "a graph that is empty": (lambda d, small, mimo: (d / "step.onnx").write_bytes(b""), "step.onnx"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_description_that_its_graphs_contradict(copied, capsys, small, mimo, what):
    change, words = CONTRADICTIONS[what]
    change(copied, small, mimo)
    refused(capsys, copied, words)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
@pytest.mark.parametrize("what", ["the graphs' files swapped", "the description of other weights"])
def test_backends_look_at_what_a_graph_says_it_is(copied, small, mimo, what, backend):
    change, _ = CONTRADICTIONS[what]
    change(copied, small, mimo)
    with pytest.raises(MtuError, match=r"that bundle\.json describes"):
        open_backend(backend, open_bundle(copied), "cpu")
