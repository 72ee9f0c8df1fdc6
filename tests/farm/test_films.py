"""Films of mtu-farm without Ray: what is joined, what is refused, what is kept."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
from tests import cli
from tests.bundles import map_bundle, views_bundle
from tests.farm.made_films import COUNTS, finish, in_process, jobs, words
from tests.farm.test_units import scenes
from tests.frames import write_clip
from tests.media import make_video

from mtu.core.errors import InvalidInputError, OutputError
from mtu.farm import films as module
from mtu.farm import joining, planning
from mtu.farm.engine import Workers
from mtu.farm.planning import frames_missing, missing_units, plan_film, plan_films
from mtu.runtime.batch import record_of
from mtu.runtime.hold import Hold
from mtu.runtime.stored_session import store_beside
from mtu.runtime.video import EncodeOptions, ReadOptions, Segment, open_reader

pytestmark = pytest.mark.usefixtures("no_ray")


def test_what_is_restored_is_joined_without_a_worker(ready, films, tmp_path):
    assert missing_units(ready) == [] and frames_missing(ready) == 0 and ready.job.resume_bytes is None
    outcome = finish(ready, Workers())
    assert outcome.error == "" and outcome.report.resumed == sum(COUNTS) and outcome.report.inference_seconds == 0
    assert (tmp_path / "out" / "a.mp4").read_bytes() == (films / "expected" / "a.mp4").read_bytes()


def test_a_film_that_is_not_whole_is_named_and_kept(ready, tmp_path, monkeypatch):
    for path in store_beside(ready.job.target).glob("00000012.*"):
        path.unlink()
    unit = missing_units(ready)
    monkeypatch.setattr(module, "spread", lambda units, *_: units)
    error = finish(ready, Workers()).error
    assert f"unit {unit[0]}: ended every worker that took it; what was restored is kept" in error
    assert store_beside(ready.job.target).is_dir() and not (tmp_path / "out" / "a.mp4").exists()


@pytest.mark.parametrize("join", ["exact", "fast"])
def test_what_is_lost_is_told_before_the_work(alone, capsys, join):
    make_video(alone / "t.mp4", scenes((4, 5), width=300), subtitles=True).rename(alone / "t.avi")
    how = ("--join", join, "--unit", "4", "--tile")
    ended = cli.run(capsys, "mtu-farm", "run", *words(alone, "out", *how, "16x16", names=["t.avi"]))
    assert ended.code == 4 and "tiles of 16x16" in ended.err and "unit" not in ended.err
    ended = cli.run(capsys, "mtu-farm", "run", *words(alone, "out", *how, "256x48", names=["t.avi"]))
    assert ended.code == 0, ended.err
    assert 0 < ended.err.index("avi cannot hold subtitle") < ended.err.index("each frame is restored in"), ended.err
    assert ended.err.count("each frame is restored in") == 1


def test_a_kept_plan_is_packed_into_units_of_another_size(ready):
    planned = plan_film(ready.job, 60)
    assert len(planned.plan.units) < len(ready.plan.units) and planned.plan.scenes == ready.plan.scenes
    assert missing_units(planned) == []


def test_another_run_changes_no_plan_of_films_that_are_restored(ready, tmp_path, films):
    kept = store_beside(ready.job.target) / "plan.json"
    before = kept.read_bytes()
    with Hold(kept.parent), pytest.raises(OutputError, match="another run is writing"):
        plan_film(dataclasses.replace(ready.job, scene_threshold=None), 20)
    assert kept.read_bytes() == before
    plan_film(dataclasses.replace(ready.job, scene_threshold=None), 20)  # between planning and restoring
    (kept.parent / "00000012.json").unlink()
    assert finish(ready, Workers()).error == ""
    assert (tmp_path / "out" / "a.mp4").read_bytes() == (films / "expected" / "a.mp4").read_bytes()


def test_a_plan_is_kept_and_made_again_for_another_source(ready, tmp_path, monkeypatch):
    made = []
    real = planning.make_plan
    monkeypatch.setattr(planning, "make_plan", lambda *given, **options: made.append(1) or real(*given, **options))
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
    assert "strict was False" in finish(other, Workers()).error


def test_a_source_that_changes_before_the_end(ready, tmp_path):
    with (tmp_path / "a.mp4").open("ab") as file:
        file.write(b"more")
    assert "has changed: plan it again" in finish(ready, Workers()).error
    assert not (tmp_path / "out" / "a.mp4").exists()


@pytest.mark.parametrize("fault", ["other", "fewer"])
def test_frames_that_decode_otherwise_when_joining(ready, tmp_path, monkeypatch, fault):
    if fault == "other":
        monkeypatch.setattr(joining, "digest_of", lambda *pictures: "")
    else:
        monkeypatch.setattr(
            joining, "open_reader", lambda source, read: open_reader(source, ReadOptions(segment=Segment(0, 1)))
        )
    error = finish(ready, Workers()).error
    number = 0 if fault == "other" else 24
    assert f"the source has other frames than were restored, from frame {number} on: delete" in error
    assert store_beside(ready.job.target).is_dir() and not (tmp_path / "out" / "a.mp4").exists()


@pytest.mark.needs_library("ray")
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
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".a.mp4.done", "a.mp4"]


@pytest.mark.parametrize("what", ["codec", "ending", "directory"])
def test_a_target_that_cannot_be_is_known_before_the_work(films, tmp_path, monkeypatch, what):
    monkeypatch.setattr(planning, "make_plan", lambda *_, **__: pytest.fail("work was done"))
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
        assert "another run is writing" in finish(ready, Workers()).error
    assert not missing_units(ready) and finish(ready, Workers()).error == ""


def test_models_that_are_not_for_it_are_refused_before_planning(films, tmp_path, capsys):
    words = ["run", films / "a.mp4", "-o", tmp_path / "out", "--model"]
    views = views_bundle(tmp_path / "views").directory
    cli.refused(cli.run(capsys, "mtu-farm", *words, views), tmp_path, "reads 3 streams", "mtu-run --stream")
    heat = map_bundle(tmp_path / "heat").directory
    cli.refused(cli.run(capsys, "mtu-farm", *words, heat), tmp_path, "maps of")
    cli.refused(cli.run(capsys, "mtu-farm", *words, tmp_path / "none"), tmp_path, "none")
    assert not (tmp_path / "out").exists()


def test_the_plan_command(capsys, films, tmp_path):
    ended = cli.run(capsys, "mtu-farm", "plan", films / "a.mp4", "-o", tmp_path / "plan.json", "--unit", 20)
    assert ended.code == 0 and f"{sum(COUNTS)} frames, {len(COUNTS)} scenes" in ended.err
    pictures = write_clip(tmp_path / "pictures", 3, 24, 32)
    ended = cli.run(capsys, "mtu-farm", "plan", pictures, "-o", tmp_path / "nowhere" / "plan.json")
    cli.refused(ended, tmp_path, "the directory does not exist")
    ended = cli.run(capsys, "mtu-farm", "plan", pictures, "-o", tmp_path / "plan.json")
    cli.refused(ended, tmp_path, "plan.json exists: replace it with --overwrite")
    ended = cli.run(capsys, "mtu-farm", "plan", pictures, "-o", tmp_path / "plan.json", "--overwrite")
    assert ended.code == 0 and "plan.json: 3 frames, 1 scene, 1 unit\n" in ended.err


def test_a_plan_takes_the_place_of_no_source(capsys, alone):
    before = (alone / "a.mp4").read_bytes()
    pictures = write_clip(alone / "pictures", 1, 24, 32)
    (alone / "link.json").symlink_to(alone / "a.mp4")
    for source, plan in (("a.mp4", "a.mp4"), ("a.mp4", "link.json")):
        ended = cli.run(capsys, "mtu-farm", "plan", alone / source, "-o", alone / plan, "--overwrite")
        cli.refused(ended, alone, "is an input")
    picture = next(pictures.iterdir())
    ended = cli.run(capsys, "mtu-farm", "plan", pictures, "-o", picture, "--overwrite")
    cli.refused(ended, alone, "is one of the files of")
    assert (alone / "a.mp4").read_bytes() == before


def test_the_output_is_a_directory(capsys, alone, monkeypatch):
    monkeypatch.chdir(alone)
    command = "mtu-farm", "verify", "a.mp4", "--model", "model"
    cli.refused(cli.run(capsys, *command), alone, "write: mtu-farm verify a.mp4 --model model -o DIR")
    cli.refused(cli.run(capsys, *command, "-o", "x.mp4"), alone, "x.mp4: is the directory in which each input has an")


@pytest.mark.parametrize(
    ("options", "said"),
    [({"count": 0}, "--workers 0"), ({"gpus": -1}, "--gpus-per-worker"), ({"gpus": float("nan")}, "--gpus-per-worker")],
)
def test_workers_that_make_no_sense(options, said):
    with pytest.raises(InvalidInputError, match=said):
        Workers(**options)


class TestDone:
    """What the same command does again."""

    def run(self, capsys, folder, *more, names=("a.mp4",)):
        return cli.run(capsys, "mtu-farm", "run", *words(folder, "out", *more, names=names))

    @pytest.fixture
    def made(self, ready):
        assert finish(ready, Workers()).error == ""
        return ready

    @pytest.mark.needs_library("ray")
    def test_what_is_done_is_left_out(self, capsys, made, tmp_path, monkeypatch):
        monkeypatch.setattr(planning, "make_plan", lambda *_, **__: pytest.fail("it was planned again"))
        store = store_beside(made.job.target)
        store.mkdir()
        (store / "00000000.json").write_text("left by a run that was ended when the film was whole")
        for more in ((), ("--skip-done",), ("--skip-done", "--overwrite")):
            ended = self.run(capsys, tmp_path, *more)
            assert ended.code == 0 and "a.mp4 is done already" in ended.err and "1 done before" in ended.err, ended.err
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".a.mp4.done", "a.mp4"]

    @pytest.mark.needs_library("ray")
    def test_either_command_knows_what_the_other_has_done(self, capsys, made, tmp_path):
        ended = cli.run(capsys, "mtu-run", *words(tmp_path, "out", "--skip-done"))
        assert ended.code == 0 and "is done already" in ended.err, ended.err
        ended = cli.run(capsys, "mtu-run", *words(tmp_path, "other", "--skip-done"))
        assert ended.code == 0, ended.err
        ended = cli.run(capsys, "mtu-farm", "run", *words(tmp_path, "other"))
        assert ended.code == 0 and "is done already" in ended.err, ended.err

    @pytest.mark.needs_library("ray")
    @pytest.mark.parametrize("what", ["source", "option", "record", "foreign"])
    def test_what_is_not_as_it_would_be_made_is_not_left_out(self, capsys, made, tmp_path, what):
        more = ("--crf", 30) if what == "option" else ()
        if what == "source":
            make_video(tmp_path / "a.mp4", scenes((5, 6)))
        elif what == "record":
            record_of(made.job.target).write_text("[]")
        elif what == "foreign":
            (tmp_path / "out" / "a.mp4").write_bytes(b"mine")
        before = (tmp_path / "out" / "a.mp4").read_bytes()
        ended = self.run(capsys, tmp_path, "--skip-done", *more)
        assert ended.code == 4 and "exists, and was not made by this source" in ended.err, ended.err
        assert (tmp_path / "out" / "a.mp4").read_bytes() == before
        ended = self.run(capsys, tmp_path, "--skip-done", "--overwrite", *more)
        assert ended.code == 0 and "1 done" in ended.err and "before" not in ended.err, ended.err

    @pytest.mark.needs_library("ray")
    def test_overwrite_alone_makes_all_again(self, capsys, made, tmp_path):
        ended = self.run(capsys, tmp_path, "--overwrite")
        assert ended.code == 0 and "1 input: 1 done" in ended.err, ended.err

    def test_the_record_is_there_before_the_scenes_go(self, ready, monkeypatch):
        seen, real = [], shutil.rmtree

        def remove(path, *given, **options):
            seen.append((path, record_of(ready.job.target).exists()))
            real(path, *given, **options)

        monkeypatch.setattr(shutil, "rmtree", remove)
        assert finish(ready, Workers()).error == ""
        assert seen == [(store_beside(ready.job.target), True)]
