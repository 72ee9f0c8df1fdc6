"""Films restored by workers: their units spread, joined into the files that one process would have written.

The scenes of a film lie in the store that `mtu-run --resume` has beside a target, so what was restored before counts,
by either command. Writes the targets and the stores.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mtu.core.errors import InvalidInputError, MtuError, OutputError
from mtu.farm.cores import share_cores
from mtu.farm.encoded import check_encoder, encode_unit
from mtu.farm.engine import Done, Workers, spread, worker_name
from mtu.farm.joining import join
from mtu.farm.plan import Plan
from mtu.farm.planning import Film, missing_units, plan_path
from mtu.farm.unit import restore_unit
from mtu.runtime.batch import Outcome, made_by, why
from mtu.runtime.hold import Hold
from mtu.runtime.job import Job
from mtu.runtime.opened import Models, Opened
from mtu.runtime.scene_store import OtherScenesError, holds_scenes
from mtu.runtime.stored_session import StoredSession, store_beside

_OF_MACHINES = frozenset({"engines", "backend", "device", "arithmetic", "libraries", "processor"})
"""Of what pictures depend on, what may be other on another machine, though the same is asked for."""


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
                film.plan.write(plan_path(film.job))  # another run may have planned it meanwhile
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
        return Film(job, Plan.load(plan_path(job)), header)
