"""Broken copies of a model, and what is common to the tests of a comparison. Nothing here is a test."""

from __future__ import annotations

import base64
import html.parser
import shutil

import numpy as np
import onnx
from onnx import numpy_helper
from tests.frames import moving_frames

from mtu.calib.compare_report import CompareReport
from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, Tensor
from mtu.runtime import open_bundle
from mtu.runtime.backends import Finished

HEIGHT, WIDTH, COUNT = 30, 50, 6


def altered(bundle, directory, change, graphs=None):
    """A copy of a bundle in which `change(weights by name)` has been at some graphs."""
    shutil.copytree(bundle.directory, directory)
    for graph in graphs or [path.stem for path in directory.glob("*.onnx")]:
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

    def submit(self, graph, frames, states):
        if self._state in states and states[self._state] is not self._written.get(self._state):
            states = {**states, self._state: self._first}
        pending = self._backend.submit(graph, frames, states)
        self._first = pending.states[self._state] if self._first is None else self._first
        return pending


def frames():
    return moving_frames(COUNT, HEIGHT, WIDTH)


def one_graph(role, scale=1):
    """The description of a network of one frame: a picture `scale` times as large, or a map of half its sides."""
    sides = ("H", "W") if scale == 1 else (f"{scale}*H", f"{scale}*W")
    tensors = {"picture": Tensor("out", "uint8", (1, *sides, 3)), "map": Tensor("out", "float32", (1, "H/2", "W/2"))}
    graph = Graph(
        "all",
        (Input(Tensor("frame", "uint8", (1, "H", "W", 3)), Frame("image", 0)),),
        (Output(tensors[role], role),),
    )
    return Interface(family="own", variant="own", settings={}, graphs=(graph,), size=Size(2, 2), scale=scale)


class Made:
    """A backend that runs `one_graph`: the frame, enlarged, or every second value of its first channel."""

    name, device, arithmetic, in_flight, remarks = "made", "cpu", "fp32", 0, ()

    def __init__(self, interface, error=0):
        """`error` is what a map is off by, or bits of a picture that are turned."""
        self.interface, self.seen, self._error = interface, [], error

    def submit(self, graph, frames, states):
        assert not states
        self.seen.append((graph, frames))
        frame, scale = frames["frame"], self.interface.scale
        if self.interface.the("map"):
            return Finished({}, {"out": (frame[:, ::2, ::2, 0] / 255 + self._error).astype(np.float32)}, [])
        return Finished({}, {"out": frame.repeat(scale, 1).repeat(scale, 2) ^ np.uint8(self._error)}, [])

    def read_states(self, states):
        return dict(states)

    write_states = read_states

    def close(self):
        pass


DISPLACEMENT = Output(Tensor("displacement", "int32", (1, "H/4", "W/4")), "displacement", radius=10)


def reported(runs, floors, displacement=DISPLACEMENT):
    return CompareReport(
        a={"model": "<a>"},
        b={"model": "<b>"},
        source="clip",
        width=WIDTH,
        height=HEIGHT,
        displacement=displacement,
        floors=floors,
        runs=runs,
    )


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
