"""What a description must be like for anybody to run it. Plain Python; `Interface` checks itself with it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mtu.core.errors import InvalidInputError
from mtu.core.interface import DTYPES, Frame, Input, Interface, Output, Tensor, parse_dim

FARTHEST = 100
"""Largest offset of a frame: so many of them are held in memory."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
NAMES = "a name has 1 to 64 of A-Z a-z 0-9 _ -"


def check(interface: Interface) -> None:
    """Raises InvalidInputError for a description that contradicts itself or that nobody could run."""
    i = interface
    _demand(all(type(text) is str for text in (i.family, i.variant, i.weights)), "family, variant, weights: texts")
    _demand(i.precision in ("fp32", "fp16"), f"precision is {i.precision!r}: fp32 or fp16")
    _demand(isinstance(i.settings, Mapping), "settings: a mapping")
    _demand(all(type(layer) is str for layer in i.int8_layers), f"int8_layers {i.int8_layers!r}: must be texts")
    whole = (i.size.multiple, i.size.minimum, i.size.smallest, i.scale)
    _demand(all(type(n) is int and 1 <= n <= 4096 for n in whole), "size and scale: whole numbers from 1")
    _demand(all(type(op.get("version")) is int for op in i.ops.values()), "ops: each has a version")
    _demand(i.size.minimum % i.size.multiple == 0, f"size: the minimum {i.size.minimum} is no multiple")
    _demand(type(i.working_bytes) is int and i.working_bytes >= 0, "working_bytes: a whole number")
    _demand(bool(i.streams) and all(map(_is_name, i.streams)), f"streams {i.streams!r}: one or more; {NAMES}")
    names = [graph.name for graph in i.graphs]
    _demand(
        bool(names) and all(map(_is_name, names)) and len({*names}) == len(names),
        f"graphs {names!r}: one or more, none twice; {NAMES}",
    )
    states = {each.tensor.name: each.tensor for each in i.outputs if each.role == "state"}
    frames: dict[str, Frame] = {}
    for graph in i.graphs:
        where = f"graph {graph.name}"
        _demand(graph.outputs == i.outputs, f"{where} gives other outputs than {names[0]}")
        _demand(len(graph.tensors) == len(graph.inputs) + len(graph.outputs), f"{where} has a name twice")
        for each in graph.inputs:
            _check_input(i, states, frames, each, where)
        _demand(bool(graph.frames), f"{where} takes no frame")
        for output in graph.outputs:
            _check_output(i, output, where)
    _demand(type(i.batched) is bool, f"batched is {i.batched!r}: true or false")
    if i.batched:
        lacking = [name for name, tensor in i.tensors.items() if tensor.shape[:1] != (1,)]
        _demand(not lacking, f"batched, and {', '.join(lacking)} has no axis of streams, whose size is 1")
    _demand(any(not graph.states for graph in i.graphs), "every graph takes states: none is for a first frame")
    _demand(any(each.role in ("picture", "map") for each in i.outputs), "no output is a picture or a map")


def _check_input(
    i: Interface, states: Mapping[str, Tensor], frames: dict[str, Frame], given: Input, where: str
) -> None:
    tensor, source, what = given.tensor, given.source, f"{where}, input {given.tensor.name}"
    _check_tensor(i, tensor, what)
    if isinstance(source, Frame):
        _demand(source.stream in i.streams, f"{what} is of stream {source.stream!r}, which there is not")
        _demand(type(source.offset) is int and abs(source.offset) <= FARTHEST, f"{what}: offset {source.offset!r}")
        _demand(frames.setdefault(tensor.name, source) == source, f"{what} is another frame than in another graph")
        _demand((tensor.dtype, tensor.shape) == ("uint8", (1, "H", "W", 3)), f"{what}: a frame is uint8 [1, H, W, 3]")
        return
    _demand(source.name in states, f"{what} is state {source.name!r}, which no output gives")
    state = states[source.name]
    _demand((tensor.dtype, tensor.shape) == (state.dtype, state.shape), f"{what} differs from the state {state.name}")


def _check_output(i: Interface, given: Output, where: str) -> None:
    tensor, what = given.tensor, f"{where}, output {given.tensor.name}"
    _check_tensor(i, tensor, what)
    is_float = tensor.dtype in ("float32", "float16")
    sides = tuple("HW" if i.scale == 1 else (f"{i.scale}*H", f"{i.scale}*W"))
    good = {
        "picture": (tensor.dtype, tensor.shape) == ("uint8", (1, *sides, 3)),
        "map": is_float and len(tensor.shape) == 3 and tensor.shape[0] == 1,
        "displacement": tensor.dtype == "int32" and len(tensor.shape) == 3 and tensor.shape[0] == 1,
        "state": is_float,
    }
    _demand(given.role in good, f"{what}: role {given.role!r}; roles are {', '.join(good)}")
    _demand(good[given.role], f"{what}: {tensor.dtype} {list(tensor.shape)} is no {given.role}")
    radius = given.radius
    _demand(type(radius) is int and (radius > 0) == (given.role == "displacement"), f"{what}: radius {radius!r}")
    if (unit := given.unit) is not None:
        numbers = all(type(n) in (int, float) and abs(n) < 1e9 for n in (unit.factor, unit.offset))
        _demand(given.role == "map" and type(unit.name) is str and numbers, f"{what}: unit {unit!r:.200}")


def _check_tensor(i: Interface, tensor: Tensor, what: str) -> None:
    _demand(_is_name(tensor.name), f"{what}: the name {tensor.name!r}; {NAMES}")
    _demand(tensor.dtype in DTYPES, f"{what}: type {tensor.dtype!r}; types are {', '.join(DTYPES)}")
    for dim in tensor.shape:
        if isinstance(dim, str):
            parts = parse_dim(dim)[2]
            _demand(i.size.multiple % parts == 0, f"{what}: {dim} needs frames of a multiple of {parts}")
        else:
            _demand(type(dim) is int and dim > 0, f"{what}: size {dim!r}")


def _is_name(text: object) -> bool:
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def _demand(is_so: bool, what: str) -> None:
    if not is_so:
        raise InvalidInputError(what)
