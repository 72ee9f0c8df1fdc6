"""What a comparison of two models found, and what is said of it. Imports numpy.

`mtu.calib.compare` makes it; the command and its page show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mtu.calib.compare_frame import QUANTILES, TIE, Agreement, Difference
from mtu.core.interface import Output
from mtu.runtime.session import Restored

Mode = Literal["step", "rollout"]
MODES: tuple[Mode, ...] = ("step", "rollout")
"""See Note [two modes] in `mtu.calib.compare`."""


@dataclass(frozen=True)
class FrameResult:
    """What was found in one frame."""

    index: int
    psnr: float | None
    """Of the two restored pictures, in dB, peak 1; infinite where they are equal, None for a model that gives none."""
    ssim: float | None
    tensors: Mapping[str, Difference]
    """The picture, in steps of 8 bits, the map and every state, by the names of the graphs' outputs."""
    displacement: Agreement | None = None
    """None for a model that estimates no motion."""
    map: Difference | None = None
    """One of `tensors`; None for a model that gives no map."""

    @property
    def agreement(self) -> float | None:
        """Share of displacements that are equal or a tie."""
        return self.displacement.share if self.displacement else None

    @property
    def map_difference(self) -> float | None:
        """Of the maps, at the last of `QUANTILES`."""
        return self.map.quantiles[-1] if self.map else None


@dataclass(frozen=True)
class Floors:
    """What every frame has to reach; None asks for nothing."""

    psnr: float | None = None
    """dB."""
    agreement: float | None = None
    """Share of displacements that are equal or a tie, 0 to 1."""
    map_difference: float | None = None
    """Largest difference of two maps at the last of `QUANTILES`."""

    def missed(self, frame: FrameResult) -> bool:
        """Whether a frame is below a floor."""
        return (
            _is_below(frame.psnr, self.psnr)
            or _is_below(frame.agreement, self.agreement)
            or _is_below(self.map_difference, frame.map_difference)
        )


def _is_below(value: float | None, floor: float | None) -> bool:
    return value is not None and floor is not None and value < floor


@dataclass
class Run:
    """All frames of one mode. Holds the pictures of the worst frame, and of the others figures alone."""

    mode: Mode
    frames: list[FrameResult] = field(default_factory=list)
    worst: FrameResult | None = None
    """The frame of the lowest PSNR; among equals that of the lowest agreement, then of the largest difference of maps,
    then the first."""
    shown: tuple[Restored, Restored] | None = None
    """The worst frame in A and in B."""

    def add(self, frame: FrameResult, shown: tuple[Restored, Restored]) -> None:
        """Takes the next frame."""
        self.frames.append(frame)
        if self.worst is None or _badness(frame) < _badness(self.worst):
            self.worst, self.shown = frame, shown

    def first_missed(self, floors: Floors) -> FrameResult | None:
        """The first frame below a floor, or None."""
        return next((frame for frame in self.frames if floors.missed(frame)), None)

    def worst_of(self, tensor: str) -> FrameResult:
        """The frame in which a tensor differs most."""
        return max(self.frames, key=lambda frame: frame.tensors[tensor].largest)


def _badness(frame: FrameResult) -> tuple[float, ...]:
    psnr = math.inf if frame.psnr is None else frame.psnr
    agreement = 1.0 if frame.agreement is None else frame.agreement
    return psnr, agreement, -(frame.map_difference or 0)


@dataclass(frozen=True)
class CompareReport:
    """A comparison that is done."""

    a: Mapping[str, str]
    """What A is: model, preset, precision, checkpoint, backend, device."""
    b: Mapping[str, str]
    source: str
    width: int
    height: int
    displacement: Output | None
    """How a displacement is read; None for models that estimate no motion."""
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
            "floors": asdict(self.floors),
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


def decibels(psnr: float | None) -> str:
    """A PSNR in words: that of equal pictures is infinite, that of a model without pictures None."""
    if psnr is None:
        return "-"
    return f"{psnr:.2f} dB" if math.isfinite(psnr) else "equal"


def _said(frame: FrameResult) -> str:
    found = [] if frame.psnr is None else [f"PSNR {decibels(frame.psnr)}"]
    found += [] if frame.agreement is None else [f"agreement {frame.agreement:.2%}"]
    if frame.map_difference is not None:
        found.append(f"{100 * QUANTILES[-1]:g} % of the map within {frame.map_difference:.4g}")
    return ", ".join(found)


def _frame_as_json(frame: FrameResult) -> dict[str, Any]:
    tensors = {
        name: {
            "largest": found.largest,
            **{f"{100 * q:g}%": v for q, v in zip(QUANTILES, found.quantiles, strict=True)},
        }
        for name, found in frame.tensors.items()
    }
    return {
        "frame": frame.index,
        "psnr": frame.psnr if frame.psnr is not None and math.isfinite(frame.psnr) else None,
        "ssim": frame.ssim,
        "tensors": tensors,
        "displacement": frame.displacement and asdict(frame.displacement),
    }
