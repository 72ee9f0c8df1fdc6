"""Writes a model repository of Triton: a configuration, a model in Python of a few lines, a copy of what is to be run.

Plain Python; what runs in the server is `mtu.farm.triton_model`, which reads the configuration with `Serving` again.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mtu.core.errors import InvalidInputError, MtuError, OutputError
from mtu.core.files import check_target, publish, temporary_beside, write_through
from mtu.core.interface import Interface
from mtu.core.release import VERSION
from mtu.export.chain_files import copy_model, model_files
from mtu.runtime.backends import GPU_ONLY, Model, PrecisionChoice, Stages, check_choice, open_model
from mtu.runtime.chain import interface_of
from mtu.runtime.engine import Engine
from mtu.runtime.scenes import SCENE_THRESHOLD
from mtu.runtime.session import ROLES

CONFIG, SCRIPT, COPY = "config.pbtxt", "model.py", "model"
"""A model of a repository: its configuration, and in a directory `1` the script and the copy of what it runs."""
INDEX, CUT, REDONE = "index", "cut", "redone"
"""Outputs beside those that the network gives: which frames they are of, where scenes began, what was done again."""
_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}
_SCRIPT = f'''"""Restores video streams, one frame a request. Written by mtu-export triton, release {VERSION}."""

from mtu.farm.triton_model import TritonPythonModel  # of the Python that the server runs: pip install mtu-trt

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Serving:
    """How a model is served."""

    backend: str = "auto"
    device: str = "auto"
    precision: PrecisionChoice | None = None
    scene_threshold: float | None = SCENE_THRESHOLD
    """For clients that ask for none of their own; None: they get no detection."""
    max_batch: int = 8
    """How many streams are computed in one batch at most."""
    max_streams: int = 32
    """How many are served at a time; more wait."""
    idle: float = 30.0
    """Seconds after which a stream that sends nothing is dropped."""

    def __post_init__(self) -> None:
        for option, value in (("--max-batch", self.max_batch), ("--max-streams", self.max_streams)):
            if value < 1:
                raise InvalidInputError(f"{option} {value}: give 1 or more")
        if not 0 < self.idle < 1e6:
            raise InvalidInputError(f"--idle {self.idle:g}: give seconds, more than 0")

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Serving:
        """Of a configuration that Triton has read, as JSON. Raises InvalidInputError."""
        try:
            given = {name: each["string_value"] for name, each in config["parameters"].items()}
            batching = config["sequence_batching"]
            return cls(
                backend=given["backend"],
                device=given["device"],
                precision=cast("PrecisionChoice | None", given["precision"] or None),
                scene_threshold=read_threshold(given["scene_threshold"]),
                max_batch=int(config["max_batch_size"]),
                max_streams=int(batching["oldest"]["max_candidate_sequences"]),
                idle=int(batching["max_sequence_idle_microseconds"]) / 1e6,
            )
        except (KeyError, ValueError, TypeError) as error:
            raise InvalidInputError(
                f"{CONFIG} of the model is not as mtu-export triton writes it ({error!r:.200}): write it again"
            ) from None


def read_threshold(text: str) -> float | None:
    """Of scene cuts, as a parameter says it: a number or off. Raises InvalidInputError."""
    try:
        threshold = None if text == "off" else float(text)
    except ValueError:
        threshold = -1.0
    if threshold is not None and not 0 <= threshold <= 100:
        raise InvalidInputError(f"scene_threshold {text}: give a number from 0 to 100, or off")
    return threshold


def as_text(threshold: float | None) -> str:
    """What `read_threshold` reads."""
    return "off" if threshold is None else f"{threshold!r}"


def write_repository(
    model: Path | None, repository: Path, serving: Serving, *, name: str | None = None, overwrite: bool = False
) -> Path:
    """Writes the model `name` (None: that of the network) into `repository`, and returns its directory.

    It gets its name when it is whole; other models of the repository stay as they are. Raises InvalidInputError for
    what cannot be served, OutputError if the directory exists or cannot be written.
    """
    opened = open_model(model)
    interface = interface_of(opened)
    name = _name(opened, interface) if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", name):
        raise InvalidInputError(f"--name {name}: use letters, digits, _, - and . (a server is asked for it)")
    _check_served(opened, serving)
    directory = repository.resolve() / name
    _check_repository(directory, opened, overwrite)
    with temporary_beside(directory) as temporary:
        (temporary / "1").mkdir()
        write_through(temporary / "1" / SCRIPT, _SCRIPT.encode())
        copy_model(opened, temporary / "1" / COPY)
        write_through(temporary / CONFIG, config(name, opened, serving).encode())
        publish(temporary, directory, overwrite)
    return directory


def _name(model: Model, interface: Interface) -> str:
    name = interface.variant if interface.variant != "custom" and not isinstance(model, Stages) else ""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name or model.directory.resolve().name).strip("-")[:40] or "model"


def _check_served(model: Model, serving: Serving) -> None:
    """Raises InvalidInputError for what a server could not run."""
    for each in model.models if isinstance(model, Stages) else (model,):
        if isinstance(each, Engine):
            if not each.manifest.profile.is_fixed:
                raise InvalidInputError(
                    f"{each.directory} is an engine for a range of sizes, which has room for frames of one size at a"
                    " time: to serve streams, build it for one (mtu-build-engine --size WIDTHxHEIGHT)"
                )
            if serving.backend not in ("auto", each.manifest.library):
                raise InvalidInputError(
                    f"--backend {serving.backend}: {each.directory} is an engine of {each.manifest.library}: leave"
                    " it out"
                )
        elif serving.backend in GPU_ONLY:
            raise InvalidInputError(
                f"--backend {serving.backend}: a server builds no engine; give one made by mtu-build-engine in place of"
                f" {each.directory}"
            )
        check_choice(serving.backend, each, serving.device, serving.precision)


def _check_repository(directory: Path, model: Model, overwrite: bool) -> None:
    """Raises OutputError unless a model may be written to `directory`, an absolute path; with `overwrite` it may hold
    one that was written so, and nothing else."""
    source = model.directory.resolve()
    if directory in (source, *source.parents):
        raise OutputError(f"{directory} is or holds the model {model.directory}: choose another directory or --name")
    for path in (directory.parent, *directory.parent.parents):
        if path.exists() and not path.is_dir():
            raise OutputError(f"{path} is a file; a model repository is a directory: choose another name")
    check_target(directory, "a served model", {CONFIG, "1"}, overwrite)
    inside = directory / "1"
    check_target(inside, "a served model", {SCRIPT, COPY, "__pycache__"}, overwrite)
    files: dict[str, set[str]] = {"": set()}
    if (inside / COPY).is_dir():
        with contextlib.suppress(MtuError):  # it is none, or a broken one: nothing of it is replaced
            files = model_files(open_model(inside / COPY))
    for name, known in files.items():
        check_target(inside / COPY / name, "a served model", known, overwrite)


def config(name: str, model: Model, serving: Serving) -> str:
    """The content of config.pbtxt."""
    interface = interface_of(model)
    parameters = {
        "release": VERSION,
        "backend": serving.backend,
        "device": serving.device,
        "precision": serving.precision or "",
        "scene_threshold": as_text(serving.scene_threshold),
        "frame_size": _frame_size(model),
        # A backend has one frame under way; at the end of a scene all that wait come at once, and at a cut one more.
        "most_frames": str(interface.look_ahead + (len(model.models) if isinstance(model, Stages) else 1) + 1),
        "interface": json.dumps(interface.to_dict(), ensure_ascii=False),
    }
    inputs = [_tensor(stream, "TYPE_UINT8", [-1, -1, 3]) for stream in interface.streams]
    outputs = [
        # The batch of one, the frames of the answer, and what the tensor has of each.
        _tensor(role, _TYPES[found.tensor.dtype], [-1, *(size if size == 3 else -1 for size in found.tensor.shape[1:])])
        for role in ROLES
        if (found := interface.the(role)) is not None
    ]
    outputs += [_tensor(each, "TYPE_INT32", [-1]) for each in (INDEX, CUT, REDONE)]
    return (
        f"# Written by mtu-export triton, release {VERSION}; docs/scale.md says what a client sends and gets.\n"
        f'name: {_quoted(name)}\nbackend: "python"\nmax_batch_size: {serving.max_batch}\n'
        "instance_group [ { count: 1 kind: KIND_CPU } ]  # the model itself takes the device that is said below\n"
        "sequence_batching {\n"
        f"  max_sequence_idle_microseconds: {round(serving.idle * 1e6)}\n"
        f"  oldest {{ max_candidate_sequences: {serving.max_streams} }}\n}}\n"
        + "input [\n"
        + ",\n".join(inputs)
        + "\n]\n"
        + "output [\n"
        + ",\n".join(outputs)
        + "\n]\n"
        + "".join(
            f"parameters {{ key: {_quoted(key)} value {{ string_value: {_quoted(value)} }} }}\n"
            for key, value in parameters.items()
        )
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _tensor(name: str, kind: str, dims: list[int]) -> str:
    return f"  {{ name: {_quoted(name)} data_type: {kind} dims: {dims} }}"


def _frame_size(model: Model) -> str:
    """WIDTHxHEIGHT of the frames, as they are padded, that a model takes alone; empty for one that takes any."""
    first = model.models[0] if isinstance(model, Stages) else model
    return str(first.manifest.profile.opt) if isinstance(first, Engine) else ""
