"""Reads and writes the files of a bundle: the graphs with their metadata, and what may be replaced. Imports onnx."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from mtu.core.errors import InvalidInputError, MtuError
from mtu.core.files import check_target, write_through
from mtu.core.interface import Graph, Interface
from mtu.core.release import VERSION
from mtu.runtime.bundle import BUNDLE, Bundle, bundle_json, check_metadata, metadata, open_bundle

OLD_FILES = {"first.onnx", "step.onnx"}
"""Those of format 1."""


def check_bundle_target(directory: Path, overwrite: bool) -> None:
    """Raises OutputError unless a bundle may be written to `directory`; with `overwrite` it may hold one."""
    try:
        files = {BUNDLE, *(path.name for path in open_bundle(directory).files)} if directory.is_dir() else set()
    except MtuError:
        files = {BUNDLE, *OLD_FILES}
    check_target(directory, "a bundle", files, overwrite)


def to_bytes(model: onnx.ModelProto, interface: Interface, graph: Graph) -> bytes:
    """The content of a graph's file; sets the model's metadata. The same model gives the same bytes."""
    onnx.helper.set_model_props(model, metadata(interface, graph))
    model.producer_name, model.producer_version = "mtu-trt", VERSION
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def save_bundle(directory: Path, interface: Interface, models: Mapping[str, onnx.ModelProto]) -> None:
    """Writes all files of a bundle into a directory that is to be published. Raises OutputError."""
    for graph in interface.graphs:
        write_through(directory / f"{graph.name}.onnx", to_bytes(models[graph.name], interface, graph))
    write_through(directory / BUNDLE, bundle_json(interface))


def load_graphs(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    """The models of a bundle; raises InvalidInputError if one is broken or is none of this bundle."""
    models: dict[str, onnx.ModelProto] = {}
    for graph in bundle.interface.graphs:
        path = bundle.graph(graph.name)
        try:
            model = onnx.load_model_from_string(path.read_bytes())
        except (DecodeError, ValueError):
            raise InvalidInputError(f"{path} is no ONNX file, or is damaged: export the model again") from None
        check_metadata({entry.key: entry.value for entry in model.metadata_props}, bundle.interface, graph, str(path))
        models[graph.name] = model
    return models
