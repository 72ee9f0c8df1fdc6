"""Writes a chain: a directory with `bundle.json` and a copy of each model that is to run in a row. Plain Python."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from mtu.core.errors import InvalidInputError, MtuError, OutputError
from mtu.core.files import check_target, publish, temporary_beside, write_through
from mtu.runtime.backends import Model, Stages, open_model
from mtu.runtime.bundle import BUNDLE, Bundle, chain_json
from mtu.runtime.chain import combined
from mtu.runtime.engine import MANIFEST, Engine

LOG = "build.log"
"""What was said while an engine was built, beside it."""
HEADS = (BUNDLE, MANIFEST, LOG)
"""What a stage consists of beside its graphs or engines."""


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
        opened.append(model)
    combined([model.interface for model in opened])
    names = stage_names(opened)
    check_chain_target(directory, opened, overwrite)
    with temporary_beside(directory) as temporary:
        for name, model in zip(names, opened, strict=True):
            copy_model(model, temporary / name)
        write_through(temporary / BUNDLE, chain_json(names))
        publish(temporary, directory, overwrite)
    chain = open_model(directory)
    assert isinstance(chain, Stages)
    return chain


def check_chain_target(directory: Path, models: Sequence[Bundle | Engine], overwrite: bool) -> None:
    """Raises OutputError unless a chain of these models may be written to `directory`, an absolute path; with
    `overwrite` it may hold a chain, if there is nothing else in it or in a stage."""
    for model in models:
        if directory in (path := model.directory.resolve(), *path.parents):
            raise OutputError(
                f"{directory} is or holds the model {model.directory}, which is still needed: choose another name"
            )
    files: dict[str, set[str]] = {"": {BUNDLE}}
    if directory.is_dir():
        with contextlib.suppress(MtuError):  # it is no chain, or a broken one: nothing of it is replaced
            chain = open_model(directory)
            files = model_files(chain) if isinstance(chain, Stages) else files
    for name, known in files.items():
        check_target(directory / name, "a stage" if name else "a chain", known, overwrite)


def copy_model(model: Model, directory: Path) -> None:
    """Copies the files of a model into `directory`, which is made. Raises OSError."""
    directory.mkdir()
    if isinstance(model, Stages):
        for stage in model.models:
            copy_model(stage, directory / stage.directory.name)
        shutil.copyfile(model.directory / BUNDLE, directory / BUNDLE)
        return
    head = MANIFEST if isinstance(model, Engine) else BUNDLE
    for path in (*model.files, model.directory / head):
        shutil.copyfile(path, directory / path.name)


def model_files(model: Model) -> dict[str, set[str]]:
    """The names of what may lie in the directory of a model, and in each directory in it; its own is ""."""
    if isinstance(model, Stages):
        stages = {stage.directory.name: model_files(stage)[""] for stage in model.models}
        return {"": {BUNDLE, *stages}, **stages}
    return {"": {*HEADS, *(path.name for path in model.files)}}


def stage_names(models: Sequence[Bundle | Engine]) -> list[str]:
    """The sub-directory of each stage: "1-blur2blur"."""
    return [f"{number}-{_name(model)}" for number, model in enumerate(models, 1)]


def _name(model: Bundle | Engine) -> str:
    own = re.sub(r"^\d+-", "", model.directory.resolve().name)  # of a stage
    name = model.interface.variant if model.interface.variant != "custom" else own
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:40] or "model"
