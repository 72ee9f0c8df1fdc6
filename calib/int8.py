"""Finds the layers of a model that can be int8, and writes the bundle. Imports onnx, onnxruntime and scikit-image.

Note [how layers are chosen]
    1. The fp32 model runs over the clips with its own states. `HEADROOM` times the largest value of every layer's input
       and output is the end of its int8 range.
    2. Each layer alone is made int8, and the clips are restored with it, every frame with the states of the frame
       before. What that does to the pictures at the end of the recurrence is its sensitivity; a single step would hide
       it. Each clip is restored with the ranges of the other clips, for the videos to come are others too, and
       what goes beyond its range is cut off, which harms far more than rounding. A clip that is alone has its own.
    3. All layers are made int8 together. While the clips lose more than is allowed, the most harmful layer goes back.
       That is the one whose pictures are furthest from those of fp32: what one layer loses against sharp clips is a few
       thousandths of a dB of either sign, too little to go by.

Note [loss]
    The loss is the PSNR against the sharp clips that int8 costs, in dB, mean over all frames. Where there are no sharp
    clips, it is estimated from the difference of the two models' pictures: as if fp32 missed the truth by
    `ASSUMED_PSNR`, and int8's error came on top of that independently. At 31 dB, 0.1 dB is a difference of 47.3 dB.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mtu.calib.compare_report import decibels
from mtu.calib.quality import for_json, psnr
from mtu.calib.ranges import Range, load_fp32, measure
from mtu.calib.rollout import feeds, first_frames, restored
from mtu.core.errors import InvalidInputError, OutputError
from mtu.core.files import publish, temporary_beside
from mtu.export.build_thread import Progress, Say
from mtu.export.bundle_files import check_bundle_target, save_bundle
from mtu.export.graph_view import GraphView
from mtu.export.quantise import Limits, candidates, quantise
from mtu.runtime import Bundle, Picture, open_backend, open_bundle
from mtu.runtime.session import Restored

ASSUMED_PSNR = 31.0
"""How far fp32 is taken to be from the truth, in dB, where there is no truth: the paper's mtu2 on the DVD videos."""
HEADROOM = 1.5
"""How far int8 reaches beyond what was seen. The steps are as much larger, which costs about 2 dB of PSNR to fp32; what
was cut off cost 18 dB on the demo clip, after calibration with two tamer ones."""
TIMED_FRAMES = 10


@dataclass(frozen=True)
class Clip:
    """Frames to calibrate with: uint8 [H, W, 3] of one size."""

    source: str
    frames: Sequence[Picture]
    sharp: Sequence[Picture] | None
    """What they should look like, frame by frame."""


@dataclass(frozen=True)
class Sensitivity:
    """What a model with int8 layers does to the clips, against the fp32 model."""

    psnr: float
    """Of its pictures against those of fp32, in dB over all pixels of all frames; infinite where they are equal."""
    loss: float
    """dB. See Note [loss]."""


@dataclass(frozen=True)
class Time:
    """Milliseconds a frame."""

    median: float
    p90: float


@dataclass(frozen=True)
class Calibration:
    """What was found and what was written."""

    model: str
    checkpoint: str
    """sha256 of the fp32 weights."""
    clips: Sequence[str]
    frames: int
    """Of all clips."""
    alone: Mapping[str, Sensitivity]
    """Every candidate in graph order: what it does if nothing else is int8."""
    int8: tuple[str, ...]
    """The layers that are int8 in the bundle, in graph order."""
    never: tuple[str, ...]
    """The other layers with weights."""
    together: Sensitivity
    allowed: float
    """Largest loss, dB."""
    has_sharp: bool
    """Whether losses are measured; if not, they are estimated."""
    held_out: bool
    """Whether the clips are restored with the ranges of other clips; if not, there was one clip alone."""
    times: Mapping[str, Time]
    """Of a later frame of the first clip, "fp32" and "int8", on the CPU."""
    backend: str
    """What they were taken with: the backend that runs bundles on a CPU if none is named."""
    size: tuple[int, int]
    """Height and width of that frame."""

    def table(self) -> str:
        """All of it in words and columns."""
        kind = "" if self.has_sharp else " (estimated, without sharp clips)"
        width = max((20, *map(len, self.alone)))
        lines = [f"{'layer':{width}} {'alone: PSNR to fp32':>20} {'loss':>10}"]
        for name, alone in self.alone.items():
            lines.append(
                f"{name:{width}} {decibels(alone.psnr):>20} {alone.loss:+7.3f} dB  {'int8' * (name in self.int8)}"
            )
        fp32, int8 = self.times["fp32"], self.times["int8"]
        speedup = fp32.median / int8.median
        return "\n".join(
            [
                *map(str.rstrip, lines),
                f"never int8: {', '.join(self.never)}",
                f"{len(self.int8)} of {len(self.alone)} layers in int8: PSNR to fp32 {decibels(self.together.psnr)},"
                f" loss {self.together.loss:+.3f} dB of {self.allowed:g} dB allowed{kind}",
                "each clip with the ranges of the others"
                if self.held_out
                else "one clip, restored with its own ranges: other videos may lose more; give two clips or more",
                f"a frame of {self.size[1]}x{self.size[0]} in {self.backend} on this CPU: fp32 {fp32.median:.1f} ms"
                f" (p90 {fp32.p90:.1f}), int8 {int8.median:.1f} ms (p90 {int8.p90:.1f}), {speedup:.2f} times as fast",
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """Everything, for `json.dumps`; a PSNR of null is that of equal pictures."""
        alone = {name: for_json(each) for name, each in self.alone.items()}
        return {**asdict(self), "alone": alone, "together": for_json(self.together)}


def read_clips(inputs: Sequence[str], sharp: Sequence[str], frames: int, scale: int = 1) -> list[Clip]:
    """The first `frames` frames of each input and of what it should look like; `sharp` is empty or has as many clips.

    `scale` is the model's. Raises InvalidInputError if they do not fit together.
    """
    if sharp and len(sharp) != len(inputs):
        raise InvalidInputError(
            f"{len(inputs)} clips of --input and {len(sharp)} of --sharp: give a sharp clip for each, in the same order"
        )
    clips = []
    for source, truth in itertools.zip_longest(inputs, sharp):
        blurred = list(first_frames(source, frames))
        wanted = None if truth is None else list(first_frames(truth, frames))
        height, width = blurred[0].shape[:2]
        for name, pictures, times in ((source, blurred, 1), (truth, wanted or [], scale)):
            if any(picture.shape[:2] != (times * height, times * width) for picture in pictures):
                raise InvalidInputError(
                    f"{name} has frames of another size than the first of {source}: the frames of a clip and of its"
                    " sharp clip have one size"
                    + (f", those of the sharp clip {scale} times as large for this model" if scale > 1 else "")
                )
        clips.append(Clip(source, blurred, wanted))
    return clips


def calibrate(
    bundle: Bundle,
    clips: Sequence[Clip],
    directory: Path,
    *,
    allowed: float,
    overwrite: bool = False,
    say: Say = lambda text: None,
    progress: Progress = lambda text, done: None,
) -> Calibration:
    """Writes the bundle with the layers in int8 that leave a loss of at most `allowed` dB on the clips.

    All clips have sharp ones, or none has. Clips are restored in onnxruntime on the CPU; the times are of the backend
    that "auto" is there. Raises InvalidInputError if the bundle is not fp32, if the clips are empty or if no layer
    keeps the loss; then nothing is written. NonFiniteError if the model overflows, OutputError if `directory` cannot be
    written.
    """
    directory = directory.resolve()
    check_bundle_target(directory, overwrite)
    if directory == bundle.directory.resolve():
        raise OutputError(f"{directory} is the fp32 bundle itself, which is still needed: choose another name")
    interface, models = bundle.interface, load_fp32(bundle)
    uses_states = any(graph.states for graph in interface.graphs)
    shortest = min((len(clip.frames) for clip in clips), default=0)
    if shortest < 1 + uses_states:
        two = ", and two frames of each, for the states are used from the second frame on" if uses_states else ""
        raise InvalidInputError(f"{len(clips)} clips, {shortest} frames in the shortest: give at least one{two}")
    if interface.the("picture") is None and any(clip.sharp is not None for clip in clips):
        raise InvalidInputError("the model gives a map and no picture, which no sharp clip shows: leave out --sharp")
    names = list(dict.fromkeys(layer.name for model in models.values() for layer in candidates(model)))
    if not names:
        raise InvalidInputError(
            "no layer of this model can be int8: it has no convolution with a ReLU or leaky ReLU behind it whose result"
            " stays in the graph; keep fp32 or fp16"
        )
    with temporary_beside(directory) as temporary:
        made = temporary / "bundle"
        made.mkdir()
        search = _Search(bundle, models, clips, made, progress)
        alone = {name: search.sensitivity([name], f"{name} alone") for name in names}
        chosen = sorted(names, key=lambda name: alone[name].psnr)  # the most harmful first
        together = search.sensitivity(chosen, "all layers")
        while together.loss > allowed:
            say(f"{len(chosen)} layers lose {together.loss:.3f} dB: {chosen[0]} goes back to fp32")
            del chosen[0]
            if not chosen:
                best = min(each.loss for each in alone.values())
                raise InvalidInputError(
                    f"no layer can be int8 with a loss of {allowed:g} dB: the most harmless alone loses {best:.3f} dB;"
                    " nothing is written; allow more with --max-psnr-drop, or keep fp32 or fp16"
                )
            together = search.sensitivity(chosen, f"{len(chosen)} layers")
        progress("timing", 1.0)
        backend, times = _times(bundle, search.write(chosen, search.limits), clips[0].frames)
        publish(made, directory, overwrite)
    every = dict.fromkeys(name for model in models.values() for name in GraphView(model).layers)
    return Calibration(
        model=bundle.name,
        checkpoint=interface.weights,
        clips=[clip.source for clip in clips],
        frames=sum(len(clip.frames) for clip in clips),
        alone=alone,
        int8=tuple(name for name in names if name in chosen),
        never=tuple(name for name in every if name not in alone),
        together=together,
        allowed=allowed,
        has_sharp=clips[0].sharp is not None,
        held_out=len(clips) > 1,
        times=times,
        backend=backend,
        size=(clips[0].frames[0].shape[0], clips[0].frames[0].shape[1]),
    )


class _Search:
    """Makes models with int8 layers and restores the clips with them."""

    def __init__(
        self,
        bundle: Bundle,
        models: Mapping[str, onnx.ModelProto],
        clips: Sequence[Clip],
        directory: Path,
        progress: Progress,
    ) -> None:
        """What is tried is written to `directory`."""
        self._directory = directory
        self._interface, self._models, self._clips = bundle.interface, models, clips
        self._progress, self._done = progress, 0
        self._steps = 2 + len({layer.name for model in models.values() for layer in candidates(model)})
        self._advance("ranges")
        measured = [measure(bundle, [clip.frames]) for clip in clips]
        self.limits = _limits(models, measured)
        """Those of all clips."""
        self._limits_of_others = [
            _limits(models, measured[:index] + measured[index + 1 :] or measured) for index in range(len(clips))
        ]
        self._advance("fp32")
        self._fp32 = [_restored(bundle, clip) for clip in clips]

    def _advance(self, text: str) -> None:
        self._progress(text, min(1.0, self._done / self._steps))
        self._done += 1

    def write(self, chosen: Sequence[str], limits: Mapping[str, Limits]) -> Bundle:
        """Writes the bundle with these layers in int8."""
        interface = replace(self._interface, int8_layers=tuple(name for name in limits if name in chosen))
        models = {}
        for graph, model in self._models.items():
            models[graph] = onnx.ModelProto()
            models[graph].CopyFrom(model)
            quantise(models[graph], {name: limits[name] for name in chosen})
        save_bundle(self._directory, interface, models)
        return open_bundle(self._directory)

    def sensitivity(self, chosen: Sequence[str], text: str) -> Sensitivity:
        """Restores all clips with these layers in int8, each with the ranges of the others."""
        self._advance(text)
        away, pixels, losses = 0.0, 0, []
        for clip, limits, fp32 in zip(self._clips, self._limits_of_others, self._fp32, strict=True):
            found = _restored(self.write(chosen, limits), clip)
            truths: Sequence[Picture | None] = clip.sharp or [None] * len(fp32)
            for mine, other, truth in zip(found, fp32, truths, strict=True):
                away += float(np.square(mine.astype(np.float32) - other).sum())
                pixels += mine.size
                if truth is not None:
                    losses.append(_no_better(other, truth) - _no_better(mine, truth))
        error = away / pixels / 255**2
        loss = float(np.mean(losses)) if losses else 10 * math.log10(1 + error * 10 ** (ASSUMED_PSNR / 10))
        return Sensitivity(-10 * math.log10(error) if error else math.inf, loss)


def _limits(
    models: Mapping[str, onnx.ModelProto], measured: Sequence[Mapping[str, Mapping[str, Range]]]
) -> dict[str, Limits]:
    """Of every candidate, from the ranges of the tensors in each clip; one for all graphs, as the weights."""
    found: dict[str, Limits] = {}
    for graph, model in models.items():
        for layer in candidates(model):
            before = found.get(layer.name, Limits(0.0, 0.0))
            taken, given = (
                HEADROOM * max(clip[graph][name].largest for clip in measured) for name in (layer.input, layer.output)
            )
            found[layer.name] = Limits(max(before.input, taken), max(before.output, given))
    return found


def _no_better(picture: Picture, truth: Picture) -> float:
    """PSNR of a picture that may be equal to the truth: 8 bits can say no more than this."""
    return min(psnr(picture, truth), 100.0)


def _restored(bundle: Bundle, clip: Clip) -> list[Picture]:
    """What the model gives for a clip; a map is a picture of shades of gray, not rounded."""
    with contextlib.closing(open_backend("onnxruntime", bundle, "cpu")) as backend:
        return [_picture(result) for result in restored(backend, clip.frames)]


def _picture(result: Restored) -> Any:
    return 255 * result.map.astype(np.float32) if result.picture is None and result.map is not None else result.picture


def _times(fp32: Bundle, int8: Bundle, frames: Sequence[Picture]) -> tuple[str, dict[str, Time]]:
    """The backend, and both models in turn on one later frame, warm."""
    with contextlib.ExitStack() as stack:
        backends = {
            name: stack.enter_context(contextlib.closing(open_backend("auto", bundle, "cpu")))
            for name, bundle in (("fp32", fp32), ("int8", int8))
        }
        *_, (graph, inputs) = feeds(backends["fp32"], frames[:2])
        states = {given: inputs[name] for name, given in fp32.interface.graph(graph).states.items()}
        spent: dict[str, list[float]] = {name: [] for name in backends}
        for _ in range(TIMED_FRAMES + 1):
            for name, backend in backends.items():
                held = backend.write_states(states)
                began = time.perf_counter()
                backend.submit(graph, inputs, held).result()
                spent[name].append(1000 * (time.perf_counter() - began))
    times = {name: Time(float(np.median(each[1:])), float(np.quantile(each[1:], 0.9))) for name, each in spent.items()}
    return backends["fp32"].name, times
