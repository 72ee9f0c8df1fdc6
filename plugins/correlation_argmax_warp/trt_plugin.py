"""The op as a TensorRT plugin written in Python, for TensorRT from 10.0 and TensorRT-RTX. Imports numpy; the library is
an argument.

It needs no header and no compiler: the kernel is compiled by NVRTC for the GPU at hand (`cuda_op`). Its engines hold
the same fields as those of the C++ plugin, so either plugin runs them. TensorRT swallows exceptions of its callbacks or
prints them past the program, so every one is put into the library's message log first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from mtu.core.errors import InvalidInputError
from mtu.core.interface import MAX_DISPLACEMENT, OP_DOMAIN, OP_NAME, OP_VERSION, POOL_SIZE, SIZE_MULTIPLE
from mtu.plugins.correlation_argmax_warp.cuda_op import ElementType, Layout, Problem, launcher, workspace_bytes
from mtu.plugins.correlation_argmax_warp.rules import KERNEL_REVISION, check_attributes, check_shapes
from mtu.runtime.gpu import current_device
from mtu.runtime.tensorrt_library import Library

ATTRIBUTES = {"max_displacement": MAX_DISPLACEMENT, "pool_size": POOL_SIZE, "scale": SIZE_MULTIPLE}
"""What a node may say, and what holds where it does not."""
REVISION = "revision"
"""Serialised beside the attributes."""

_keep: list[Any] = []
"""The creators: TensorRT does not own them."""

F = TypeVar("F", bound=Callable[..., Any])


def register(library: Library) -> None:
    """Makes the plugin known to the library's global registry; does nothing where it is known already.

    Raises InvalidInputError if this TensorRT takes no plugins from Python.
    """
    trt = library.module
    if not hasattr(trt, "IPluginV3"):
        raise InvalidInputError(
            f"{library.name} {library.version} takes no plugin from Python, which came with 10.0: build the C++ plugin"
            " with mtu-build-plugin and give it with --plugin-library, or use --no-plugin"
        )
    registry = trt.get_plugin_registry()
    if registry.get_creator(OP_NAME, str(OP_VERSION), OP_DOMAIN) is not None:
        return
    creator = _creator(library)
    library.logger.forget()
    if not registry.register_creator(creator, OP_DOMAIN):
        raise InvalidInputError(
            f"{library.name} {library.version} refused the plugin {OP_NAME}: {library.logger.last_error()}"
        )
    _keep.append(creator)


def _reported(library: Library) -> Callable[[F], F]:
    """A decorator for callbacks: what one raises is in the message log before TensorRT sees it."""

    def decorate(method: F) -> F:
        @functools.wraps(method)
        def wrapped(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except Exception as error:
                kind = "" if isinstance(error, InvalidInputError) else f"{type(error).__name__}: "
                library.logger.record("ERROR", f"{OP_NAME}.{method.__name__}: {kind}{error}")
                raise

        return wrapped  # type: ignore[return-value]

    return decorate


def _fields(trt: Any, values: dict[str, int]) -> tuple[Any, list[Any]]:
    """A field collection of one INT32 each, and what it points into: its owner must keep both."""
    data = [np.array([value], np.int32) for value in values.values()]
    fields = [trt.PluginField(name, item, trt.PluginFieldType.INT32) for name, item in zip(values, data, strict=True)]
    return trt.PluginFieldCollection(fields), [data, fields]


def _creator(library: Library) -> Any:
    trt: Any = library.module
    plugin_class = _plugin_class(library)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes the plugin of a node, at build, and of an engine, at run time."""

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = OP_NAME
            self.plugin_version = str(OP_VERSION)
            self.plugin_namespace = OP_DOMAIN
            self._names, self._kept = _fields(trt, ATTRIBUTES)
            self.field_names = self._names

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            """None, with a message in the log, for fields that make no plugin of this release."""
            try:
                return self._create(name, fields, phase)
            except InvalidInputError as error:
                library.logger.record("ERROR", f"{OP_NAME} {name}: {error}")
                return None

        def _create(self, name: str, fields: Any, phase: Any) -> Any:
            values = dict(ATTRIBUTES)
            revision = None
            for field in fields:
                if field.name not in (*ATTRIBUTES, REVISION):
                    continue
                if field.type != trt.PluginFieldType.INT32 or field.size != 1:
                    raise InvalidInputError(
                        f"{field.name} is {field.size} x {field.type.name}, it must be one INT32;"
                        " export the model again"
                    )
                if field.name == REVISION:
                    revision = int(field.data[0])
                else:
                    values[field.name] = int(field.data[0])
            if phase == trt.TensorRTPhase.RUNTIME and revision != KERNEL_REVISION:
                raise InvalidInputError(
                    f"the engine holds revision {revision} of the plugin, this release has {KERNEL_REVISION}:"
                    " build the engine again with mtu-build-engine"
                )
            check_attributes(**values)
            return plugin_class(**values)

    return Creator()


def _plugin_class(library: Library) -> Any:
    trt: Any = library.module
    reported = _reported(library)
    types: dict[Any, ElementType] = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16"}
    layouts: dict[Any, Layout] = {trt.TensorFormat.LINEAR: "linear", trt.TensorFormat.HWC8: "hwc8"}

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[misc]
        """One node. Holds its attributes and nothing else, so clones share nothing."""

        def __init__(self, max_displacement: int, pool_size: int, scale: int) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.plugin_name = OP_NAME
            self.plugin_version = str(OP_VERSION)
            self.plugin_namespace = OP_DOMAIN
            self.num_outputs = 2
            self.attributes = {"max_displacement": max_displacement, "pool_size": pool_size, "scale": scale}
            serialised = {**self.attributes, REVISION: KERNEL_REVISION}
            self.timing_cache_id = ",".join(f"{name}={value}" for name, value in serialised.items())
            self._fields, self._kept = _fields(trt, serialised)

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        @reported
        def clone(self) -> Any:
            return Plugin(**self.attributes)

        @reported
        def attach_to_context(self, context: Any) -> Any:
            return Plugin(**self.attributes)

        def set_tactic(self, tactic: int) -> None:
            """There is one."""

        @reported
        def get_fields_to_serialize(self) -> Any:
            return self._fields

        @reported
        def get_output_data_types(self, inputs: Sequence[Any]) -> list[Any]:
            if len(inputs) != 3:
                raise InvalidInputError(f"the node has {len(inputs)} inputs, it must have 3: export the model again")
            return [inputs[2], trt.DataType.INT32]

        @reported
        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
            motion, _, detail = inputs
            shapes = [list(dims) for dims in inputs]
            if all(size.is_constant() for shape in shapes for size in shape):
                a, b, c = ([size.get_constant_value() for size in shape] for shape in shapes)
                check_shapes(a, b, c, self.attributes["scale"])
            return [detail, trt.DimsExprs([motion[0], motion[2], motion[3]])]

        @reported
        def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
            """Both layouts for all tensors together; what comes after `position` is not looked at."""
            this, first = tensors[position].desc, tensors[0].desc
            if position == 4:
                return bool(this.type == trt.DataType.INT32 and this.format == trt.TensorFormat.LINEAR)
            if this.type not in types or this.format not in layouts:
                return False
            if this.format == trt.TensorFormat.HWC8 and this.type != trt.DataType.HALF:
                return False
            same_type = {1: 0, 3: 2}.get(position)
            return bool(
                this.format == first.format and (same_type is None or this.type == tensors[same_type].desc.type)
            )

        @reported
        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            self._largest(inputs)

        @reported
        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            return workspace_bytes(self._largest(inputs))

        @reported
        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            """Compiles and loads the kernels, which is quick when done before and must not happen during capture."""
            launcher(current_device()).prepare(self._checked(inputs))

        @reported
        def enqueue(
            self,
            inputs: Sequence[Any],
            outputs: Sequence[Any],
            input_pointers: Sequence[int],
            output_pointers: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            problem = self._checked(inputs)
            motion, motion_prev, detail = input_pointers
            warped, displacement = output_pointers
            launcher(current_device()).launch(
                problem, motion, motion_prev, detail, warped, displacement, workspace, stream
            )

        def _checked(self, inputs: Sequence[Any]) -> Problem:
            """What the kernel has to do now; raises InvalidInputError if it cannot."""
            motion, motion_prev, detail = (list(tensor.dims) for tensor in inputs)
            check_shapes(motion, motion_prev, detail, self.attributes["scale"])
            return self._problem(inputs, motion, detail)

        def _largest(self, inputs: Sequence[Any]) -> Problem:
            """The largest that the kernel may have to do: of bounds, which need not fit each other."""
            return self._problem([tensor.desc for tensor in inputs], inputs[0].max, inputs[2].max)

        def _problem(self, tensors: Sequence[Any], motion: Sequence[int], detail: Sequence[int]) -> Problem:
            return Problem(
                batch=motion[0],
                motion_channels=motion[1],
                height=motion[2],
                width=motion[3],
                detail_channels=detail[1],
                motion_type=types[tensors[0].type],
                detail_type=types[tensors[2].type],
                motion_layout=layouts[tensors[0].format],
                detail_layout=layouts[tensors[2].format],
                **self.attributes,
            )

    return Plugin
