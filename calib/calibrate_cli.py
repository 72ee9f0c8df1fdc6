"""`mtu-calibrate`: parses, calls `keep_fp32` or `int8` of `mtu.calib`, prints. Heavy imports inside the commands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mtu.core.errors import InvalidInputError, OutputError
from mtu.core.extras import require
from mtu.runtime.bundle import BUNDLE, Bundle, open_bundle
from mtu.runtime.console import new_app, run_app, say
from mtu.runtime.console.options import INPUT, OUTPUT, REPORT, JsonOption, OverwriteOption, VersionOption
from mtu.runtime.console.progress import frame_counter, stage_bar
from mtu.runtime.report import check_report, write_report

PROGRAM = "mtu-calibrate"
ALLOWED = 0.1
"""Loss of PSNR in dB that int8 may cost, if nothing else is said."""
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="mtu2 or a bundle of mtu-export onnx, in fp32.")]
ClipsOption = Annotated[
    list[str],
    typer.Option(
        "--input", metavar="CLIP", help="Video or directory of images; may be repeated.", rich_help_panel=INPUT
    ),
]
app = new_app()


@app.callback()
def main_help(version: VersionOption = False) -> None:
    """Looks at what a model computes on your videos, to make it narrower: fp16 or int8."""


@app.command()
def ranges(
    bundle: BundleArgument,
    clips: ClipsOption,
    frames: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Take only so many frames of each clip.", show_default="all"),
    ] = None,
    json_file: JsonOption = None,
    keep_file: Annotated[
        Path | None,
        typer.Option(
            "--keep",
            metavar="FILE",
            help="Write the layers to keep in fp32, for --keep-fp32 of mtu-export onnx and mtu-build-engine.",
            rich_help_panel=REPORT,
        ),
    ] = None,
) -> None:
    """Measures every tensor of an fp32 bundle on clips, and says which layers fp16 is too narrow for."""
    source = open_bundle(bundle)
    targets = {option: path for option, path in (("--json", json_file), ("--keep", keep_file)) if path is not None}
    for option, path in targets.items():
        others = (str(other) for name, other in targets.items() if name != option)
        check_report(path, *clips, *others, *_files(source), option=option)
    require("export", PROGRAM, "onnx", "onnxruntime")
    from mtu.calib.keep_fp32 import find_ranges

    with frame_counter(PROGRAM, frames and frames * len(clips)) as advance:
        report = find_ranges(source, clips, frames, advance)
    print(report.table())
    for option, path in targets.items():
        write_report(path, report.keep_file() if option == "--keep" else report.as_json(), option)


@app.command()
def int8(
    bundle: BundleArgument,
    clips: ClipsOption,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Directory to write: a bundle.", rich_help_panel=OUTPUT),
    ],
    sharp: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLIP",
            help="What each --input should look like, in the same order; measures the loss.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    frames: Annotated[
        int, typer.Option(min=1, metavar="N", help="Take so many frames of each clip, from the first.")
    ] = 8,
    max_psnr_drop: Annotated[
        float | None, typer.Option(metavar="dB", help="Allowed loss of PSNR.", show_default=f"{ALLOWED:g}")
    ] = None,
    min_psnr_drop: Annotated[float | None, typer.Option(hidden=True)] = None,
    json_file: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Writes a bundle with layers in int8, within an allowed loss of PSNR; refuses if no layer can be."""
    if min_psnr_drop is not None:
        if max_psnr_drop is not None:
            raise InvalidInputError("--min-psnr-drop is the old name of --max-psnr-drop: give the new one alone")
        say(PROGRAM, "note: --min-psnr-drop is now called --max-psnr-drop; the old name goes with the next release")
        max_psnr_drop = min_psnr_drop
    allowed = ALLOWED if max_psnr_drop is None else max_psnr_drop
    if not (math.isfinite(allowed) and allowed > 0):
        raise InvalidInputError(f"--max-psnr-drop {allowed:g}: give dB above 0")
    source = open_bundle(bundle)
    if json_file is not None:
        check_report(json_file, *clips, *(sharp or ()), *_files(source), str(output))
        if output.resolve() in json_file.resolve().parents:
            raise OutputError(f"--json {json_file}: lies in {output}, which is to hold the bundle alone; move it out")
    require("export", PROGRAM, "onnx", "onnxruntime")
    require("compare", PROGRAM, "skimage")
    from mtu.calib.int8 import calibrate, read_clips

    read = read_clips(clips, sharp or [], frames, source.interface.scale)
    with stage_bar(PROGRAM) as progress:
        found = calibrate(
            source,
            read,
            output,
            allowed=allowed,
            overwrite=overwrite,
            say=lambda text: say(PROGRAM, text),
            progress=progress,
        )
    print(found.table())
    if json_file is not None:
        write_report(json_file, found.as_json())


def _files(bundle: Bundle) -> list[str]:
    return [str(bundle.directory / BUNDLE), *map(str, bundle.files)]


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
