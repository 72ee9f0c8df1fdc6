"""Films restored by workers: planned, their units spread, joined into the files that one process would have written.

The scenes of a film lie in the store that `mtu-run --resume` has beside a target, so what was restored before counts,
by either command, and joining is a run that finds all of them there. Writes the targets and the stores.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mtu.core.errors import InvalidInputError, MissingFileError, MtuError, OutputError
from mtu.core.files import fingerprint
from mtu.farm import UNIT_FRAMES
from mtu.farm.cores import share_cores
from mtu.farm.encoded import check_encoder, encode_unit, is_encoded
from mtu.farm.engine import Done, Workers, everywhere, spread, worker_name
from mtu.farm.joining import join
from mtu.farm.plan import Plan, Scene, make_plan
from mtu.farm.unit import check_one_stream, restore_unit
from mtu.runtime.backends import open_model
from mtu.runtime.batch import Outcome, is_done, jobs_for, made_by, why
from mtu.runtime.chain import interface_of
from mtu.runtime.hold import Hold
from mtu.runtime.job import Job
from mtu.runtime.opened import Models, Opened, check_resume
from mtu.runtime.outputs import Outputs
from mtu.runtime.scene_store import OtherScenesError, holds_scenes, stored_scene
from mtu.runtime.stored_session import StoredSession, store_beside
from mtu.runtime.tiles import choose_tiling
from mtu.runtime.video import open_reader
from mtu.runtime.video.parts import header_of

_OF_MACHINES = frozenset({"engines", "backend", "device", "arithmetic", "libraries", "processor"})
"""Of what pictures depend on, what may be other on another machine, though the same is asked for."""


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
    job = Job(source="", target=str(Path(output).absolute()), model=model, build=cached_engine, resume=True, **options)
    job = dataclasses.replace(job, resume_bytes=None)  # what workers restore is joined, whatever its size
    interface = interface_of(open_model(model))
    check_one_stream(interface.streams)
    check_resume(job, interface)
    return jobs_for(job, [str(Path(source).absolute()) for source in sources], suffix, skip_done=True)


class Restoring:
    """A `Restorer`: restores units in one process, with one opened model."""

    def __init__(self, film_of: Callable[[int], Film], beside: int) -> None:
        """`film_of` gives the film of a number; `beside` is how many work on this machine; each takes its share of the
        processor."""
        self._film_of = film_of
        self._share = share_cores(beside)
        self._models = Models()
        self._current: tuple[int, Film, Opened, StoredSession] | None = None

    def __call__(self, film: int, unit: int) -> Done:
        """See `Restorer`."""
        began = time.perf_counter()
        if self._current is None or self._current[0] != film:
            its = self._film_of(film)
            self._current = film, its, *self._opened(its)
        _, its, opened, session = self._current
        taken, notes = session.taken, [*opened.notes]
        if not its.is_encoded(unit):
            try:
                notes += restore_unit(its.plan, unit, session, opened.backend.interface.look_ahead)
                if its.header is not None:
                    encode_unit(its.job, its.plan, its.header, unit, session.store)
            except OutputError:
                if not its.is_encoded(unit):  # by a worker that was thought to be dead
                    raise
        return Done(
            film=film,
            unit=unit,
            worker=worker_name(),
            seconds=time.perf_counter() - began,
            frames=sum(scene.frames for scene in its.plan.scenes_of(unit)) - (session.taken - taken),
            notes=(*notes, *opened.backend.remarks),
        )

    def _opened(self, film: Film) -> tuple[Opened, StoredSession]:
        opened = self._models.open(film.job, (film.plan.height, film.plan.width), lambda text: None)
        try:
            session = opened.session(film.job)
        except OtherScenesError as error:
            if error.name not in _OF_MACHINES:
                raise
            raise InvalidInputError(
                f"{worker_name().split(':')[0]} would give other pictures than those in {error.directory}:"
                f" {error.name} was {error.was} there, and is {error.now} here; let machines of one kind work"
            ) from None
        assert isinstance(session, StoredSession)
        if film.header is not None:
            check_encoder(film.job, film.plan, film.header)
        return opened, session


def _plan_path(job: Job) -> Path:
    return store_beside(job.target) / "plan.json"


def plan_film(
    job: Job,
    unit_frames: int = UNIT_FRAMES,
    planning: Callable[[Job, int], None] = lambda job, frames: None,
) -> Film:
    """A film with its plan, which is kept in its store. Raises as `make_plan`."""
    path = _plan_path(job)
    plan = None
    header, notes = _check_target(job)
    with contextlib.suppress(MissingFileError, InvalidInputError):
        plan = Plan.load(path)
        same = (plan.source, plan.scene_threshold, plan.split, plan.options) == (
            job.source,
            job.scene_threshold,
            job.split,
            job.read,
        )
        if not same or plan.fingerprint != fingerprint(job.source):
            plan = None
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
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.write(path)
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
        if _missing(film, unit) or (film.header is not None and not film.is_encoded(unit))
    ]


def frames_missing(film: Film) -> int:
    """Those of all scenes that are not in the store."""
    return sum(scene.frames for unit in range(len(film.plan.units)) for scene in _missing(film, unit))


class Watch:
    """Is told what happens; a user may be shown it."""

    def unit(self, done: Done) -> None:
        """A worker has ended a unit."""

    def joining(self, film: Film, frames: int) -> None:
        """So many frames of a film are joined."""

    def film(self, outcome: Outcome) -> None:
        """What became of a film."""

    def say(self, text: str) -> None:
        """Something that a user should know."""


def restore_films(films: Sequence[Film], workers: Workers, watch: Watch) -> list[Outcome]:
    """Restores what is missing of all films with `workers`, and joins each as soon as it is whole.

    What fails stops nothing else. Inside of a `cluster`.
    """
    lead = _Lead(films, watch)
    with contextlib.closing(lead):
        units = lead.hold()
        beside = min(workers.count, len(units)) if workers.address is None else 1
        try:
            lost = (
                spread(units, _Make(tuple((film.job, film.header) for film in films), beside), workers, lead.ended)
                if units
                else []
            )
        except BaseException:
            if any(holds_scenes(store_beside(film.job.target)) for film in films):
                watch.say("restored scenes are kept beside the outputs: the same command goes on with them")
            raise
        for film, unit in lost:
            lead.ended(Done(film=film, unit=unit, worker="", error="ended every worker that took it"))
    return [lead.outcomes[number] for number in range(len(films))]


class _Lead:
    """Who holds the stores while workers fill them, and joins. Close it."""

    def __init__(self, films: Sequence[Film], watch: Watch) -> None:
        self._films, self._watch = films, watch
        self.outcomes: dict[int, Outcome] = {}
        self._holds: dict[int, Hold] = {}
        self._made: dict[int, str] = {}
        self._left: dict[int, set[int]] = {}
        self._errors: dict[int, list[str]] = {}
        self._said: set[str] = set()

    def hold(self) -> list[tuple[int, int]]:
        """The units that are to be given out. Of a film that lacks none it is one: a worker says whether what is there
        is what is asked for now."""
        for number, film in enumerate(self._films):
            try:
                self._made[number] = made_by(film.job)
                self._holds[number] = Hold(store_beside(film.job.target)).__enter__()
                self._left[number] = set(missing_units(film) or [0])
                self._errors[number] = []
            except MtuError as error:
                self._over(number, Outcome(film.job, error=str(error)))
        return [(number, unit) for number in self._left for unit in self._longest_first(number)]

    def _longest_first(self, number: int) -> list[int]:
        """So that no worker begins a long unit when the others end; film by film, so that the first is soon whole."""
        plan = self._films[number].plan
        return sorted(self._left[number], key=lambda unit: -sum(scene.frames for scene in plan.scenes_of(unit)))

    def ended(self, done: Done) -> None:
        """No worker has this unit any more."""
        film = self._films[done.film]
        if done.error:
            self._errors[done.film].append(f"unit {done.unit}: {done.error}")
        for note in done.notes:
            if (text := f"note: {film.job.source}: {note}") not in self._said:
                self._said.add(text)
                self._watch.say(text)
        self._watch.unit(done)
        self._left[done.film].discard(done.unit)
        if not self._left[done.film]:
            with self._holds.pop(done.film) as hold:
                outcome = self._joined(done.film, film, hold)
            self._over(done.film, outcome)

    def _over(self, number: int, outcome: Outcome) -> None:
        self.outcomes[number] = outcome
        self._watch.film(outcome)

    def _joined(self, number: int, film: Film, hold: Hold) -> Outcome:
        again = "; what was restored is kept: the same command goes on"
        if errors := self._errors[number]:
            more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
            return Outcome(film.job, error=errors[0] + more + again)
        frames = itertools.count(1)
        try:
            report = join(
                film.job,
                film.plan,
                self._made[number],
                hold,
                header=film.header,
                progress=lambda: self._watch.joining(film, next(frames)),
            )
        except Exception as error:
            kept = again if isinstance(error, MtuError) and holds_scenes(store_beside(film.job.target)) else ""
            return Outcome(film.job, error=why(error) + kept)
        return Outcome(film.job, report)

    def close(self) -> None:
        """Gives the stores free."""
        for hold in self._holds.values():
            hold.__exit__()
        self._holds.clear()


@dataclass(frozen=True)
class _Make:
    """Makes a `Restoring` in a worker, which reads the plans where they lie: they are too large to be sent to all."""

    jobs: tuple[tuple[Job, str | None], ...]
    """With the header of each film."""
    beside: int

    def __call__(self) -> Restoring:
        return Restoring(self._film, self.beside)

    def _film(self, number: int) -> Film:
        job, header = self.jobs[number]
        return Film(job, Plan.load(_plan_path(job)), header)
