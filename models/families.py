"""The families of networks: the table, and what recognises a checkpoint. Imports a family's modules when asked.

A family is a folder of `mtu.models`, or a user's own file (`load_family_file`), with the names of `Family`. It exists
until export and never after: the bundle describes itself. The torch backends alone look a family up again.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.interface import Interface

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILIES: Mapping[str, str] = {"mtu": "mtu.models.mtu", "mimo_unet": "mtu.models.mimo_unet"}
"""Name: module."""


class Family(Protocol):
    """What a family's module has. `settings` are plain data, as JSON holds them.

    Optional: `KEYS`, keys of a checkpoint that messages name; `TRAINING_ONLY`, a compiled pattern of keys that are
    dropped.
    """

    PRESETS: Mapping[str, Mapping[str, Any]]
    """Name of a published variant: its settings."""

    def describe(self, settings: Mapping[str, Any]) -> Interface:
        """The fp32 description. Needs no torch. Raises InvalidInputError for settings of no network."""
        ...

    def settings_of(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Any] | None:
        """The settings of the network that these are the weights of, by keys and shapes; None: not of this family."""
        ...

    def network(self, settings: Mapping[str, Any]) -> nn.Module:
        """The network; names of weights as in the released checkpoint."""
        ...

    def graphs(self, network: Any) -> Mapping[str, nn.Module]:
        """For each graph of the description a module that takes its inputs, in order, and gives its outputs."""
        ...


_own: dict[str, Family] = {}
"""Those that `load_family_file` has read."""


def find_family(name: str) -> Family:
    """The family of this name. Raises InvalidInputError if there is none."""
    if name in _own:
        return _own[name]
    if name not in FAMILIES:
        raise InvalidInputError(
            f"the network family '{name}' is none of this release ({', '.join(FAMILIES)}): torch cannot run the model;"
            " use --backend onnxruntime"
        )
    return cast(Family, importlib.import_module(FAMILIES[name]))


def load_family_file(path: Path) -> str:
    """Runs a user's own family, a Python file, and gives its name, that of the file.

    Raises MissingFileError, or InvalidInputError if it fails, lacks a name or has that of a family of this release.
    """
    wanted = ("describe", "settings_of", "network", "graphs", "PRESETS")
    if not path.is_file():
        raise MissingFileError(f"--family {path} is no file: give a Python file with {', '.join(wanted)}")
    name = path.stem
    if name in FAMILIES or not name.isidentifier():
        raise InvalidInputError(f"--family {path}: '{name}' is taken or no name in Python; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidInputError(f"--family {path} is no Python file: its name ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InvalidInputError(f"--family {path} fails: {type(error).__name__}: {error}") from error
    if missing := [each for each in wanted if not hasattr(module, each)]:
        raise InvalidInputError(f"--family {path} lacks {', '.join(missing)}; see docs/your-own-network.md")
    _own[name] = cast(Family, module)
    return name


def presets() -> dict[str, str]:
    """Every preset, and the family that has it."""
    return {preset: name for name in (*FAMILIES, *_own) for preset in find_family(name).PRESETS}


def find_preset(preset: str) -> tuple[str, Mapping[str, Any]]:
    """Family and settings of a preset; raises InvalidInputError naming the presets that exist."""
    known = presets()
    if preset not in known:
        raise InvalidInputError(f"unknown preset '{preset}': choose one of {', '.join(known)}")
    return known[preset], find_family(known[preset]).PRESETS[preset]


def variant(family: str, settings: Mapping[str, Any]) -> str:
    """The preset with these settings, or "custom"."""
    found = find_family(family).PRESETS
    return next((preset for preset, known in found.items() if dict(known) == dict(settings)), "custom")


def in_words(settings: Mapping[str, Any]) -> str:
    """For a person: "2 units, 26 channels, 8 blocks"."""
    return ", ".join(f"{value} {name[:-1] if value == 1 else name}" for name, value in settings.items())


def recognise(tensors: Mapping[str, Tensor], source: str) -> tuple[str, Mapping[str, Any]]:
    """Family and settings of a checkpoint's weights; `source` names it in messages.

    Raises InvalidInputError where no family claims them, or two do.
    """
    claims = {name: found for name in (*FAMILIES, *_own) if (found := find_family(name).settings_of(tensors))}
    if len(claims) == 1:
        return next(iter(claims.items()))
    if claims:
        raise InvalidInputError(f"{source} could be of {' or of '.join(claims)}: leave one out, or rename its weights")
    some = ", ".join(list(tensors)[:3]) or "nothing"
    keys = {name: getattr(find_family(name), "KEYS", ()) for name in (*FAMILIES, *_own)}
    wanted = "; ".join(f"{name} has {' and '.join(each)}" for name, each in keys.items() if each)
    raise InvalidInputError(f"{source} is of another network: it has {some}; {wanted}")
