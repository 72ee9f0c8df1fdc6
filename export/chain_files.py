"""Writes a chain: a directory with `bundle.json` and a copy of each model that is to run in a row. Plain Python."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from mtu.core.errors import InvalidInputError, OutputError
from mtu.core.files import check_target, publish, temporary_beside, write_through
from mtu.runtime.backends import Stages, open_model
from mtu.runtime.bundle import BUNDLE, Bundle, chain_json
from mtu.runtime.chain import combined
from mtu.runtime.engine import MANIFEST, Engine


def write_chain(models: Sequence[Path], directory: Path, *, overwrite: bool = False) -> Stages:
    """Copies `models`, bundles or engines, into `directory`, in the order in which frames go through them.

    The directory gets its name when it is whole. Raises InvalidInputError for fewer than two, for a chain among them,
    or stages that do not fit each other; OutputError if `directory` exists, cannot be written or holds a stage.
    """
    if len(models) < 2:
        raise InvalidInputError(f"a chain has two models or more, {len(models)} given: mtu-export chain A B -o DIR")
    directory = directory.resolve()
    opened: list[Bundle | Engine] = []
    for path in models:
        model = open_model(path)
        if isinstance(model, Stages):
            raise InvalidInputError(f"{path} is a chain itself: give its stages, the directories in it, one by one")
        if directory == model.directory.resolve() or directory in model.directory.resolve().parents:
            raise OutputError(f"{directory} is or holds the model {path}, which is still needed: choose another name")
        opened.append(model)
    combined([model.interface for model in opened])
    names = stage_names(opened)
    check_target(directory, "a chain", files_of_chain(directory), overwrite)
    with temporary_beside(directory) as temporary:
        for name, model in zip(names, opened, strict=True):
            (temporary / name).mkdir()
            head = MANIFEST if isinstance(model, Engine) else BUNDLE
            for path in (*model.files, model.directory / head):
                shutil.copyfile(path, temporary / name / path.name)
        write_through(temporary / BUNDLE, chain_json(names))
        publish(temporary, directory, overwrite)
    chain = open_model(directory)
    assert isinstance(chain, Stages)
    return chain


def files_of_chain(directory: Path) -> set[str]:
    """What a chain in `directory` consists of."""
    stages = {path.name for path in directory.glob("[0-9]*-*") if path.is_dir()} if directory.is_dir() else set()
    return {BUNDLE, *stages}


def stage_names(models: Sequence[Bundle | Engine]) -> list[str]:
    """The sub-directory of each stage: "1-blur2blur"."""
    return [f"{number}-{_name(model)}" for number, model in enumerate(models, 1)]


def _name(model: Bundle | Engine) -> str:
    own = re.sub(r"^\d+-", "", model.directory.resolve().name)  # of a stage
    name = model.interface.variant if model.interface.variant != "custom" else own
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:40] or "model"
