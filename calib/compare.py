"""Compares two models on a clip, frame by frame: pictures, states, displacements.

Imports numpy; Polygraphy and skimage in `compare`, torch where a checkpoint is opened. It reads models and frames, and
writes nothing. What it finds is described in `mtu.calib.compare_report`.

Note [two modes]
    step: in every frame both models get the same inputs, and the states are those of A. What differs was made in that
    one frame. rollout: each model gets its own states. What differs has built up since the first frame. A runs the same
    way in both, so one pass over the clip does both modes with one run of A.

    To Polygraphy's Comparator these are three runners: A and B, which thread their states, and B again, which is fed
    those of A. It streams: a frame is fed, run and compared before the next is asked for, so the states that A gave are
    there in time, and no more than a frame is held.

Note [ties]
    The motion compensation takes the displacement of the highest score, an average of cosines: 0 to 1. Where two scores
    are nearly the same, rounding decides, and another choice is no error. So where A and B differ, the scores of their
    two choices are computed again, in double precision from A's motion states, and a gap of at most `TIE` is a tie.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mtu.calib.compare_report import (
    MODES,
    QUANTILES,
    TIE,
    Agreement,
    CompareReport,
    Difference,
    Floors,
    FrameResult,
    Mode,
    Pictures,
    Run,
)
from mtu.calib.rollout import Array, first_frames, windows
from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import DISPLACEMENT_NAME, OUTPUT_NAME, Interface
from mtu.plugins.correlation_argmax_warp.reference import displacement_vectors, normalised
from mtu.runtime import Picture, open_backend, open_model
from mtu.runtime.backends import Backend

# Two frames


def compare_tensors(a: Mapping[str, Array], b: Mapping[str, Array]) -> dict[str, Difference]:
    """The differences of all tensors that `a` and `b` both have, but of the displacement index, which is no quantity.

    Both map names to arrays; Polygraphy's IterationResult will do. Raises InvalidInputError if they have no tensor in
    common, or one of two shapes; NonFiniteError if a difference is not finite.
    """
    names = [name for name in a if name in b and name != DISPLACEMENT_NAME]
    if not names:
        raise InvalidInputError(
            f"nothing to compare: one side gives {', '.join(a) or 'nothing'}, the other {', '.join(b) or 'nothing'};"
            " compare two exports of the same model"
        )
    return {name: _difference(name, a[name], b[name]) for name in names}


def _difference(name: str, a: Array, b: Array) -> Difference:
    if a.shape != b.shape:
        raise InvalidInputError(
            f"{name} is {list(a.shape)} on one side and {list(b.shape)} on the other: compare models of one preset on"
            " frames of one size"
        )
    with np.errstate(invalid="ignore"):
        apart = np.abs(a.astype(np.float32) - b.astype(np.float32)).ravel()
    largest = float(apart.max())
    if not math.isfinite(largest):
        raise NonFiniteError([name])
    quantiles = np.quantile(apart, QUANTILES, method="higher", overwrite_input=True)
    return Difference(largest, tuple(float(value) for value in quantiles))


def compare_displacements(
    a: NDArray[np.int32], b: NDArray[np.int32], motion: Array, motion_prev: Array, interface: Interface
) -> Agreement:
    """How far two displacement indices [1, h, w] agree.

    `motion` and `motion_prev`, [1, C, h, w], are what A matched: the motion state of the frame and that of the frame
    before, which for a first frame is its own. See Note [ties].
    """
    differs = a[0] != b[0]
    rows, columns = np.nonzero(differs)
    if not len(rows):
        return Agreement(1.0, 0.0, 0.0)
    score_a, score_b = (
        scores(motion, motion_prev, rows, columns, index[0][differs], interface.max_displacement, interface.pool_size)
        for index in (a, b)
    )
    gaps = np.abs(score_a - score_b)
    ties = int((gaps <= TIE).sum())
    return Agreement(1 - len(rows) / differs.size, ties / differs.size, float(gaps.max()))


def scores(
    motion: Array,
    motion_prev: Array,
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    index: NDArray[np.int32],
    max_displacement: int,
    pool_size: int,
) -> NDArray[np.float64]:
    """The pooled cost of one displacement at each of n positions, float64 [n].

    `motion` and `motion_prev` are [1, C, h, w]; `rows`, `columns` and `index` are [n]. The same as `pooled_costs` of
    the op's reference, which computes all displacements everywhere.
    """
    here, before = (np.moveaxis(normalised(value)[0], 0, -1) for value in (motion, motion_prev))
    height, width = here.shape[:2]
    dy, dx = displacement_vectors(index, max_displacement)
    total = np.zeros(len(rows))
    reach = range(-(pool_size // 2), pool_size // 2 + 1)
    for j, i in itertools.product(reach, reach):
        y, x = rows + j, columns + i
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        inside &= (y + dy >= 0) & (y + dy < height) & (x + dx >= 0) & (x + dx < width)
        y, x = y[inside], x[inside]
        total[inside] += np.einsum("nc,nc->n", here[y, x], before[y + dy[inside], x + dx[inside]])
    return total / pool_size**2


# Two models on a clip


def check_same_model(a: Interface, b: Interface) -> None:
    """Raises InvalidInputError unless the two have the same network shape and search; types and weights may differ."""
    for what, one, other in (
        ("networks", a.config.words, b.config.words),
        ("search radii", a.max_displacement, b.max_displacement),
        ("pooling sizes", a.pool_size, b.pool_size),
    ):
        if one != other:
            presets = f" (A is {a.preset}, B is {b.preset})" if a.preset != b.preset else ""
            raise InvalidInputError(
                f"A and B have different {what}{presets}: {one} and {other}; compare two models of one preset"
            )


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
        self._index, self._height, self._width = 0, 0, 0
        self._made: dict[str, Array] = {}
        self._before: dict[str, Array] = {}

    def feeds(self, frames: Iterable[Picture], progress: Callable[[], None]) -> Iterator[dict[str, Array]]:
        """For each frame its window and, for the runner that threads none, the states that A made of the one before."""
        from mtu.calib.polygraphy_runner import no_states
        from mtu.calib.quality import SMALLEST

        for self._index, (self._height, self._width), inputs in windows(frames):
            if min(self._height, self._width) < SMALLEST:
                size = f"{self._width}x{self._height}"
                raise InvalidInputError(f"frames of {size} are too small: at least {SMALLEST}x{SMALLEST}")
            self._before = self._made
            states = no_states(self._b)
            if self._before:
                with np.errstate(over="ignore"):
                    states = {
                        state.input.name: self._before[state.output.name].astype(state.dtype, copy=False)
                        for state in self._b.states
                    }
            yield {**inputs, **states}
            progress()

    def __call__(self, a: Any, b: Any) -> dict[str, bool]:
        """Adds what differs between two of Polygraphy's IterationResults, A's and B's, to the run that B's is of.

        It passes no verdict: floors are for the report.
        """
        from mtu.calib.quality import measure

        run, other = self._runs[b.runner_name], dict(b.items())
        self._made = dict(a.items())
        pictures = _pictures(self._made, other, self._height, self._width)
        quality = measure(pictures.b, pictures.a)
        agreement = None
        if self._a.has_motion:
            motion = self._a.states[1].output.name
            agreement = compare_displacements(
                self._made[DISPLACEMENT_NAME],
                other[DISPLACEMENT_NAME],
                self._made[motion],
                (self._before or self._made)[motion],
                self._a,
            )
        tensors = compare_tensors(self._made, other)
        run.add(FrameResult(self._index, quality.psnr, quality.ssim, tensors, agreement), pictures)
        return {}


def _pictures(a: Mapping[str, Array], b: Mapping[str, Array], height: int, width: int) -> Pictures:
    motions = [tensors[DISPLACEMENT_NAME][0] if DISPLACEMENT_NAME in tensors else None for tensors in (a, b)]
    pictures = [tensors[OUTPUT_NAME][0, :height, :width] for tensors in (a, b)]
    return Pictures(pictures[0], pictures[1], motions[0], motions[1])


# What mtu-compare does


@dataclass(frozen=True)
class Side:
    """A model as it was asked for."""

    model: str
    """mtu2, a bundle, an engine, or a checkpoint file, which the torch network runs."""
    backend: str = "auto"
    device: str = "auto"


def compare_models(
    a: Side,
    b: Side,
    source: str,
    frames: int | None,
    modes: Sequence[Mode],
    floors: Floors,
    say: Callable[[str], None] = lambda text: None,
    progress: Callable[[], None] = lambda: None,
) -> CompareReport:
    """Compares two models on the first `frames` frames of a video or directory of images; None takes all.

    `say` is told what takes long before the first frame, `progress` is called after each frame. Raises MtuError for
    what the user can put right.
    """
    pictures = first_frames(source, frames)
    opening = next(pictures)
    size = (opening.shape[0], opening.shape[1])
    with contextlib.closing(_open(a, size, say)) as one, contextlib.closing(_open(b, size, say)) as other:
        if floors.agreement is not None and not one.interface.has_motion:
            raise InvalidInputError("--min-agreement: a model of one unit estimates no motion; leave the option out")
        runs = compare(one, other, itertools.chain([opening], pictures), modes, progress)
        described = [_described(side, backend) for side, backend in ((a, one), (b, other))]
        radius = one.interface.max_displacement
    return CompareReport(described[0], described[1], source, size[1], size[0], radius, floors, runs)


def _open(side: Side, size: tuple[int, int], say: Callable[[str], None]) -> Backend:
    if not Path(side.model).is_file():
        return open_backend(side.backend, open_model(side.model), side.device, size=size, say=say)
    if side.backend not in ("auto", "torch"):
        raise InvalidInputError(
            f"{side.model} is a checkpoint, which backend {side.backend} cannot run: use torch, or make a bundle of it"
            f" with mtu-export onnx --checkpoint {side.model} -o DIR"
        )
    from mtu.core.extras import require

    require("export", f"running the checkpoint {side.model}", "torch", "onnx", "safetensors")
    from mtu.models.checkpoint import load_checkpoint
    from mtu.runtime.backends.torch_backend import TorchBackend, choose_device

    device = choose_device(side.device)
    checkpoint = load_checkpoint(Path(side.model))
    interface = Interface(checkpoint.config, checkpoint=checkpoint.digest)
    backend: Any = TorchBackend(interface, checkpoint.network(), device)
    return cast(Backend, backend)


def _described(side: Side, backend: Backend) -> dict[str, str]:
    interface = backend.interface
    return {
        "model": side.model,
        "preset": interface.preset,
        "precision": interface.precision,
        "checkpoint": interface.checkpoint,
        "backend": backend.name,
        "device": backend.device,
    }
