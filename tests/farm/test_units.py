"""Plans, and units restored in any order: the pictures are those of one run, and what is not as planned is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from contextlib import closing
from fractions import Fraction

import numpy as np
import pytest
from tests.bundles import views_bundle
from tests.frames import moving_frames, write_clip
from tests.media import make_video, moving
from tests.small_models import trail

from mtu.core.errors import InvalidInputError, MissingFileError, OutputError
from mtu.core.files import fingerprint
from mtu.farm import unit as units
from mtu.farm.plan import Plan, make_plan, packed
from mtu.farm.unit import restore_unit
from mtu.runtime import open_backend, open_session, read_frames, restore
from mtu.runtime.scene_store import SceneStore, SceneWriter
from mtu.runtime.stored_session import StoredSession
from mtu.runtime.video import ReadOptions

SCENES = (30, 12, 45, 20, 9)
"""Frames; with 25 a second the later ones are sought."""


@pytest.fixture(scope="module")
def backend(tmp_path_factory):
    opened = open_backend("onnxruntime", trail(tmp_path_factory.mktemp("models") / "trail"))
    yield opened
    opened.close()


def scenes(counts=SCENES, height=48, width=64):
    return [
        frame // 8 + 40 * (3 * k % 5)
        for k, count in enumerate(counts)
        for frame in moving_frames(count, height, width, seed=k)
    ]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """H.264 with pictures that depend on later ones, and key pictures that are no cuts."""
    path = tmp_path_factory.mktemp("clip") / "in.mp4"
    return make_video(path, scenes(), options={"crf": "10", "g": "20", "bf": "3", "x264-params": "open-gop=1"})


@pytest.fixture(scope="module")
def plan(clip):
    return make_plan(str(clip), ReadOptions(), 10.0, unit_frames=40)


def session(backend, directory):
    return StoredSession(open_session(backend, scene_threshold=None), SceneStore(directory, {"by": 1}), None)


def from_store(backend, clip, directory):
    whole = StoredSession(open_session(backend, scene_threshold=None), SceneStore(directory, {"by": 1}), 10.0)
    pictures = [each.rgb for frame in read_frames(clip) for each in whole.push(frame)]
    return pictures + [each.rgb for each in whole.flush()], whole.taken


def test_a_plan_has_the_cuts_of_a_session(backend, clip, plan):
    found = open_session(backend)
    for frame in read_frames(clip):
        found.push(frame)
    assert [scene.first for scene in plan.scenes] == [0, *found.cuts]
    assert [scene.frames for scene in plan.scenes] == list(SCENES)
    assert (plan.frames, plan.width, plan.height, plan.damage) == (sum(SCENES), 64, 48, None)
    assert plan.units == ((0, 2), (2, 3), (3, 5))


@pytest.mark.parametrize(
    ("frames", "least", "expected"),
    [
        ([5, 5, 5], 1, [(0, 1), (1, 2), (2, 3)]),
        ([5, 5, 5], 6, [(0, 2), (2, 3)]),
        ([5, 5, 5], 100, [(0, 3)]),
        ([], 5, []),
    ],
)
def test_scenes_are_packed(frames, least, expected):
    assert list(packed(frames, least)) == expected


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 2, 0)])
@pytest.mark.parametrize("workers", [1, 2])
def test_units_in_any_order_give_the_pictures_of_one_run(tmp_path, backend, clip, plan, order, workers):
    expected = [each.rgb for each in restore(read_frames(clip), backend)]
    sessions = [session(backend, tmp_path / "s") for _ in range(workers)]
    for place, unit in enumerate(order):
        assert restore_unit(plan, unit, sessions[place % workers], 3) == []
    pictures, taken = from_store(backend, clip, tmp_path / "s")
    assert taken == sum(SCENES)
    assert all(np.array_equal(a, b) for a, b in zip(pictures, expected, strict=True))


def test_a_unit_that_is_there_is_not_restored_again(tmp_path, backend, plan):
    restore_unit(plan, 1, session(backend, tmp_path / "s"), 3)
    again = session(backend, tmp_path / "s")
    restore_unit(plan, 1, again, 3)
    assert again.taken == SCENES[2] and again.inference_seconds == 0


def test_where_reading_from_the_middle_differs_the_whole_is_read_and_that_is_said(
    tmp_path, backend, clip, plan, monkeypatch
):
    honest = units._frames

    def dishonest(plan, scene, whole):
        for frame in honest(plan, scene, whole):
            yield frame if whole else dataclasses.replace(frame, rgb=frame.rgb + 1)

    monkeypatch.setattr(units, "_frames", dishonest)
    for unit in range(len(plan.units)):
        (said,) = restore_unit(plan, unit, session(backend, tmp_path / "s"), 3)
        assert f"unit {unit} was read from the beginning" in said
    _, taken = from_store(backend, clip, tmp_path / "s")
    assert taken == sum(SCENES)


@pytest.mark.parametrize("place", [0, 5, 44])
def test_one_other_picture_anywhere_is_found_and_its_scene_is_not_kept(tmp_path, backend, plan, monkeypatch, place):
    honest = units._frames

    def dishonest(plan, scene, whole):
        for number, frame in enumerate(honest(plan, scene, whole)):
            yield dataclasses.replace(frame, rgb=frame.rgb ^ 1) if number == place else frame

    monkeypatch.setattr(units, "_frames", dishonest)
    with pytest.raises(InvalidInputError, match="other pictures than were planned"):
        restore_unit(plan, 1, session(backend, tmp_path / "s"), 3)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["store.json"]


def test_a_source_that_ends_earlier_than_planned(tmp_path, backend, plan, monkeypatch):
    honest = units._frames
    monkeypatch.setattr(units, "_frames", lambda *given: (f for f, _ in zip(honest(*given), range(20), strict=False)))
    with pytest.raises(InvalidInputError, match="other pictures than were planned"):
        restore_unit(plan, 1, session(backend, tmp_path / "s"), 3)


def test_pictures_and_odd_options(tmp_path, backend):
    source, read = write_clip(tmp_path / "pictures", 30, 24, 32), ReadOptions(rate=Fraction(30000, 1001))
    make_plan(str(source), read, None, 10).write(tmp_path / "plan.json")
    made = Plan.load(tmp_path / "plan.json")
    assert made.options == read and len(made.scenes) == 1 and made.scenes[0].frames == 30
    assert restore_unit(made, 0, session(backend, tmp_path / "s"), 3) == []


def test_nothing_stays_of_a_scene_that_fails(tmp_path, plan, backend, monkeypatch):
    stored, write = session(backend, tmp_path / "s"), SceneWriter.write
    first = plan.scenes[0].first

    def fail(self, picture):
        if len(self._pictures) == 3:
            raise OutputError("the disk is full")
        write(self, picture)

    with monkeypatch.context() as patched:
        patched.setattr(SceneWriter, "write", fail)
        with pytest.raises(OutputError, match="full"):
            restore_unit(plan, 0, stored, 3)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["store.json"]
    restore_unit(plan, 0, stored, 3)
    assert (tmp_path / "s" / f"{first:08d}.json").exists()


def test_a_model_of_several_streams_is_refused(tmp_path, plan):
    several = open_backend("onnxruntime", views_bundle(tmp_path / "views"))
    with closing(several), pytest.raises(InvalidInputError, match=r"reads 3 streams .*mtu-run --stream"):
        restore_unit(plan, 0, session(several, tmp_path / "s"), 3)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["store.json"]


def test_a_plan_is_the_same_read_again(tmp_path, plan):
    plan.write(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda fields: fields.update(version=99), "version 99"),
        (lambda fields: fields.pop("scenes"), "is no plan, or is broken"),
        (lambda fields: fields["scenes"].pop(1), "scenes or units are missing"),
        (lambda fields: fields["units"].pop(), "scenes or units are missing"),
        (lambda fields: fields.update(units=[[0, 9]]), "scenes or units are missing"),
        (lambda fields: fields["scenes"][0].update(frames=0), "scenes or units are missing"),
        (lambda fields: fields.update(scenes=7), "is no plan, or is broken"),
        (lambda fields: fields.update(extra=1), "is no plan, or is broken"),
    ],
)
def test_a_broken_plan_is_refused(tmp_path, plan, change, said):
    fields = json.loads(json.dumps(plan.as_json()))
    change(fields)
    (tmp_path / "plan.json").write_text(json.dumps(fields))
    with pytest.raises(InvalidInputError, match=said):
        Plan.load(tmp_path / "plan.json")


def test_what_is_no_plan_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="make it with mtu-farm plan"):
        Plan.load(tmp_path / "none.json")
    for content in (b"", b"[]", b"{", b"\xff\xfe", b"null"):
        (tmp_path / "plan.json").write_bytes(content)
        with pytest.raises(InvalidInputError, match="no plan, or is broken"):
            Plan.load(tmp_path / "plan.json")


def test_another_source_is_refused(tmp_path, backend):
    source = make_video(tmp_path / "a.mkv", moving(6))
    made = make_plan(str(source), ReadOptions(), None)
    kept = source.read_bytes()
    for content in (kept[:-1], kept + b"1", b"1" + kept[1:]):
        source.write_bytes(content)
        with pytest.raises(InvalidInputError, match="is not the file that was planned"):
            restore_unit(made, 0, session(backend, tmp_path / "s"), 3)
    source.unlink()
    with pytest.raises(MissingFileError):
        restore_unit(made, 0, session(backend, tmp_path / "s"), 3)


def test_a_source_that_changes_while_it_is_planned(tmp_path):
    source = make_video(tmp_path / "a.mkv", moving(6))

    def grow():
        with source.open("ab") as file:
            file.write(b"more")

    with pytest.raises(InvalidInputError, match="has changed while it was read"):
        make_plan(str(source), ReadOptions(), None, progress=grow)


@pytest.mark.parametrize("source", ["-", "http://example.org/a.mp4"])
def test_what_cannot_be_read_twice_is_refused(source):
    with pytest.raises(InvalidInputError, match="write it to a file first"):
        make_plan(source, ReadOptions(), None)


def test_a_unit_that_there_is_not(tmp_path, backend, plan):
    for number in (-1, 3):
        with pytest.raises(InvalidInputError, match="the plan has 3"):
            restore_unit(plan, number, session(backend, tmp_path / "s"), 3)


@pytest.mark.parametrize("places", [[-1], [0], range(2 << 20, 3 << 20, 100), [7 << 18]])
def test_a_large_file_is_told_by_its_ends_and_samples(tmp_path, places):
    path = tmp_path / "large"
    path.write_bytes(bytes(5 << 20))
    before = fingerprint(str(path))
    with path.open("r+b") as file:
        for place in places:
            file.seek(place, 2 if place < 0 else 0)
            file.write(b"1")
    assert fingerprint(str(path)) != before


@pytest.mark.parametrize("what", ["changed", "more", "fewer", "name"])
def test_pictures_of_one_size_are_told_by_when_they_were_changed(tmp_path, what):
    pictures = [tmp_path / f"{number}.ppm" for number in range(3)]
    for path in pictures:
        path.write_bytes(bytes(50))
        os.utime(path, (1000, 1000))
    before = fingerprint(str(tmp_path))
    if what == "changed":
        pictures[1].write_bytes(b"1" * 50)
    elif what == "more":
        (tmp_path / "3.ppm").write_bytes(bytes(50))
    elif what == "fewer":
        pictures[2].unlink()
    else:
        pictures[2].rename(tmp_path / "4.ppm")
    assert fingerprint(str(tmp_path)) != before
