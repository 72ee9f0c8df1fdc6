"""A bundle: the directory with `bundle.json` and the ONNX graphs that it describes. Plain Python; opens no graph.

A chain is a bundle without graphs: its `bundle.json` names sub-directories, in order, which are bundles or engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.interface import FORMAT_VERSION, Graph, Interface, Tensor
from mtu.core.kinds import meant
from mtu.core.release import VERSION
from mtu.plugins.op import OPS, find_op

BUNDLE = "bundle.json"
BUNDLED = "mtu2"
"""The name of the model that is used where none is named."""
PACKAGED = (BUNDLED, "mtu1")
"""The names of the models inside the package."""
_HOW = (
    f"a model is {' or '.join(PACKAGED)}, which come with the package, or a directory with {BUNDLE}, made by:"
    " mtu-export onnx --checkpoint FILE -o DIR"
)


@dataclass(frozen=True)
class Bundle:
    """A bundle's directory and what it describes; all graphs are there."""

    directory: Path
    interface: Interface

    @property
    def name(self) -> str:
        """What it is called in messages and reports: one of `PACKAGED`, or its directory."""
        return next((name for name in PACKAGED if self.directory == bundled_directory(name)), str(self.directory))

    def graph(self, name: str) -> Path:
        """Path of the ONNX file of a graph."""
        return self.directory / f"{name}.onnx"

    @property
    def files(self) -> tuple[Path, ...]:
        """The ONNX files, in the order of the description."""
        return tuple(self.graph(graph.name) for graph in self.interface.graphs)


def bundled_directory(name: str = BUNDLED) -> Path:
    """Where a model inside the package lies."""
    return Path(str(resources.files("mtu.models"))) / "weights" / name


def bundle_json(interface: Interface) -> bytes:
    """The content of a bundle's `bundle.json`. The same description gives the same bytes."""
    return _json(interface.to_dict())


def chain_json(stages: Sequence[str]) -> bytes:
    """The content of a chain's `bundle.json`; `stages` are the names of its sub-directories."""
    return _json({"stages": list(stages)})


def _json(described: dict[str, Any]) -> bytes:
    fields = {"format_version": FORMAT_VERSION, "release": VERSION, **described}
    return (json.dumps(fields, indent=1) + "\n").encode()


def model_directory(directory: Path | str | None) -> Path:
    """The directory of a model: as given, or of one inside the package (None: `BUNDLED`; or its name, where there is no
    such directory). Raises MissingFileError or InvalidInputError if there is none."""
    directory = Path(BUNDLED if directory is None else directory)
    if not directory.exists():
        if str(directory) in PACKAGED:
            return bundled_directory(str(directory))
        raise MissingFileError(f"model {directory} does not exist; {_HOW}")
    if not directory.is_dir():
        raise InvalidInputError(f"model {directory} {meant(directory) or f'is a file; {_HOW}'}")
    return directory


def read_fields(directory: Path) -> dict[str, Any]:
    """What `bundle.json` holds, without its version. Raises MissingFileError or InvalidInputError."""
    path = directory / BUNDLE
    if not path.is_file():
        if (directory / "first.onnx").is_file():
            raise InvalidInputError(
                f"model {directory} is a bundle of format 1, this release reads format {FORMAT_VERSION}: make it again"
                f" with mtu-export onnx --checkpoint FILE -o {directory} --overwrite"
            )
        raise MissingFileError(f"model {directory} lacks {BUNDLE}; {_HOW}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        version = fields.pop("format_version")
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise InvalidInputError(f"{path} describes no model, or is damaged: export the model again") from None
    if version != FORMAT_VERSION:
        raise InvalidInputError(f"{path} is of format {version}, this release reads {FORMAT_VERSION}: export it again")
    fields.pop("release", None)
    return dict(fields)


def stages_of(directory: Path, fields: Mapping[str, Any]) -> list[Path] | None:
    """The sub-directories of a chain, in order; None for a bundle. `fields` are what `read_fields` gave.

    Raises InvalidInputError.
    """
    if "stages" not in fields:
        return None
    stages = fields["stages"]
    if not isinstance(stages, list) or len(stages) < 2 or not all(_is_below(name) for name in stages):
        raise InvalidInputError(
            f"{directory / BUNDLE}: stages is {stages!r:.80}; it names two sub-directories or more: make the chain"
            " again with mtu-export chain"
        )
    return [directory / name for name in stages]


def _is_below(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def open_bundle(directory: Path | str | None = None) -> Bundle:
    """The bundle in `directory`, or the one inside the package.

    Raises MissingFileError or InvalidInputError if there is no such directory, if a graph is missing, or for a chain.
    """
    found = model_directory(directory)
    fields = read_fields(found)
    if "stages" in fields:
        raise InvalidInputError(f"model {found} is a chain, and one bundle is wanted here: give one of its stages")
    return described_bundle(found, fields)


def described_bundle(directory: Path, fields: Mapping[str, Any]) -> Bundle:
    """The bundle in `directory` whose `bundle.json` holds `fields`. Raises as `open_bundle`."""
    bundle = Bundle(directory, Interface.from_dict(fields, str(directory / BUNDLE)))
    check_ops(bundle.interface, str(directory / BUNDLE))
    missing = [path.name for path in bundle.files if not path.is_file()]
    if missing:
        raise MissingFileError(f"model {directory} lacks {' and '.join(missing)}; {_HOW}")
    return bundle


def check_ops(interface: Interface, source: str, again: str = "export the model again") -> None:
    """Raises InvalidInputError unless this release has the custom ops of a model, in the version it was made with.

    `again` is what to do for another version.
    """
    for name, found in interface.ops.items():
        if name not in OPS:
            raise InvalidInputError(f"{source} uses the custom op {name}, which this release has not: update mtu-trt")
        if found["version"] != find_op(name).version:
            raise InvalidInputError(
                f"{source} uses version {found['version']} of {name}, this release has {find_op(name).version}: {again}"
            )


def metadata(interface: Interface, graph: Graph) -> dict[str, str]:
    """ONNX `metadata_props` of a graph: which bundle it is of, and what a program needs that reads no bundle.json
    (a Triton configuration, a script around trtexec)."""
    tensors = {
        "inputs": [asdict(each.tensor) for each in graph.inputs],
        "outputs": [asdict(each.tensor) for each in graph.outputs],
        "states": [{"input": taken, "output": given} for taken, given in graph.states.items()],
        "size_multiple": interface.size.multiple,
    }
    return {
        "mtu.format_version": FORMAT_VERSION,
        "mtu.graph": graph.name,
        "mtu.interface": interface.digest,
        "mtu.tensors": json.dumps(tensors, sort_keys=True),
    }


def check_tensors(
    kind: str,
    tensors: Iterable[Tensor],
    found: Mapping[str, tuple[str, tuple[int | None, ...]]],
    source: str,
    *,
    batched: bool,
) -> None:
    """Raises InvalidInputError unless a file's inputs or outputs (`kind`) are these: `found` has numpy's type and the
    shape, None for a free size, by name. `batched` is the interface's."""
    expected = {
        tensor.name: (
            tensor.dtype,
            tuple(
                size if isinstance(size, int) and not (batched and axis == 0) else None
                for axis, size in enumerate(tensor.shape)
            ),
        )
        for tensor in tensors
    }
    if expected != found:
        raise InvalidInputError(
            f"{source}: its {kind}s are {dict(found)}, bundle.json says {expected}; export the model again"
        )


def check_metadata(found: Mapping[str, str], interface: Interface, graph: Graph, source: str) -> None:
    """Raises InvalidInputError unless a file with these `metadata_props` is this graph of a bundle with this
    description."""
    for key, wanted in metadata(interface, graph).items():
        if found.get(key) != wanted:
            raise InvalidInputError(
                f"{source} is not the graph {graph.name} that bundle.json describes ({key} is {found.get(key)!r:.80},"
                f" should be {wanted!r:.80}): export the model again"
            )
