"""`mtu-run`: parses, calls `mtu.runtime.job.run_job`, prints. Imports av and a backend inside the command."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from mtu.models.errors import InvalidInputError
from mtu.runtime.backends import FACTORIES
from mtu.runtime.console import DAMAGED_INPUT, ModelOption, Version, new_app, run_app, say
from mtu.runtime.report import check_report, write_report
from mtu.runtime.session import SCENE_THRESHOLD

PROGRAM = "mtu-run"
app = new_app()


@app.command()
def run(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Video file, directory of images, or - for yuv4mpeg on stdin.")
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUTPUT",
            help="Video file; without an extension a directory of PNGs; - is yuv4mpeg.",
        ),
    ],
    model: ModelOption = None,
    backend: Annotated[str, typer.Option(help=f"auto, {', '.join(FACTORIES)}.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    cuda_graph: Annotated[bool, typer.Option(help="Replay a frame's work as one CUDA graph (TensorRT).")] = True,
    plugin_library: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="C++ plugin made by mtu-build-plugin (TensorRT).", show_default="in Python"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at values that are not finite, instead of starting afresh there.")
    ] = False,
    compare: Annotated[
        Literal["side-by-side", "split"] | None, typer.Option(help="Show the input beside the result.")
    ] = None,
    save_motion: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write the displacement of each frame as a colour picture.")
    ] = None,
    report_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write a report of the run.")
    ] = None,
    segment: Annotated[
        str | None, typer.Option(metavar="A:B", help="Only from A to B, in seconds; either may be left out.")
    ] = None,
    video_stream: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Video stream to process, counted from 0.", show_default="the one marked default"
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="N", help="Frames a second of a directory of pictures, such as 30000/1001.", show_default="25"
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option("--codec", "-c", help="Video encoder, as FFmpeg names it.", show_default="by container"),
    ] = None,
    crf: Annotated[
        float | None, typer.Option(help="Constant quality of the encoder; lower is better.", show_default="by codec")
    ] = None,
    pix_fmt: Annotated[
        str | None, typer.Option(help="Pixel format, as FFmpeg names it.", show_default="as the input")
    ] = None,
    extra: Annotated[
        list[str] | None, typer.Option("-e", metavar="KEY=VALUE", help="Option for the encoder; may be repeated.")
    ] = None,
    scene_detection: Annotated[bool, typer.Option(help="Start afresh at scene cuts.")] = True,
    scene_threshold: Annotated[float, typer.Option(help="Difference that is a cut, in percent.")] = SCENE_THRESHOLD,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")] = False,
    progress: Annotated[bool, typer.Option(help="Progress on a terminal.")] = True,
    version: Version = False,
) -> None:
    """Deblurs a video: one frame in, one frame out, everything else of the file kept."""
    from mtu.runtime.job import Job, run_job
    from mtu.runtime.progress import Progress
    from mtu.runtime.video import EncodeOptions, ReadOptions, Segment, parse_rate

    if not source or not output:
        raise InvalidInputError(f"the {'output' if source else 'input'} has no name: '' is given (an unset variable?)")
    if report_file is not None:
        check_report(report_file, source, output)
    if bare := [item for item in extra or [] if "=" not in item]:
        raise InvalidInputError(f"-e {bare[0]}: write it as key=value")
    options = {key: value for key, _, value in (item.partition("=") for item in extra or [])}
    job = Job(
        source=source,
        target=output,
        model=model,
        backend=backend,
        device=device,
        cuda_graph=cuda_graph,
        plugin_library=plugin_library,
        strict=strict,
        compare=compare,
        save_motion=save_motion,
        read=ReadOptions(
            segment=None if segment is None else Segment.parse(segment),
            video_stream=video_stream,
            rate=None if rate is None else parse_rate(rate),
        ),
        scene_threshold=scene_threshold if scene_detection else None,
        encode=EncodeOptions(codec=codec, crf=crf, pix_fmt=pix_fmt, options=options),
        overwrite=overwrite,
    )
    with Progress(PROGRAM, enabled=progress and sys.stderr is not None and sys.stderr.isatty()) as bar:
        report = run_job(job, start=bar.start, progress=bar.advance, say=lambda text: say(PROGRAM, text))
    if report_file is not None:
        write_report(report_file, {**dataclasses.asdict(report), "fps": report.fps})
    for remark in report.remarks:
        say(PROGRAM, f"note: {remark}")
    frames = f"{report.frames} frame{'s' if report.frames != 1 else ''}"
    say(
        PROGRAM,
        f"{output}: {frames} {report.width}x{report.height} in {report.seconds:.1f} s ({report.fps:.2f} fps),"
        f" {report.model} {report.precision} on {report.backend} {report.device},"
        f" {len(report.scene_cuts)} scene cut{'s' if len(report.scene_cuts) != 1 else ''}",
    )
    if report.damage:
        say(PROGRAM, f"damaged input: {report.damage}; what could be decoded was kept")
        raise typer.Exit(DAMAGED_INPUT)


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
