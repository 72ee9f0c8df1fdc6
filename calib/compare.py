"""Compares two models on a clip, frame by frame: pictures, maps, states, displacements. Writes nothing.

Imports numpy; Polygraphy and skimage in `compare`, torch for a checkpoint. `mtu.calib.compare_report` describes what is
found.

Note [two modes]
    step: in every frame both models get the same inputs, and the states are those of A. What differs was made in that
    one frame. rollout: each model gets its own states. What differs has built up since the first frame. A runs the same
    way in both, so one pass over the clip does both modes with one run of A. Without states the two are one.

    To Polygraphy's Comparator these are three runners: A and B, which thread their states, and B again, which is fed
    those of A. It streams: a frame is fed, run and compared before the next is asked for, so the states that A gave are
    there in time, and no more than a frame is held.

    The states of a chain are inside it, so it is compared by what its sessions give: a rollout.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from mtu.calib.compare_frame import Agreement, Difference, compare_displacements, compare_tensors, find_matching
from mtu.calib.compare_report import MODES, CompareReport, Floors, FrameResult, Mode, Run
from mtu.calib.rollout import Array, read_first, restored, windows
from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Interface, Role
from mtu.core.window import Moment, by_stream, check_streams, cut
from mtu.export.engine_cache import cached_engine
from mtu.models.families import in_words
from mtu.runtime.backends import Backend, PrecisionChoice, open_backend, open_model
from mtu.runtime.chain import StagedBackend
from mtu.runtime.session import Restored

SHOWN: tuple[Role, ...] = ("picture", "map", "displacement")
"""Roles of the outputs that a person can look at."""


@dataclass(frozen=True)
class Side:
    """A model as it was asked for."""

    model: str
    """mtu2, a bundle, an engine, a chain, or a checkpoint file, which the torch network runs."""
    backend: str = "auto"
    device: str = "auto"
    precision: PrecisionChoice | None = None


def compare_models(
    a: Side,
    b: Side,
    source: str,
    frames: int | None,
    modes: Sequence[Mode],
    floors: Floors,
    *,
    streams: Mapping[str, str] | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[], None] = lambda: None,
) -> CompareReport:
    """Compares two models on the first `frames` frames of a video or directory of images; None takes all. `streams` are
    the sources of what the models read beside it, by name.

    `say` is told what takes long before the first frame and what is compared otherwise than asked for, `progress` is
    called after each frame. Raises MtuError for what the user can put right.
    """
    pictures = read_first(source, frames, streams or {})
    opening = next(pictures)
    size = (opening.rgb.shape[0], opening.rgb.shape[1])
    with contextlib.ExitStack() as stack:
        one, other = (stack.enter_context(contextlib.closing(_open(side, size, say))) for side in (a, b))
        for side in (one, other):
            check_streams(streams or {}, side.interface)
        first = one.interface.streams[0]
        moments = ({first: frame.rgb, **frame.views} for frame in itertools.chain([opening], pictures))
        is_chain = isinstance(one, StagedBackend) or isinstance(other, StagedBackend)
        _check_floors(floors, one.interface, is_chain)
        chosen = _possible(modes, one.interface, is_chain, say)
        runs = compare(one, other, moments, chosen, progress)
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
    asked: tuple[tuple[str, float | None, Role, str], ...] = (
        ("--min-psnr", floors.psnr, "picture", "gives no picture"),
        ("--min-agreement", floors.agreement, "displacement", "estimates no motion"),
        ("--max-map-difference", floors.map_difference, "map", "gives no map"),
    )
    for option, floor, role, lack in asked:
        if floor is not None and interface.the(role) is None:
            raise InvalidInputError(f"{option}: the model {interface.variant} {lack}; leave the option out")
        if floor is not None and is_chain and role == "displacement":
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
        return open_backend(
            side.backend,
            open_model(side.model),
            side.device,
            size=size,
            precision=side.precision,
            build=cached_engine,
            say=say,
        )
    if side.precision == "bf16":
        raise InvalidInputError(f"{side.model} is a checkpoint, which torch computes in fp32: leave out --precision")
    if side.backend not in ("auto", "torch"):
        raise InvalidInputError(
            f"{side.model} is a checkpoint, which backend {side.backend} cannot run: use torch, or make a bundle of it"
            f" with mtu-export onnx --checkpoint {side.model} -o DIR"
        )
    from mtu.core.extras import require

    require("export", f"running the checkpoint {side.model}", "torch", "onnx", "safetensors")
    from mtu.models.checkpoint import load_checkpoint
    from mtu.runtime.backends.torch_backend import choose_device, open_network

    checkpoint = load_checkpoint(Path(side.model))
    return cast(Backend, open_network(checkpoint, checkpoint.describe(), choose_device(side.device)))


def _described(side: Side, backend: Backend) -> dict[str, str]:
    interface = backend.interface
    return {
        "model": side.model,
        "preset": interface.variant,
        "precision": backend.arithmetic,
        "checkpoint": interface.weights,
        "backend": backend.name,
        "device": backend.device,
    }


def check_same_model(a: Interface, b: Interface) -> None:
    """Raises InvalidInputError unless the two are one network with the same graphs; types and weights may differ."""
    ops = [name for name in a.ops if name in b.ops]
    others = _facts(b, ops)
    for what, one in _facts(a, ops).items():
        if one != others[what]:
            variants = f" (A is {a.variant}, B is {b.variant})" if a.variant != b.variant else ""
            raise InvalidInputError(
                f"A and B have different {what}{variants}: {one} and {others[what]}; compare two models of one preset"
            )


def _facts(interface: Interface, ops: Sequence[str]) -> dict[str, str]:
    """What two exports of one network have in common, in words: all but types and weights. `ops`: those of both."""
    outputs = (
        f"{each.role} {each.tensor.name} {list(each.tensor.shape)}"
        + (f" of radius {each.radius}" if each.radius else "")
        for each in interface.outputs
    )
    graphs = (
        f"{graph.name} of {', '.join(f'{each.tensor.name} ({each.source})' for each in graph.inputs)}"
        for graph in interface.graphs
    )
    return {
        "families": interface.family,
        "networks": in_words(interface.settings),
        "outputs": ", ".join(outputs),
        "graphs": "; ".join(graphs),
        "size rules": f"a multiple of {interface.size.multiple} from {interface.size.minimum}",
        **{name: str(interface.ops[name]) for name in ops},
    }


def compare(
    a: Backend,
    b: Backend,
    frames: Iterable[Moment],
    modes: Sequence[Mode] = MODES,
    progress: Callable[[], None] = lambda: None,
) -> list[Run]:
    """Runs both models over `frames`, uint8 [H, W, 3] or one of each stream, and compares them in each of `modes`. See
    Note [two modes].

    `progress` is called after each frame. Raises InvalidInputError for models of different shapes, frames of different
    sizes or below 11x11 (SSIM's window); NonFiniteError, which names tensor, side and frame, if a model overflows. The
    caller closes the backends.
    """
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401  # by Polygraphy it would be inside a bare except, which swallows Ctrl-C
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    from mtu.calib.polygraphy_runner import BackendRunner

    frames = _measurable(frames, a.interface, b.interface)
    if isinstance(a, StagedBackend) or isinstance(b, StagedBackend):
        return [_compare_sessions(a, b, frames, progress)]
    check_same_model(a.interface, b.interface)
    runs = {f"B in {mode}": Run(mode) for mode in modes}
    runners = [BackendRunner(a, "A", threads_states=True)]
    runners += [BackendRunner(b, name, threads_states=run.mode == "rollout") for name, run in runs.items()]
    comparison = _Comparison(a.interface, b.interface, runs)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        Comparator.compare_accuracy(
            Comparator.run(runners, data_loader=comparison.feeds(frames, progress), streaming=True),
            comparisons=[(0, number) for number in range(1, len(runners))],
            compare_func=comparison,
        )
    return list(runs.values())


class _Comparison:
    """What Polygraphy asks for while the models run: the inputs of the next frame, and how two results differ."""

    def __init__(self, a: Interface, b: Interface, runs: Mapping[str, Run]) -> None:
        """`runs` are filled; their keys are the names of B's runners."""
        self._a, self._b, self._runs = a, b, runs
        self._matching = find_matching(a, b)
        self._index, self._size = 0, (0, 0)
        self._made: dict[str, Array] = {}
        self._before: dict[str, Array] = {}

    def feeds(self, frames: Iterable[Moment], progress: Callable[[], None]) -> Iterator[dict[str, Array]]:
        """For each frame its window and, for the runner that threads none, the states that A made of the one before."""
        from mtu.calib.polygraphy_runner import no_states, taken_states

        for index, size, inputs in windows(self._a, frames):
            self._index, self._size = index, size
            self._before = self._made
            states = no_states(self._b)
            if self._before:
                with np.errstate(over="ignore"):
                    states = {
                        taken: self._before[given].astype(self._b.states[given].dtype, copy=False)
                        for taken, given in taken_states(self._b).items()
                    }
            yield {**inputs, **states}
            progress()

    def __call__(self, a: Any, b: Any) -> dict[str, bool]:
        """Adds what differs between two of Polygraphy's IterationResults, A's and B's, to the run that B's is of.

        It passes no verdict: floors are for the report.
        """
        made = self._made = dict(a.items())
        given = dict(b.items())
        agreement = None
        if displacement := self._a.the("displacement"):
            one, other = (each[displacement.tensor.name][0] for each in (made, given))
            agreement = compare_displacements(one, other, self._matching, made, self._before or made)
        shown = self._shown(made), self._shown(given)
        maps = [_by_name(self._a, each, "map") for each in shown]  # of the frame alone
        tensors = compare_tensors({**made, **maps[0]}, {**given, **maps[1]})
        self._runs[b.runner_name].add(_result(self._a, *shown, tensors, agreement), shown)
        return {}

    def _shown(self, tensors: Mapping[str, Array]) -> Restored:
        given = {role: output.tensor for role in SHOWN if (output := self._a.the(role))}
        found: dict[str, Any] = {role: cut(tensors[each.name], each, *self._size) for role, each in given.items()}
        return Restored(self._index, **{"picture": None, **found})


def _compare_sessions(a: Backend, b: Backend, frames: Iterable[Moment], progress: Callable[[], None]) -> Run:
    """By what a person sees: the picture or the map of each frame."""
    run, seen = Run("rollout"), SHOWN[:2]
    for role in seen:
        if (a.interface.the(role) is None) != (b.interface.the(role) is None):
            raise InvalidInputError(f"one of A and B gives a {role} and the other none: compare two that give the same")
    sources = itertools.tee(frames)
    for one, other in zip(_restored("A", a, sources[0]), _restored("B", b, sources[1]), strict=True):
        tensors = compare_tensors(*(_by_name(a.interface, each, *seen) for each in (one, other)))
        run.add(_result(a.interface, one, other, tensors, None), (one, other))
        progress()
    return run


def _restored(side: str, backend: Backend, frames: Iterable[Moment]) -> Iterator[Restored]:
    try:
        yield from restored(backend, frames)
    except NonFiniteError as error:
        raise NonFiniteError([f"{state} of {side}" for state in error.states], error.frame) from None


def _by_name(interface: Interface, frame: Restored, *roles: Role) -> dict[str, Array]:
    """What a frame has of these roles, by the names of the outputs."""
    return {output.tensor.name: getattr(frame, role) for role in roles if (output := interface.the(role))}


def _result(
    interface: Interface, a: Restored, b: Restored, tensors: Mapping[str, Difference], agreement: Agreement | None
) -> FrameResult:
    from mtu.calib.quality import measure

    quality = None if a.picture is None else measure(b.rgb, a.rgb)
    output = interface.the("map")
    return FrameResult(
        index=a.index,
        psnr=quality.psnr if quality else None,
        ssim=quality.ssim if quality else None,
        tensors=tensors,
        displacement=agreement,
        map=tensors[output.tensor.name] if output else None,
    )


def _measurable(frames: Iterable[Moment], *interfaces: Interface) -> Iterator[Moment]:
    """The frames; raises InvalidInputError for one whose pictures are smaller than SSIM's window."""
    from mtu.calib.quality import SMALLEST

    smallest = max((-(-SMALLEST // each.scale) for each in interfaces if each.the("picture")), default=0)
    streams = interfaces[0].streams
    for frame in frames:
        height, width = by_stream(frame, streams)[streams[0]].shape[:2]
        if min(height, width) < smallest:
            raise InvalidInputError(f"frames of {width}x{height} are too small: at least {smallest}x{smallest}")
        yield frame
