"""A bundle: the directory with `first.onnx` and `step.onnx` that mtu-export writes. Plain Python; opens no model."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.interface import GRAPHS, GraphName
from mtu.core.kinds import meant

BUNDLED = "mtu2"
"""The name of the model inside the package, which is used where none is named."""


@dataclass(frozen=True)
class Bundle:
    """Paths of a bundle's two graphs; both files exist."""

    directory: Path

    @property
    def name(self) -> str:
        """What it is called in messages and reports: `BUNDLED`, or its directory."""
        return BUNDLED if self.directory == bundled_directory() else str(self.directory)

    def graph(self, name: GraphName) -> Path:
        """Path of the ONNX file of a graph."""
        return self.directory / f"{name}.onnx"


def bundled_directory() -> Path:
    """Where the model inside the package lies."""
    return Path(str(resources.files("mtu.models"))) / "weights" / BUNDLED


def open_bundle(directory: Path | str | None = None) -> Bundle:
    """The bundle in `directory`, or the one inside the package (None, or `BUNDLED` where there is no such directory).

    Raises MissingFileError or InvalidInputError if there is no such directory or a graph is missing.
    """
    if directory is None or (str(directory) == BUNDLED and not Path(directory).exists()):
        directory = bundled_directory()
    directory = Path(directory)
    how = (
        f"a model is {BUNDLED}, which comes with the package, or a directory with first.onnx and step.onnx, made by:"
        " mtu-export onnx --checkpoint FILE -o DIR"
    )
    if not directory.exists():
        raise MissingFileError(f"model {directory} does not exist; {how}")
    if not directory.is_dir():
        raise InvalidInputError(f"model {directory} {meant(directory) or f'is a file; {how}'}")
    bundle = Bundle(directory)
    missing = [bundle.graph(name).name for name in GRAPHS if not bundle.graph(name).is_file()]
    if missing:
        raise MissingFileError(f"model {directory} lacks {' and '.join(missing)}; {how}")
    return bundle
