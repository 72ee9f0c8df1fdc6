"""Films for the tests of mtu-farm, and workers without Ray. Nothing here is a test."""

from __future__ import annotations

import random

from tests.farm.test_units import scenes
from tests.media import make_video
from tests.small_models import trail

from mtu.farm.engine import Done, _Worker
from mtu.farm.films import Restoring, Watch, restore_films
from mtu.farm.planning import jobs_of
from mtu.runtime.video import EncodeOptions

COUNTS = (12, 9, 30, 7, 26, 11, 8, 15)
QUIET = Watch()


def make_films(folder):
    """A model and two films."""
    trail(folder / "model")
    make_video(folder / "a.mp4", scenes(COUNTS), options={"g": "10", "bf": "2"}, audio=True)
    make_video(folder / "b.mp4", scenes(COUNTS[:4], 32, 48))


def jobs(folder, out, names=("a.mp4", "b.mp4"), **options):
    """As `jobs_of`, with an encoder that gives the same each time."""
    sources = [str(folder / name) for name in names]
    encode = EncodeOptions(options={"x264-params": "mbtree=0"})
    made = {"model": folder / "model", "backend": "onnxruntime", "encode": encode, **options}
    return jobs_of(sources, str(folder / out), "", **made)


def words(folder, out, *more, names=("a.mp4",)):
    """The same as words of a command."""
    sources = [folder / name for name in names]
    model = ("--model", folder / "model", "--backend", "onnxruntime", "-e", "x264-params=mbtree=0")
    return [*map(str, (*sources, "-o", folder / out, *model, *more))]


def same(folder, out, name="a.mp4"):
    """Whether a film is that of `mtu-run`."""
    return (folder / out / name).read_bytes() == (folder / "expected" / name).read_bytes()


def in_process(planned, order=None):
    """Restores all units without Ray."""
    restoring = Restoring(planned.__getitem__, 1)
    for number, film in enumerate(planned):
        for unit in order or range(len(film.plan.units)):
            restoring(number, unit)


def spread_here(seed=None):
    """`spread` without Ray: the workers are in this process, and take turns; `seed` shuffles the units."""

    def spread(units, make, workers, done):
        units, restorers = list(units), [_Worker(make) for _ in range(workers.count)]
        if seed is not None:
            random.Random(seed).shuffle(units)
        for turn, (film, unit) in enumerate(units):
            done(Done.of(restorers[turn % workers.count]({"film": film, "unit": unit})))
        return []

    return spread


def finish(planned, workers):
    """The outcome of one film."""
    (outcome,) = restore_films([planned], workers, QUIET)
    return outcome
