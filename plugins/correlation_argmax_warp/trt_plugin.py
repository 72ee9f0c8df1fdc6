"""The op for a TensorRT plugin in Python: types, shapes, formats, workspace, launch. Imports no TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mtu.core.errors import InvalidInputError
from mtu.plugins import trt_python
from mtu.plugins.correlation_argmax_warp import rules
from mtu.plugins.correlation_argmax_warp.cuda_op import Problem, launcher, problem_of, workspace_bytes
from mtu.plugins.nvrtc import current_device


class Plugin(trt_python.Plugin):
    """What TensorRT asks about one node."""

    output_count = 2
    check_attributes = staticmethod(rules.check_attributes)

    def get_output_data_types(self, inputs: Sequence[Any]) -> list[Any]:
        """Of warped and displacement."""
        if len(inputs) != 3:
            raise InvalidInputError(f"the node has {len(inputs)} inputs, it must have 3: export the model again")
        return [inputs[2], self.trt.DataType.INT32]

    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
        """Of warped and displacement; checks sizes that are known."""
        motion, _, detail = inputs
        shapes = [list(dims) for dims in inputs]
        if all(size.is_constant() for shape in shapes for size in shape):
            a, b, c = ([size.get_constant_value() for size in shape] for shape in shapes)
            rules.check_shapes(a, b, c, self.attributes["scale"])
        return [detail, self.trt.DimsExprs([motion[0], motion[2], motion[3]])]

    def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
        """Both layouts for all tensors together; what comes after `position` is not looked at."""
        kinds, layouts = self.trt.DataType, self.trt.TensorFormat
        this, first = tensors[position].desc, tensors[0].desc
        if position == 4:
            return bool(this.type == kinds.INT32 and this.format == layouts.LINEAR)
        if this.type not in (kinds.FLOAT, kinds.HALF) or this.format not in (layouts.LINEAR, layouts.HWC8):
            return False
        if this.format == layouts.HWC8 and this.type != kinds.HALF:
            return False
        same_type = {1: 0, 3: 2}.get(position)
        return bool(this.format == first.format and (same_type is None or this.type == tensors[same_type].desc.type))

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Refuses what the kernel cannot do at the largest sizes."""
        self._largest(inputs)

    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        """Bytes for the largest sizes."""
        return workspace_bytes(self._largest(inputs))

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Compiles and loads the kernels, which is quick when done before and must not happen during capture."""
        launcher(current_device()).prepare(self._checked(inputs))

    def enqueue(
        self,
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        input_pointers: Sequence[int],
        output_pointers: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        """Launches the kernels."""
        problem = self._checked(inputs)
        motion, motion_prev, detail = input_pointers
        warped, displacement = output_pointers
        launcher(current_device()).launch(problem, motion, motion_prev, detail, warped, displacement, workspace, stream)

    def _checked(self, inputs: Sequence[Any]) -> Problem:
        """What the kernel has to do now; raises InvalidInputError if it cannot."""
        shapes = [list(tensor.dims) for tensor in inputs]
        motion, motion_prev, detail = shapes
        rules.check_shapes(motion, motion_prev, detail, self.attributes["scale"])
        return self._problem(inputs, shapes)

    def _largest(self, inputs: Sequence[Any]) -> Problem:
        """The largest that the kernel may have to do: of bounds, which need not fit each other."""
        return self._problem([tensor.desc for tensor in inputs], [tensor.max for tensor in inputs])

    def _problem(self, tensors: Sequence[Any], shapes: Sequence[Sequence[int]]) -> Problem:
        half, hwc8 = self.trt.DataType.HALF, self.trt.TensorFormat.HWC8
        return problem_of(
            self.attributes,
            shapes,
            ["float16" if tensor.type == half else "float32" for tensor in tensors],
            ["hwc8" if tensor.format == hwc8 else "linear" for tensor in tensors],
        )
