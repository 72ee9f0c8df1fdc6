"""The description of a model, as data: graphs, their inputs and outputs, and what each of them means.

It knows no network. `bundle.json` holds it (`mtu.runtime.bundle`), a family makes it (`mtu.models.families`), everyone
else reads it. Plain Python: no numpy, torch, onnx, tensorrt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

from mtu.core.errors import InvalidInputError

FORMAT_VERSION = "2"
"""Of the layout of bundle.json. Raised when a reader of the old one would go wrong."""

STREAMS = "N"
"""What axis 0 is called in the graphs of a batched model, as the description calls others "H" and "W"."""

Dim = int | str
Role = Literal["picture", "map", "displacement", "state"]
Precision = Literal["fp32", "fp16"]

DTYPES = ("uint8", "int32", "float32", "float16")
_DIM = re.compile(r"(?:([1-9]\d{0,3})\*)?([HW])(?:/([1-9]\d{0,3}))?")


@dataclass(frozen=True)
class Tensor:
    """A tensor that goes into a graph or comes out of it."""

    name: str
    dtype: str
    """numpy's name of the element type, one of `DTYPES`."""
    shape: tuple[Dim, ...]
    """Of one stream: integers, or "H", "W/4", "4*H" of the padded frame. See `Interface.batched` for several."""

    def at(self, height: int, width: int, streams: int = 1) -> tuple[int, ...]:
        """The shape for a frame of height x width pixels; of one that is not padded, what is left after cutting back:
        fractions are rounded up. `streams` above 1 is for a batched model."""
        sizes = {"H": height, "W": width}
        found = []
        for dim in self.shape:
            if isinstance(dim, str):
                times, axis, parts = parse_dim(dim)
                dim = -(-sizes[axis] * times // parts)
            found.append(dim)
        return tuple(found) if streams == 1 else (streams, *found[1:])

    def enlarged(self, times: int) -> Tensor:
        """The tensor where frames come in `times` as large as those that the sizes are said of."""
        shape: list[Dim] = []
        for dim in self.shape:
            if isinstance(dim, str) and times > 1:
                numerator, axis, parts = parse_dim(dim)
                dim = f"{numerator * times}*{axis}" + (f"/{parts}" if parts > 1 else "")
            shape.append(dim)
        return replace(self, shape=tuple(shape))


def parse_dim(text: str) -> tuple[int, str, int]:
    """Of "3*H/4" 3, "H", 4. Raises InvalidInputError."""
    match = _DIM.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"the size {text!r} of a tensor: write an integer, or H, W/4, 4*H")
    return int(match[1] or 1), match[2], int(match[3] or 1)


@dataclass(frozen=True)
class Frame:
    """Source of an input: a frame of a stream, uint8 RGB [1, H, W, 3]."""

    stream: str
    offset: int
    """Relative to the frame that is restored; -1 is the one before it. Clamped at the ends of a sequence."""


@dataclass(frozen=True)
class State:
    """Source of an input: what the frame before gave."""

    name: str
    """Of the output with the role state."""


@dataclass(frozen=True)
class Input:
    """What a graph takes."""

    tensor: Tensor
    source: Frame | State


@dataclass(frozen=True)
class Unit:
    """What a value v of a map stands for: max(0, factor * v + offset) of the quantity `name`."""

    name: str
    factor: float
    offset: float


@dataclass(frozen=True)
class Output:
    """What a graph gives.

    A picture is uint8 [1, s*H, s*W, 3] RGB, s the interface's scale. A map is float [1, h, w] in [0, 1]. A displacement
    is int32 [1, h, w], the index (dy + D) * (2D + 1) + (dx + D) of a move of dy, dx positions, D the `radius`. A state
    goes into the next frame, and is otherwise nobody's business.
    """

    tensor: Tensor
    role: Role
    radius: int = 0
    """Of a displacement, in positions of its map, at least 1; 0 of everything else."""
    unit: Unit | None = None
    """Of a map, where its values stand for something."""


@dataclass(frozen=True)
class Graph:
    """One of a model's graphs: a file of this name."""

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]

    @property
    def frames(self) -> dict[str, Frame]:
        """The inputs that are frames, by name, in order."""
        return {each.tensor.name: each.source for each in self.inputs if isinstance(each.source, Frame)}

    @property
    def states(self) -> dict[str, str]:
        """The inputs that are states: the name of the input, and of the output of the frame before."""
        return {each.tensor.name: each.source.name for each in self.inputs if isinstance(each.source, State)}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Inputs and outputs by name, in order."""
        every: tuple[Input | Output, ...] = (*self.inputs, *self.outputs)
        return {each.tensor.name: each.tensor for each in every}


@dataclass(frozen=True)
class Size:
    """Which frames a model takes; others are padded with their last row and column and cut back afterwards."""

    multiple: int = 1
    """Height and width are multiples of this."""
    minimum: int = 1
    """And at least this, a multiple too."""
    smallest: int = 1
    """Frames with a side below this are refused: too little of what the network sees would be theirs."""

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that frames of this size get. Raises InvalidInputError for frames that are too small."""
        if min(height, width) < self.smallest:
            raise InvalidInputError(
                f"frames of {width}x{height} are too small for this model, which takes {self.smallest}x{self.smallest}"
                " and larger ones: enlarge them, or use another model"
            )
        height, width = (max(side + -side % self.multiple, self.minimum) for side in (height, width))
        return height, width


@dataclass(frozen=True)
class Interface:
    """What a model takes, gives and carries from frame to frame.

    All graphs give the same outputs and differ in what they take: `graph_for` says which one a frame goes through.
    """

    family: str
    """Who made it. Nobody but the torch backends looks at it after export."""
    variant: str
    """For people: "mtu2", "custom"."""
    settings: Mapping[str, Any]
    """Of the network; opaque to everyone but the family and people."""
    graphs: tuple[Graph, ...]
    size: Size = Size()
    scale: int = 1
    """Size of the picture over that of the frame."""
    streams: tuple[str, ...] = ("image",)
    """What is read in step; the first one sets the size."""
    weights: str = ""
    """sha256 of the checkpoint (names, shapes, fp32 values in key order), hexadecimal."""
    precision: Precision = "fp32"
    """Type of weights, states and arithmetic."""
    int8_layers: tuple[str, ...] = ()
    """Convolutions that compute in int8, by their names in the checkpoint, in graph order."""
    ops: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The custom ops in the graphs: of each its `version` and its attributes, as the nodes say them."""
    working_bytes: int = 0
    """What a graph's tensors that are alive at one time take, in bytes for each pixel of a frame; 0: not known."""
    batched: bool = False
    """Whether the graphs take several streams at once: axis 0 of every tensor, 1 in the description, is then the number
    of streams, which have nothing to do with each other."""

    def __post_init__(self) -> None:
        from mtu.core.interface_rules import check  # which imports this file

        check(self)

    @property
    def arithmetic(self) -> str:
        """What computes, in words: "fp32", "fp16", "fp32 with 40 layers in int8"."""
        kind = self.precision
        return f"{kind} with {len(self.int8_layers)} layers in int8" if self.int8_layers else kind

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Of every graph."""
        return self.graphs[0].outputs

    def with_role(self, *roles: Role) -> tuple[Output, ...]:
        """The outputs that have one of these roles, in order."""
        return tuple(each for each in self.outputs if each.role in roles)

    def the(self, role: Role) -> Output | None:
        """The output with this role, the first where there are several; None where there is none."""
        return next(iter(self.with_role(role)), None)

    @cached_property
    def states(self) -> dict[str, Tensor]:
        """The tensors carried from frame to frame, by name."""
        return {each.tensor.name: each.tensor for each in self.with_role("state")}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Inputs and outputs of all graphs, by name."""
        return {name: tensor for graph in self.graphs for name, tensor in graph.tensors.items()}

    @cached_property
    def frames(self) -> dict[str, Frame]:
        """The frames that any of the graphs takes, by name of the input."""
        return {name: frame for graph in self.graphs for name, frame in graph.frames.items()}

    @cached_property
    def look_back(self) -> int:
        """Frames before a frame that are needed to restore it."""
        return max(0, *(-frame.offset for frame in self.frames.values()))

    @cached_property
    def look_ahead(self) -> int:
        """Frames that must arrive after a frame before it can be restored."""
        return max(0, *(frame.offset for frame in self.frames.values()))

    def graph(self, name: str) -> Graph:
        """The graph of this name. Raises InvalidInputError if there is none."""
        for graph in self.graphs:
            if graph.name == name:
                return graph
        raise InvalidInputError(
            f"the model has no graph '{name}': it has {', '.join(graph.name for graph in self.graphs)}"
        )

    def graph_for(self, held: Collection[str]) -> Graph:
        """The graph that uses the most of the states that are there."""
        fitting = (graph for graph in self.graphs if set(graph.states.values()) <= set(held))
        return max(fitting, key=lambda graph: len(graph.states))

    @cached_property
    def digest(self) -> str:
        """sha256 of the description, hexadecimal: what the ONNX files of a bundle say they belong to."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        graphs = [
            {
                "name": graph.name,
                "inputs": [{**asdict(each.tensor), **_source(each.source)} for each in graph.inputs],
                "outputs": [_plain(each) for each in graph.outputs],
            }
            for graph in self.graphs
        ]
        size = {name: value for name, value in asdict(self.size).items() if (name, value) != ("smallest", 1)}
        if not self.batched:  # which is not written, so that digests are what they were before there was such a field
            del plain["batched"]
        return {**plain, "graphs": graphs, "size": size}

    @classmethod
    def from_dict(cls, found: Any, source: str) -> Interface:
        """The interface in parsed JSON; `source` names the file in messages. Raises InvalidInputError."""
        try:
            found = {"batched": False, **found}  # there was no such field once
            graphs = tuple(
                Graph(
                    graph["name"],
                    tuple(Input(_tensor(each), _read_source(each)) for each in graph["inputs"]),
                    tuple(_read_output(each) for each in graph["outputs"]),
                )
                for graph in found["graphs"]
            )
            lists = {name: _texts(found[name]) for name in ("streams", "int8_layers")}
            for each in fields(cls):
                found[each.name]  # another default would be a guess
            return cls(**{**found, **lists, "graphs": graphs, "size": Size(**found["size"])})
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise InvalidInputError(
                f"{source} has a broken description ({what:.300}): export the model again"
            ) from None


def _source(source: Frame | State) -> dict[str, Any]:
    return {"state": source.name} if isinstance(source, State) else asdict(source)


def _plain(output: Output) -> dict[str, Any]:
    others = {"radius": output.radius, "unit": output.unit and asdict(output.unit)}
    return {**asdict(output.tensor), "role": output.role, **{name: value for name, value in others.items() if value}}


def _read_output(fields: Mapping[str, Any]) -> Output:
    unit = Unit(**fields["unit"]) if "unit" in fields else None
    return Output(_tensor(fields), fields["role"], fields.get("radius", 0), unit)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.80} is no list")
    return tuple(value)


def _read_source(fields: Mapping[str, Any]) -> Frame | State:
    return State(fields["state"]) if "state" in fields else Frame(fields["stream"], fields["offset"])


def _tensor(fields: Mapping[str, Any]) -> Tensor:
    return Tensor(fields["name"], fields["dtype"], tuple(fields["shape"]))
