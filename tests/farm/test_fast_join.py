"""`mtu-farm run --join fast`: units encoded on their own, joined, are the video that one encode would have made, but
for how pictures are encoded."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from tests import cli
from tests.farm.made_films import QUIET, in_process, jobs
from tests.farm.test_units import scenes
from tests.frames import write_clip
from tests.media import CHAPTERS, make_video, packets, times
from tests.small_models import trail

from mtu.core.errors import InvalidInputError, OutputError
from mtu.farm import films as films_module
from mtu.farm.engine import Done, Workers, cluster
from mtu.farm.films import Watch, restore_films
from mtu.farm.planning import frames_missing, missing_units, plan_film, plan_films
from mtu.farm.verify import verify
from mtu.runtime.job import run_job
from mtu.runtime.scene_store import sidecar
from mtu.runtime.stored_session import store_beside
from mtu.runtime.video import EncodeOptions, Segment, parts

pytestmark = pytest.mark.usefixtures("no_ray")

COUNTS = (12, 9, 30, 7, 26, 11)
VARIABLE = [n * 3 + n % 2 + 40 * (n > 30) for n in range(sum(COUNTS))]
"""Milliseconds / 10: no two steps are alike, and there is a gap."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return trail(tmp_path_factory.mktemp("model") / "model").directory


def film(folder, model, name="a.mp4", out="out", **encode):
    (job,) = jobs(folder, out, [name], model=model, join="fast", encode=EncodeOptions(**encode))
    return plan_film(job, 20)


def joined(planned):
    (outcome,) = restore_films([planned], Workers(), QUIET)
    assert outcome.error == "", outcome.error
    return outcome.report


def exactly(planned, folder):
    """What one encode gives."""
    (folder / "exact").mkdir()
    target = folder / "exact" / Path(planned.job.target).name
    run_job(dataclasses.replace(planned.job, target=str(target), resume=False))
    return target


def decoded(path):
    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]


def stamps(path):
    """Decoding and presentation times of all packets of the pictures, as they lie in the file, and which are keys."""
    with av.open(str(path)) as file:
        return [(each.dts, each.pts, each.is_keyframe) for each in file.demux(video=0) if each.size]


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((np.float64(a) - b) ** 2)))


SOURCES = {
    "h264.mp4": ({"pts": VARIABLE, "time_base": Fraction(1, 100)}, {}),
    "h264.mkv": ({"rate": Fraction(24000, 1001), "time_base": Fraction(1001, 24000)}, {"options": {"bf": "3"}}),
    "h264.ts": ({}, {"options": {"x264-params": "open-gop=1:keyint=7"}}),
    "h264.mov": ({"pts": [n + 50 for n in range(sum(COUNTS))]}, {"options": {"g": "8"}}),
    "hevc.mp4": ({"pts": VARIABLE, "time_base": Fraction(1, 100)}, {"codec": "libx265"}),
    "vp9.mkv": ({}, {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}}),
    "av1.mkv": ({}, {"codec": "libsvtav1", "options": {"preset": "12"}}),
    "still.mov": ({}, {"codec": "prores_ks"}),
    "h264.avi": ({}, {}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_it_is_the_video_that_one_encode_gives(tmp_path, model, name):
    how, encode = SOURCES[name]
    whole = name.endswith(("mp4", "mkv"))
    extra = {"subtitles": whole, "chapters": whole, "attachment": name.endswith("mkv"), "audio": True}
    make_video(tmp_path / name, scenes(COUNTS), **how, **extra)
    planned = film(tmp_path, model, name, **encode)
    assert len(planned.plan.units) == 4
    in_process([planned], order=[2, 0, 3, 1])
    exact, report = exactly(planned, tmp_path), joined(planned)
    fast = planned.job.target
    assert report.frames == sum(COUNTS) and not store_beside(fast).exists()
    assert times(fast) == times(exact) and len(times(fast)) == sum(COUNTS)
    if whole:
        assert [float(a) for a in times(fast)] == pytest.approx([float(b) for b in times(tmp_path / name)], abs=1e-3)
    for kind in ("audio", "subtitle")[: 1 + whole]:
        assert packets(fast, kind) == packets(exact, kind)
    with av.open(fast) as a, av.open(str(exact)) as b:
        assert a.chapters() == b.chapters() and len(a.chapters()) == (len(CHAPTERS) if whole else 0)
        assert [stream.type for stream in a.streams] == [stream.type for stream in b.streams]
        assert a.streams[0].average_rate == b.streams[0].average_rate
        assert abs((a.duration or 0) - (b.duration or 0)) < 2000
    # Matroska has no decoding times, so FFmpeg cannot say those of the first ones.
    order = [(dts, pts) for dts, pts, _ in stamps(fast) if dts is not None]
    assert len(order) > sum(COUNTS) - 3 and all(dts <= pts for dts, pts in order)
    assert all(before[0] < after[0] for before, after in pairwise(order))
    better = [psnr(a, b) for a, b in zip(decoded(fast), decoded(exact), strict=True)]
    assert min(better) > 33, min(better)


def test_units_begin_with_key_pictures_from_which_they_can_be_decoded(tmp_path, model):
    make_video(tmp_path / "a.mp4", scenes(COUNTS))
    planned = film(tmp_path, model, options={"bf": "3", "x264-params": "scenecut=0:keyint=250"})
    in_process([planned])
    joined(planned)
    target, pictures = planned.job.target, decoded(planned.job.target)
    borders = [planned.plan.scenes_of(unit)[0].first for unit in range(len(planned.plan.units))]
    assert [n for n, (_, _, key) in enumerate(stamps(target)) if key] == borders
    for first in borders:
        with av.open(target) as file:
            stream = file.streams.video[0]
            file.seek(round(first / 25 / stream.time_base), stream=stream)
            frame = next(file.decode(video=0))
            assert frame.pts * stream.time_base == Fraction(first, 25)
            assert np.array_equal(frame.to_ndarray(format="rgb24"), pictures[first])


@pytest.mark.parametrize("change", ["gone", "cut", "other", "options"])
def test_what_is_not_as_asked_is_encoded_again(tmp_path, model, monkeypatch, change):
    make_video(tmp_path / "a.mp4", scenes(COUNTS))
    planned = film(tmp_path, model)
    in_process([planned])
    assert missing_units(planned) == []
    (first, *_) = store_beside(planned.job.target).glob("unit-*.packets")
    if change == "gone":
        first.unlink()
    elif change == "cut":
        first.write_bytes(first.read_bytes()[:-1])
    elif change == "other":
        first.with_suffix(".json").write_text("{")
    else:
        planned = film(tmp_path, model, crf=30)
    assert len(missing_units(planned)) == (4 if change == "options" else 1)
    commits, commit = [], parts.PartWriter.commit
    monkeypatch.setattr(parts.PartWriter, "commit", lambda self: commits.append(1) or commit(self))
    in_process([planned])
    assert len(commits) == (4 if change == "options" else 1) and missing_units(planned) == []
    joined(planned)


def test_frames_restored_without_memory_are_told(tmp_path, model):
    make_video(tmp_path / "a.mp4", scenes(COUNTS))
    planned = film(tmp_path, model)
    in_process([planned])
    for first in (12, 0):
        said = sidecar(store_beside(planned.job.target), first)
        said.write_text(json.dumps({**json.loads(said.read_bytes()), "redone": [first + 1]}))
    report = joined(planned)
    assert report.redone == [1, 13] and any("non-finite values at 2 frames (1, 13)" in text for text in report.remarks)


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_what_is_said_of_an_encoded_scene_is_lost(tmp_path, model, content):
    make_video(tmp_path / "a.mp4", scenes(COUNTS))
    planned = film(tmp_path, model)
    in_process([planned])
    lost = sidecar(store_beside(planned.job.target), planned.plan.scenes_of(1)[0].first)
    lost.unlink() if content is None else lost.write_text(content)
    assert missing_units(planned) == [1]
    (outcome,) = restore_films([dataclasses.replace(planned)], Workers(), QUIET)
    assert outcome.error == "" and outcome.report.frames == sum(COUNTS)


def test_units_of_another_size_are_encoded_again(tmp_path, model):
    make_video(tmp_path / "a.mp4", scenes(COUNTS))
    planned = film(tmp_path, model)
    in_process([planned])
    (store_beside(planned.job.target) / "plan.json").unlink()
    larger = plan_film(planned.job, 60)
    assert missing_units(larger) == [0] and frames_missing(larger) == sum(COUNTS) - COUNTS[-1]
    in_process([larger])
    assert joined(larger).frames == sum(COUNTS)


def test_pictures_and_sound_are_given_to_the_container_in_turn(tmp_path, model, monkeypatch):
    make_video(tmp_path / "a.mp4", scenes(COUNTS), audio=True)
    planned, order, mux = film(tmp_path, model), [], parts.JoinedWriter._mux

    def record(self, packet):
        order.append((packet.stream.type, float(packet.dts * packet.time_base)))
        mux(self, packet)

    in_process([planned])
    monkeypatch.setattr(parts.JoinedWriter, "_mux", record)
    joined(planned)
    latest = dict.fromkeys(("video", "audio"), 0.0)
    for kind, time in order:
        latest[kind] = time
        assert abs(latest["video"] - latest["audio"]) < 0.5
    assert len(order) > 2 * sum(COUNTS) / 3


def test_a_worker_that_dies_while_it_encodes_leaves_no_half_unit(tmp_path, model, monkeypatch):
    make_video(tmp_path / "a.mp4", scenes(COUNTS))
    planned = film(tmp_path, model)
    write = parts.PartWriter._write

    def die(self, picture, frame):
        if frame.pts > planned.plan.times[40].pts:
            raise OutputError("the end")
        write(self, picture, frame)

    with monkeypatch.context() as patched, pytest.raises(OutputError, match="the end"):
        patched.setattr(parts.PartWriter, "_write", die)
        in_process([planned])
    store = store_beside(planned.job.target)
    assert [planned.is_encoded(unit) for unit in range(4)] == [True, False, False, False]
    assert not list(store.glob("*.part")) and not list(store.glob(".encoding*"))
    in_process([planned])
    assert joined(planned).frames == sum(COUNTS)


def test_two_workers_that_have_the_same_unit_end_well(tmp_path, model, monkeypatch):
    make_video(tmp_path / "a.mp4", scenes(COUNTS))
    planned = film(tmp_path, model)
    real = films_module.encode_unit

    def after_another(*given):
        real(*given)  # by the other one
        real(*given)

    monkeypatch.setattr(films_module, "encode_unit", after_another)
    in_process([planned])
    assert missing_units(planned) == [] and joined(planned).frames == sum(COUNTS)


def test_packets_that_have_changed_are_found(tmp_path, model):
    make_video(tmp_path / "a.mp4", scenes(COUNTS))
    planned = film(tmp_path, model)
    in_process([planned])
    (first, *_) = store_beside(planned.job.target).glob("unit-*.packets")
    content = first.read_bytes()
    first.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    (outcome,) = restore_films([planned], Workers(), QUIET)
    assert "had changed since it was written, and was deleted" in outcome.error
    assert len(missing_units(planned)) == 1
    assert not Path(planned.job.target).exists() and not cli.has_part(tmp_path / "out")


def test_a_worker_whose_encoder_writes_another_header_restores_nothing(tmp_path, model):
    make_video(tmp_path / "a.mp4", scenes(COUNTS))
    planned = film(tmp_path, model)
    assert planned.header
    other = dataclasses.replace(planned, header=planned.header[:-2] + "00")
    with pytest.raises(InvalidInputError, match=r"libx264 writes another header here .*--join exact"):
        in_process([other])
    assert sorted(path.name for path in store_beside(planned.job.target).iterdir()) == ["plan.json", "store.json"]
    in_process([planned])
    assert missing_units(planned) == [] and missing_units(other) == [0, 1, 2, 3]


def test_encoded_units_take_the_place_of_their_pictures(tmp_path, model):
    make_video(tmp_path / "a.mp4", scenes(COUNTS))
    planned = film(tmp_path, model)
    in_process([planned], [1])
    store, unit = store_beside(planned.job.target), [scene.first for scene in planned.plan.scenes_of(1)]
    assert unit and not list(store.glob("*.mkv")) and sorted(store.glob("0*.json")) == [sidecar(store, n) for n in unit]
    assert frames_missing(planned) == sum(COUNTS) - sum(scene.frames for scene in planned.plan.scenes_of(1))
    # The other join has them restored again.
    exact = dataclasses.replace(planned, header=None)
    assert missing_units(exact) == [0, 1, 2, 3]
    in_process([exact])
    assert joined(exact).resumed == sum(COUNTS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"codec": "mpeg4"}, "cannot join what mpeg4 has encoded"),
        ({"codec": "libx264", "options": {"x264-params": "pass=1:stats=s.log"}}, "no second pass"),
        ({"codec": "mpeg2video"}, "--join exact, or another --codec"),
    ],
)
def test_what_cannot_be_joined_is_refused_before_planning(tmp_path, model, monkeypatch, options, said):
    monkeypatch.chdir(tmp_path)  # for s.log
    make_video(tmp_path / "a.mp4", scenes((5,)))
    (job,) = jobs(tmp_path, "out", ["a.mp4"], model=model, join="fast", encode=EncodeOptions(**options))
    planned, (failed,) = plan_films([job])
    assert not planned and said in failed.error
    assert not list((tmp_path / "out").iterdir())


def test_pictures_are_refused(tmp_path, model):
    pictures = write_clip(tmp_path / "pictures", 3, 24, 32)
    (job,) = jobs(tmp_path, "out", [pictures.name], model=model, join="fast", encode=EncodeOptions())
    _, (failed,) = plan_films([job])
    assert "--join fast is for videos" in failed.error


def test_the_others_are_read_without_decoding_pictures(tmp_path):
    from mtu.runtime.video import ReadOptions, open_reader

    path = make_video(tmp_path / "a.mkv", scenes(COUNTS), audio=2, subtitles=True)
    for options in (ReadOptions(), ReadOptions(segment=Segment(0.5, 2))):
        with open_reader(path, options) as reader:
            every = [bytes(event) for event in reader if isinstance(event, av.Packet)]
        with open_reader(path, options) as reader:
            assert [bytes(event) for event in reader.others()][: len(every)] == every and every


@pytest.mark.needs_library("ray", "pyarrow")
@pytest.mark.timeout(120)
def test_a_worker_is_killed_and_the_film_is_verified(tmp_path, model, monkeypatch):
    monkeypatch.undo()  # there is a Ray
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # and none that is joined without --address
    make_video(tmp_path / "a.mp4", scenes(COUNTS), audio=True)
    planned, ended = film(tmp_path, model), []

    def done(unit: Done):
        ended.append(unit.unit)
        if len(ended) == 2:
            os.kill(int(unit.worker.split(":")[1]), signal.SIGKILL)

    watch = Watch()
    monkeypatch.setattr(watch, "unit", done)
    with cluster(Workers(count=2)):
        (outcome,) = restore_films([planned], Workers(count=2), watch)
    assert outcome.error == "" and outcome.report.frames == sum(COUNTS) == len(times(planned.job.target))
    starts = [scene.first for scene in planned.plan.scenes]
    assert verify(dataclasses.replace(planned.job, overwrite=True), whole=True) == starts


def test_the_command(tmp_path, model, capsys, monkeypatch):
    source = make_video(tmp_path / "a.mp4", scenes(COUNTS))
    commits, commit = [], parts.PartWriter.commit
    monkeypatch.setattr(parts.PartWriter, "commit", lambda self: commits.append(1) or commit(self))
    words = [source, "-o", tmp_path / "out", "--model", model, "--backend", "onnxruntime", "--unit", 20]
    ran = cli.run(capsys, "mtu-farm", "run", *words, "--join", "fast")
    assert ran.code == 0 and len(commits) == 4, ran.err
    assert times(tmp_path / "out" / "a.mp4") == times(source)
    ran = cli.run(capsys, "mtu-farm", "run", *words, "--join", "fast", "--skip-done")
    assert ran.code == 0 and "1 done before" in ran.err and len(commits) == 4, ran.err
    ran = cli.run(capsys, "mtu-farm", "run", *words, "--skip-done")
    assert ran.code == 4 and "was not made by this source, model and options" in ran.err


def test_a_wrong_join_is_refused(capsys, tmp_path):
    ended = cli.run(capsys, "mtu-farm", "run", "a.mp4", "-o", tmp_path, "--join", "quick")
    cli.refused(ended, tmp_path, "quick")
