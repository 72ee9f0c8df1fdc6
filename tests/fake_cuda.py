"""A GPU for tests without one: the driver, pycuda, the graphs of cuda-bindings and TensorRT, as far as we use them.

Nothing runs when it is enqueued. A stream keeps its operations until somebody waits for them, and then only those run
that the waiting depends on, as late as a real GPU ever could; or, given a seed, some run earlier, in a random order
that the events allow. On top, every operation says which bytes it reads and writes, and two operations that touch the
same bytes, one of them writing, without an order between them raise `Race`, whatever the order was this time. Memory of
the device is memory of the host at made-up addresses, full of rubbish at first; an execution context runs the ONNX
graph that is the content of the "engine" with onnxruntime. The library also works on streams of its own: it loads the
weights when it reads an engine, prepares kernels when it makes a context, and loads them at the first run with new
addresses. What a real GPU would forgive or do silently wrong, without any result that shows it, is in `Gpu.faults`.

Nothing here is a test.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtu.plugins import nvrtc
from mtu.plugins.op import revisions
from mtu.runtime import backends, tensorrt_library
from mtu.runtime import gpu as gpu_module
from mtu.runtime.bundle import Bundle
from mtu.runtime.engine import Engine, EngineManifest, Profile, file_digest, open_engine
from tests.fake_device import Event, Gpu, Race, Work, new_module
from tests.fake_engine import MAGIC, SCRATCH, VERSIONS, ExecutionContext, OldExecutionContext, tensorrt
from tests.fake_pycuda import CAPABILITY, NAME, cuda_bindings, pycuda_driver

__all__ = ["Event", "ExecutionContext", "Gpu", "OldExecutionContext", "Race", "Work"]


class Libcuda:
    """What `mtu.runtime.gpu` asks libcuda for."""

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0 if index == 0 else 101

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = NAME.encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: CAPABILITY[0], 76: CAPABILITY[1]}[attribute]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = 1 << 30
        return 0

    def cuDriverGetVersion(self, value: Any) -> int:
        value._obj.value = 13000
        return 0


def install(patch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """Makes this process believe that it has `gpu` and the library of its flavour."""
    pycuda, cuda, bindings = new_module("pycuda"), new_module("cuda"), new_module("cuda.bindings")
    pycuda.driver, bindings.driver = pycuda_driver(gpu), cuda_bindings(gpu)
    cuda.bindings, cuda.core = bindings, new_module("cuda.core")
    plugin = new_module("mtu.plugins.trt_python")

    def register(library: Any, op: Any) -> None:
        gpu.registered.add(op.name)

    plugin.register = register
    patch.setattr(nvrtc, "compiled", lambda source, arch: b"cubin")
    library = tensorrt(gpu)
    for module in (pycuda, pycuda.driver, cuda, bindings, bindings.driver, cuda.core, plugin, library):
        patch.setitem(sys.modules, module.__name__, module)
    patch.setattr(gpu_module, "driver_library", Libcuda)
    uninstall()


def uninstall() -> None:
    """Forgets what was imported or found out with a GPU that is no longer there, or not yet."""
    for path in Path(backends.__file__).parent.glob("*.py"):
        if path.stem.startswith(("tensorrt_", "cuda_")):
            sys.modules.pop(f"mtu.runtime.backends.{path.stem}", None)
            if hasattr(backends, path.stem):
                delattr(backends, path.stem)
    gpu_module.find_gpu.cache_clear()
    tensorrt_library.load_library.cache_clear()


def write_engine(bundle: Bundle, directory: Path, profile: Profile, **changes: Any) -> Engine:
    """The directory that mtu-build-engine would write for the fake library."""
    directory.mkdir(parents=True)
    graphs = [graph.name for graph in bundle.interface.graphs]
    engines = {}
    for graph in graphs:
        path = directory / f"{graph}.engine"
        path.write_bytes(MAGIC + bundle.graph(graph).read_bytes())
        engines[graph] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest = EngineManifest(
        interface=replace(bundle.interface, batched=False),
        library="tensorrt",
        library_version=VERSIONS["tensorrt"],
        plugins=revisions(bundle.interface.ops),
        gpu=NAME,
        compute_capabilities=(".".join(map(str, CAPABILITY)),),
        hardware_compatibility="none",
        version_compatible=False,
        profile=profile,
        onnx={graph: file_digest(bundle.graph(graph)) for graph in graphs},
        engines=engines,
        device_memory=dict.fromkeys(graphs, SCRATCH),
        command=f"mtu-build-engine BUNDLE -o {directory}",
        release="0",
    )
    (directory / "engine.json").write_text(replace(manifest, **changes).to_json())
    return open_engine(directory)
