"""The op for a TensorRT plugin in Python: types, shapes, formats. Imports no TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtu.plugins import trt_python
from mtu.plugins.iterative_filters import rules


class Plugin(trt_python.Plugin):
    """What TensorRT asks about one node."""

    input_count, output_count = 2, 1
    check_attributes = staticmethod(rules.check_attributes)

    def check_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        """Of x and filters."""
        x, filters = shapes
        rules.check_shapes(x, filters, self.attributes["shared_taps"])

    def output_types(self, inputs: Sequence[Any]) -> list[Any]:
        """Of filtered."""
        return [inputs[0]]

    def output_shapes(self, inputs: Sequence[Any]) -> list[Any]:
        """Of filtered."""
        return [inputs[0]]

    def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
        """All tensors alike; what comes after `position` is not looked at."""
        this, first = tensors[position].desc, tensors[0].desc
        return bool(self.is_offered(this) and this.format == first.format and this.type == first.type)
