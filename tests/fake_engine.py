"""The part of TensorRT and TensorRT-RTX that the backend uses, over a `fake_device`: engines that onnxruntime runs.

Nothing here is a test.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

from mtu.core.interface import Tensor
from mtu.plugins.op import OPS
from tests.fake_device import Access, Allocation, Gpu, Operation, Work, new_module

VERSIONS = {"tensorrt": "10.16.1.11", "tensorrt-8": "8.6.1", "tensorrt-rtx": "1.7.1"}
MAGIC = b"FAKE"
SCRATCH = 4096

TYPES = {"tensor(uint8)": "UINT8", "tensor(int32)": "INT32", "tensor(float)": "FLOAT", "tensor(float16)": "HALF"}
NUMPY = {"UINT8": np.uint8, "INT32": np.int32, "FLOAT": np.float32, "HALF": np.float16}


class ExecutionContext:
    """Runs the graph with onnxruntime on the memory that it was given addresses of."""

    def __init__(self, gpu: Gpu, engine: FakeEngine) -> None:
        self.gpu, self.engine = gpu, engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.scratch = 0
        self.is_warm = False
        self.loaded: Operation | None = None
        """The loading of what the first run needs."""
        self.compiled: RuntimeCache | None = None
        self.kernels, self.tables = Allocation(gpu, 64), Allocation(gpu, 64)
        gpu.append(gpu.setting_up, Work("prepare kernels", [touched(self.kernels, True)], lambda: None), [])

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= SCRATCH and address % 256 == 0
        self.scratch = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return name in self.engine.inputs

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self.addresses.get(name) == address:
            self.gpu.faults.append(f"the address of {name} is set though it has it")
        self.addresses[name] = address
        self.gpu.addresses_set += 1
        self.is_warm = False
        return name in self.engine.types

    def is_stream_capturable(self, stream: int) -> bool:
        return self.gpu.capturable

    def execute_async_v3(self, handle: int) -> bool:
        stream = self.gpu.streams[handle]
        if not self.scratch or set(self.addresses) != set(self.engine.types) or set(self.shapes) != self.engine.inputs:
            self.engine.log("something is not set")
            return False
        if not self.engine.works():
            return False
        if self.compiled is not None and self.compiled.add(f"{self.engine.graph} {sorted(self.shapes.items())}"):
            self.gpu.compilations += 1
        if stream.captured is not None:
            is_loaded = self.loaded is not None and self.loaded.is_before(self.gpu.clock)
            if not self.gpu.capturable or not self.is_warm or not is_loaded:  # it would have to wait for what it loads
                stream.void = "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
                self.engine.log("operation not permitted when stream is capturing")
                return False
        elif self.loaded is None:
            work = Work("load tables", [touched(self.tables, True)], lambda: None)
            self.loaded = self.gpu.append(self.gpu.loading, work, [])
            self.gpu.append(stream, Work("wait for tables", [], lambda: None), [self.loaded])
        self.is_warm = True
        self.gpu.executions.append(("capture " if stream.captured is not None else "") + self.engine.graph)
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        height, width = next(shapes[name][1:3] for name in shapes if self.engine.types[name] == "UINT8")
        accesses = [Access(self.scratch, self.scratch + SCRATCH, True)]
        accesses += [touched(memory, False) for memory in (self.engine.weights, self.kernels, self.tables)]
        for name, kind in self.engine.types.items():
            if name not in shapes:
                shapes[name] = Tensor(name, kind, tuple(self.engine.shapes[name])).at(height, width)
            size = int(np.prod(shapes[name])) * np.dtype(NUMPY[kind]).itemsize
            accesses.append(Access(addresses[name], addresses[name] + size, name not in self.engine.inputs))

        def run() -> None:
            def tensor(name: str) -> np.ndarray:
                kind = np.dtype(NUMPY[self.engine.types[name]])
                size = int(np.prod(shapes[name])) * kind.itemsize
                return self.gpu.view(addresses[name], size).view(kind).reshape(shapes[name])

            outputs = [name for name in self.engine.types if name not in self.engine.inputs]
            values = self.engine.session.run(outputs, {name: tensor(name).copy() for name in self.engine.inputs})
            for name, value in zip(outputs, values, strict=True):
                tensor(name)[...] = value

        self.gpu.enqueue(stream, Work(self.engine.graph, accesses, run))
        return True


def touched(memory: Allocation, writes: bool) -> Access:
    return Access(memory.address, memory.address + 64, writes)


class OldExecutionContext(ExecutionContext):
    """As in TensorRT 8.6."""

    set_device_memory = None  # type: ignore[assignment]
    is_stream_capturable = None  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        if name in ("set_device_memory", "is_stream_capturable"):
            raise AttributeError(name)
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__("scratch" if name == "device_memory" else name, value)


@functools.cache
def open_session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class FakeEngine:
    """A deserialised engine."""

    def __init__(self, gpu: Gpu, content: bytes, log: Callable[[str], None]) -> None:
        self.gpu, self.log = gpu, log
        self.session = open_session(content)
        self.graph = self.session.get_modelmeta().custom_metadata_map["mtu.graph"]
        nodes = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.inputs = {node.name for node in self.session.get_inputs()}
        self.types = {node.name: TYPES[node.type] for node in nodes}
        self.shapes = {node.name: [1, *node.shape[1:]] for node in nodes}  # an engine is for one stream
        self.num_io_tensors = len(nodes)
        self.weights = Allocation(gpu, 64)
        gpu.append(gpu.setting_up, Work("load weights", [touched(self.weights, True)], lambda: None), [])

    def works(self) -> bool:
        """Whether a call does: the first one after a failed capture does not, whatever it is."""
        fails, self.gpu.has_stale_error = self.gpu.has_stale_error, False
        if fails:
            self.log("CUDA runtime: an error of an earlier call")
        return not fails

    def get_tensor_name(self, number: int) -> str:
        return list(self.types)[number]

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=self.types[name])


class NewEngine(FakeEngine):
    """Of TensorRT 10 and later."""

    device_memory_size_v2 = SCRATCH

    def create_execution_context(self, strategy: Any) -> ExecutionContext | None:
        assert strategy == "user managed"
        return ExecutionContext(self.gpu, self) if self.works() else None


class OldEngine(FakeEngine):
    """Of TensorRT 8.6."""

    device_memory_size = SCRATCH

    def create_execution_context_without_device_memory(self) -> ExecutionContext | None:
        return OldExecutionContext(self.gpu, self) if self.works() else None


class RtxEngine(NewEngine):
    """Of TensorRT-RTX."""

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.gpu)

    def create_execution_context(self, config: Any) -> ExecutionContext | None:
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        context = super().create_execution_context(config.strategy)
        if context is not None:
            context.compiled = config.cache
        return context


ENGINES = {"tensorrt": NewEngine, "tensorrt-8": OldEngine, "tensorrt-rtx": RtxEngine}


class RuntimeCache:
    """TensorRT-RTX's: what it has compiled."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.kernels: set[str] = set()

    def add(self, kernel: str) -> bool:
        """Whether it was not there yet."""
        is_new = kernel not in self.kernels
        self.kernels.add(kernel)
        return is_new

    def serialize(self) -> bytes:
        return "\n".join(["cache", *sorted(self.kernels)]).encode()

    def deserialize(self, content: bytes) -> bool:
        self.gpu.check_context()
        magic, *kernels = content.decode().split("\n")
        if magic == "cache":
            self.kernels |= set(kernels)
        return magic == "cache"


class RuntimeConfig:
    dynamic_shapes_kernel_specialization_strategy = "lazy"

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.gpu)

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy


def tensorrt(gpu: Gpu) -> types.ModuleType:
    """The part of `tensorrt` or `tensorrt_rtx` that the backend uses, as the flavour has it."""
    name = "tensorrt_rtx" if gpu.flavour == "tensorrt-rtx" else "tensorrt"
    module = new_module(name)
    module.__version__ = VERSIONS[gpu.flavour]  # type: ignore[attr-defined]

    class Logger:
        pass

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def log(self, text: str) -> None:
            self.logger.log(types.SimpleNamespace(name="ERROR"), text)

        def deserialize_cuda_engine(self, content: bytes) -> FakeEngine | None:
            gpu.check_context()
            if not content.startswith(MAGIC):
                self.log("Serialization assertion magicTagRead == kMAGIC_TAG failed")
                return None
            missing = [op for op in OPS if op.encode() in content and op not in gpu.registered]
            if missing:
                self.log(f"Cannot find plugin: {missing[0]}, version: 1, namespace: mtu")
                return None
            return ENGINES[gpu.flavour](gpu, content[len(MAGIC) :], self.log)

    module.ILogger, module.Runtime = Logger, Runtime  # type: ignore[attr-defined]
    if gpu.flavour != "tensorrt-8":
        module.ExecutionContextAllocationStrategy = types.SimpleNamespace(  # type: ignore[attr-defined]
            USER_MANAGED="user managed"
        )
    if gpu.flavour == "tensorrt-rtx":
        module.DynamicShapesKernelSpecializationStrategy = types.SimpleNamespace(  # type: ignore[attr-defined]
            EAGER="eager"
        )
    return module
