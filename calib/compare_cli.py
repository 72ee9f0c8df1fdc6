"""`mtu-compare`: parses, calls `mtu.calib.compare`, prints. Imports Polygraphy and backends inside the command."""

from __future__ import annotations

import math
import os
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.core.extras import require_for
from mtu.runtime.backends import PrecisionChoice
from mtu.runtime.bundle import PACKAGED
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.console.options import (
    BACKENDS,
    DEVICES,
    INPUT,
    MODEL,
    PRECISIONS,
    REPORT,
    JsonOption,
    StreamOption,
    VersionOption,
)
from mtu.runtime.console.progress import frame_counter
from mtu.runtime.report import check_report, write_report

if TYPE_CHECKING:
    from mtu.calib.compare_report import CompareReport

PROGRAM = "mtu-compare"
MISSED = 1
"""Exit code where a floor was missed."""
MODELS = f"{' or '.join(PACKAGED)} (come with the package), a bundle, an engine, a chain, or a checkpoint file."
MODEL_FILES = ("*.onnx", "*.engine", "bundle.json", "engine.json")
app = new_app()


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=f"The one taken as right: {MODELS}")],
    b: Annotated[str, typer.Argument(metavar="B", help=f"The one in question: {MODELS}")],
    source: Annotated[
        str, typer.Option("--input", metavar="CLIP", help="Video file or directory of images.", rich_help_panel=INPUT)
    ],
    frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Compare so many frames from the first.", show_default="all")
    ] = None,
    stream: StreamOption = None,
    mode: Annotated[
        Literal["step", "rollout", "both"],
        typer.Option(metavar="MODE", help="step: in every frame both get A's states; rollout: each gets its own."),
    ] = "both",
    min_psnr: Annotated[float | None, typer.Option(metavar="dB", help="Floor of every frame's PSNR.")] = None,
    min_agreement: Annotated[
        float | None, typer.Option(metavar="%", help="Floor of every frame's share of equal or tied displacements.")
    ] = None,
    max_map_difference: Annotated[
        float | None,
        typer.Option(metavar="X", help="Most that 99.9 % of a map, 0 to 1, may be away from A's in every frame."),
    ] = None,
    backend_a: Annotated[str, typer.Option(metavar="NAME", help=f"Of A: {BACKENDS}.", rich_help_panel=MODEL)] = "auto",
    backend_b: Annotated[str, typer.Option(metavar="NAME", help=f"Of B: {BACKENDS}.", rich_help_panel=MODEL)] = "auto",
    device_a: Annotated[str, typer.Option(metavar="NAME", help=f"Of A: {DEVICES}.", rich_help_panel=MODEL)] = "auto",
    device_b: Annotated[str, typer.Option(metavar="NAME", help=f"Of B: {DEVICES}.", rich_help_panel=MODEL)] = "auto",
    precision_a: Annotated[
        PrecisionChoice | None,
        typer.Option(metavar="KIND", help=f"Of A: {PRECISIONS} (OpenVINO).", rich_help_panel=MODEL),
    ] = None,
    precision_b: Annotated[
        PrecisionChoice | None,
        typer.Option(metavar="KIND", help=f"Of B: {PRECISIONS} (OpenVINO).", rich_help_panel=MODEL),
    ] = None,
    json_file: JsonOption = None,
    html_file: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", help="Write a page with curves and the worst frame.", rich_help_panel=REPORT
        ),
    ] = None,
    version: VersionOption = False,
) -> None:
    """Compares two models on a clip: pictures, states, displacements. Exit code 1 where a floor is missed."""
    for option, floor, highest, allowed in (
        ("--min-psnr", min_psnr, math.inf, "dB from 0"),
        ("--min-agreement", min_agreement, 100, "percent, 0 to 100"),
        ("--max-map-difference", max_map_difference, 1, "a number from 0 to 1"),
    ):
        if floor is not None and not (math.isfinite(floor) and 0 <= floor <= highest):
            raise InvalidInputError(f"{option} {floor:g}: give {allowed}")
    from mtu.runtime.video import parse_streams

    streams = parse_streams(stream or [])
    targets = {option: path for option, path in (("--json", json_file), ("--html", html_file)) if path is not None}
    patterns = (*MODEL_FILES, *(f"*/{kind}" for kind in MODEL_FILES))  # of a chain they are one level down
    files = [str(path) for side in (a, b) for pattern in patterns for path in Path(side).glob(pattern)]
    for option, path in targets.items():
        others = (str(other) for name, other in targets.items() if name != option)
        check_report(path, source, *streams.values(), a, b, *files, *others, option=option)
    require_for(PROGRAM)
    os.environ["POLYGRAPHY_AUTOINSTALL_DEPS"] = "0"  # read when Polygraphy is imported: it must not install packages
    from mtu.calib.compare import Side, compare_models
    from mtu.calib.compare_page import page
    from mtu.calib.compare_report import MODES, Floors

    floors = Floors(min_psnr, None if min_agreement is None else min_agreement / 100, max_map_difference)
    sides = Side(a, backend_a, device_a, precision_a), Side(b, backend_b, device_b, precision_b)
    modes = [m for m in MODES if mode in (m, "both")]
    with frame_counter(PROGRAM, frames) as advance:
        report = compare_models(
            *sides,
            source,
            frames,
            modes,
            floors,
            streams=streams,
            say=lambda text: say(PROGRAM, text),
            progress=advance,
        )
    _print(report)
    for option, path in targets.items():
        write_report(path, page(report) if option == "--html" else report.as_json(), option)
    if not report.passed:
        raise typer.Exit(MISSED)


def _print(report: CompareReport) -> None:
    from mtu.calib.compare_report import decibels

    for name, side in (("A", report.a), ("B", report.b)):
        print(f"{name}  {side['model']}: {side['preset']} {side['precision']} on {side['backend']} {side['device']}")
    print("\nmode     frames   PSNR worst (frame)   median   SSIM worst   agreement worst  median  ties at worst")
    for run in report.runs:
        worst, found = run.worst, [frame.displacement for frame in run.frames if frame.displacement]
        assert worst is not None
        psnr = [frame.psnr for frame in run.frames if frame.psnr is not None]
        ssim = [frame.ssim for frame in run.frames if frame.ssim is not None]
        moved = "              -       -              -"
        if found:
            lowest = min(found, key=lambda each: (each.share, -each.ties))
            moved = f"{lowest.share:15.2%} {median(each.share for each in found):7.2%} {lowest.ties:14.2%}"
        print(
            f"{run.mode:8} {len(run.frames):6}  {decibels(worst.psnr):>12} {f'({worst.index})':5}"
            f" {decibels(median(psnr) if psnr else None):>8}"
            f"   {f'{min(ssim):10.5f}' if ssim else '-':>10}   {moved}"
        )
        maps = [frame.map_difference for frame in run.frames if frame.map_difference is not None]
        if maps:
            print(f"{'':8} 99.9 % of the map within {max(maps):.4g} in every frame, median {median(maps):.4g}")
    for line in report.verdicts():
        print(line)


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
