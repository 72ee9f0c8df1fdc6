"""Plugins for TensorRT from 10.0 and TensorRT-RTX, written in Python: what those of all ops share. Imports numpy; the
library is an argument.

They need no header and no compiler: NVRTC compiles the kernels for the GPU at hand. Their engines hold the same fields
as those of the C++ plugins, so either runs them. TensorRT swallows exceptions of its callbacks or prints them past the
program, so every one is put into the library's message log first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mtu.core.errors import InvalidInputError
from mtu.plugins import register as registry
from mtu.plugins.kernel import Kernel, launcher
from mtu.plugins.nvrtc import current_device
from mtu.plugins.op import DOMAIN, Op

REVISION = "revision"
"""Serialised beside the attributes."""

CALLBACKS = (
    "clone",
    "attach_to_context",
    "get_fields_to_serialize",
    "get_output_data_types",
    "get_output_shapes",
    "supports_format_combination",
    "configure_plugin",
    "get_workspace_size",
    "on_shape_change",
    "enqueue",
)

_keep: list[Any] = []
"""The creators: TensorRT does not own them."""


class Plugin:
    """One node. Holds its attributes and nothing else, so clones share nothing.

    The op's folder has a subclass, with what is only declared here; `plugin_class` makes a plugin of it: adds the
    interfaces of a library, and `op`, `library`.
    """

    op: Op
    library: registry.Library
    input_count: int
    output_count: int
    check_attributes: Callable[..., None]
    """Raises InvalidInputError for attributes that no executor of the op takes."""

    def __init__(self, attributes: Mapping[str, int]) -> None:
        """Raises InvalidInputError for attributes that the op does not have."""
        for base in _interfaces(self.trt):
            base.__init__(self)
        self.check_attributes(**attributes)
        self.plugin_name, self.plugin_version, self.plugin_namespace = self.op.name, str(self.op.version), DOMAIN
        self.num_outputs = self.output_count
        self.attributes = dict(attributes)
        self._kernel: Kernel = self.op.part(self.op.kernel)
        serialised = {**attributes, REVISION: self.op.revision}
        self.timing_cache_id = ",".join(f"{name}={value}" for name, value in serialised.items())
        self._fields, self._kept = _fields(self.trt, serialised)

    @property
    def trt(self) -> Any:
        """The library's module."""
        return self.library.module

    def check_shapes(self, shapes: Sequence[Sequence[int]]) -> None:
        """Raises InvalidInputError for shapes of the inputs that no executor of the op takes."""
        raise NotImplementedError

    def output_types(self, inputs: Sequence[Any]) -> list[Any]:
        """From the types of the inputs."""
        raise NotImplementedError

    def output_shapes(self, inputs: Sequence[Any]) -> list[Any]:
        """From the shapes of the inputs, which may not be known yet."""
        raise NotImplementedError

    def supports_format_combination(self, position: int, tensors: Sequence[Any], inputs: int) -> bool:
        """Whether tensor `position`, inputs first, may be as it is; what comes after it is not known."""
        raise NotImplementedError

    def get_capability_interface(self, kind: Any) -> Any:
        """It is all of them."""
        return self

    def clone(self) -> Any:
        """Another one."""
        return type(self)(self.attributes)

    def attach_to_context(self, context: Any) -> Any:
        """Another one, for an execution context."""
        return type(self)(self.attributes)

    def set_tactic(self, tactic: int) -> None:
        """There is one."""

    def get_fields_to_serialize(self) -> Any:
        """What an engine keeps."""
        return self._fields

    def is_offered(self, tensor: Any) -> bool:
        """Whether a tensor has one of the types and layouts of `kernel`: linear fp32 or fp16, or fp16 in HWC8."""
        kinds, layouts = self.trt.DataType, self.trt.TensorFormat
        linear = tensor.format == layouts.LINEAR and tensor.type in (kinds.FLOAT, kinds.HALF)
        return bool(linear or (tensor.format == layouts.HWC8 and tensor.type == kinds.HALF))

    def get_output_data_types(self, inputs: Sequence[Any]) -> list[Any]:
        """Refuses another number of inputs."""
        if len(inputs) != self.input_count:
            wanted = f"it must have {self.input_count}"
            raise InvalidInputError(f"the node has {len(inputs)} inputs, {wanted}: export the model again")
        return self.output_types(inputs)

    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
        """Checks sizes that are known."""
        shapes = [list(dims) for dims in inputs]
        if all(size.is_constant() for shape in shapes for size in shape):
            self.check_shapes([[size.get_constant_value() for size in shape] for shape in shapes])
        return self.output_shapes(inputs)

    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Refuses what the kernel cannot do at the largest sizes."""
        self._largest(inputs)

    def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
        """Bytes for the largest sizes."""
        return self._kernel.workspace_bytes(self._largest(inputs))

    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Compiles and loads the kernels, which is quick when done before and must not happen during capture."""
        launcher(self._kernel, current_device()).prepare(self._checked(inputs))

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
        pointers = [*input_pointers, *output_pointers, workspace]
        launcher(self._kernel, current_device()).launch(self._checked(inputs), pointers, stream)

    def _checked(self, inputs: Sequence[Any]) -> Any:
        """The problem at hand; raises InvalidInputError if the kernel cannot do it."""
        shapes = [list(tensor.dims) for tensor in inputs]
        self.check_shapes(shapes)
        return self._problem(inputs, shapes)

    def _largest(self, inputs: Sequence[Any]) -> Any:
        """The largest problem that there may be: of bounds, which need not fit each other."""
        return self._problem([tensor.desc for tensor in inputs], [tensor.max for tensor in inputs])

    def _problem(self, tensors: Sequence[Any], shapes: Sequence[Sequence[int]]) -> Any:
        half, hwc8 = self.trt.DataType.HALF, self.trt.TensorFormat.HWC8
        return self._kernel.problem_of(
            self.attributes,
            shapes,
            ["float16" if tensor.type == half else "float32" for tensor in tensors],
            ["hwc8" if tensor.format == hwc8 else "linear" for tensor in tensors],
        )


class Creator:
    """Makes the plugin of a node, at build, and of an engine, at run time. `register` adds the library's interface."""

    def __init__(self, library: registry.Library, op: Op) -> None:
        library.module.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_version, self.plugin_namespace = op.name, str(op.version), DOMAIN
        self.field_names, self._kept = _fields(library.module, op.attributes)
        self._library, self._op, self._plugin = library, op, plugin_class(library, op)

    def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
        """None, with a message in the log, for fields that make no plugin of this release."""
        try:
            return self._plugin(self._read(fields, phase == self._library.module.TensorRTPhase.RUNTIME))
        except InvalidInputError as error:
            self._library.logger.record("ERROR", f"{self._op.name} {name}: {error}")
            return None

    def _read(self, fields: Any, serialised: bool) -> dict[str, int]:
        values = dict(self._op.attributes)
        revision = None
        for field in fields:
            if field.name not in (*values, REVISION):
                continue
            if field.type != self._library.module.PluginFieldType.INT32 or field.size != 1:
                raise InvalidInputError(
                    f"{field.name} is {field.size} x {field.type.name}, it must be one INT32; export the model again"
                )
            if field.name == REVISION:
                revision = int(field.data[0])
            else:
                values[field.name] = int(field.data[0])
        if serialised and revision != self._op.revision:
            raise InvalidInputError(
                f"the engine holds revision {revision} of the plugin, this release has {self._op.revision}:"
                " build the engine again with mtu-build-engine"
            )
        return values


def register(library: registry.Library, op: Op) -> None:
    """Makes the plugin known to the library's global registry; does nothing where it is known already.

    Raises InvalidInputError if this TensorRT takes no plugins from Python.
    """
    trt = library.module
    if not hasattr(trt, "IPluginV3"):
        raise InvalidInputError(
            f"{library.name} {library.version} takes no plugin from Python, which came with 10.0: build the C++ plugin"
            " with mtu-build-plugin and give it with --plugin-library, or use --no-plugin"
        )
    if registry.is_known(library, op):
        return
    creator = type("Creator", (Creator, trt.IPluginCreatorV3One), {})(library, op)
    library.logger.forget()
    if not trt.get_plugin_registry().register_creator(creator, DOMAIN):
        raise InvalidInputError(
            f"{library.name} {library.version} refused the plugin {op.name}: {library.logger.last_error()}"
        )
    _keep.append(creator)


def plugin_class(library: registry.Library, op: Op) -> Any:
    """The class of the op's plugins for a library."""
    adapter = op.part(op.plugin)
    callbacks = {name: _reported(library, op, getattr(adapter, name)) for name in CALLBACKS}
    return type("Plugin", (adapter, *_interfaces(library.module)), {**callbacks, "op": op, "library": library})


def _interfaces(trt: Any) -> tuple[Any, ...]:
    return trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime


def _reported(library: registry.Library, op: Op, method: Callable[..., Any]) -> Callable[..., Any]:
    """The callback, but what it raises is in the message log before TensorRT sees it."""

    @functools.wraps(method)
    def wrapped(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception as error:
            kind = "" if isinstance(error, InvalidInputError) else f"{type(error).__name__}: "
            library.logger.record("ERROR", f"{op.name}.{method.__name__}: {kind}{error}")
            raise

    return wrapped


def _fields(trt: Any, values: Mapping[str, int]) -> tuple[Any, list[Any]]:
    """A field collection of one INT32 each, and what it points into: its owner must keep both."""
    data = [np.array([value], np.int32) for value in values.values()]
    fields = [trt.PluginField(name, item, trt.PluginFieldType.INT32) for name, item in zip(values, data, strict=True)]
    return trt.PluginFieldCollection(fields), [data, fields]
