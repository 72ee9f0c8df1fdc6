"""The page of `mtu-compare`: one HTML file that needs no other. Imports av for its pictures; writes nothing itself."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtu.calib.compare_frame import QUANTILES
from mtu.calib.compare_report import CompareReport, FrameResult, Run, decibels
from mtu.core.window import Picture
from mtu.runtime.motion_picture import motion_picture
from mtu.runtime.video.pictures.encoding import encode_png

COLOURS = {"step": "#1f6fb4", "rollout": "#c8501e"}
WIDTH, HEIGHT, MARGIN, LEFT = 860, 200, 46, 86
"""Of a curve, in pixels. The longest label on the left, such as -1.234e-05, takes some 80."""

STYLE = """
body{font:15px/1.45 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;margin:.5em 0 1em}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:right}
td{white-space:nowrap}td:first-child,th:first-child{text-align:left}.failed{color:#b00020}.passed{color:#1b7f3b}
.panels{display:flex;flex-wrap:wrap;gap:10px}figure{margin:0}figcaption{color:#555}
img{border:1px solid #ddd;box-sizing:border-box;max-width:100%;min-width:280px;image-rendering:pixelated}
svg{max-width:100%;height:auto}
"""


def page(report: CompareReport) -> str:
    """The whole page: verdict, curves over time, for each mode the tensors and the worst frame."""
    told = "".join(f"<li>{html.escape(line)}</li>" for line in report.verdicts())
    verdict = (
        '<p class="passed">No frame is below a floor.</p>'
        if report.passed
        else f'<p class="failed">Below the floor:</p><ul class="failed">{told}</ul>'
    )
    floors = report.floors
    asked = [f"PSNR {floors.psnr:g} dB"] if floors.psnr is not None else []
    asked += [f"agreement {100 * floors.agreement:g} %"] if floors.agreement is not None else []
    asked += [f"difference of maps {floors.map_difference:g}"] if floors.map_difference is not None else []
    first = report.runs[0].frames[0]
    curves = ""
    if first.psnr is not None:
        curves += _curve(report, "PSNR, dB", lambda frame: frame.psnr, floors.psnr)
    if first.displacement is not None:
        floor = None if floors.agreement is None else 100 * floors.agreement
        curves += _curve(report, "displacements equal or tied, %", _percent, floor)
    for name, found in first.tensors.items():
        title = f"{name}: {100 * QUANTILES[-1]:g} % of the elements differ by at most"
        curves += _curve(report, title, _last_quantile(name), floors.map_difference if found is first.map else None)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>mtu-compare</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>mtu-compare</h1>\n<p>{html.escape(report.source)}:"
        f" {len(report.runs[0].frames)} frames {report.width}x{report.height}; floors:"
        f" {', '.join(asked) or 'none'}</p>\n{_sides(report.a, report.b)}\n{verdict}\n<h2>Over time</h2>\n"
        f"{_legend(report.runs)}{curves}\n{''.join(_mode(report, run) for run in report.runs)}</body></html>\n"
    )


def _sides(a: Mapping[str, str], b: Mapping[str, str]) -> str:
    # A digest is as long as the commands print it; the report for machines has all of it.
    length = {"checkpoint": 12}
    head = "".join(f"<th>{html.escape(key)}</th>" for key in a)
    rows = "".join(
        f"<tr><td>{name}</td>"
        f"{''.join(f'<td>{html.escape(value[: length.get(key, 60)])}</td>' for key, value in side.items())}</tr>"
        for name, side in (("A", a), ("B", b))
    )
    return f"<table><tr><th></th>{head}</tr>{rows}</table>"


# Curves


def _percent(frame: FrameResult) -> float:
    assert frame.agreement is not None
    return 100 * frame.agreement


def _last_quantile(tensor: str) -> Callable[[FrameResult], float]:
    return lambda frame: frame.tensors[tensor].quantiles[-1]


def _legend(runs: Sequence[Run]) -> str:
    keys = "".join(f'<span style="color:{COLOURS[run.mode]}">&#9632;</span> {run.mode} &nbsp; ' for run in runs)
    return f"<p>{keys} dashed: the floor; ring: the first frame below a floor; dot: the worst frame</p>"


def _curve(report: CompareReport, title: str, value: Callable[[FrameResult], Any], floor: float | None) -> str:
    """One figure: a line for each mode. Equal pictures, whose PSNR is infinite, are drawn at the top."""
    drawn = [value(frame) for run in report.runs for frame in run.frames]
    finite = [number for number in [*drawn, *([] if floor is None else [floor])] if math.isfinite(number)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    is_open = len(finite) < len(drawn) + (floor is not None)
    room = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
    top = high + room if is_open else high
    bottom = low if top > low else low - room
    count = len(report.runs[0].frames)

    def place(index: int, number: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - MARGIN) * (index / (count - 1) if count > 1 else 0.5)
        share = (min(number, top) - bottom) / (top - bottom)
        return x, MARGIN / 2 + (HEIGHT - MARGIN) * (1 - share)

    shapes = []
    if floor is not None:
        y = place(0, floor)[1]
        shapes.append(
            f'<line x1="{LEFT}" x2="{WIDTH - MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#666" stroke-dasharray="5 4"/>'
        )
    for run in report.runs:
        colour = COLOURS[run.mode]
        points = " ".join("{:.1f},{:.1f}".format(*place(frame.index, value(frame))) for frame in run.frames)
        shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        missed = run.first_missed(report.floors)
        for frame, size, fill in ((run.worst, 3.5, colour), (missed, 6, "none")):
            if frame is not None:
                x, y = place(frame.index, value(frame))
                shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" fill="{fill}" stroke="{colour}"/>')
    labels = [(place(0, number)[1], f"{number:.4g}") for number in {low, high}]
    if is_open:
        labels.append((place(0, top)[1], "equal"))
    texts = "".join(f'<text x="{LEFT - 4}" y="{y + 4:.1f}" text-anchor="end">{text}</text>' for y, text in labels)
    ends = "".join(
        f'<text x="{place(index, low)[0]:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{index}</text>'
        for index in sorted({0, count - 1})
    )
    return (
        f"<h3>{html.escape(title)}</h3>\n"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" font-size="12" role="img"'
        f' aria-label="{html.escape(title)}">{"".join(shapes)}{texts}{ends}</svg>\n'
    )


# The worst frame


def _mode(report: CompareReport, run: Run) -> str:
    worst = run.worst
    assert worst is not None
    quality = [] if worst.psnr is None else [f"PSNR {decibels(worst.psnr)}, SSIM {worst.ssim:.5f}"]
    if worst.displacement is not None:
        found = worst.displacement
        gap = "" if found.gap is None else f", largest gap of scores {found.gap:.4f}"
        quality.append(f"displacements: {found.equal:.2%} equal, {found.ties:.2%} tied{gap}")
    panels = _panels(report, run)
    figures = "".join(
        f'<figure><img alt="{name}" src="data:image/png;base64,{base64.b64encode(encode_png(picture)).decode()}">'
        f"<figcaption>{name}</figcaption></figure>"
        for name, picture in panels.items()
    )
    return (
        f"<h2>{run.mode}</h2>\n{_tensors(run)}\n<h3>The worst frame: {worst.index}</h3>\n"
        f"<p>{'; '.join(quality)}</p>\n"
        f'<div class="panels">{figures}</div>\n'
    )


def _panels(report: CompareReport, run: Run) -> dict[str, Picture]:
    """The pictures of the worst frame, by what they are of."""
    assert run.shown is not None
    a, b = run.shown
    panels: dict[str, Picture] = {}
    if a.picture is not None:
        difference, factor = _difference(a.rgb, b.rgb)
        panels |= {"A": a.rgb, "B": b.rgb, f"difference, {factor} times": difference}
    if a.map is not None and b.map is not None:
        one, other = _gray(a.map), _gray(b.map)
        difference, factor = _difference(one, other)
        panels |= {"map of A": one, "map of B": other, f"difference of the maps, {factor} times": difference}
    for name, frame in (("A", a), ("B", b)):
        if frame.displacement is not None and report.displacement is not None:
            panels[f"motion of {name}"] = motion_picture(
                frame.displacement, report.displacement, report.height, report.width
            )
    return panels


def _gray(values: NDArray[np.floating]) -> Picture:
    """A map [h, w] of values in [0, 1] as a picture."""
    gray = (values.astype(np.float32).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(gray[..., None].repeat(3, 2))


def _tensors(run: Run) -> str:
    """For each tensor the frame in which it differs most."""
    rows = []
    for name in run.frames[0].tensors:
        frame = run.worst_of(name)
        found = frame.tensors[name]
        numbers = "".join(f"<td>{number:.4g}</td>" for number in (*found.quantiles, found.largest))
        rows.append(f"<tr><td>{html.escape(name)}</td>{numbers}<td>{frame.index}</td></tr>")
    head = "".join(f"<th>{100 * quantile:g} %</th>" for quantile in QUANTILES)
    return (
        f"<table><tr><th>differences, in the frame where they are largest</th>{head}<th>largest</th><th>frame</th></tr>"
        f"{''.join(rows)}</table>"
    )


def _difference(a: Picture, b: Picture) -> tuple[Picture, int]:
    """The absolute difference as a picture, made brighter by a whole factor so that it can be seen."""
    apart = np.abs(a.astype(np.int16) - b)
    factor = 255 // (int(apart.max()) or 255)
    return (apart * factor).astype(np.uint8), factor
