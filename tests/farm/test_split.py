"""`--split-long`: parts of a long scene are what they are said to be, whoever restores them, and what that changes is
measured and said."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from tests import cli
from tests.farm.made_films import QUIET, in_process, jobs
from tests.farm.test_units import scenes
from tests.media import make_video, times
from tests.small_models import trail

from mtu.core.errors import InvalidInputError
from mtu.farm import unit as units
from mtu.farm.engine import Workers
from mtu.farm.films import restore_films
from mtu.farm.plan import Plan, make_plan
from mtu.farm.planning import missing_units, plan_film
from mtu.farm.unit import restore_unit
from mtu.farm.verify import verify
from mtu.runtime import open_backend, open_session, read_frames, restore
from mtu.runtime.batch import record_of
from mtu.runtime.job import run_job
from mtu.runtime.scene_store import SceneStore, border_psnr, stored_scene
from mtu.runtime.scenes import Split, split_of
from mtu.runtime.stored_session import StoredSession, store_beside
from mtu.runtime.video import ReadOptions

pytestmark = pytest.mark.usefixtures("no_ray")

COUNTS = (12, 70, 26, 9, 55)
"""Frames of scenes, 25 a second."""
ALL = 1000
"""More frames of warm-up than there are."""


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    opened = open_backend("onnxruntime", trail(tmp_path_factory.mktemp("models") / "trail"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    options = {"crf": "10", "g": "20", "bf": "3"}
    return make_video(tmp_path_factory.mktemp("clip") / "a.mp4", scenes(COUNTS), options=options, audio=True)


def planned(clip, warm_up, seconds=1.0, unit=40):
    return make_plan(str(clip), ReadOptions(), 10.0, unit, split=Split(seconds, warm_up))


def from_store(plan, directory):
    """What is restored of all frames, as joining takes it."""
    scenes = [stored_scene(directory, scene.first) for scene in plan.scenes]
    assert [number for scene in scenes for number in scene.redone] == []
    return [picture for scene in scenes for picture in scene.read()]


def stored(backend, plan, directory, order=None):
    session = StoredSession(open_session(backend, scene_threshold=None), SceneStore(directory, {"by": 1}), None)
    ahead = backend.interface.look_ahead
    said = [restore_unit(plan, unit, session, ahead) for unit in order or range(len(plan.units))]
    return [text for texts in said for text in texts]


def test_long_scenes_are_split_and_no_others(clip, tmp_path):
    plan = planned(clip, 20)
    parts = [(scene.first, scene.frames, scene.warm_up, scene.continues) for scene in plan.scenes]
    assert parts == [
        (0, 12, 0, False),
        (12, 23, 0, False),
        (35, 23, 20, True),
        (58, 24, 20, True),
        (82, 13, 0, False),  # of 26 frames
        (95, 13, 13, True),
        (108, 9, 0, False),
        (117, 18, 0, False),
        (135, 18, 18, True),
        (153, 19, 20, True),
    ]
    assert len(plan.units) == 4 and plan.units[-1][1] == len(parts)
    (note,) = plan.notes()
    assert note.startswith("3 scenes longer than 1 s are restored in 8 parts, with 20 frames of warm-up")
    plan.write(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert planned(clip, 5, seconds=3.0).notes() == []
    assert [scene.first for scene in planned(clip, 5, seconds=2.8).scenes] == [0, 12, 82, 108, 117]


@pytest.mark.parametrize("order", [None, (2, 3, 1, 1, 0)])
def test_with_all_that_came_before_nothing_changes(tmp_path, backend, clip, order):
    """So the window is whole at both ends of a part, and the memory is that of the warm-up."""
    expected = [each.rgb for each in restore(read_frames(clip), backend)]
    plan = planned(clip, ALL)
    assert len(plan.units) == 4
    assert stored(backend, plan, tmp_path / "s", order) == []
    pictures = from_store(plan, tmp_path / "s")
    assert all(np.array_equal(a, b) for a, b in zip(pictures, expected, strict=True))
    assert border_psnr(tmp_path / "s") == dict.fromkeys((35, 58, 95, 135, 153), float("inf"))


@pytest.mark.parametrize("warm_up", [0, 4])
def test_a_part_is_what_its_frames_and_those_of_the_warm_up_give(tmp_path, backend, clip, warm_up):
    frames, plan = list(read_frames(clip)), planned(clip, warm_up)
    ahead = backend.interface.look_ahead
    stored(backend, plan, tmp_path / "s", (1, 0, 3, 2))
    pictures = from_store(plan, tmp_path / "s")
    beyond = {}
    for number, scene in enumerate(plan.scenes):
        first, end = scene.first - scene.warm_up, min(scene.end + ahead + 1, plan.end_of_take(number))
        session = open_session(backend, scene_threshold=None)
        alone = [each.rgb for frame in frames[first:end] for each in session.push(frame)]
        alone += [each.rgb for each in session.flush()]
        own = alone[scene.warm_up :]
        assert all(np.array_equal(pictures[scene.first + k], own[k]) for k in range(scene.frames))
        if len(own) > scene.frames:
            beyond[scene.end] = own[scene.frames]
    errors = {number: np.mean((np.float64(picture) - pictures[number]) ** 2) for number, picture in beyond.items()}
    assert {n: round(v, 3) for n, v in border_psnr(tmp_path / "s").items()} == {
        n: round(10 * np.log10(255**2 / error), 3) for n, error in errors.items()
    }
    assert set(errors) == {35, 58, 95, 135, 153}


def test_what_is_decoded_otherwise_before_a_part_is_found(tmp_path, backend, clip, monkeypatch):
    plan, honest = planned(clip, 10), units._frames

    def dishonest(plan, first, whole):
        for number, frame in enumerate(honest(plan, first, whole)):
            yield dataclasses.replace(frame, rgb=frame.rgb ^ 1) if number == 0 and not whole else frame

    monkeypatch.setattr(units, "_frames", dishonest)
    (unit,) = [n for n in range(len(plan.units)) if plan.scenes_of(n)[0].first == 58]
    assert "was read from the beginning" in stored(backend, plan, tmp_path / "s", [unit])[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return trail(tmp_path_factory.mktemp("model") / "model").directory


def film(clip, folder, model, split, join="exact"):
    (job,) = jobs(clip.parent, str(folder / "out"), ["a.mp4"], model=model, split=split, join=join)
    return plan_film(job, 40)


def joined(work):
    (outcome,) = restore_films([work], Workers(), QUIET)
    assert outcome.error == "", outcome.error
    return outcome.report


@pytest.mark.parametrize("join", ["exact", "fast"])
def test_both_joins_have_the_parts_and_say_what_they_changed(tmp_path, clip, model, join):
    work = film(clip, tmp_path, model, Split(1.0, 2), join)
    in_process([work], (2, 3, 0, 1))
    assert missing_units(work) == []
    report = joined(work)
    assert report.frames == sum(COUNTS) and report.scene_cuts == [12, 82, 108, 117]
    assert times(work.job.target) == times(clip)
    (said,) = [text for text in report.remarks if "PSNR" in text]
    assert "first pictures of parts of long scenes" in said
    record = json.loads(record_of(work.job.target).read_bytes())
    assert (
        set(record["borders"]) == {"35", "58", "95", "135", "153"} and record["scenes_made_by"]["split"]["warm_up"] == 2
    )
    # The record knows how it was split.
    again = dataclasses.replace(work.job, split=None, overwrite=True)
    assert verify(again, whole=True) == [scene.first for scene in work.plan.scenes]


def test_with_all_that_came_before_the_film_is_that_of_one_run(tmp_path, clip, model):
    work, whole = film(clip, tmp_path, model, Split(1.0, ALL)), tmp_path / "whole.mp4"
    run_job(dataclasses.replace(work.job, target=str(whole), split=None, resume=False))
    in_process([work])
    joined(work)
    assert (tmp_path / "out" / "a.mp4").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("other", [None, Split(1.0, 3), Split(2.0, 2)])
def test_scenes_that_are_split_otherwise_are_not_mixed(tmp_path, clip, model, other):
    in_process([film(clip, tmp_path, model, Split(1.0, 2))])
    work = film(clip, tmp_path, model, other)
    assert work.plan.split == other
    with pytest.raises(InvalidInputError, match=r"split was .*'warm_up': 2"):
        in_process([work])


def test_only_a_part_that_is_missing_is_restored(tmp_path, clip, model):
    work = film(clip, tmp_path, model, Split(1.0, 5))
    in_process([work])
    store = store_beside(work.job.target)
    kept = {path: path.read_bytes() for path in store.glob("*.json")}
    for path in store.glob("00000058.*"):
        path.unlink()
    assert len(missing_units(work)) == 1
    in_process([work])
    assert {path: path.read_bytes() for path in store.glob("*.json")} == kept


@pytest.mark.parametrize(
    ("seconds", "warm_up", "said"),
    [
        (0.5, None, "--split-long 0.5: give seconds, 1 or more"),
        (float("nan"), None, "--split-long nan"),
        (float("inf"), None, "--split-long inf"),
        (10, -1, "--warm-up -1: give frames"),
        (None, 5, "--warm-up 5 is for --split-long"),
    ],
)
def test_odd_values(seconds, warm_up, said):
    with pytest.raises(InvalidInputError, match=said):
        split_of(seconds, warm_up)


def test_the_commands(capsys, tmp_path, clip, model):
    assert split_of(None, None) is None and split_of(3, None) == Split(3.0)
    words = [clip, "-o", tmp_path / "plan.json", "--split-long", 1, "--warm-up", 3]
    ended = cli.run(capsys, "mtu-farm", "plan", *words)
    assert ended.code == 0 and "10 scenes" in ended.err and "note: 3 scenes longer than 1 s" in ended.err
    assert Plan.load(tmp_path / "plan.json").split == Split(1.0, 3)
    ended = cli.run(capsys, "mtu-farm", "plan", *words[:3], "--warm-up", 3)
    cli.refused(ended, tmp_path, "--warm-up 3 is for --split-long")
