"""The families of networks: the table, and what recognises a checkpoint. Imports a family's modules when asked.

A family is a folder of `mtu.models`, or a user's own file (`load_family_file`), with the names of `Family`. It exists
until export and never after: the bundle describes itself. The torch backends alone look a family up again.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.interface import Interface

if TYPE_CHECKING:
    from torch import Tensor, nn

FAMILIES: Mapping[str, str] = {
    "mtu": "mtu.models.mtu",
    "mimo_unet": "mtu.models.mimo_unet",
    "dmenet": "mtu.models.dmenet",
    "ifan": "mtu.models.ifan",
}
"""Name: module."""


class Family(Protocol):
    """What a family's module has. `settings` are plain data, as JSON holds them.

    Optional: `KEYS`, keys of a checkpoint that messages name; `TRAINING_ONLY`, a compiled pattern of keys that are
    dropped. And both of these, in a family of this release whose released files hold other arrays than the network:
    `released(settings)`, name and shape of each array that a file must have; `from_released(arrays)`, the network's
    weights made of them.
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


_own: dict[str, OwnFamily] = {}
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

    Raises MissingFileError, or InvalidInputError if it fails, lacks a name or takes one of this release.
    """
    wanted = ("describe", "settings_of", "network", "graphs", "PRESETS")
    if not path.is_file():
        raise MissingFileError(f"--family {path} is no file: give a Python file with {', '.join(wanted)}")
    name = path.stem
    if name in FAMILIES or not name.isidentifier():
        raise InvalidInputError(f"--family {path}: '{name}' is taken or no name in Python; rename the file")
    # Under a name that no module has; dataclasses in the file look it up.
    spec = importlib.util.spec_from_file_location(f"mtu_family_{name}", path.absolute())
    if spec is None or spec.loader is None:
        raise InvalidInputError(f"--family {path} is no Python file: its name ends in .py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    with _told(path):
        spec.loader.exec_module(module)
    if missing := [each for each in wanted if not hasattr(module, each)]:
        raise InvalidInputError(f"--family {path} lacks {', '.join(missing)}; see docs/your-own-network.md")
    keys, unused = getattr(module, "KEYS", ()), getattr(module, "TRAINING_ONLY", None)
    for each, is_good, what in (
        ("PRESETS", _is_dict_of_texts(module.PRESETS), "a dict, names of variants to their settings"),
        ("KEYS", isinstance(keys, list | tuple) and all(isinstance(key, str) for key in keys), "a tuple of texts"),
        ("TRAINING_ONLY", unused is None or isinstance(unused, re.Pattern), "a compiled pattern, re.compile(...)"),
    ):
        if not is_good:
            raise InvalidInputError(f"--family {path}: {each} is {getattr(module, each)!r:.100}; it is {what}")
    if taken := sorted(set(module.PRESETS) & {preset for each in FAMILIES for preset in find_family(each).PRESETS}):
        raise InvalidInputError(f"--family {path}: the preset {taken[0]} is one of this release; give it another name")
    _own[name] = OwnFamily(path, module)
    return name


def _is_dict_of_texts(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)


class OwnFamily:
    """A user's file as a `Family`: what fails in it, or is not what it should be, is told with its place."""

    def __init__(self, path: Path, module: Any) -> None:
        self.path, self._module = path, module
        self.PRESETS: Mapping[str, Mapping[str, Any]] = {
            name: self._plain(settings, f"PRESETS['{name}']") for name, settings in module.PRESETS.items()
        }
        self.KEYS = tuple(getattr(module, "KEYS", ()))
        self.TRAINING_ONLY = getattr(module, "TRAINING_ONLY", None)

    def describe(self, settings: Mapping[str, Any]) -> Interface:
        """See `Family`."""
        interface: Interface = self._call("describe", Interface, copy.deepcopy(settings))
        return interface

    def settings_of(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Any] | None:
        """See `Family`."""
        found: Mapping[str, Any] | None = self._call("settings_of", (Mapping, type(None)), tensors)
        return None if found is None else self._plain(found, "settings_of")

    def network(self, settings: Mapping[str, Any]) -> nn.Module:
        """See `Family`."""
        from torch import nn

        network: nn.Module = self._call("network", nn.Module, copy.deepcopy(settings))
        return network

    def graphs(self, network: Any) -> Mapping[str, nn.Module]:
        """See `Family`."""
        from torch import nn

        modules: Mapping[str, nn.Module] = self._call("graphs", Mapping, network)
        for name, module in modules.items():
            if not isinstance(module, nn.Module):
                raise InvalidInputError(
                    f"--family {self.path}: graphs gives {name} as a {type(module).__name__}; it is an nn.Module"
                )
        return modules

    def _call(self, name: str, kind: Any, *arguments: Any) -> Any:
        with _told(self.path):
            found = getattr(self._module, name)(*arguments)
        if not isinstance(found, kind):
            raise InvalidInputError(
                f"--family {self.path}: {name} gives a {type(found).__name__}; see docs/your-own-network.md"
            )
        return found

    def _plain(self, settings: Any, where: str) -> Mapping[str, Any]:
        """`settings`, if bundle.json gives back what was written."""
        try:
            if isinstance(settings, Mapping) and json.loads(json.dumps(dict(settings))) == settings:
                return settings
        except (TypeError, ValueError):
            pass
        raise InvalidInputError(
            f"--family {self.path}: {where} gives the settings {settings!r:.200}, which JSON cannot hold: write a dict"
            " of texts and numbers, lists in place of tuples"
        )


@contextlib.contextmanager
def errors_of(family: str) -> Iterator[None]:
    """Around code of a family: an error in a user's own file becomes one message, with its place, InvalidInputError;
    one in a family of this release keeps its traceback."""
    with _told(_own[family].path) if family in _own else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    path, shown = path.absolute(), path
    here = Path.cwd()
    try:
        yield
    except (Exception, SystemExit) as error:  # a script that ends the program is no family
        cause: BaseException = error
        while cause.__cause__ is not None:  # torch wraps what fails while it traces
            cause = cause.__cause__
        words = str(cause).strip().splitlines() or [""]
        kind = "" if isinstance(cause, InvalidInputError) else f"{type(cause).__name__}: "
        raise InvalidInputError(f"--family {shown}{_line(error, path)}: {kind}{words[0]:.300}") from error
    finally:
        os.chdir(here)  # paths on the command line are of the directory that it was started in


def _line(error: BaseException | None, path: Path) -> str:
    """The innermost line of the file that led to the error."""
    found = None
    while error is not None and found is None:
        if isinstance(error, SyntaxError) and error.filename == str(path):
            found = error.lineno
        for frame, line in traceback.walk_tb(error.__traceback__):
            found = line if frame.f_code.co_filename == str(path) else found
        error = error.__cause__ or error.__context__
    return "" if found is None else f", line {found}"


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
    return ", ".join(f"{value} {name.removesuffix('s') if value == 1 else name}" for name, value in settings.items())


def recognise(tensors: Mapping[str, Tensor], source: str) -> tuple[str, Mapping[str, Any]]:
    """Family and settings of a checkpoint's weights; `source` names it in messages.

    Raises InvalidInputError where no family claims them, or two do.
    """
    found = {name: find_family(name).settings_of(tensors) for name in (*FAMILIES, *_own)}
    claims = {name: settings for name, settings in found.items() if settings is not None}
    if len(claims) == 1:
        return next(iter(claims.items()))
    if claims:
        raise InvalidInputError(
            f"{source} could be of {' or of '.join(claims)}: keep the weights of one network in it, or make settings_of"
            " of your family give None for the other's"
        )
    some = ", ".join(list(tensors)[:3]) or "nothing"
    keys = {name: getattr(find_family(name), "KEYS", ()) for name in (*FAMILIES, *_own)}
    wanted = "; ".join(f"{name} has {' and '.join(each)}" for name, each in keys.items() if each)
    raise InvalidInputError(f"{source} is of another network: it has {some}; {wanted}")
