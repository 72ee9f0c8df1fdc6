"""The op for a TensorRT plugin in Python: types, shapes, formats. Imports no TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtu.plugins import trt_python
from mtu.plugins.correlation_argmax_warp import rules


class Plugin(trt_python.Plugin):
    """What TensorRT asks about one node."""

    input_count, output_count = 3, 2
    check_attributes = staticmethod(rules.check_attributes)

    def check_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        """Of motion, motion_prev and detail_prev."""
        motion, motion_prev, detail = shapes
        rules.check_shapes(motion, motion_prev, detail, self.attributes["scale"])

    def output_types(self, inputs: Sequence[Any]) -> list[Any]:
        """Of warped and displacement."""
        return [inputs[2], self.trt.DataType.INT32]

    def output_shapes(self, inputs: Sequence[Any]) -> list[Any]:
        """Of warped and displacement."""
        motion, _, detail = inputs
        return [detail, self.trt.DimsExprs([motion[0], motion[2], motion[3]])]

    def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
        """Both layouts for all tensors together; what comes after `position` is not looked at."""
        this, first = tensors[position].desc, tensors[0].desc
        if position == 4:
            return bool(this.type == self.trt.DataType.INT32 and this.format == self.trt.TensorFormat.LINEAR)
        same_type = {1: 0, 3: 2}.get(position, position)
        return bool(self.is_offered(this) and this.format == first.format and this.type == tensors[same_type].desc.type)
