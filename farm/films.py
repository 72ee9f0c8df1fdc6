"""Films restored by workers: planned, their units spread, joined into the files that one process would have written.

The scenes of a film lie in the store that `mtu-run --resume` has beside a target, so what was restored before counts,
by either command, and joining is a run that finds all of them there. Writes the targets, the stores, and beside each
target a hidden record (`.NAME.farm`) of the plan and of every restored picture, which `verify` reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtu.core.errors import InvalidInputError, MissingFileError, MtuError, OutputError
from mtu.core.files import fingerprint, hidden_beside, write_whole
from mtu.farm import UNIT_FRAMES
from mtu.farm.cores import share_cores
from mtu.farm.encoded import encode_unit, is_encoded, join_encoded
from mtu.farm.engine import Done, Workers, spread, worker_name
from mtu.farm.plan import Plan, make_plan
from mtu.farm.unit import check_one_stream, restore_unit
from mtu.runtime.backends import open_model
from mtu.runtime.batch import Outcome, jobs_for, why
from mtu.runtime.chain import interface_of
from mtu.runtime.job import Job, run_job
from mtu.runtime.opened import Models, check_resume
from mtu.runtime.outputs import Outputs
from mtu.runtime.scene_store import STORE, Hold, holds_scenes, sidecar
from mtu.runtime.stored_session import StoredSession, store_beside
from mtu.runtime.video import open_reader
from mtu.runtime.video.parts import check_parts

Say = Callable[[str], None]


@dataclass(frozen=True)
class Film:
    """A source with its target, and its plan."""

    job: Job
    """With `resume`."""
    plan: Plan
    fast: bool = False
    """Whether units are encoded where they are restored; see `encoded`."""


def jobs_of(sources: Sequence[str], output: str, suffix: str, **options: Any) -> list[Job]:
    """A job for each source, by absolute names, for workers have directories of their own. Raises as `jobs_for`."""
    from mtu.export.engine_cache import cached_engine

    if not all(sources) or not output:
        raise InvalidInputError(f"the {'input' if output else 'output'} has no name: '' is given (an unset variable?)")
    model = options.pop("model", None)
    if model is not None and model.exists():
        model = model.absolute()
    job = Job(source="", target=str(Path(output).absolute()), model=model, build=cached_engine, resume=True, **options)
    interface = interface_of(open_model(model))
    check_one_stream(interface.streams)
    check_resume(job, interface)
    return jobs_for(job, [str(Path(source).absolute()) for source in sources], suffix, False)


class Speeds:
    """How fast each worker was."""

    def __init__(self) -> None:
        self.frames = 0
        self._of: dict[str, tuple[int, float]] = {}

    def add(self, done: Done) -> None:
        """A unit has ended."""
        frames, seconds = self._of.get(done.worker, (0, 0.0))
        self._of[done.worker] = frames + done.frames, seconds + done.seconds
        self.frames += done.frames

    def lines(self) -> list[str]:
        """For the user, a worker a line."""
        return [
            f"worker {worker}: {frames} frames, {frames / seconds:.2f} fps"
            for worker, (frames, seconds) in sorted(self._of.items())
            if seconds
        ]


class Restoring:
    """A `Restorer`: restores units in one process, with one opened model."""

    def __init__(self, films: Sequence[Film], beside: int) -> None:
        """`beside` is how many work on this machine; each takes its share of the processor."""
        self._films = films
        self._share = share_cores(beside)
        self._models = Models()
        self._session: tuple[int, StoredSession] | None = None

    def __call__(self, film: int, unit: int) -> Done:
        """See `Restorer`."""
        began, session, plan = time.perf_counter(), self._session_of(film), self._films[film].plan
        notes = restore_unit(plan, unit, session)
        if self._films[film].fast:
            encode_unit(self._films[film].job, plan, unit, session.store)
        return Done(
            film=film,
            unit=unit,
            worker=worker_name(),
            seconds=time.perf_counter() - began,
            frames=sum(scene.frames for scene in plan.scenes_of(unit)),
            notes=tuple(notes),
        )

    def _session_of(self, film: int) -> StoredSession:
        if self._session is None or self._session[0] != film:
            job, plan = self._films[film].job, self._films[film].plan
            opened = self._models.open(job, (plan.height, plan.width), lambda text: None)
            session = opened.session(job)
            assert isinstance(session, StoredSession)
            self._session = film, session
        return self._session[1]


def plan_film(job: Job, unit_frames: int = UNIT_FRAMES, *, fast: bool = False) -> Film:
    """A film with its plan, which is kept in its store. Raises as `make_plan`."""
    path = store_beside(job.target) / "plan.json"
    plan = None
    with contextlib.suppress(MissingFileError, InvalidInputError):
        plan = Plan.load(path)
        same = plan.source == job.source and plan.scene_threshold == job.scene_threshold and plan.options == job.read
        if not same or plan.fingerprint != fingerprint(job.source):
            plan = None
    if plan is None:
        _check_target(job, fast)
        plan = make_plan(job.source, job.read, job.scene_threshold, unit_frames)
        path.parent.mkdir(parents=True, exist_ok=True)
        plan.write(path)
    return Film(dataclasses.replace(job, resume=True), plan, fast)


def plan_films(
    jobs: Sequence[Job], unit_frames: int = UNIT_FRAMES, *, fast: bool = False
) -> tuple[list[Film], list[Outcome]]:
    """Those that can be planned, and why the others cannot; `fast` as in `Film`."""
    films, failed = [], []
    for job in jobs:
        try:
            films.append(plan_film(job, unit_frames, fast=fast))
        except Exception as error:
            failed.append(Outcome(job, error=why(error)))
    return films, failed


def _check_target(job: Job, fast: bool) -> None:
    """Raises what the join would find, after all the work: a target that cannot be written, or not so."""
    try:
        Path(job.target).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{Path(job.target).parent} cannot be made ({error.strerror})") from None
    interface = interface_of(open_model(job.model))
    with open_reader(job.source, job.read) as reader, Outputs(job, reader.info, interface, None) as outputs:
        if fast:
            check_parts(outputs.writer)


def missing_units(film: Film) -> list[int]:
    """Those of which a scene is not in the store, or that are to be encoded and are not."""
    store = store_beside(film.job.target)
    return [
        unit
        for unit in range(len(film.plan.units))
        if not all(sidecar(store, scene.first).exists() for scene in film.plan.scenes_of(unit))
        or (film.fast and not is_encoded(film.job, film.plan, unit))
    ]


def frames_missing(film: Film) -> int:
    """Those of `missing_units`."""
    return sum(scene.frames for unit in missing_units(film) for scene in film.plan.scenes_of(unit))


def restore_films(films: Sequence[Film], workers: Workers, done: Callable[[Done], None], say: Say) -> list[Outcome]:
    """Restores what is missing of all films with `workers`, and joins each that is whole.

    `done` is called after each unit. What fails stops nothing else. Raises as `spread`.
    """
    errors: dict[int, list[str]] = {number: [] for number in range(len(films))}

    def ended(unit: Done) -> None:
        if unit.error:
            errors[unit.film].append(f"unit {unit.unit}: {unit.error}")
        for note in unit.notes:
            say(f"note: {films[unit.film].job.source}: {note}")
        done(unit)

    with contextlib.ExitStack() as holds:
        units = []
        for number, film in enumerate(films):
            try:
                holds.enter_context(Hold(store_beside(film.job.target)))
                units += [(number, unit) for unit in missing_units(film)]
            except MtuError as error:
                errors[number].append(str(error))
        beside = workers.count if workers.address is None else 1
        try:
            lost = spread(units, _Make(tuple(films), beside), workers, ended) if units else []
        except BaseException:
            if any(holds_scenes(store_beside(film.job.target)) for film in films):
                say("restored scenes are kept beside the outputs: the same command goes on with them")
            raise
        for number, unit in lost:
            errors[number].append(f"unit {unit} ended every worker that took it")
    with Models() as models:
        return [_joined(film, errors[number], models, say) for number, film in enumerate(films)]


@dataclass(frozen=True)
class _Make:
    """Makes a `Restoring` in a worker."""

    films: tuple[Film, ...]
    beside: int

    def __call__(self) -> Restoring:
        return Restoring(self.films, self.beside)


def _joined(film: Film, errors: list[str], models: Models, say: Say) -> Outcome:
    if errors:
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        return Outcome(film.job, error=f"{errors[0]}{more}; what was restored is kept: the same command goes on")
    try:
        film.plan.check_source()
        store = store_beside(film.job.target)
        record = {
            "plan": film.plan.as_json(),
            "made_by": json.loads((store / STORE).read_bytes()),
            "scenes": {scene.first: _digest(sidecar(store, scene.first)) for scene in film.plan.scenes},
        }
        if film.fast:
            models.open(film.job, (film.plan.height, film.plan.width), say).session(film.job)  # refuses other scenes
            report = join_encoded(film.job, film.plan)
        else:
            report = run_job(film.job, models=models, say=say)
        record["result"] = fingerprint(film.job.target)
        write_whole(hidden_beside(Path(film.job.target), "farm"), json.dumps(record).encode())
    except Exception as error:
        return Outcome(film.job, error=why(error))
    return Outcome(film.job, report)


def _digest(said: Path) -> str:
    """sha256 over those of the restored pictures of a scene, by its sidecar."""
    pictures = json.loads(said.read_bytes())["pictures"]
    return hashlib.sha256("".join(pictures).encode()).hexdigest()


def verify(job: Job, whole: bool, seed: int | None = None) -> list[int]:
    """Restores one unit of a film again, or all with `whole`, and compares; returns the first frames of the scenes that
    were compared. `seed` chooses the unit.

    Raises InvalidInputError if a picture differs, or the film was made of something else than is given now.
    """
    path = hidden_beside(Path(job.target), "farm")
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        made = record["result"]
    except FileNotFoundError:
        raise MissingFileError(f"{job.target} was not made by mtu-farm run (there is no {path.name})") from None
    except (OSError, ValueError, TypeError, KeyError):
        raise InvalidInputError(f"{path} is broken: make {job.target} again with mtu-farm run") from None
    if fingerprint(job.target) != made:
        raise InvalidInputError(f"{job.target} has changed since mtu-farm run made it")
    with tempfile.TemporaryDirectory(prefix="mtu-farm-") as folder:
        again = dataclasses.replace(job, target=str(Path(folder) / "again.mkv"), resume=True)
        store = store_beside(again.target)
        store.mkdir()
        (store / "plan.json").write_text(json.dumps(record["plan"]))
        film = Film(again, Plan.load(store / "plan.json"))
        write_whole(store / STORE, json.dumps(record["made_by"]).encode())
        units = range(len(film.plan.units))
        chosen = list(units) if whole else [random.Random(seed).choice(units)]
        restoring = Restoring([film], 1)
        compared = []
        for unit in chosen:
            restoring(0, unit)
            for scene in film.plan.scenes_of(unit):
                if _digest(sidecar(store, scene.first)) != record["scenes"][str(scene.first)]:
                    raise InvalidInputError(
                        f"{job.target}: frames {scene.first} to {scene.end - 1} come out otherwise when they are"
                        " restored again"
                    )
                compared.append(scene.first)
    return compared
