"""Finds the layers of a model that fp16 is too narrow for, by the ranges of its tensors on clips.

Imports onnx and onnxruntime. It reads models and frames, and writes nothing.

Note [which layers are to be kept in fp32]
    fp16 ends at 65504, and below 2^-14 its steps no longer shrink: it rounds by up to 2^-25, and up to 2^-25 gives 0. A
    tensor is beyond fp16 if its largest value comes within a factor of `MARGIN` of the end, for other videos are
    brighter than the clips, or if `VANISHING` of its values that are not 0 are below 2^-14. Where fewer are, there are
    larger ones beside them, which fp16 rounds by as much as it rounds the small ones: nothing is lost that counts.

    To be kept are the layer that makes such a tensor and every layer that takes it, since what lies between two kept
    layers stays fp32 (mtu.export.precision). Of sums, concatenations and the like the maker is the last layer that goes
    into them, and nobody if one of their parts is beyond fp16 already. A layer is to be kept for its weights too: those
    beyond 65504, without a margin, since no video changes them, and those of which `VANISHING` are below 2^-14.

    A layer kept for nothing costs speed alone. The states are fp16 between the frames whatever is kept, so a model
    whose states are beyond fp16 cannot be fp16.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import numpy_helper

from mtu.calib.ranges import Range, load_fp32, measure, range_of
from mtu.calib.rollout import first_frames
from mtu.core.errors import InvalidInputError
from mtu.core.interface import Interface
from mtu.export.graph_view import GraphView
from mtu.export.precision import LARGEST
from mtu.runtime import Bundle

MARGIN = 4.0
"""How many times as large the values of other videos may be."""


@dataclass(frozen=True)
class Row:
    """A tensor of the network, of all graphs together."""

    layer: str
    """The layer that it belongs to: the last that goes into it. Empty for what frames and states alone go into."""
    name: str
    """In the graphs."""
    range: Range


@dataclass(frozen=True)
class RangeReport:
    """What was measured, and what follows from it. See Note [which layers are to be kept in fp32]."""

    model: str
    interface: Interface
    clips: Sequence[str]
    frames: int
    """Of all clips."""
    rows: Sequence[Row]
    """In graph order; the frames and states first."""
    weights: Mapping[str, Range]
    """Of every layer in graph order, biases included."""
    keep: Mapping[str, Sequence[str]]
    """The layers to keep in fp32, in graph order, each with its reasons in words."""
    states: Sequence[str]
    """What is wrong with states, in words. Then no fp16 model is right."""

    def table(self) -> str:
        """A line for each layer, with the worst of its tensors in every column, and what is to be kept."""
        width = max((18, *map(len, self.weights)))
        inputs = "frames and states" if self.interface.states else "frames"
        lines = [
            f"{self.model}: {self.interface.variant}, {self.frames} frames of {', '.join(self.clips)}\n",
            f"{'layer':{width}} {'lowest':>11} {'highest':>11} {'>65504':>8} {'<2^-14':>8} {'weights':>9}  verdict",
        ]
        for layer in ("", *self.weights):
            tensors = [row.range for row in self.rows if row.layer == layer]
            lowest, highest = min(each.lowest for each in tensors), max(each.highest for each in tensors)
            above, tiny = max(each.above_share for each in tensors), max(each.tiny_share for each in tensors)
            largest = f"{self.weights[layer].largest:9.4g}" if layer else ""
            verdict = "" if not layer else "keep in fp32" if layer in self.keep else "fp16"
            figures = f"{lowest:11.4g} {highest:11.4g} {above:8.2%} {tiny:8.2%} {largest}"
            lines.append(f"{layer or inputs:{width}} {figures}  {verdict}".rstrip())
        lines += ["", *(f"{layer}: {'; '.join(reasons)}" for layer, reasons in self.keep.items()), *self.states]
        kept = f"keep {len(self.keep)} of {len(self.weights)} layers in fp32"
        return "\n".join([*lines, kept if self.keep else "every layer fits fp16"])

    def as_json(self) -> dict[str, Any]:
        """Everything, for `json.dumps`; shares are 0 to 1."""
        return {
            "model": self.model,
            "checkpoint": self.interface.weights,
            "clips": list(self.clips),
            "frames": self.frames,
            "limit": LARGEST,
            "margin": MARGIN,
            "keep": {layer: list(reasons) for layer, reasons in self.keep.items()},
            "states": list(self.states),
            "tensors": [{"layer": row.layer, "name": row.name, **_as_json(row.range)} for row in self.rows],
            "weights": {layer: _as_json(each) for layer, each in self.weights.items()},
        }

    def keep_file(self) -> str:
        """The text of the file of layers. Raises InvalidInputError if the states make all of it useless."""
        if self.states:
            raise InvalidInputError(
                f"{'; '.join(self.states)}: the states of an fp16 model are fp16 whatever layers are kept, so this"
                " model cannot be one; use --precision fp32"
            )
        sources = ", ".join(" ".join(clip.split()) for clip in self.clips)
        weights = self.interface.weights[:12]
        lines = (
            "# Layers to keep in fp32, for --keep-fp32 of mtu-export onnx and mtu-build-engine.",
            f"# Found by mtu-calibrate ranges for weights {weights}: {self.frames} frames of {sources}",
            *self.keep,
        )
        return "".join(f"{line}\n" for line in lines)


def _as_json(found: Range) -> dict[str, float | int]:
    shares = {"largest": found.largest, "above_share": found.above_share, "tiny_share": found.tiny_share}
    return {**dataclasses.asdict(found), **shares}


def find_ranges(
    bundle: Bundle,
    clips: Sequence[str],
    frames: int | None = None,
    progress: Callable[[], None] = lambda: None,
) -> RangeReport:
    """Measures the first `frames` frames of each clip (None: all) and says which layers fp16 is too narrow for.

    `clips` are videos or directories of images. Raises InvalidInputError if the bundle is not fp32 or a clip has fewer
    frames or is of several sizes, what `read_frames` raises, and NonFiniteError if a value of the model is not finite.
    """
    interface, models = bundle.interface, load_fp32(bundle)
    if not clips:
        raise InvalidInputError("no clip to measure: give some of the videos that the model is for")
    taken = 0

    def count() -> None:
        nonlocal taken
        taken += 1
        progress()

    views = {graph: GraphView(model) for graph, model in models.items()}
    weights = _weights(views.values())
    measured = measure(bundle, (first_frames(clip, frames) for clip in clips), count)
    with_states = {graph.name for graph in interface.graphs if graph.states}
    if with_states and not with_states.intersection(measured):
        raise InvalidInputError(
            f"{', '.join(clips)}: one frame each, and the states are used from the second on: give a clip of two frames"
            " or more"
        )
    rows: dict[tuple[str, str], Range] = {}
    for graph, ranges in measured.items():
        for name, layer in _owners(views[graph]).items():
            if name in ranges:
                rows[layer, name] = rows[layer, name] | ranges[name] if (layer, name) in rows else ranges[name]
    order = ["", *weights]
    return RangeReport(
        model=bundle.name,
        interface=interface,
        clips=list(clips),
        frames=taken,
        rows=[Row(*key, rows[key]) for key in sorted(rows, key=lambda key: order.index(key[0]))],
        weights=weights,
        keep=_to_keep(views, measured, weights),
        states=_bad_states(interface, measured),
    )


def _weights(views: Iterable[GraphView]) -> dict[str, Range]:
    found: dict[str, Range] = {}
    for view in views:
        for layer, nodes in view.layers.items():
            arrays = [numpy_helper.to_array(view.weights[name]) for name in nodes[0].input[1:] if name in view.weights]
            values = np.concatenate([array.ravel() for array in arrays])
            if not np.isfinite(values).all():
                raise InvalidInputError(
                    f"the weights of {layer} are not all finite: export the model again, from a sound checkpoint"
                )
            found[layer] = range_of(values)
    return found


def _owners(view: GraphView) -> dict[str, str]:
    """The layer that each tensor belongs to, as `Row.layer` says."""
    order = ["", *view.layers]
    owners = dict.fromkeys(view.inputs, "")
    for node in view.nodes:
        parts = (owners.get(name, "") for name in view.carried(node))
        mine = view.layer_of.get(node.name) or max(parts, key=order.index, default="")
        owners.update(dict.fromkeys(view.given(node), mine))
    return owners


def _to_keep(
    views: Mapping[str, GraphView], measured: Mapping[str, Mapping[str, Range]], weights: Mapping[str, Range]
) -> dict[str, list[str]]:
    found: dict[str, dict[str, Range]] = {layer: {} for layer in weights}

    def add(layer: str, what: str, each: Range) -> None:
        found[layer][what] = max(found[layer].get(what, each), each, key=lambda each: each.largest)

    for graph, ranges in measured.items():
        view, owners = views[graph], _owners(views[graph])
        always_fp32 = {node.name for node in view.scaling}
        bad = {name: each for name, each in ranges.items() if each.trouble(MARGIN)}
        for node in view.nodes:
            parts = [part for part in view.carried(node) if part in bad]
            if view.is_layer(node):
                for part in parts:
                    add(view.layer_of[node.name], f"takes {part}", bad[part])
            elif parts or node.name in always_fp32:
                continue
            for name in view.given(node):
                if name in bad and owners[name]:
                    add(owners[name], f"gives {name}", bad[name])
    reasons = {
        layer: [f"{what}, which {each.trouble(MARGIN)}" for what, each in found[layer].items()] for layer in found
    }
    for layer, each in weights.items():
        if trouble := each.trouble(margin=1):
            reasons[layer].insert(0, f"its weight {trouble}")
    return {layer: each for layer, each in reasons.items() if each}


def _bad_states(interface: Interface, measured: Mapping[str, Mapping[str, Range]]) -> list[str]:
    found = {}
    for ranges in measured.values():
        for name in interface.states:
            if trouble := ranges[name].trouble(MARGIN):
                found[name] = f"the state {name} {trouble}"
    return list(found.values())
