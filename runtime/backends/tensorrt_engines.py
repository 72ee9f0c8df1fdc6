"""The engines of a model, loaded, and execution contexts of them: all that differs between the libraries' versions.

The library is an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from mtu.core.cache import cache_directory, keep, read_kept
from mtu.core.errors import InvalidInputError
from mtu.core.interface import Graph
from mtu.runtime.backends.cuda_device import Device
from mtu.runtime.engine import Engine
from mtu.runtime.tensorrt_library import Library

TYPES = {"uint8": "UINT8", "int32": "INT32", "float32": "FLOAT", "float16": "HALF"}
"""TensorRT's names of the element types."""


class RuntimeCache:
    """What TensorRT-RTX compiles of one engine for the GPU at hand, kept from run to run. With the device current.

    The library looks itself whether what was kept is for this GPU, driver and version.
    """

    def __init__(self, config: Any, key: Sequence[str]) -> None:
        """`config` is an `IRuntimeConfig` of the engine, `key` all that the compiled kernels are for."""
        name = hashlib.sha256(chr(0).join(key).encode()).hexdigest()
        self._path = cache_directory() / "rtx" / f"{name}.cache"
        self.cache = config.create_runtime_cache()
        """The library's `IRuntimeCache`."""
        self._kept = read_kept(self._path)
        if self._kept is not None and not self.cache.deserialize(self._kept):
            self._kept = None

    def keep(self) -> None:
        """Writes what has been compiled since it was read; warns if that is impossible."""
        content = self.cache.serialize()
        if content is not None and bytes(content) != self._kept:
            self._kept = bytes(content)
            keep(self._path, self._kept, "what TensorRT-RTX compiled")


class LoadedEngines:
    """To be used, and freed, with the device current."""

    def __init__(self, engine: Engine, library: Library, gpu: Device) -> None:
        """Holds nothing yet: see `load`. `engine` fits the host and its files are whole."""
        self.name = library.name
        self._engine, self._library, self._gpu = engine, library, gpu
        self._runtime: Any = None
        self._engines: dict[str, Any] = {}
        self._compiled: dict[str, RuntimeCache] = {}
        self._scratch: Any = None

    def load(self) -> None:
        """Raises InvalidInputError if the library cannot load it; `close` is to be called even so."""
        self._runtime = self._library.module.Runtime(self._library.logger)
        if self._engine.manifest.version_compatible:
            self._runtime.engine_host_code_allowed = True  # it may bring the runtime of its own version
        for graph in self._engine.interface.graphs:
            self._deserialise(graph)
        self._scratch = self._gpu.memory(max(map(_scratch_size, self._engines.values())))

    def _deserialise(self, graph: Graph) -> None:
        """Nothing but `_engines` holds it, no frame of an error either: the device has to be current when it goes."""
        path = self._engine.graph(graph.name)
        self.forget_errors()
        self._engines[graph.name] = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engines[graph.name] is None:
            raise InvalidInputError(
                f"{self._library.name} {self._library.version} cannot load {path}: {self.reason()};"
                f" build it again: {self._engine.manifest.command}"
            )
        found = _tensors(self._engines[graph.name])
        expected = {name: TYPES[tensor.dtype] for name, tensor in graph.tensors.items()}
        if found != expected:
            raise InvalidInputError(
                f"{path}: its tensors are {found}, its manifest says {expected};"
                f" build it again: {self._engine.manifest.command}"
            )

    def new_context(self, graph: str, height: int, width: int) -> Any:
        """An execution context for one size. All of them work in one memory, one after the other on one stream."""
        trt, engine = self._library.module, self._engines[graph]
        self.forget_errors()
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            # TensorRT-RTX: compile for the size now, not in the background while a stand-in is being captured.
            config = engine.create_runtime_config()
            if graph not in self._compiled:
                digest, gpu = self._engine.manifest.engines[graph], self._gpu
                key = digest, self._library.version, gpu.name, gpu.compute_capability
                self._compiled[graph] = RuntimeCache(config, key)
            config.set_runtime_cache(self._compiled[graph].cache)
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            context = engine.create_execution_context(config)
        elif hasattr(trt, "ExecutionContextAllocationStrategy"):
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:
            context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise self.failure("prepare", graph, height, width)
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(int(self._scratch), _scratch_size(engine))
        else:
            context.device_memory = int(self._scratch)
        return context

    def failure(self, what: str, graph: str, height: int, width: int) -> InvalidInputError:
        """The error for something that the library would not do."""
        return InvalidInputError(
            f"{self.name} could not {what} {self._engine.graph(graph)} for frames of {width}x{height}:"
            f" {self.reason()}; build it again: {self._engine.manifest.command}"
        )

    def forget_errors(self) -> None:
        """Before whatever the library is asked to do: `reason` is of that, not of something before."""
        self._library.logger.forget()

    def reason(self) -> str:
        """What the library said last."""
        return str(self._library.logger.last_error())

    def keep_compiled(self) -> None:
        """Writes what the library has compiled for this GPU, where it does so."""
        for cache in self._compiled.values():
            cache.keep()

    def close(self) -> None:
        """With nothing under way and no context left."""
        # In this order: the library's objects need those that made them.
        self._compiled.clear()
        self._engines.clear()
        self._runtime = self._scratch = None


def _tensors(engine: Any) -> dict[str, str]:
    """Names of inputs and outputs, with TensorRT's names of their types."""
    names = (engine.get_tensor_name(number) for number in range(engine.num_io_tensors))
    return {name: engine.get_tensor_dtype(name).name for name in names}


def _scratch_size(engine: Any) -> int:
    """Bytes that a context of `engine` needs to work in, at the largest size of its profile."""
    return int(engine.device_memory_size_v2 if hasattr(engine, "device_memory_size_v2") else engine.device_memory_size)
