"""What goes wrong while films are restored: one message, nothing lost, and the same command goes on."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from pathlib import Path

import pytest
from tests import cli
from tests.farm.made_films import COUNTS, QUIET, finish, jobs, same, spread_here, words

from mtu.core.errors import InvalidInputError
from mtu.core.release import VERSION
from mtu.farm import films as module
from mtu.farm.engine import Workers, check_kinds, cluster
from mtu.farm.films import Watch, restore_films
from mtu.farm.planning import missing_units, plan_film
from mtu.runtime import scene_store, stored_session
from mtu.runtime.stored_session import store_beside

pytestmark = pytest.mark.usefixtures("no_ray")
KEPT = "what was restored is kept: the same command goes on"


@pytest.fixture
def planned(alone):
    return plan_film(jobs(alone, "out", ["a.mp4"])[0], 20)


class After(Watch):
    """Does something when the first unit has ended."""

    def __init__(self, do):
        self.do = [do]

    def unit(self, done):
        if self.do:
            self.do.pop()()


def is_right(folder, films):
    return (folder / "out" / "a.mp4").read_bytes() == (films / "expected" / "a.mp4").read_bytes()


def goes_on(folder, films):
    assert finish(plan_film(jobs(folder, "out", ["a.mp4"])[0], 20), Workers()).error == ""
    assert is_right(folder, films)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_order_and_any_number_of_workers_give_the_film_of_mtu_run(films, tmp_path, monkeypatch, count, seed):
    monkeypatch.setattr(module, "spread", spread_here(seed))
    planned = [plan_film(job, 10) for job in jobs(films, tmp_path / "out")]
    outcomes = restore_films(planned, Workers(count=count), QUIET)
    assert [outcome.error for outcome in outcomes] == ["", ""]
    for name in ("a.mp4", "b.mp4"):
        assert same(films, tmp_path / "out", name)


def test_long_units_are_given_out_first(planned, monkeypatch):
    given = []
    monkeypatch.setattr(module, "spread", lambda units, make, workers, done: given.extend(units) or given)
    finish(planned, Workers())
    frames = [sum(scene.frames for scene in planned.plan.scenes_of(unit)) for _, unit in given]
    assert frames == sorted(frames, reverse=True) and sum(frames) == sum(COUNTS)


@pytest.mark.parametrize("where", ["picture", "sidecar", "name"])
def test_a_disk_that_is_full(planned, alone, films, monkeypatch, where):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill():
        if where == "picture":
            monkeypatch.setattr(scene_store.SceneWriter, "_check_room", full)
        elif where == "sidecar":
            monkeypatch.setattr(scene_store, "write_whole", full)
        else:
            monkeypatch.setattr(scene_store.os, "fsync", full)

    with monkeypatch.context() as patched:
        patched.setattr(Watch, "unit", After(fill).unit)
        outcome = finish(planned, Workers())
        monkeypatch.undo()
    assert outcome.error.startswith("unit ") and "cannot be written (No space left on device)" in outcome.error
    assert outcome.error.endswith(f"and 2 more; {KEPT}") and "Traceback" not in outcome.error
    assert not (alone / "out" / "a.mp4").exists() and not list(store_beside(planned.job.target).glob("*.part"))
    monkeypatch.setattr(module, "spread", spread_here())
    goes_on(alone, films)


def test_an_output_directory_that_goes(planned, alone, films):
    (outcome,) = restore_films([planned], Workers(), After(lambda: shutil.rmtree(alone / "out")))
    assert outcome.error.startswith("unit ") and "Traceback" not in outcome.error
    goes_on(alone, films)


def test_a_source_that_changes_while_it_is_restored(planned, alone):
    def change():
        with (alone / "a.mp4").open("ab") as file:
            file.write(b"more")

    (outcome,) = restore_films([planned], Workers(), After(change))
    assert outcome.error.startswith("unit ") and "has changed: plan it again" in outcome.error
    assert not (alone / "out" / "a.mp4").exists()


def test_a_source_that_goes(planned, alone, films):
    kept = (alone / "a.mp4").read_bytes()
    (outcome,) = restore_films([planned], Workers(), After((alone / "a.mp4").unlink))
    assert "a.mp4 does not exist" in outcome.error and outcome.error.endswith(KEPT)
    (alone / "a.mp4").write_bytes(kept)
    goes_on(alone, films)


@pytest.mark.parametrize("what", ["sidecar", "no sidecar", "fields", "short", "no pictures"])
def test_a_scene_that_is_broken_is_restored_again(ready, alone, films, what):
    said = scene_store.sidecar(store_beside(ready.job.target), COUNTS[0])
    pictures = said.with_suffix(".mkv")
    if what == "short":
        pictures.write_bytes(pictures.read_bytes()[:-10])
    elif what == "no sidecar":
        said.unlink()
    elif what == "no pictures":
        pictures.unlink()
    else:
        said.write_text("{" if what == "sidecar" else "[1]")
    assert missing_units(ready) == [0]
    goes_on(alone, films)


def test_a_scene_whose_pictures_changed_is_found_when_joining(ready, alone, films):
    pictures = scene_store.sidecar(store_beside(ready.job.target), COUNTS[0]).with_suffix(".mkv")
    content = pictures.read_bytes()
    middle = len(content) // 2
    pictures.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    planned = plan_film(ready.job, 20)
    for unit in (1, 2):  # unit 0 would find it
        pictures_of = scene_store.sidecar(store_beside(ready.job.target), planned.plan.scenes_of(unit)[0].first)
        pictures_of.unlink()
    error = finish(planned, Workers()).error
    assert "the restored scenes that begin with frame 12 are missing or broken" in error and error.endswith(KEPT)
    goes_on(alone, films)


def test_a_machine_of_another_kind_mixes_nothing(planned, alone, films, monkeypatch):
    kinds = itertools.chain([["avx2"]], itertools.repeat(["avx2", "amx_bf16"]))
    with monkeypatch.context() as patched:
        patched.setattr(stored_session, "processor_units", lambda: next(kinds))
        error = finish(planned, Workers(count=2)).error
    assert "processor was ['avx2'] there, and is ['avx2', 'amx_bf16'] here; let machines of one kind work" in error
    assert len(missing_units(planned)) == 2
    monkeypatch.setattr(stored_session, "processor_units", lambda: ["avx2"])
    goes_on(alone, films)


def test_a_cluster_of_two_kinds_is_refused_before_the_work():
    alike = [("a", [], VERSION, ["avx2"]), ("b", [], VERSION, ["avx2"])]
    check_kinds(alike)
    check_kinds([])
    said = "2 kinds .a has a processor with avx2; c has a processor with avx2, fma.*one kind"
    with pytest.raises(InvalidInputError, match=said):
        check_kinds([*alike, ("c", [], VERSION, ["avx2", "fma"])])
    with pytest.raises(InvalidInputError, match="c has a processor with avx2 and L4"):
        check_kinds([*alike, ("c", ["L4"], VERSION, ["avx2"])])
    with pytest.raises(InvalidInputError, match=r"d has MTU 0\.0, and here it is"):
        check_kinds([*alike, ("d", [], "0.0", ["avx2"])])


@pytest.mark.needs_library("ray")
@pytest.mark.parametrize("error", [RuntimeError, ConnectionError, ConnectionAbortedError, Exception])
def test_another_ray_at_the_address(monkeypatch, error):
    import ray

    def refuse(**_):
        raise error("Version mismatch: The cluster was started with:\n    Ray: 2.9\nThis process: \n    Ray: 2.60\n")

    monkeypatch.setattr(ray, "init", refuse)
    said = r"no Ray .* at auto: Version mismatch: The cluster was started with: Ray: 2.9 This process: Ray: 2.60"
    with pytest.raises(InvalidInputError, match=said), cluster(Workers(address="auto")):
        pass


@pytest.mark.parametrize(
    ("source", "output"), [("a.mp4", "s3://bucket/out"), ("https://example.org/a.mp4", "out"), ("-", "out")]
)
def test_addresses_are_refused(capsys, alone, monkeypatch, source, output):
    monkeypatch.chdir(alone)
    command = ["mtu-farm", "verify", source, "-o", output, "--model", "model"]
    cli.refused(cli.run(capsys, *command), alone, "that all workers see by the same path", "mount the storage")
    assert not Path("s3:").exists()


@pytest.mark.needs_library("ray")
def test_one_bad_film_of_a_library(capsys, alone, films):
    (alone / "c.mp4").write_bytes((alone / "a.mp4").read_bytes()[:2000])
    ended = cli.run(capsys, "mtu-farm", "run", *words(alone, "out", names=("a.mp4", "c.mp4")))
    assert ended.code == 4 and "c.mp4 failed" in ended.err and "Traceback" not in ended.err
    assert is_right(alone, films) and f"{sum(COUNTS)} frames" in ended.err
