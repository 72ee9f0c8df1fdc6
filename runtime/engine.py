"""An engine: the directory with `engine.json` and a file for each graph of a model that mtu-build-engine writes.

The manifest says what was built, for what, and from what; it is checked before TensorRT sees a byte of the files, since
TensorRT's own answer to a wrong file is a crash or a line of C++. Plain Python: no tensorrt, no numpy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.interface import Interface, Precision, Size
from mtu.plugins.op import find_op
from mtu.runtime.bundle import check_ops
from mtu.runtime.gpu import Gpu
from mtu.runtime.tensorrt_library import EXTRAS, LIBRARIES, LibraryName, version_numbers

MANIFEST = "engine.json"
FORMAT_VERSION = "2"
"""Version of the manifest's layout."""

HardwareCompatibility = Literal["none", "ampere-plus", "same-compute-capability"]


@dataclass(frozen=True)
class Sizes:
    """The size of a frame as the network sees it. In text always WIDTHxHEIGHT: 1280x720."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if any(type(size) is not int or size < 1 for size in (self.height, self.width)):
            raise InvalidInputError(f"frame size {self}: height and width are whole numbers from 1")

    def check(self, rule: Size) -> None:
        """Raises InvalidInputError unless such frames need no padding."""
        height, width = rule.padded(self.height, self.width)
        if (height, width) != (self.height, self.width):
            raise InvalidInputError(
                f"frame size {self} is no multiple of {rule.multiple}"
                + (f" from {rule.minimum}" if rule.minimum > rule.multiple else "")
                + f"; such frames are padded before the engine sees them, so build it for {width}x{height}"
            )

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @classmethod
    def parse(cls, text: str) -> Sizes:
        """ "1280x720" is 1280 wide and 720 high; raises InvalidInputError for anything else."""
        found = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text.strip())
        if not found:
            raise InvalidInputError(f"'{text}' is no frame size: write WIDTHxHEIGHT, as in 1280x720")
        return cls(height=int(found[2]), width=int(found[1]))


@dataclass(frozen=True)
class Profile:
    """The sizes an engine takes: from `min` to `max`, fastest at `opt`."""

    min: Sizes
    opt: Sizes
    max: Sizes

    def __post_init__(self) -> None:
        for axis in ("height", "width"):
            low, middle, high = (getattr(sizes, axis) for sizes in (self.min, self.opt, self.max))
            if not low <= middle <= high:
                raise InvalidInputError(
                    f"frame sizes {self.min}, {self.opt}, {self.max}: the {axis}s have to rise from min"
                    f" over opt to max, they are {low}, {middle}, {high}"
                )

    @classmethod
    def fixed(cls, height: int, width: int) -> Profile:
        """One size only."""
        sizes = Sizes(height, width)
        return cls(sizes, sizes, sizes)

    @property
    def is_fixed(self) -> bool:
        """Whether only one size fits."""
        return self.min == self.max

    def holds(self, height: int, width: int) -> bool:
        """Whether a padded frame of this size can be run."""
        return self.min.height <= height <= self.max.height and self.min.width <= width <= self.max.width

    def __str__(self) -> str:
        return str(self.opt) if self.is_fixed else f"{self.min} to {self.max}, best at {self.opt}"


@dataclass(frozen=True)
class EngineManifest:
    """Everything that decides whether and how an engine can run."""

    interface: Interface
    """`precision` is that of the engine."""
    library: LibraryName
    library_version: str
    plugins: dict[str, int]
    """The custom ops that are fused plugins, and the revision of each; the others are standard operators."""
    gpu: str
    """Name of the GPU it was built on; "" where it was built without one."""
    compute_capabilities: tuple[str, ...]
    """GPUs it is for: ("8.6", "12.0")."""
    hardware_compatibility: HardwareCompatibility
    version_compatible: bool
    profile: Profile
    onnx: dict[str, str]
    """sha256 of the graphs of the bundle, hexadecimal."""
    engines: dict[str, str]
    """sha256 of the engine files, hexadecimal."""
    device_memory: dict[str, int]
    """Bytes of device memory that running needs beside weights and tensors; 0 where it could not be asked."""
    command: str
    """Builds it again."""
    release: str
    """Version of mtu-trt."""
    fp32_layers: tuple[str, ...] = ()
    """The layers of an fp16 engine that compute in fp32, by their names in the checkpoint, sorted."""

    @property
    def precision(self) -> Precision:
        """What the engine computes in, but for the `fp32_layers` and int8."""
        return self.interface.precision

    def to_json(self) -> str:
        """The content of engine.json."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        plain = {"interface": self.interface.to_dict(), "profile": dataclasses.asdict(self.profile)}
        return json.dumps({"format_version": FORMAT_VERSION, **fields, **plain}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> EngineManifest:
        """The manifest in `text`; `source` names the file in messages.

        Raises InvalidInputError if it is no manifest, is of another format version, or is damaged.
        """
        again = "build the engine again with mtu-build-engine"
        try:
            fields = json.loads(text)
            version = fields.pop("format_version")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            raise InvalidInputError(f"{source} is no engine manifest: {again}") from None
        if version != FORMAT_VERSION:
            raise InvalidInputError(
                f"{source} has manifest version {version}, this release reads {FORMAT_VERSION}: {again}"
            )
        try:
            manifest = cls(**{**fields, **_rebuilt(fields, source)})
            _check(manifest)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInputError(f"{source} is damaged ({error}): {again}") from None
        check_ops(manifest.interface, source, again)
        return manifest


def _rebuilt(fields: dict[str, Any], source: str) -> dict[str, Any]:
    """The fields of a manifest that JSON has no type for."""
    return {
        "interface": Interface.from_dict(fields["interface"], source),
        "compute_capabilities": tuple(fields["compute_capabilities"]),
        "fp32_layers": tuple(fields["fp32_layers"]),
        "profile": Profile(**{name: Sizes(**sizes) for name, sizes in fields["profile"].items()}),
    }


def _check(m: EngineManifest) -> None:
    """Raises ValueError naming a field that has the wrong type or an impossible value."""
    graphs = {graph.name for graph in m.interface.graphs}
    good = {
        "library": m.library in LIBRARIES,
        "library_version": _is_text(m.library_version, "[0-9].*"),
        "plugins": all(op in m.interface.ops and type(n) is int and n > 0 for op, n in m.plugins.items()),
        "gpu": _is_text(m.gpu),
        "compute_capabilities": bool(m.compute_capabilities)
        and all(_is_text(each, r"[0-9]{1,2}\.[0-9]") for each in m.compute_capabilities),
        "hardware_compatibility": m.hardware_compatibility in get_args(HardwareCompatibility),
        "version_compatible": type(m.version_compatible) is bool,
        "onnx": _are_digests(m.onnx, graphs),
        "engines": _are_digests(m.engines, graphs),
        "device_memory": set(m.device_memory) == graphs
        and all(type(size) is int and size >= 0 for size in m.device_memory.values()),
        "command": _is_text(m.command),
        "release": _is_text(m.release),
        "fp32_layers": all(map(_is_text, m.fp32_layers)) and (m.precision == "fp16" or not m.fp32_layers),
    }
    for name, is_good in good.items():
        if not is_good:
            raise ValueError(f"{name} is {getattr(m, name)!r}")


def _is_text(value: object, pattern: str = ".*") -> bool:
    return type(value) is str and re.fullmatch(pattern, value, re.DOTALL) is not None


def _are_digests(found: dict[str, Any], graphs: set[str]) -> bool:
    return set(found) == graphs and all(_is_text(each, "[0-9a-f]{64}") for each in found.values())


@dataclass(frozen=True)
class Engine:
    """An engine directory; its manifest is valid and all files exist."""

    directory: Path
    manifest: EngineManifest

    @property
    def interface(self) -> Interface:
        """What the engine takes and gives."""
        return self.manifest.interface

    def graph(self, name: str) -> Path:
        """Path of the serialised engine of a graph."""
        return self.directory / f"{name}.engine"

    @property
    def files(self) -> tuple[Path, ...]:
        """The serialised engines, in the order of the description."""
        return tuple(self.graph(graph.name) for graph in self.interface.graphs)


def is_engine(directory: Path | str) -> bool:
    """Whether this is the directory of an engine rather than of a bundle."""
    return (Path(directory) / MANIFEST).is_file()


def open_engine(directory: Path | str) -> Engine:
    """The engine in `directory`. Reads the manifest alone; `check_files` reads the rest.

    Raises MissingFileError if there is no such directory or a file is missing, InvalidInputError if the manifest cannot
    be used.
    """
    directory = Path(directory)
    how = f"an engine is a directory with {MANIFEST}, made by: mtu-build-engine BUNDLE -o DIR"
    if not directory.exists():
        raise MissingFileError(f"engine {directory} does not exist; {how}")
    if not directory.is_dir():
        raise InvalidInputError(f"engine {directory} is a file; {how}")
    path = directory / MANIFEST
    if not path.is_file():
        raise MissingFileError(f"engine {directory} lacks {MANIFEST}; {how}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise InvalidInputError(f"{path} cannot be read; {how}") from None
    engine = Engine(directory, EngineManifest.from_json(text, str(path)))
    missing = [path.name for path in engine.files if not path.is_file()]
    if missing:
        raise MissingFileError(
            f"engine {directory} lacks {' and '.join(missing)}; build it again: {engine.manifest.command}"
        )
    return engine


def check_files(engine: Engine) -> None:
    """Raises InvalidInputError unless all engine files are what was built, bit for bit."""
    digests = engine.manifest.engines
    for graph in digests:
        path = engine.graph(graph)
        found = file_digest(path)
        if found == digests[graph]:
            continue
        other = next((name for name, digest in digests.items() if found == digest), None)
        what = f"is {other}.engine under another name" if other else "is damaged or of another build"
        raise InvalidInputError(
            f"{path} {what} (sha256 {found[:12]}, {MANIFEST} says {digests[graph][:12]});"
            f" build it again: {engine.manifest.command}"
        )


def file_digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def refusals(manifest: EngineManifest, library_version: str | None, gpu: Gpu | None) -> list[str]:
    """Why the engine cannot run here: what was built, what is here, what to do. Empty if it can.

    `library_version` is that of the library it was built with, as installed here; None where it is not.
    """
    again = f"build it again: {manifest.command}"
    return [
        *_library_refusals(manifest, library_version, again),
        *_gpu_refusals(manifest, gpu, again),
        *(
            f"the engine holds revision {revision} of the plugin {op}, this release has {find_op(op).revision}; {again}"
            for op, revision in manifest.plugins.items()
            if revision != find_op(op).revision
        ),
    ]


def _library_refusals(manifest: EngineManifest, installed: str | None, again: str) -> list[str]:
    built = f"the engine was built with {manifest.library} {manifest.library_version}"
    if installed is None:
        return [f'{built}, which is not installed here: pip install "mtu-trt[{EXTRAS[manifest.library]}]"']
    here, there = version_numbers(installed), version_numbers(manifest.library_version)
    if here == there or (manifest.version_compatible and here[:1] == there[:1] and here >= there):
        return []
    if manifest.version_compatible:
        return [f"{built} or newer of the same major version, here is {installed}; install that, or {again}"]
    return [
        f"{built}, here is {installed}, and an engine fits one version only; {again}"
        " (with --version-compatible it would run on newer versions of the same major)"
    ]


def _gpu_refusals(manifest: EngineManifest, gpu: Gpu | None, again: str) -> list[str]:
    made_for = ", ".join(manifest.compute_capabilities)
    built = f"the engine was built for {manifest.gpu or 'GPUs'} (compute capability {made_for})"
    if gpu is None:
        return [f"{built}, and no NVIDIA GPU answers here: run it where there is one, or use mtu-run with a bundle"]
    here = f"here is {gpu.name} (compute capability {gpu.compute_capability})"
    if manifest.hardware_compatibility == "ampere-plus":
        fits = int(gpu.compute_capability.split(".")[0]) >= 8
    else:
        fits = gpu.compute_capability in manifest.compute_capabilities
    if not fits:
        if manifest.library == "tensorrt-rtx":
            wanted = ",".join((*manifest.compute_capabilities, gpu.compute_capability))
            return [f"{built}, {here}; {again} --compute-capability {wanted}"]
        return [f"{built}, {here}; {again}"]
    one_model = manifest.library == "tensorrt" and manifest.hardware_compatibility == "none"
    if one_model and gpu.name != manifest.gpu:
        return [
            f"{built}, {here}, and an engine fits one model of GPU only; {again}"
            " (with --hardware-compatibility-level same-compute-capability it would run on both)"
        ]
    return []
