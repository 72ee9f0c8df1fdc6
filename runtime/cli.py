"""`mtu-run`: parses, calls `mtu.runtime.job.run_job`, prints. Imports av and a backend inside the command."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.runtime.console import DAMAGED_INPUT, new_app, options, run_app
from mtu.runtime.report import check_report, write_report
from mtu.runtime.scenes import SCENE_THRESHOLD
from mtu.runtime.tiles import parse_tile

PROGRAM = "mtu-run"
app = new_app()


@app.command()
def run(
    sources: options.SourcesArgument,
    output: options.TargetOption,
    sources_file: options.ListOption = None,
    suffix: options.SuffixOption = "",
    skip_done: options.SkipDoneOption = False,
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
    server: options.ServerOption = None,
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
    from mtu.farm.server_models import ServerModels
    from mtu.runtime.batch import jobs_for, read_list, run_all
    from mtu.runtime.console.runs import as_json, outcome_as_json, run_shown, say_all, say_outcome
    from mtu.runtime.job import Job
    from mtu.runtime.opened import Models
    from mtu.runtime.video import EncodeOptions, ReadOptions, Segment, parse_muxer_options, parse_rate, parse_streams

    several = len(sources) > 1 or sources_file is not None or bool(suffix) or skip_done
    skip_done = skip_done or (several and resume)  # so that the same command goes on
    inputs = [*sources, *([] if sources_file is None else read_list(sources_file))]
    if not all(inputs) or not output:
        raise InvalidInputError(f"the {'input' if output else 'output'} has no name: '' is given (an unset variable?)")
    source = inputs[0]
    if not several and Path(output).is_file() and source != "-" and "://" not in source and not Path(source).exists():
        right = shlex.join([PROGRAM, output, "-o", source])
        raise InvalidInputError(f"{source} does not exist, and the output {output} does: was this meant: {right}?")
    streams = parse_streams(stream or [])
    if report_file is not None:
        listed = [] if sources_file is None else [str(sources_file)]
        check_report(report_file, *inputs, output, *streams.values(), *listed)
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
            options=options.encoder_options(extra),
            muxer_options=parse_muxer_options(mux or []),
            picture_format=picture_format,
        ),
        overwrite=overwrite,
        resume=resume,
    )
    shown = partial(run_shown, PROGRAM, progress, several)
    jobs = jobs_for(job, inputs, suffix, skip_done) if several else [job]
    if report_file is not None and several:
        check_report(report_file, *(each.target for each in jobs))
    with Models() if server is None else ServerModels(server, job) as models:
        if several:
            outcomes = []
            for outcome in run_all(jobs, shown, models, skip_done=skip_done):
                say_outcome(PROGRAM, outcome)
                outcomes.append(outcome)
            code, written = say_all(PROGRAM, outcomes), {"runs": [outcome_as_json(each) for each in outcomes]}
        else:
            report = shown(job, models)
            code, written = DAMAGED_INPUT if report.damage else 0, as_json(report)
    if report_file is not None:
        write_report(report_file, written)
    if code:
        raise typer.Exit(code)


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
