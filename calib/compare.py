"""Compares two models on a clip, frame by frame: pictures, maps, states, displacements.

Imports numpy; Polygraphy and skimage in `compare`. It takes open models and frames, and writes nothing. What it finds
is described in `mtu.calib.compare_report`; `mtu.calib.compare_models` opens models and clips.

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

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtu.calib.compare_frame import Agreement, Difference, compare_displacements, compare_tensors, find_matching
from mtu.calib.compare_report import MODES, FrameResult, Mode, Run
from mtu.calib.rollout import Array, windows
from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Interface, Role
from mtu.core.window import Picture, cut
from mtu.models.families import in_words
from mtu.runtime.backends import Backend
from mtu.runtime.chain import StagedBackend, open_session
from mtu.runtime.session import Restored

SHOWN: tuple[Role, ...] = ("picture", "map", "displacement")
"""Roles of the outputs that a person can look at."""


def check_same_model(a: Interface, b: Interface) -> None:
    """Raises InvalidInputError unless the two are one network with the same graphs; types and weights may differ."""
    facts = [_facts(each) for each in (a, b)]
    facts[0] |= {name: str(a.ops[name]) for name in a.ops if name in b.ops}
    facts[1] |= {name: str(b.ops[name]) for name in a.ops if name in b.ops}
    for what, one in facts[0].items():
        if one != facts[1][what]:
            variants = f" (A is {a.variant}, B is {b.variant})" if a.variant != b.variant else ""
            raise InvalidInputError(
                f"A and B have different {what}{variants}: {one} and {facts[1][what]}; compare two models of one preset"
            )


def _facts(interface: Interface) -> dict[str, str]:
    """What two exports of one network have in common, in words: all but types and weights."""
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
    }


def compare(
    a: Backend,
    b: Backend,
    frames: Iterable[Picture],
    modes: Sequence[Mode] = MODES,
    progress: Callable[[], None] = lambda: None,
) -> list[Run]:
    """Runs both models over `frames`, uint8 [H, W, 3], and compares them in each of `modes`. See Note [two modes].

    `progress` is called after each frame. Raises InvalidInputError for models of different shapes, frames of different
    sizes or below 11x11 (SSIM's window); NonFiniteError, which names tensor, side and frame, if a model overflows. The
    caller closes the backends.
    """
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    from mtu.calib.polygraphy_runner import BackendRunner

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

    def feeds(self, frames: Iterable[Picture], progress: Callable[[], None]) -> Iterator[dict[str, Array]]:
        """For each frame its window and, for the runner that threads none, the states that A made of the one before."""
        from mtu.calib.polygraphy_runner import no_states, taken_states

        for index, size, inputs in windows(self._a, frames):
            self._index, self._size = index, size
            _check_size(self._a, self._size)
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


def _compare_sessions(a: Backend, b: Backend, frames: Iterable[Picture], progress: Callable[[], None]) -> Run:
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


def _restored(side: str, backend: Backend, frames: Iterable[Picture]) -> Iterator[Restored]:
    session = open_session(backend, scene_threshold=None, strict=True)
    try:
        for frame in frames:
            _check_size(backend.interface, frame.shape)
            yield from session.push(frame)
        yield from session.flush()
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


def _check_size(interface: Interface, size: Sequence[int]) -> None:
    from mtu.calib.quality import SMALLEST

    smallest = -(-SMALLEST // interface.scale)
    if interface.the("picture") and min(size[:2]) < smallest:
        raise InvalidInputError(f"frames of {size[1]}x{size[0]} are too small: at least {smallest}x{smallest}")
