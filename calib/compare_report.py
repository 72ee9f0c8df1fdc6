"""What a comparison of two models found, and what is said of it. Imports numpy.

`mtu.calib.compare` makes it; the command and its page show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtu.runtime import Picture

Mode = Literal["step", "rollout"]
MODES: tuple[Mode, ...] = ("step", "rollout")
"""See Note [two modes] in `mtu.calib.compare`."""

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
    """How far two displacement maps agree; shares of all positions, 0 to 1. See Note [ties] in `mtu.calib.compare`."""

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


@dataclass(frozen=True)
class CompareReport:
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
