"""Films planned: what is to be done of each, and what is done already.

The scenes of a film lie in the store that `mtu-run --resume` has beside a target, and its plan with them. Writes the
plans; opens each target once, to know what it cannot hold.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mtu.core.errors import InvalidInputError, OutputError
from mtu.farm import UNIT_FRAMES
from mtu.farm.encoded import is_encoded
from mtu.farm.engine import everywhere
from mtu.farm.plan import Plan, Scene, kept_plan, make_plan, packed
from mtu.farm.unit import check_one_stream
from mtu.runtime.backends import open_model
from mtu.runtime.batch import Outcome, is_done, jobs_for, why
from mtu.runtime.chain import interface_of
from mtu.runtime.hold import Hold
from mtu.runtime.job import Job
from mtu.runtime.opened import check_resume
from mtu.runtime.outputs import Outputs
from mtu.runtime.scene_store import stored_scene
from mtu.runtime.stored_session import store_beside
from mtu.runtime.tiles import choose_tiling
from mtu.runtime.video import open_reader
from mtu.runtime.video.parts import header_of


@dataclass(frozen=True)
class Film:
    """A source with its target, and its plan."""

    job: Job
    """With `resume`."""
    plan: Plan
    header: str | None = None
    """If units are encoded where they are restored (see `encoded`), the header that all of them have."""
    notes: tuple[str, ...] = ()
    """What a user should know before the work."""

    def is_encoded(self, unit: int) -> bool:
        """Whether a unit is encoded, and is to be."""
        return self.header is not None and is_encoded(self.job, self.plan, self.header, unit)


def jobs_of(sources: Sequence[str], output: str, suffix: str, **options: Any) -> list[Job]:
    """A job for each source, by absolute names, for workers have directories of their own. Raises as `jobs_for`."""
    from mtu.export.engine_cache import cached_engine

    if not all(sources) or not output:
        raise InvalidInputError(f"the {'input' if output else 'output'} has no name: '' is given (an unset variable?)")
    for option, given in (("-o ", output), *(("", source) for source in sources)):
        if "://" in given or (not option and given == "-"):
            raise InvalidInputError(
                f"{option}{given}: films are in directories that all workers see by the same path; copy it there, or"
                " mount the storage (NFS, rclone mount, s3fs)"
            )
    model = options.pop("model", None)
    if model is not None and model.exists():
        model = model.absolute()
    job = Job(
        source="",
        target=str(Path(output).absolute()) + "/" * output.endswith("/"),
        model=model,
        build=cached_engine,
        resume=True,
        **options,
    )
    job = dataclasses.replace(job, resume_bytes=None)  # what workers restore is joined, whatever its size
    interface = interface_of(open_model(model))
    check_one_stream(interface.streams)
    check_resume(job, interface)
    return jobs_for(job, [str(Path(source).absolute()) for source in sources], suffix, skip_done=True)


def plan_path(job: Job) -> Path:
    """Where the plan of a film lies, in its store."""
    return store_beside(job.target) / "plan.json"


def plan_film(
    job: Job,
    unit_frames: int = UNIT_FRAMES,
    planning: Callable[[Job, int], None] = lambda job, frames: None,
) -> Film:
    """A film with its plan, which is kept in its store. Raises as `make_plan` and `Hold`."""
    header, notes = _check_target(job)
    with Hold(store_beside(job.target)):
        plan = kept_plan(plan_path(job), job.source, job.read, job.scene_threshold, job.split)
        if plan is None:
            frames = itertools.count(1)
            plan = make_plan(
                job.source,
                job.read,
                job.scene_threshold,
                unit_frames,
                split=job.split,
                progress=lambda: planning(job, next(frames)),
            )
        else:
            units = packed([scene.frames for scene in plan.scenes], unit_frames)
            plan = dataclasses.replace(plan, units=tuple(units))
        plan.write(plan_path(job))
    return Film(dataclasses.replace(job, resume=True), plan, header, (*plan.notes(), *notes))


def left_to_do(jobs: Sequence[Job]) -> tuple[list[Job], list[Outcome]]:
    """Those that are not done, and what is to be said of the others: done before, or another file is in the way."""
    left, outcomes = [], []
    for job in jobs:
        try:
            if is_done(job):
                _clear(store_beside(job.target))
                outcomes.append(Outcome(job))
            else:
                left.append(job)
        except Exception as error:
            outcomes.append(Outcome(job, error=why(error)))
    return left, outcomes


def _clear(store: Path) -> None:
    """Removes what a run has left that was ended when its target was whole."""
    if store.is_dir():
        with Hold(store):
            shutil.rmtree(store, ignore_errors=True)


def plan_films(
    jobs: Sequence[Job],
    unit_frames: int = UNIT_FRAMES,
    *,
    planning: Callable[[Job, int], None] = lambda job, frames: None,
    all_over: bool = False,
) -> tuple[list[Film], list[Outcome]]:
    """Those that can be planned, and why the others cannot. `planning` is called with the job that is planned and how
    many of its frames were read; `all_over`: on all processors of a `cluster`, not here."""
    plan = partial(_planned, unit_frames=unit_frames)
    results: dict[int, Any] = {}
    if all_over:
        for number, result in everywhere(plan, jobs):
            results[number] = result
            if isinstance(result, Film):
                planning(jobs[number], result.plan.frames)
    else:
        results = {number: plan(job, planning=planning) for number, job in enumerate(jobs)}
    films = [results[number] for number in range(len(jobs)) if isinstance(results[number], Film)]
    failed = [(job, results[number]) for number, job in enumerate(jobs) if not isinstance(results[number], Film)]
    return films, [Outcome(job, error=str(error)) for job, error in failed]


def _planned(
    job: Job, *, unit_frames: int, planning: Callable[[Job, int], None] = lambda job, frames: None
) -> Film | str:
    """A film, or why there is none."""
    try:
        return plan_film(job, unit_frames, planning)
    except Exception as error:
        return why(error)


def _check_target(job: Job) -> tuple[str | None, list[str]]:
    """The header of `Film`, and what the target cannot hold. Raises what the join would find, after all the work: a
    target that cannot be written, or not so; and what each unit would, tiles that are too small."""
    try:
        Path(job.target).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{Path(job.target).parent} cannot be made ({error.strerror})") from None
    model = open_model(job.model)
    with open_reader(job.source, job.read) as reader, Outputs(job, reader.info, interface_of(model), None) as outputs:
        choose_tiling(job.tile, (reader.info.height, reader.info.width), model)
        header = header_of(outputs.writer) if job.join == "fast" else None
        return header, [*reader.info.notes, *outputs.writer.notes]


def _missing(film: Film, unit: int) -> list[Scene]:
    """Scenes of a unit that are to be restored."""
    if film.is_encoded(unit):
        return []
    store = store_beside(film.job.target)
    stored = {scene: stored_scene(store, scene.first) for scene in film.plan.scenes_of(unit)}
    return [scene for scene, there in stored.items() if there is None or not there.is_whole]


def missing_units(film: Film) -> list[int]:
    """Those of which a scene is not in the store, or that are to be encoded and are not."""
    return [
        unit
        for unit in range(len(film.plan.units))
        if (_missing(film, unit) if film.header is None else not film.is_encoded(unit))
    ]


def frames_missing(film: Film) -> int:
    """Those of all scenes that are not in the store."""
    return sum(scene.frames for unit in range(len(film.plan.units)) for scene in _missing(film, unit))
