"""ONNX graphs as OpenVINO compiles them: read, checked, compiled for one size, kept. Imports openvino and onnx.

Note [what is kept]
    Compiling takes half a second a graph, reading what was compiled a third of that. It is kept in the cache directory
    under a name that holds the digest of everything it depends on: the file, the description, size and precision,
    OpenVINO's version, the processor and what it can do. A file that is damaged, that OpenVINO refuses or that cannot
    be written costs that half second and is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.inliner import inline_local_functions

from mtu.core.cache import cache_directory, keep, read_kept
from mtu.core.errors import InvalidInputError, some
from mtu.core.interface import Graph, Tensor
from mtu.core.processor import int8_units
from mtu.runtime.backends.openvino_int8 import fit_int8
from mtu.runtime.backends.openvino_precision import keep_indices_fp32
from mtu.runtime.bundle import Bundle, check_metadata, check_tensors
from mtu.runtime.engine import file_digest
from mtu.runtime.openvino_library import load_openvino, shared_core

REVISION = 1
"""Of what happens to a graph between its file and the compiler; raised when that changes."""


@dataclass(frozen=True)
class Target:
    """What graphs are compiled for."""

    device: str
    """As OpenVINO names it: CPU, GPU.1, NPU."""
    precision: str
    """f32 or bf16."""
    at_once: int
    """Frames that are computed at the same time."""

    @property
    def settings(self) -> dict[str, Any]:
        """For the compiler. Without the precision it would be what is fastest on the device."""
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self.precision}
        if self.at_once == 1:
            # A thread that is pinned waits where a decoder or an encoder has its core: a fifth slower.
            free = {"ENABLE_CPU_PINNING": False} if self.device == "CPU" else {}
            return {**settings, **free, "PERFORMANCE_HINT": "LATENCY"}
        return {**settings, "PERFORMANCE_HINT": "THROUGHPUT", "PERFORMANCE_HINT_NUM_REQUESTS": self.at_once}


class Compiler:
    """Compiles the graphs of a bundle."""

    def __init__(self, bundle: Bundle, target: Target) -> None:
        """Raises InvalidInputError for a device that OpenVINO does not find."""
        self._openvino = load_openvino()
        self._core = shared_core()
        self.bundle, self.target = bundle, target
        found: list[str] = self._core.available_devices
        same = {target.device, f"{target.device}.0", target.device.removesuffix(".0")}
        if not same.intersection(found):
            cure = "install its driver, or use --device cpu"
            if target.device == "CPU":  # what of OpenVINO is for it does not load
                cure = "install openvino again, end other programs if memory is short, or use --backend onnxruntime"
            raise InvalidInputError(
                f"OpenVINO finds no device {target.device} (it finds {', '.join(found) or 'none'}): {cure}"
            )
        self._abilities: list[str] = sorted(self._core.get_property(target.device, "OPTIMIZATION_CAPABILITIES"))
        self.device_name = str(self._core.get_property(target.device, "FULL_DEVICE_NAME"))
        if target.precision == "bf16" and "BF16" not in self._abilities:
            raise InvalidInputError(
                f"--precision bf16: {self.device_name.strip()} has no units for bf16, and would be slower with it than"
                " with fp32: leave it out"
            )

    @property
    def arithmetic(self) -> str:
        """What it computes in, in words."""
        interface, precision = self.bundle.interface, {"f32": "fp32", "bf16": "bf16"}[self.target.precision]
        is_int8 = self.target.device != "CPU" or int8_units()
        computed = replace(interface, precision="fp32", int8_layers=interface.int8_layers if is_int8 else ())
        whole = computed.arithmetic.replace("fp32", precision)
        return whole if computed == interface else f"{interface.arithmetic} computed in {whole}"

    def check(self) -> None:
        """Raises InvalidInputError for a file that cannot be read or is not the graph that the bundle describes."""
        for graph in self.bundle.interface.graphs:
            self._read(graph)

    def compile(self, graph: Graph, height: int, width: int) -> Any:
        """The compiled model (openvino.CompiledModel) for padded frames of this size. See Note [what is kept].

        Raises InvalidInputError as `check` does, and for what cannot be compiled; MemoryError.
        """
        file = self.kept(graph.name, [graph.name], height, width)
        content = read_kept(file)
        if content is not None:
            try:
                return self._core.import_model(io.BytesIO(content), self.target.device, self.target.settings)
            except Exception:  # of another build of OpenVINO, perhaps; its exceptions are RuntimeError and more
                pass
        model = self._read(graph)
        try:
            model.reshape({each.tensor.name: list(each.tensor.at(height, width)) for each in graph.inputs})
            model = self._with_states(model, graph)
            compiled = self._core.compile_model(model, self.target.device, self.target.settings)
        except (RuntimeError, MemoryError) as error:
            if is_about_memory(error):
                raise MemoryError from None
            raise InvalidInputError(
                f"OpenVINO cannot compile {self.bundle.graph(graph.name)} for {width}x{height}: {reason(error)};"
                " export the model again, or use --backend onnxruntime"
            ) from None
        if "EXPORT_IMPORT" in self._abilities:
            with contextlib.suppress(RuntimeError, MemoryError):  # a run does without
                exported = io.BytesIO()
                compiled.export_model(exported)
                keep(file, exported.getvalue(), "the compiled model")
        return compiled

    def keeps_bf16(self, state: Tensor) -> bool:
        """Whether a state is carried in bf16."""
        return self.target.precision == "bf16" and state.dtype == "float32"

    def _with_states(self, model: Any, graph: Graph) -> Any:
        """States as the plugin has them inside: channels last, and bf16 where it computes in that."""
        steps = self._openvino.preprocess.PrePostProcessor(model)
        sources = {source: steps.output(source) for source in self.bundle.interface.states}
        places = [*sources.values(), *(steps.input(name) for name in graph.states)]
        tensors = [*sources, *graph.states.values()]
        for name, place in zip(tensors, places, strict=True):
            state = self.bundle.interface.states[name]
            if len(state.shape) == 4:
                place.model().set_layout(self._openvino.Layout("NCHW"))
                place.tensor().set_layout(self._openvino.Layout("NHWC"))
            if self.keeps_bf16(state):
                place.tensor().set_element_type(self._openvino.Type.bf16)
        return steps.build()

    def kept(self, name: str, graphs: Sequence[str], height: int, width: int) -> Path:
        """Where something lies in the cache that depends on these graphs of the model at this size."""
        key = {
            "graphs": [file_digest(self.bundle.graph(graph)) for graph in graphs],
            "interface": self.bundle.interface.digest,
            "size": [height, width],
            "target": asdict(self.target),
            "openvino": self._openvino.get_version(),
            "processor": [self.device_name, self._abilities, int8_units()],
            "revision": REVISION,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return cache_directory() / "openvino" / f"{name}-{width}x{height}-{digest[:16]}"

    def _read(self, graph: Graph) -> Any:
        """The openvino.Model of a graph, checked, with the functions of its custom ops inlined."""
        path, interface = self.bundle.graph(graph.name), self.bundle.interface
        try:
            proto = onnx.load(path)
        except Exception as error:  # protobuf's, onnx's and the system's share no base but this one
            raise InvalidInputError(f"{path} cannot be read as ONNX: {reason(error)}") from None
        check_metadata({prop.key: prop.value for prop in proto.metadata_props}, interface, graph, str(path))
        # OpenVINO makes 0 of NaN in a ReLU, so that nothing of it would be seen in the states.
        weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
        if broken := [name for name, value in weights.items() if np.isnan(value).any()]:
            raise InvalidInputError(f"{path} has weights that are no numbers ({some(broken)}): use another checkpoint")
        if self.target.device == "CPU":
            fit_int8(proto, int8_units())
        try:
            model = self._core.read_model(inline_local_functions(proto).SerializeToString())
        except Exception as error:  # the inliner raises what it likes
            raise InvalidInputError(
                f"{path} cannot be loaded by OpenVINO: {reason(error)}; export the model again, or use --backend"
                " onnxruntime"
            ) from None
        if self.target.precision == "bf16":
            keep_indices_fp32(self._core, model, proto)
        for kind, described, nodes in (
            ("input", graph.inputs, model.inputs),
            ("output", graph.outputs, model.outputs),
        ):
            names = {each.tensor.name for each in described}
            found = {_name(node, names): _found(node) for node in nodes}
            check_tensors(kind, (each.tensor for each in described), found, str(path), batched=interface.batched)
        return model


def _name(node: Any, wanted: set[str]) -> str:
    """Inlining may give a tensor a second name."""
    names: set[str] = node.get_names()
    return next(iter(sorted(names & wanted) or sorted(names)), "")


def _found(node: Any) -> tuple[str, tuple[int | None, ...]]:
    shape = node.get_partial_shape()
    sizes = tuple(dim.get_length() if dim.is_static else None for dim in shape)
    return str(node.get_element_type().to_dtype()), sizes


def is_about_memory(error: Exception) -> bool:
    """Whether OpenVINO ran out of memory, for which it has no exception of its own."""
    # Not of a tensor called "memory_in", nor a place in the sources.
    said = re.sub(r"\S+\.[ch]pp\S*", "", str(error))
    words = r"bad_alloc|\b[Aa]lloc|(out of|enough|insufficient) memory|memory object"
    return isinstance(error, MemoryError) or re.search(words, said) is not None


def reason(error: Exception) -> str:
    """The line of OpenVINO's message that says something: others name places in its sources, and its documentation."""
    idle = re.compile(r"$|Exception from|Check '.*' failed at|To facilitate")
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines()]
    telling = [line for line in lines if not idle.match(line)]
    return (telling or [type(error).__name__])[-1][:300]
