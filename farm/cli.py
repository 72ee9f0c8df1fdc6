"""`mtu-farm`: parses, calls `mtu.farm`, prints. Imports Ray inside the command that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mtu.core.errors import MtuError, OutputError
from mtu.core.extras import require_for
from mtu.farm import UNIT_FRAMES
from mtu.farm.console.options import (
    AddressOption,
    FilmsArgument,
    FolderOption,
    GpusOption,
    JoinOption,
    SplitOption,
    UnitOption,
    WarmUpOption,
    WorkersOption,
)
from mtu.runtime.console import SOME_FAILED, new_app, options, run_app, say
from mtu.runtime.report import check_report
from mtu.runtime.scenes import SCENE_THRESHOLD, split_of
from mtu.runtime.tiles import parse_tile

PROGRAM = "mtu-farm"
app = new_app()


@app.callback()
def main_help(version: options.VersionOption = False) -> None:
    """Restores films with several workers, on this machine or a cluster."""


@app.command()
def plan(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="Video file or directory of images.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="PLAN", help="The plan, a JSON file.")],
    unit: UnitOption = UNIT_FRAMES,
    split_long: SplitOption = None,
    warm_up: WarmUpOption = None,
    scene_threshold: options.SceneThresholdOption = SCENE_THRESHOLD,
    overwrite: options.OverwriteOption = False,
) -> None:
    """Finds the scenes of a source, decoding it once, and packs them into units."""
    from mtu.farm.plan import make_plan
    from mtu.runtime.console.runs import counted
    from mtu.runtime.video import ReadOptions

    split = split_of(split_long, warm_up)
    check_report(output, source, option="-o")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists: replace it with --overwrite")
    made = make_plan(source, ReadOptions(), scene_threshold, unit, split=split)
    made.write(output)
    found = ((made.frames, "frame"), (len(made.scenes), "scene"), (len(made.units), "unit"))
    say(PROGRAM, f"{output}: {', '.join(counted(*each) for each in found)}")
    for note in [*made.notes(), *([f"damaged input: {made.damage}"] if made.damage else [])]:
        say(PROGRAM, f"note: {note}")


@app.command()
def run(
    sources: FilmsArgument,
    output: FolderOption,
    sources_file: options.ListOption = None,
    suffix: options.SuffixOption = "",
    skip_done: options.SkipDoneOption = False,
    unit: UnitOption = UNIT_FRAMES,
    split_long: SplitOption = None,
    warm_up: WarmUpOption = None,
    workers: WorkersOption = 1,
    gpus_per_worker: GpusOption = 0.0,
    address: AddressOption = None,
    join: JoinOption = "exact",
    overwrite: options.OverwriteOption = False,
    codec: options.CodecOption = None,
    crf: options.CrfOption = None,
    pix_fmt: options.PixFmtOption = None,
    extra: options.ExtraOption = None,
    model: options.ModelOption = None,
    backend: options.BackendOption = "auto",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = None,
    tile: options.TileOption = "auto",
    scene_threshold: options.SceneThresholdOption = SCENE_THRESHOLD,
    progress: options.ProgressOption = True,
) -> None:
    """Restores films with several workers, or a cluster; a film comes out as one mtu-run would write it."""
    from mtu.farm.console.shown import Shown, planning
    from mtu.farm.engine import Workers, cluster
    from mtu.farm.films import restore_films
    from mtu.farm.planning import jobs_of, left_to_do, plan_films
    from mtu.runtime.batch import read_list
    from mtu.runtime.console.runs import say_all, say_outcome
    from mtu.runtime.video import EncodeOptions

    require_for(PROGRAM)

    who = Workers(count=workers, gpus=gpus_per_worker, address=address)
    jobs = jobs_of(
        [*sources, *([] if sources_file is None else read_list(sources_file))],
        output,
        suffix,
        model=model,
        backend=backend,
        device=device,
        precision=precision,
        tile=parse_tile(tile),
        scene_threshold=scene_threshold,
        split=split_of(split_long, warm_up),
        join=join,
        encode=EncodeOptions(codec=codec, crf=crf, pix_fmt=pix_fmt, options=options.encoder_options(extra)),
        overwrite=overwrite,
    )
    # Without --overwrite the same command goes on.
    jobs, outcomes = left_to_do(jobs) if skip_done or not overwrite else (jobs, [])
    for outcome in outcomes:
        say_outcome(PROGRAM, outcome)
    if jobs:
        with cluster(who):
            with planning(PROGRAM, len(jobs), progress) as told:
                films, failed = plan_films(jobs, unit, planning=told, all_over=address is not None)
            for outcome in failed:
                say_outcome(PROGRAM, outcome)
            with Shown(PROGRAM, films, progress) as shown:
                outcomes += failed + restore_films(films, who, shown)
        shown.say_workers()
    if code := say_all(PROGRAM, outcomes):
        raise typer.Exit(code)


@app.command()
def verify(
    sources: FilmsArgument,
    output: FolderOption,
    sources_file: options.ListOption = None,
    suffix: options.SuffixOption = "",
    whole: Annotated[bool, typer.Option("--all", help="Every unit, not one chosen at random.")] = False,
    model: options.ModelOption = None,
    backend: options.BackendOption = "auto",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = None,
    tile: options.TileOption = "auto",
    scene_threshold: options.SceneThresholdOption = SCENE_THRESHOLD,
) -> None:
    """Restores a part of what mtu-farm run has made again, and compares every picture."""
    from mtu.farm.planning import jobs_of
    from mtu.farm.verify import verify as verify_film
    from mtu.runtime.batch import read_list
    from mtu.runtime.console.runs import counted

    jobs = jobs_of(
        [*sources, *([] if sources_file is None else read_list(sources_file))],
        output,
        suffix,
        model=model,
        backend=backend,
        device=device,
        precision=precision,
        tile=parse_tile(tile),
        scene_threshold=scene_threshold,
        overwrite=True,
    )
    failed = 0
    for job in jobs:
        try:
            scenes = verify_film(job, whole)
        except MtuError as error:
            if len(jobs) == 1:
                raise
            failed += 1
            say(PROGRAM, f"failed: {error}")
        else:
            say(PROGRAM, f"{job.target}: {counted(len(scenes), 'scene')} restored again, the same, bit for bit")
    if failed:
        say(PROGRAM, f"{len(jobs)} films: {len(jobs) - failed} the same, {failed} failed")
        raise typer.Exit(SOME_FAILED)


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
