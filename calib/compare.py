"""Compares two models on a clip, frame by frame: pictures, states, displacements. Imports numpy; skimage, torch inside.

It reads models and frames, and writes nothing.

Note [two modes]
    step: in every frame both models get the same inputs, and the states are those of A. What differs was made in that
    one frame. rollout: each model gets its own states. What differs has built up since the first frame. A runs the same
    way in both, so one pass over the clip does both modes with one run of A.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from mtu.calib.rollout import Array, windows
from mtu.models.errors import InvalidInputError, NonFiniteError
from mtu.models.interface import DISPLACEMENT_NAME, FRAME_NAMES, OUTPUT_NAME, Interface
from mtu.plugins.correlation_argmax_warp.reference import displacement_vectors, normalised
from mtu.runtime import Picture, open_backend, open_model, read_frames
from mtu.runtime.backends import GPU_ONLY, Backend

Mode = Literal["step", "rollout"]
MODES: tuple[Mode, ...] = ("step", "rollout")

QUANTILES = (0.5, 0.99, 0.999)
TIE = 1e-3
"""Largest gap of two scores that counts as a tie: about what fp16 features are rounded by."""


@dataclass(frozen=True)
class Difference:
    """How far two tensors are apart: absolute differences of their elements, in the tensors' own units."""

    largest: float
    quantiles: tuple[float, ...]
    """At `QUANTILES`: that share of the elements differs by no more."""


@dataclass(frozen=True)
class Agreement:
    """How far two displacement maps agree; shares of all positions, 0 to 1. See Note [ties]."""

    equal: float
    ties: float
    """Different, and a tie."""
    gap: float
    """Largest gap of scores of the positions that differ; 0 where none does."""

    @property
    def share(self) -> float:
        """Equal or a tie."""
        return self.equal + self.ties


@dataclass(frozen=True)
class FrameResult:
    """What was found in one frame."""

    index: int
    psnr: float
    """Of the two restored pictures, in dB, peak 1; infinite where they are equal."""
    ssim: float
    tensors: Mapping[str, Difference]
    """The output, in steps of 8 bits, and every state, by the names of the graphs' outputs."""
    displacement: Agreement | None
    """None for a model of one unit."""


@dataclass(frozen=True)
class Floors:
    """What every frame has to reach; None asks for nothing."""

    psnr: float | None = None
    """dB."""
    agreement: float | None = None
    """Share of displacements that are equal or a tie, 0 to 1."""

    def missed(self, frame: FrameResult) -> bool:
        """Whether a frame is below a floor."""
        agreement = 1.0 if frame.displacement is None else frame.displacement.share
        return (self.psnr is not None and frame.psnr < self.psnr) or (
            self.agreement is not None and agreement < self.agreement
        )


@dataclass(frozen=True)
class Pictures:
    """What one frame looks like in A and in B: uint8 [H, W, 3] and displacement indices [h, w] or None."""

    a: Picture
    b: Picture
    motion_a: NDArray[np.int32] | None
    motion_b: NDArray[np.int32] | None


@dataclass
class Run:
    """All frames of one mode. Holds the pictures of the worst frame, and of the others figures alone."""

    mode: Mode
    frames: list[FrameResult] = field(default_factory=list)
    worst: FrameResult | None = None
    """The frame of the lowest PSNR; among equals that of the lowest agreement, then the first."""
    pictures: Pictures | None = None
    """Of the worst frame."""

    def add(self, frame: FrameResult, pictures: Pictures) -> None:
        """Takes the next frame."""
        self.frames.append(frame)
        if self.worst is None or _badness(frame) < _badness(self.worst):
            self.worst, self.pictures = frame, pictures

    def first_missed(self, floors: Floors) -> FrameResult | None:
        """The first frame below a floor, or None."""
        return next((frame for frame in self.frames if floors.missed(frame)), None)

    def worst_of(self, tensor: str) -> FrameResult:
        """The frame in which a tensor differs most."""
        return max(self.frames, key=lambda frame: frame.tensors[tensor].largest)


def _badness(frame: FrameResult) -> tuple[float, float]:
    return frame.psnr, frame.displacement.share if frame.displacement else 1.0


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


@dataclass(frozen=True)
class _Ran:
    """What a model made of a frame."""

    states: Mapping[str, Any]
    """As the backend holds them, by the names of the step graph's inputs."""
    tensors: Mapping[str, Array]
    """On the host, by the names of the graph's outputs; float16 or float32 as the model has them."""


def _run(backend: Backend, side: str, inputs: Mapping[str, Array], states: Mapping[str, Any], index: int) -> _Ran:
    pending = backend.submit({**inputs, **states})
    try:
        outputs = pending.result()
    except NonFiniteError as error:
        raise NonFiniteError([f"{name} of {side}" for name in error.states], index) from None
    size = inputs[FRAME_NAMES[0]].shape[1:3]
    held = {
        state.output.name: _to_host(backend, pending.states[state.input.name], state.output.name, size)
        for state in backend.interface.states
    }
    return _Ran(pending.states, {**outputs, **held})


def _to_host(backend: Backend, state: Any, name: str, size: tuple[int, int]) -> Array:
    """A state of a frame whose result has been fetched; a copy that stays valid."""
    if backend.name in GPU_ONLY:
        from mtu.runtime.backends.cuda_device import download

        device: Any = backend
        spec = next(spec for spec in backend.interface.outputs if spec.name == name)
        with device.gpu:
            staging = device.gpu.pinned(spec.at(*size), spec.dtype)
            download(staging, state.buffers.memory[name], device.download)
            device.gpu.synchronize()
            value = np.array(staging)
            del staging  # freed while the device is current
        return value
    return np.array(state.cpu().numpy() if backend.name.startswith("torch") else state.numpy())


def _to_backend(backend: Backend, tensors: Mapping[str, Array]) -> dict[str, Any]:
    """The states among `tensors`, which are another model's, as this one takes them."""
    with np.errstate(over="ignore"):
        arrays = {
            state.output.name: np.ascontiguousarray(tensors[state.output.name].astype(state.dtype))
            for state in backend.interface.states
        }
    names = {state.output.name: state.input.name for state in backend.interface.states}
    device: Any = backend
    if backend.name in GPU_ONLY:
        from mtu.runtime.backends.cuda_device import upload

        with device.gpu:
            # Buffers as a frame's results have them: the backend frees them with the last state that is dropped.
            lease = device._setup.pool.lease()
            for name, array in arrays.items():
                staging = device.gpu.pinned(array.shape, array.dtype.name)
                np.copyto(staging, array)
                upload(lease.buffers.memory[name], staging, device.compute)
                device.gpu.synchronize()
                del staging
        return dict.fromkeys(names.values(), lease)
    if backend.name.startswith("torch"):
        import torch

        return {names[name]: torch.from_numpy(array).to(device.device) for name, array in arrays.items()}
    return {names[name]: array for name, array in arrays.items()}


def check_same_model(a: Interface, b: Interface) -> None:
    """Raises InvalidInputError unless the two have the same network shape and search; types and weights may differ."""
    for what, one, other in (
        ("networks", a.config, b.config),
        ("search radii", a.max_displacement, b.max_displacement),
        ("pooling sizes", a.pool_size, b.pool_size),
    ):
        if one != other:
            presets = f" (A is {a.preset}, B is {b.preset})" if a.preset != b.preset else ""
            raise InvalidInputError(
                f"A and B have different {what}{presets}: {one} and {other}; compare two models of one preset"
            )


def compare(a: Backend, b: Backend, frames: Iterable[Picture], modes: Sequence[Mode] = MODES) -> list[Run]:
    """Runs both models over `frames`, uint8 [H, W, 3], and compares them in each of `modes`. See Note [two modes].

    Raises InvalidInputError for models of different shapes, frames of different sizes or below 11x11 (SSIM's window);
    NonFiniteError, which names tensor, side and frame, if a model overflows. The caller closes the backends.
    """
    from mtu.calib.quality import SMALLEST, measure

    check_same_model(a.interface, b.interface)
    runs = [Run(mode) for mode in modes]
    before: _Ran | None = None
    own: dict[Mode, _Ran] = {}
    for index, (height, width), inputs in windows(frames):
        if min(height, width) < SMALLEST:
            raise InvalidInputError(f"frames of {width}x{height} are too small: at least {SMALLEST}x{SMALLEST}")
        made = _run(a, "A", inputs, before.states if before else {}, index)
        for run in runs:
            if before is None and own:
                other = next(iter(own.values()))  # a first frame has no states, and is the same in both modes
            else:
                states = own[run.mode].states if before else {}
                if before is not None and run.mode == "step":
                    states = _to_backend(b, before.tensors)
                other = _run(b, "B", inputs, states, index)
            own[run.mode] = other
            pictures = _pictures(made, other, height, width)
            quality = measure(pictures.b, pictures.a)
            agreement = None
            if a.interface.has_motion:
                _, state, _ = a.interface.states
                motion = made.tensors[state.output.name]
                agreement = compare_displacements(
                    made.tensors[DISPLACEMENT_NAME],
                    other.tensors[DISPLACEMENT_NAME],
                    motion,
                    before.tensors[state.output.name] if before else motion,
                    a.interface,
                )
            tensors = compare_tensors(made.tensors, other.tensors)
            run.add(FrameResult(index, quality.psnr, quality.ssim, tensors, agreement), pictures)
        before = made
    return runs


def _pictures(a: _Ran, b: _Ran, height: int, width: int) -> Pictures:
    motions = [ran.tensors[DISPLACEMENT_NAME][0] if DISPLACEMENT_NAME in ran.tensors else None for ran in (a, b)]
    pictures = [ran.tensors[OUTPUT_NAME][0, :height, :width] for ran in (a, b)]
    return Pictures(pictures[0], pictures[1], motions[0], motions[1])


# What mtu-compare does


@dataclass(frozen=True)
class Side:
    """A model as it was asked for."""

    model: str
    """mtu2, a bundle, an engine, or a checkpoint file, which the torch network runs."""
    backend: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class Report:
    """A comparison that is done."""

    a: Mapping[str, str]
    """What A is: model, preset, precision, checkpoint, backend, device."""
    b: Mapping[str, str]
    source: str
    width: int
    height: int
    max_displacement: int
    floors: Floors
    runs: Sequence[Run]

    @property
    def passed(self) -> bool:
        """Whether no frame is below a floor."""
        return all(run.first_missed(self.floors) is None for run in self.runs)

    def verdicts(self) -> list[str]:
        """In words, what missed a floor and where to look; empty if nothing did."""
        missed = {run.mode: frame for run in self.runs if (frame := run.first_missed(self.floors)) is not None}
        lines = [f"{mode}: below the floor from frame {frame.index}: {_said(frame)}" for mode, frame in missed.items()]
        if list(missed) == ["rollout"] and len(self.runs) == len(MODES):
            lines.append(
                "every step is within the floors and the rollout is not: look at the states, how they are carried from"
                " frame to frame and how errors grow in them"
            )
        elif "step" in missed:
            lines.append("a single step is below the floor: look at the weights and the arithmetic of the graphs")
        return lines

    def as_json(self) -> dict[str, Any]:
        """Everything, for `json.dumps`; a PSNR of null is that of equal pictures."""
        return {
            "a": dict(self.a),
            "b": dict(self.b),
            "input": self.source,
            "width": self.width,
            "height": self.height,
            "floors": {"psnr": self.floors.psnr, "agreement": self.floors.agreement},
            "tie": TIE,
            "passed": self.passed,
            "verdicts": self.verdicts(),
            "modes": {run.mode: self._run_as_json(run) for run in self.runs},
        }

    def _run_as_json(self, run: Run) -> dict[str, Any]:
        assert run.worst is not None
        missed = run.first_missed(self.floors)
        return {
            "worst_frame": run.worst.index,
            "first_below_floor": None if missed is None else missed.index,
            "frames": [_frame_as_json(frame) for frame in run.frames],
        }


def decibels(psnr: float) -> str:
    """A PSNR in words: that of equal pictures is infinite."""
    return f"{psnr:.2f} dB" if math.isfinite(psnr) else "equal"


def _said(frame: FrameResult) -> str:
    agreement = "" if frame.displacement is None else f", agreement {frame.displacement.share:.2%}"
    return f"PSNR {decibels(frame.psnr)}{agreement}"


def _frame_as_json(frame: FrameResult) -> dict[str, Any]:
    tensors = {
        name: {
            "largest": found.largest,
            **{f"{100 * q:g}%": v for q, v in zip(QUANTILES, found.quantiles, strict=True)},
        }
        for name, found in frame.tensors.items()
    }
    agreement = frame.displacement
    return {
        "frame": frame.index,
        "psnr": frame.psnr if math.isfinite(frame.psnr) else None,
        "ssim": frame.ssim,
        "tensors": tensors,
        "displacement": agreement and {"equal": agreement.equal, "ties": agreement.ties, "gap": agreement.gap},
    }


def compare_models(
    a: Side,
    b: Side,
    source: str,
    frames: int | None,
    modes: Sequence[Mode],
    floors: Floors,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Compares two models on the first `frames` frames of a video or directory of images; None takes all.

    `say` is told what takes long before the first frame. Raises MtuError for what the user can put right.
    """
    pictures = _first_frames(source, frames)
    opening = next(pictures)
    size = (opening.shape[0], opening.shape[1])
    with contextlib.closing(_open(a, size, say)) as one, contextlib.closing(_open(b, size, say)) as other:
        if floors.agreement is not None and not one.interface.has_motion:
            raise InvalidInputError("--min-agreement: a model of one unit estimates no motion; leave the option out")
        runs = compare(one, other, itertools.chain([opening], pictures), modes)
        described = [_described(side, backend) for side, backend in ((a, one), (b, other))]
        radius = one.interface.max_displacement
    return Report(described[0], described[1], source, size[1], size[0], radius, floors, runs)


def _first_frames(source: str, count: int | None) -> Iterator[Picture]:
    taken = 0
    for frame in itertools.islice(read_frames(source), count):
        taken += 1
        yield frame
    if taken == 0 or (count is not None and taken < count):
        raise InvalidInputError(
            f"{source} has {taken} frames, fewer than the {count or 1} to compare: ask for fewer or give a longer clip"
        )


def _open(side: Side, size: tuple[int, int], say: Callable[[str], None]) -> Backend:
    if not Path(side.model).is_file():
        return open_backend(side.backend, open_model(side.model), side.device, size=size, say=say)
    if side.backend not in ("auto", "torch"):
        raise InvalidInputError(
            f"{side.model} is a checkpoint, which backend {side.backend} cannot run: use torch, or make a bundle of it"
            f" with mtu-export onnx --checkpoint {side.model} -o DIR"
        )
    from mtu.runtime.console import require

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
        "precision": interface.state_dtype,
        "checkpoint": interface.checkpoint,
        "backend": backend.name,
        "device": backend.device,
    }
