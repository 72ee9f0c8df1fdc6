"""mtu-farm with a real Ray on this machine: whatever happens to workers, nodes and the driver, the films are those of
one mtu-run."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys

import pytest
from tests import cli
from tests.bundles import map_bundle, views_bundle
from tests.farm.test_units import scenes
from tests.frames import write_clip
from tests.media import make_video
from tests.processes import environment, wait_until
from tests.small_models import trail

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.files import hidden_beside
from mtu.farm.engine import Done, Workers, spread
from mtu.farm.films import (
    Restoring,
    frames_missing,
    jobs_of,
    missing_units,
    plan_film,
    plan_films,
    restore_films,
    verify,
)
from mtu.runtime.job import run_job
from mtu.runtime.scene_store import Hold
from mtu.runtime.stored_session import store_beside
from mtu.runtime.video import EncodeOptions

COUNTS = (12, 9, 30, 7, 26, 11, 8, 15)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder with a model, two films, and what mtu-run makes of them."""
    folder = tmp_path_factory.mktemp("films")
    trail(folder / "model")
    make_video(folder / "a.mp4", scenes(COUNTS), options={"g": "10", "bf": "2"}, audio=True)
    make_video(folder / "b.mp4", scenes(COUNTS[:4], 32, 48))
    for job in jobs(folder, "expected"):
        (folder / "expected").mkdir(exist_ok=True)
        run_job(dataclasses.replace(job, resume=False))
    return folder


def jobs(folder, out, names=("a.mp4", "b.mp4"), **options):
    sources = [str(folder / name) for name in names]
    encode = EncodeOptions(options={"x264-params": "mbtree=0"})  # else x264 does not always give the same
    made = {"model": folder / "model", "backend": "onnxruntime", "encode": encode, **options}
    return jobs_of(sources, str(folder / out), "", **made)


def same(folder, out, name="a.mp4"):
    return (folder / out / name).read_bytes() == (folder / "expected" / name).read_bytes()


def in_process(planned, order=None):
    """Restores units without Ray."""
    restoring = Restoring(planned, 1)
    for number, film in enumerate(planned):
        for unit in order or range(len(film.plan.units)):
            restoring(number, unit)


@pytest.fixture
def ready(films, tmp_path):
    """A film that is restored, not joined, in a folder of its own."""
    for name in ("a.mp4", "model"):
        (shutil.copytree if name == "model" else shutil.copy)(films / name, tmp_path / name)
    (planned,) = [plan_film(job, 20) for job in jobs(tmp_path, "out", ["a.mp4"])]
    in_process([planned])
    return planned


@pytest.mark.needs_library("ray", "pyarrow")
@pytest.mark.timeout(120)
class TestRay:
    def test_a_worker_that_is_killed_loses_nothing(self, films):
        planned = [plan_film(job, 20) for job in jobs(films, "killed")]
        ended = []

        def done(unit: Done):
            ended.append((unit.film, unit.unit))
            if len(ended) in (1, 4):
                os.kill(int(unit.worker.split(":")[1]), signal.SIGKILL)

        outcomes = restore_films(planned, Workers(count=2), done, lambda text: None)
        assert [outcome.error for outcome in outcomes] == ["", ""]
        assert sorted(ended) == [(film, unit) for film in (0, 1) for unit in range(len(planned[film].plan.units))]
        assert same(films, "killed") and same(films, "killed", "b.mp4")
        assert [outcome.report.frames for outcome in outcomes] == [sum(COUNTS), sum(COUNTS[:4])]
        assert not list((films / "killed").glob("*.resume"))

    def test_a_unit_that_ends_every_worker_is_named_and_the_rest_goes_on(self):
        def make():
            def restore(film, unit):
                if unit == 1:
                    os._exit(1)
                if unit == 3:
                    raise InvalidInputError("not this one")
                return Done(film=film, unit=unit, worker="")

            return restore

        ended = {}
        missing = spread(
            [(7, unit) for unit in range(5)], make, Workers(), lambda done: ended.update({done.unit: done})
        )
        assert missing == [(7, 1)]
        assert sorted(ended) == [0, 2, 3, 4]
        assert [unit for unit, done in ended.items() if done.error] == [3] and ended[3].error == "not this one"

    def test_a_node_that_goes(self, films):
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20})
        try:
            node = cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
            planned = [plan_film(job, 10) for job in jobs(films, "node")]
            ended = []

            def done(unit: Done):
                ended.append(unit.unit)
                if len(ended) == 2:
                    cluster.remove_node(node)

            workers = Workers(count=2, address=cluster.address)
            outcomes = restore_films(planned, workers, done, lambda text: None)
        finally:
            cluster.shutdown()
        assert [outcome.error for outcome in outcomes] == ["", ""]
        assert same(films, "node") and same(films, "node", "b.mp4")

    def test_a_driver_that_is_killed_goes_on(self, films, capsys):
        words = [films / "a.mp4", "-o", films / "driver", "--model", films / "model", "--backend", "onnxruntime"]
        words = [*map(str, words), "--unit", "10", "--workers", "2", "-e", "x264-params=mbtree=0", "--no-progress"]
        code = "from mtu.farm.cli import main\nmain()"
        command = [sys.executable, "-c", code, "run", *words]
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
        store = store_beside(str(films / "driver" / "a.mp4"))
        wait_until(lambda: list(store.glob("0*.json")), process)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (films / "driver" / "a.mp4").exists()
        ended = cli.run(capsys, "mtu-farm", "run", *words)
        assert ended.code == 0, ended.err
        assert "1 inputs: 1 done" in ended.err and "fps" in ended.err
        assert same(films, "driver")

    def test_a_driver_that_is_asked_to_end(self, films):
        words = [films / "a.mp4", "-o", films / "ended", "--model", films / "model", "--backend", "onnxruntime"]
        words = [*map(str, words), "--unit", "10", "--no-progress"]
        code = "from mtu.farm.cli import main\nmain()"
        command = [sys.executable, "-c", code, "run", *words]
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, start_new_session=True)
        store = store_beside(str(films / "ended" / "a.mp4"))
        wait_until(lambda: list(store.glob("0*.json")), process)
        process.terminate()
        said = process.communicate()[1].decode()
        assert process.returncode == 143 and "terminated" in said and "the same command goes on" in said, said
        assert sorted(path.name for path in (films / "ended").iterdir()) == [".a.mp4.resume"]
        assert not (store / "lock").exists()

    def test_no_cluster_at_the_address(self, films):
        (planned,) = [plan_film(job, 20) for job in jobs(films, "none", ["a.mp4"])]
        with pytest.raises(InvalidInputError, match="no Ray"):
            restore_films([planned], Workers(address="127.0.0.1:1"), lambda unit: None, lambda text: None)

    def test_gpus_that_there_are_not(self, films):
        (planned,) = [plan_film(job, 20) for job in jobs(films, "none", ["a.mp4"])]
        with pytest.raises(InvalidInputError, match="and there are 0: give fewer --workers"):
            restore_films([planned], Workers(gpus=0.5), lambda unit: None, lambda text: None)


def join(planned):
    (outcome,) = restore_films([planned], Workers(), lambda unit: None, lambda text: None)
    return outcome


def test_what_is_restored_is_joined_without_a_worker(ready, films, tmp_path):
    assert missing_units(ready) == [] and frames_missing(ready) == 0
    outcome = join(ready)
    assert outcome.error == "" and outcome.report.resumed == sum(COUNTS) and outcome.report.inference_seconds == 0
    assert (tmp_path / "out" / "a.mp4").read_bytes() == (films / "expected" / "a.mp4").read_bytes()


def test_a_film_that_is_not_whole_is_named_and_kept(ready, tmp_path, monkeypatch):
    from mtu.farm import films as module

    for path in store_beside(ready.job.target).glob("00000012.*"):
        path.unlink()
    unit = missing_units(ready)
    monkeypatch.setattr(module, "spread", lambda units, *_: units)
    error = join(ready).error
    assert f"unit {unit[0]} ended every worker that took it; what was restored is kept" in error
    assert store_beside(ready.job.target).is_dir() and not (tmp_path / "out" / "a.mp4").exists()


def test_a_plan_is_kept_and_made_again_for_another_source(ready, tmp_path, monkeypatch):
    from mtu.farm import films as module

    made = []
    real = module.make_plan
    monkeypatch.setattr(module, "make_plan", lambda *given, **options: made.append(1) or real(*given, **options))
    job = jobs(tmp_path, "out", ["a.mp4"])[0]
    assert plan_film(job, 20).plan == ready.plan and not made
    plan_film(dataclasses.replace(job, scene_threshold=None), 20)
    assert len(made) == 1
    make_video(tmp_path / "a.mp4", scenes((5, 6)))
    assert plan_film(job, 20).plan.frames == 11


def test_scenes_of_other_options_are_not_mixed(ready):
    other = dataclasses.replace(ready, job=dataclasses.replace(ready.job, strict=True))
    with pytest.raises(InvalidInputError, match="strict was False, and is True"):
        in_process([other])
    assert "strict was False" in join(other).error


def test_a_source_that_changes_before_the_end(ready, tmp_path):
    with (tmp_path / "a.mp4").open("ab") as file:
        file.write(b"more")
    assert "has changed: plan it again" in join(ready).error
    assert not (tmp_path / "out" / "a.mp4").exists()


def test_it_can_be_verified(ready, tmp_path, capsys):
    assert join(ready).error == ""
    job = jobs(tmp_path, "out", ["a.mp4"], overwrite=True)[0]
    starts = [scene.first for scene in ready.plan.scenes]
    assert verify(job, whole=True) == starts
    assert set(verify(job, whole=False, seed=1)) < set(starts)
    words = [tmp_path / "a.mp4", "-o", tmp_path / "out", "--model", tmp_path / "model", "--backend", "onnxruntime"]
    ended = cli.run(capsys, "mtu-farm", "verify", *words, "--all")
    assert ended.code == 0 and f"{len(starts)} scenes restored again" in ended.err


@pytest.mark.parametrize(
    ("what", "said"),
    [("changed", "has changed since mtu-farm run made it"), ("gone", "does not exist"), ("record", "is broken")],
)
def test_an_output_that_is_another_is_not_verified(ready, tmp_path, what, said):
    assert join(ready).error == ""
    target = tmp_path / "out" / "a.mp4"
    if what == "changed":
        target.write_bytes(target.read_bytes()[:-1] + b"?")
    elif what == "gone":
        target.unlink()
    else:
        hidden_beside(target, "farm").write_text('{"plan": 1}')
    with pytest.raises((InvalidInputError, MissingFileError), match=said):
        verify(jobs(tmp_path, "out", ["a.mp4"], overwrite=True)[0], whole=True)


def test_a_broken_source_stops_no_other(ready, films, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    make_video(tmp_path / "empty.mp4", scenes((3,)))
    (tmp_path / "empty.mp4").write_bytes((tmp_path / "empty.mp4").read_bytes()[:100])
    words = [tmp_path / "bad.mp4", tmp_path / "a.mp4", tmp_path / "empty.mp4", "-o", tmp_path / "out"]
    model = ["--model", tmp_path / "model", "--backend", "onnxruntime", "-e", "x264-params=mbtree=0"]
    ended = cli.run(capsys, "mtu-farm", "run", *words, *model)
    assert ended.code == 4 and "bad.mp4 failed" in ended.err and "1 done, 2 failed" in ended.err, ended.err
    assert "Traceback" not in ended.err
    assert (tmp_path / "out" / "a.mp4").read_bytes() == (films / "expected" / "a.mp4").read_bytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".a.mp4.farm", "a.mp4"]


@pytest.mark.parametrize("what", ["codec", "ending", "directory"])
def test_a_target_that_cannot_be_is_known_before_the_work(films, tmp_path, monkeypatch, what):
    from mtu.farm import films as module

    monkeypatch.setattr(module, "make_plan", lambda *_, **__: pytest.fail("work was done"))
    name = "a.unknown" if what == "ending" else "a.mp4"
    shutil.copy(films / "a.mp4", tmp_path / name)
    encode = EncodeOptions(codec="none" if what == "codec" else None)
    (job,) = jobs(tmp_path, "out/a/b", [name], model=films / "model", encode=encode)
    if what == "directory":
        (tmp_path / "out").write_text("a file")
    planned, (failed,) = plan_films([job])
    assert not planned and failed.error and "Traceback" not in failed.error


def test_two_at_once(ready, tmp_path):
    with Hold(store_beside(ready.job.target)):
        assert "another run is writing" in join(ready).error
    assert not missing_units(ready) and join(ready).error == ""


def test_models_that_are_not_for_it_are_refused_before_planning(films, tmp_path, capsys):
    words = ["run", films / "a.mp4", "-o", tmp_path / "out", "--model"]
    views = views_bundle(tmp_path / "views").directory
    cli.refused(cli.run(capsys, "mtu-farm", *words, views), tmp_path, "reads 3 streams", "mtu-run --stream")
    heat = map_bundle(tmp_path / "heat").directory
    cli.refused(cli.run(capsys, "mtu-farm", *words, heat), tmp_path, "maps of")
    cli.refused(cli.run(capsys, "mtu-farm", *words, tmp_path / "none"), tmp_path, "none")
    assert not (tmp_path / "out").exists()


def test_what_comes_out_otherwise_is_found(ready, tmp_path):
    assert join(ready).error == ""
    record = hidden_beside(tmp_path / "out" / "a.mp4", "farm")
    text = record.read_text()
    digest = text.split('"scenes": {')[1].split(": ")[1][1:65]
    record.write_text(text.replace(digest, "0" * 64))
    job = jobs(tmp_path, "out", ["a.mp4"], overwrite=True)[0]
    with pytest.raises(InvalidInputError, match="frames 0 to 11 come out otherwise"):
        verify(job, whole=True)
    record.unlink()
    with pytest.raises(MissingFileError, match="was not made by mtu-farm run"):
        verify(job, whole=True)


def test_the_plan_command(capsys, films, tmp_path):
    ended = cli.run(capsys, "mtu-farm", "plan", films / "a.mp4", "-o", tmp_path / "plan.json", "--unit", 20)
    assert ended.code == 0 and f"{sum(COUNTS)} frames, {len(COUNTS)} scenes" in ended.err
    pictures = write_clip(tmp_path / "pictures", 3, 24, 32)
    ended = cli.run(capsys, "mtu-farm", "plan", pictures, "-o", tmp_path / "nowhere" / "plan.json")
    cli.refused(ended, tmp_path, "plan.json cannot be written")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"count": 0}, "--workers 0"), ({"gpus": -1}, "--gpus-per-worker"), ({"gpus": float("nan")}, "--gpus-per-worker")],
)
def test_workers_that_make_no_sense(options, said):
    with pytest.raises(InvalidInputError, match=said):
        Workers(**options)
