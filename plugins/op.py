"""A custom op as one object, and the table of all of them. Imports nothing heavy: the parts are imported when used."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtu.core.errors import InvalidInputError

DOMAIN = "mtu"
"""ONNX domain and plugin namespace of all ops."""

OPS: Mapping[str, str] = {
    "CorrelationArgmaxWarp": "correlation_argmax_warp",
    "IterativeFilters": "iterative_filters",
}
"""The folder of each op, by the op's name. cpp/ops.h has the same table for C++."""


@dataclass(frozen=True)
class Limit:
    """What a number may be for the kernel: one of `allowed`, or from `least` to `most`."""

    meaning: str
    """Of the number, as a sentence to be filled in: "scale must be {}"."""
    least: int | None = None
    most: int | None = None
    allowed: tuple[int, ...] = ()

    def allows(self, value: int) -> bool:
        """Whether it may be `value`."""
        if self.allowed:
            return value in self.allowed
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def words(self) -> str:
        """What it may be: "1, 3, 5 or 7", "1 to 20", "at most 128"."""
        if self.allowed:
            return f"{', '.join(map(str, self.allowed[:-1]))} or {self.allowed[-1]}"
        return f"at most {self.most}" if self.least is None else f"{self.least} to {self.most}"

    @property
    def refusal(self) -> str:
        """A sentence that says what is allowed."""
        return self.meaning.format(f"from {self.words}" if self.least is not None else self.words)


@dataclass(frozen=True)
class Op:
    """A custom op: who it is, what its kernel can do, and where its parts are."""

    name: str
    version: int
    """Of the node. Raised with another meaning of inputs, outputs or attributes."""
    attributes: Mapping[str, int]
    """What holds where a node does not say it."""
    carries: tuple[int, ...]
    """The inputs that the first output is made of. The others are matched, in fp32 by itself: fp16 will do."""
    function: str
    """module:name of `f(**attributes) -> onnx.FunctionProto`, the op in standard operators."""
    revision: int
    """Of the kernel, its workspace and what an engine keeps: an engine of another one cannot run."""
    limits: Mapping[str, Limit]
    """What the kernel can do, by attribute or size."""
    kernel: str
    """module:name of the `kernel.Kernel`."""
    plugin: str
    """module:name of the adapter to TensorRT, a subclass of `trt_python.Plugin`."""

    def part(self, place: str) -> Any:
        """What `function`, `kernel` or `plugin` names."""
        module, name = place.split(":")
        return getattr(importlib.import_module(f"{__package__}.{OPS[self.name]}.{module}"), name)

    def node_attributes(self, attributes: Mapping[str, int]) -> dict[str, Any]:
        """All attributes of a node; TensorRT looks the plugin up by the last two."""
        return {**self.attributes, **attributes, "plugin_version": str(self.version), "plugin_namespace": DOMAIN}

    def check(self, attributes: Mapping[str, int], shapes: Sequence[Sequence[int]], types: Sequence[str]) -> None:
        """Raises InvalidInputError unless the kernel can do it.

        `shapes` and `types` ("float32") are those of the node's inputs, `attributes` what the node says.
        """
        self.part(self.kernel).problem_of({**self.attributes, **attributes}, shapes, types)


@functools.cache
def find_op(name: str) -> Op:
    """The op of this name. Raises InvalidInputError if there is none."""
    if name not in OPS:
        raise InvalidInputError(f"there is no op {DOMAIN}::{name}, there are {', '.join(OPS)}: export the model again")
    op = importlib.import_module(f"{__package__}.{OPS[name]}").OP
    assert isinstance(op, Op)
    return op


def revisions(ops: Iterable[str]) -> dict[str, int]:
    """The revision of each of these ops."""
    return {name: find_op(name).revision for name in ops}
