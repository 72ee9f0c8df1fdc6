"""The folder of a training run: how it comes to be, and the checkpoint in it. Imports torch."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mtu.core.errors import InvalidInputError, MissingFileError, OutputError
from mtu.training.options import Options

CHECKPOINT, WEIGHTS, LOGS = "last.ckpt", "weights.safetensors", "logs"
FORMAT = 1
"""Of the checkpoint; raised when an older one would be read wrongly."""

PARTS = frozenset(("format", "options", "network", "average", "optimiser", "step", "batch", "best"))
"""Of the checkpoint."""


@contextlib.contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """Makes the folder of a run; removes what it made if the run ends before it has saved. Raises OutputError."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}; -o is the folder of the run") from None
    try:
        yield
    except BaseException:
        if made and not (folder / CHECKPOINT).exists():
            shutil.rmtree(folder, ignore_errors=True)
            # Those above it may be another run's too by now.
            with contextlib.suppress(OSError):
                for path in made[1:]:
                    path.rmdir()
        raise


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The content of a run's checkpoint. Raises MissingFileError, or InvalidInputError if it is none of ours."""
    path = folder / CHECKPOINT
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist: nothing to resume; leave --resume out to start a run")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(saved, dict):
            raise TypeError(type(saved))
        if saved["format"] != FORMAT:
            raise InvalidInputError(f"{path} was written by another version of mtu-train: start from {WEIGHTS} instead")
        if absent := PARTS - saved.keys():
            raise KeyError(*absent)
        if isinstance(data := saved["options"].get("data"), str):  # of a run that could have but one
            saved["options"]["data"] = (data,)
        saved["options"] = dataclasses.asdict(Options(**saved["options"]))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{path} is no checkpoint of mtu-train, or damaged ({type(error).__name__})") from None
    return saved
