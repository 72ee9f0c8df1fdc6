"""What `mtu-run` shows of its runs: how far each is, what it gave, and which failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mtu.runtime.batch import Outcome
from mtu.runtime.console import DAMAGED_INPUT, SOME_FAILED, end_if_asked, say
from mtu.runtime.console.progress import Progress
from mtu.runtime.job import Job, RunReport, run_job
from mtu.runtime.opened import Models


def counted(number: int, thing: str) -> str:
    """ "1 frame", "2 frames"."""
    return f"{number} {thing}" + "s" * (number != 1)


def run_shown(program: str, progress: bool, several: bool, job: Job, models: Models | None) -> RunReport:
    """`run_job`, with a bar and what is to be said of it at its end; notes name the source if there are `several`."""
    of = f"{job.source}: " if several else ""
    bar = Progress(program, enabled=progress, notes_of=of)
    try:
        with bar:
            report = run_job(
                job, models=models, start=bar.begin, progress=bar.advance, say=lambda text: say(program, text)
            )
    except Exception:
        end_if_asked()
        raise
    for remark in report.remarks:
        say(program, f"note: {of}{remark}")
    frames, cuts = counted(report.frames, "frame"), counted(len(report.scene_cuts), "scene cut")
    say(
        program,
        f"{report.target}: {frames} {report.width}x{report.height} in {report.seconds:.1f} s ({report.fps:.2f} fps),"
        f" {report.model} {report.precision} on {report.backend} {report.device}, {cuts}",
    )
    if report.damage:
        say(program, f"damaged input: {of}{report.damage}; what could be decoded was kept")
    return report


def as_json(report: RunReport) -> dict[str, Any]:
    """For `--json`."""
    return {**dataclasses.asdict(report), "fps": report.fps}


def outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    """For `--json` of several inputs: a report, or why there is none."""
    if outcome.report is not None:
        return as_json(outcome.report)
    named = {"source": outcome.job.source, "target": outcome.job.target}
    return {**named, "error": outcome.error} if outcome.error else {**named, "skipped": True}


def say_outcome(program: str, outcome: Outcome) -> None:
    """Of one of several inputs, what `run_shown` has not said."""
    if outcome.error:
        say(program, f"{outcome.job.source} failed: {outcome.error}")
    elif outcome.report is None:
        say(program, f"{outcome.job.target} is done already")


def say_all(program: str, outcomes: Sequence[Outcome]) -> int:
    """Of all inputs, at the end; returns the exit code."""
    failed = [each.job.source for each in outcomes if each.error]
    damaged = [each.job.source for each in outcomes if each.report is not None and each.report.damage]
    done = sum(each.report is not None for each in outcomes)
    skipped = len(outcomes) - done - len(failed)
    words = [f"{done} done"] + [f"{skipped} done before"] * bool(skipped) + [f"{len(failed)} failed"] * bool(failed)
    say(program, f"{counted(len(outcomes), 'input')}: {', '.join(words)}")
    for source in failed:
        say(program, f"failed: {source}")
    return SOME_FAILED if failed else DAMAGED_INPUT if damaged else 0
