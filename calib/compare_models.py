"""Opens two models and a clip and compares them: what `mtu-compare` does. Imports numpy; torch for a checkpoint."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mtu.calib.compare import compare
from mtu.calib.compare_report import CompareReport, Floors, Mode
from mtu.calib.rollout import first_frames
from mtu.core.errors import InvalidInputError
from mtu.core.interface import Interface, Role
from mtu.export.engine_cache import cached_engine
from mtu.runtime.backends import Backend, open_backend, open_model
from mtu.runtime.chain import StagedBackend


@dataclass(frozen=True)
class Side:
    """A model as it was asked for."""

    model: str
    """mtu2, a bundle, an engine, a chain, or a checkpoint file, which the torch network runs."""
    backend: str = "auto"
    device: str = "auto"


def compare_models(
    a: Side,
    b: Side,
    source: str,
    frames: int | None,
    modes: Sequence[Mode],
    floors: Floors,
    *,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[], None] = lambda: None,
) -> CompareReport:
    """Compares two models on the first `frames` frames of a video or directory of images; None takes all.

    `say` is told what takes long before the first frame and what is compared otherwise
    than asked for, `progress` is called after each frame. Raises MtuError for what the user can put right.
    """
    pictures = first_frames(source, frames)
    opening = next(pictures)
    size = (opening.shape[0], opening.shape[1])
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(contextlib.closing(_open(side, size, say))) for side in (a, b))
        is_chain = isinstance(one, StagedBackend) or isinstance(other, StagedBackend)
        _check_floors(floors, one.interface, is_chain)
        chosen = _possible(modes, one.interface, is_chain, say)
        runs = compare(one, other, itertools.chain([opening], pictures), chosen, progress)
        return CompareReport(
            a=_described(a, one),
            b=_described(b, other),
            source=source,
            width=size[1],
            height=size[0],
            displacement=one.interface.the("displacement"),
            floors=floors,
            runs=runs,
        )


def _check_floors(floors: Floors, interface: Interface, is_chain: bool) -> None:
    lacks = {"picture": "gives no picture", "displacement": "estimates no motion", "map": "gives no map"}
    asked: list[tuple[str, float | None, Role]] = [
        ("--min-psnr", floors.psnr, "picture"),
        ("--min-agreement", floors.agreement, "displacement"),
        ("--max-map-difference", floors.map_difference, "map"),
    ]
    for option, floor, role in asked:
        if floor is None:
            continue
        if interface.the(role) is None:
            raise InvalidInputError(f"{option}: the model {interface.variant} {lacks[role]}; leave the option out")
        if is_chain and role == "displacement":
            raise InvalidInputError(f"{option}: a chain is compared by its pictures alone; leave the option out")


def _possible(
    modes: Sequence[Mode], interface: Interface, is_chain: bool, say: Callable[[str], None]
) -> Sequence[Mode]:
    """Those of the modes that say something. See Note [two modes]."""
    if is_chain and list(modes) == ["step"]:
        raise InvalidInputError(
            "--mode step: the states of a chain stay inside it, so it has no such mode; leave it out"
        )
    if len(modes) == 1:
        return modes
    if is_chain:
        say("note: the states of a chain stay inside it: its pictures are compared, in the mode rollout alone")
        return ["rollout"]
    if not interface.states:
        say("note: the model has no states, so step and rollout are the same: it is compared once, as step")
        return ["step"]
    return modes


def _open(side: Side, size: tuple[int, int], say: Callable[[str], None]) -> Backend:
    if not Path(side.model).is_file():
        return open_backend(side.backend, open_model(side.model), side.device, size=size, build=cached_engine, say=say)
    if side.backend not in ("auto", "torch"):
        raise InvalidInputError(
            f"{side.model} is a checkpoint, which backend {side.backend} cannot run: use torch, or make a bundle of it"
            f" with mtu-export onnx --checkpoint {side.model} -o DIR"
        )
    from mtu.core.extras import require

    require("export", f"running the checkpoint {side.model}", "torch", "onnx", "safetensors")
    from mtu.models.checkpoint import load_checkpoint
    from mtu.runtime.backends.torch_backend import choose_device, open_network

    device = choose_device(side.device)
    checkpoint = load_checkpoint(Path(side.model))
    opened: Any = open_network(checkpoint, checkpoint.describe(), device)
    return cast(Backend, opened)


def _described(side: Side, backend: Backend) -> dict[str, str]:
    interface = backend.interface
    return {
        "model": side.model,
        "preset": interface.variant,
        "precision": interface.arithmetic,
        "checkpoint": interface.weights,
        "backend": backend.name,
        "device": backend.device,
    }
