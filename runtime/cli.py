"""`mtu-run`: parses, calls `mtu.runtime.job.run_job`, prints. Imports av and a backend inside the command."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.runtime.console import DAMAGED_INPUT, new_app, options, run_app, say
from mtu.runtime.report import check_report, write_report
from mtu.runtime.scenes import SCENE_THRESHOLD
from mtu.runtime.tiles import parse_tile

PROGRAM = "mtu-run"
app = new_app()


@app.command()
def run(
    source: options.SourceArgument,
    output: options.TargetOption,
    segment: options.SegmentOption = None,
    video_stream: options.VideoStreamOption = None,
    stream: options.StreamOption = None,
    rate: options.RateOption = None,
    deinterlace: options.DeinterlaceOption = False,
    on_size_change: options.SizeChangeOption = "scale",
    picture_format: options.PictureFormatOption = None,
    compare: options.CompareOption = None,
    heat: options.HeatOption = False,
    save_motion: options.SaveMotionOption = None,
    save_maps: options.SaveMapsOption = None,
    overwrite: options.OverwriteOption = False,
    resume: options.ResumeOption = False,
    codec: options.CodecOption = None,
    crf: options.CrfOption = None,
    pix_fmt: options.PixFmtOption = None,
    extra: options.ExtraOption = None,
    mux: options.MuxOption = None,
    model: options.ModelOption = None,
    where: options.WhereOption = None,
    threshold: options.ThresholdOption = None,
    backend: options.BackendOption = "auto",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = None,
    cuda_graph: options.CudaGraphOption = True,
    plugin_library: options.PluginLibraryOption = None,
    strict: options.StrictOption = False,
    tile: options.TileOption = "auto",
    scene_detection: options.SceneDetectionOption = True,
    scene_threshold: options.SceneThresholdOption = SCENE_THRESHOLD,
    report_file: options.JsonOption = None,
    progress: options.ProgressOption = True,
    version: options.VersionOption = False,
) -> None:
    """Deblurs a video: one frame in, one frame out, everything else of the file kept."""
    from mtu.export.engine_cache import cached_engine
    from mtu.runtime.console.progress import Progress
    from mtu.runtime.job import Job, run_job
    from mtu.runtime.video import EncodeOptions, ReadOptions, Segment, parse_muxer_options, parse_rate, parse_streams

    if not source or not output:
        raise InvalidInputError(f"the {'output' if source else 'input'} has no name: '' is given (an unset variable?)")
    if Path(output).is_file() and source != "-" and "://" not in source and not Path(source).exists():
        right = shlex.join([PROGRAM, output, "-o", source])
        raise InvalidInputError(f"{source} does not exist, and the output {output} does: was this meant: {right}?")
    streams = parse_streams(stream or [])
    if report_file is not None:
        check_report(report_file, source, output, *streams.values())
    if bare := [item for item in extra or [] if "=" not in item]:
        raise InvalidInputError(f"-e {bare[0]}: write it as key=value")
    encoder = {key: value for key, _, value in (item.partition("=") for item in extra or [])}
    job = Job(
        source=source,
        target=output,
        model=model,
        backend=backend,
        device=device,
        precision=precision,
        cuda_graph=cuda_graph,
        plugin_library=plugin_library,
        build=cached_engine,
        strict=strict,
        tile=parse_tile(tile),
        compare=compare,
        heat=heat,
        where=where,
        threshold=threshold,
        save_motion=save_motion,
        save_maps=save_maps,
        streams=streams,
        read=ReadOptions(
            segment=None if segment is None else Segment.parse(segment),
            video_stream=video_stream,
            rate=None if rate is None else parse_rate(rate),
            deinterlace=deinterlace,
            on_size_change=on_size_change,
        ),
        scene_threshold=scene_threshold if scene_detection else None,
        encode=EncodeOptions(
            codec=codec,
            crf=crf,
            pix_fmt=pix_fmt,
            options=encoder,
            muxer_options=parse_muxer_options(mux or []),
            picture_format=picture_format,
        ),
        overwrite=overwrite,
        resume=resume,
    )
    bar = Progress(PROGRAM, enabled=progress)
    with bar:
        report = run_job(job, start=bar.begin, progress=bar.advance, say=lambda text: say(PROGRAM, text))
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
