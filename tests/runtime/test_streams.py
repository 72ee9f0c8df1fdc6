"""Models that read several streams: sessions, and mtu-run --stream. Writes only under tmp_path."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests import cli
from tests.bundles import doubling_bundle, map_bundle, negative_bundle, views_bundle
from tests.cli import refused
from tests.media import make_video, moving

from mtu.core.errors import InvalidInputError
from mtu.runtime import Session, deblur, open_backend, read_frames
from mtu.runtime.job import Job, run_job
from mtu.runtime.memory import STREAM_PIXEL, needed
from mtu.runtime.opened import Models
from mtu.runtime.scene_store import SceneStore
from mtu.runtime.stored_session import StoredSession
from mtu.runtime.video import read_picture, write_png

STREAMS = ("image", "right", "left")
CLIPS = {name: moving(5, seed=seed) for seed, name in enumerate(STREAMS)}


def joined(clips, right=0, left=0):
    """What `views_bundle` gives for clips by name."""
    last = len(clips["image"]) - 1
    for number, picture in enumerate(clips["image"]):
        at = {"right": min(max(number + right, 0), last), "left": min(max(number + left, 0), last)}
        yield np.stack((picture[..., 0], clips["right"][at["right"]][..., 1], clips["left"][at["left"]][..., 2]), 2)


def moments(clips):
    return [dict(zip(clips, each, strict=True)) for each in zip(*clips.values(), strict=True)]


def folder(path, pictures, names="{}.png"):
    path.mkdir()
    for number, picture in enumerate(pictures):
        write_png(path / names.format(number), picture)
    return path


def video(path, pictures, **options):
    return make_video(path, pictures, codec="ffv1", pix_fmt="bgr0", **options)


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    return views_bundle(tmp_path_factory.mktemp("views") / "bundle")


@pytest.fixture
def folders(tmp_path):
    """One for each stream, with names that have nothing to do with each other."""
    return {name: folder(tmp_path / name, clip[:3], f"{name[0]}{{}}.png") for name, clip in CLIPS.items()}


def run(capsys, bundle, source, output, *arguments, **streams):
    given = [word for name, path in streams.items() for word in ("--stream", f"{name}={path}")]
    return cli.run(capsys, "mtu-run", source, "-o", output, "--model", bundle.directory, *given, *arguments)


@pytest.mark.parametrize("offsets", [(0, 0), (1, 0), (-1, 2), (2, -2)])
def test_each_stream_has_a_window_of_its_own(tmp_path, offsets):
    bundle = views_bundle(tmp_path / "bundle", right=offsets[0], left=offsets[1])
    found = list(deblur(moments(CLIPS), model=bundle.directory, scene_threshold=None))
    assert all(np.array_equal(a, b) for a, b in zip(found, joined(CLIPS, *offsets), strict=True))


def test_a_scene_ends_in_all_streams_where_the_first_one_is_cut(tmp_path):
    bundle = views_bundle(tmp_path / "bundle", right=1, left=-1)
    other = {name: [255 - picture for picture in clip[:2]] for name, clip in CLIPS.items()}
    backend = open_backend("onnxruntime", bundle)
    session = Session(backend)
    found = [each.rgb for moment in moments(CLIPS) + moments(other) for each in session.push(moment)]
    found += [each.rgb for each in session.flush()]
    backend.close()
    assert session.cuts == [5]
    wanted = [*joined(CLIPS, 1, -1), *joined(other, 1, -1)]
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("moment", "words"),
    [
        (CLIPS["image"][0], "reads 3 streams .image, right, left., and gets image"),
        ({"image": CLIPS["image"][0], "right": CLIPS["right"][0]}, "gets image, right"),
        (dict.fromkeys((*STREAMS, "top"), CLIPS["image"][0]), "gets image, right, left, top"),
        ({}, "gets none"),
        ({**moments(CLIPS)[0], "left": CLIPS["left"][0][:-1]}, "frame 0 is 64x47, the frames before are 64x48"),
        ({**moments(CLIPS)[0], "left": "left.png"}, "frame 0 is a str"),
    ],
)
def test_moments_that_do_not_fit_are_refused(views, moment, words):
    with pytest.raises(InvalidInputError, match=words):
        list(deblur([moment], model=views.directory))


def test_folders_are_matched_by_order(tmp_path, capsys, views, folders):
    streams = {"left": folders["left"], "right": folders["right"]}  # in any order
    ended = run(capsys, views, folders["image"], tmp_path / "out", "--json", tmp_path / "r.json", **streams)
    assert ended.code == 0, ended.err
    for number, wanted in zip(range(3), joined(CLIPS), strict=False):
        assert np.array_equal(read_picture(tmp_path / "out" / f"i{number}.png"), wanted)
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["streams"] == {name: str(path) for name, path in streams.items()} and report["frames"] == 3


def test_videos_keep_the_sound_of_the_input_alone(tmp_path, capsys, views):
    paths = {name: video(tmp_path / f"{name}.mkv", clip, audio=1) for name, clip in CLIPS.items()}
    streams = {name: paths[name] for name in STREAMS[1:]}
    out = tmp_path / "out.mkv"
    ended = run(capsys, views, paths["image"], out, "--codec", "ffv1", "--pix-fmt", "bgr0", **streams)
    assert ended.code == 0, ended.err
    assert "--stream right: " in ended.err and "gives its pictures alone" in ended.err
    assert all(np.array_equal(a, b) for a, b in zip(read_frames(out), joined(CLIPS), strict=True))


def test_a_segment_is_cut_from_all_videos_and_a_folder_goes_with_a_video(tmp_path, capsys, views):
    source = video(tmp_path / "in.mkv", CLIPS["image"])
    right = video(tmp_path / "right.mkv", CLIPS["right"])
    left = folder(tmp_path / "left", CLIPS["left"])
    ended = run(capsys, views, source, tmp_path / "out", "--segment", "0.04:0.12", right=right, left=left)
    assert ended.code == 0, ended.err
    wanted = list(joined(CLIPS))[1:3]
    assert all(np.array_equal(a, b) for a, b in zip(read_frames(tmp_path / "out"), wanted, strict=True))


def test_one_picture_of_each(tmp_path, capsys, views, folders):
    one = {name: path / f"{name[0]}1.png" for name, path in folders.items()}
    ended = run(capsys, views, one["image"], tmp_path / "out.png", right=one["right"], left=one["left"])
    assert ended.code == 0, ended.err
    assert np.array_equal(read_picture(tmp_path / "out.png"), list(joined(CLIPS))[1])


def test_tiles_of_all_streams(tmp_path, capsys, views):
    clips = {name: moving(1, 24, 500, seed) for seed, name in enumerate(STREAMS)}
    paths = {name: folder(tmp_path / name, clip) for name, clip in clips.items()}
    source = paths.pop("image")
    ended = run(capsys, views, source, tmp_path / "out", "--tile", "264x24", **paths)
    assert ended.code == 0, ended.err
    assert np.array_equal(read_picture(tmp_path / "out" / "0.png"), next(joined(clips)))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["right"], ["--stream right: write it as NAME=PATH"]),
        (["right="], ["write it as NAME=PATH"]),
        (["=r"], ["write it as NAME=PATH"]),
        (["right={tmp}/right", "right={tmp}/left"], ["--stream right is given twice"]),
        (["right=-", "left={tmp}/left"], ["only the input itself can come from stdin"]),
        (["right={tmp}/none", "left={tmp}/left"], ["--stream right: {tmp}/none does not exist"]),
        (["right={tmp}/right", "left={tmp}"], ["--stream left: {tmp} holds no pictures"]),
        ([], ["reads 3 streams: the input is image", "--stream right=PATH --stream left=PATH"]),
        (["right={tmp}/right"], ["--stream right=PATH --stream left=PATH, and there is right"]),
        (["right={tmp}/right", "lefft={tmp}/left"], ["and there is right and lefft"]),
        (["right={tmp}/right", "left={tmp}/left", "image={tmp}/image"], ["the input is image"]),
        (["right={tmp}/right", "left={tmp}/short"], ["has 2 frames, and {tmp}/image 3"]),
        (["right={tmp}/right", "left={tmp}/long"], ["has 4 frames, and {tmp}/image 3"]),
        (["right={tmp}/small", "left={tmp}/left"], ["right={tmp}/small is 64x40, and {tmp}/image is 64x48"]),
        (["right={tmp}/turned.mp4", "left={tmp}/left"], ["not turned alike"]),
        (["right={tmp}/broken", "left={tmp}/left"], ["picture 1 of it or of {tmp}/image", "cannot be decoded"]),
    ],
)
def test_streams_that_do_not_go_together_are_refused(tmp_path, capsys, views, folders, given, words):
    folder(tmp_path / "short", CLIPS["left"][:2])
    folder(tmp_path / "long", CLIPS["left"][:4])
    folder(tmp_path / "small", [picture[:40] for picture in CLIPS["right"][:3]])
    damaged = folder(tmp_path / "broken", CLIPS["right"][:3]) / "1.png"
    content = damaged.read_bytes()  # its header is whole
    damaged.write_bytes(content[: len(content) * 2 // 3])
    quarter = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    make_video(tmp_path / "turned.mp4", CLIPS["right"][:3], display_matrix=quarter)
    arguments = [word for each in given for word in ("--stream", each.format(tmp=tmp_path))]
    ended = run(capsys, views, folders["image"], tmp_path / "out.mp4", *arguments)
    refused(ended, tmp_path, *(word.format(tmp=tmp_path) for word in words))


@pytest.mark.parametrize("count", [4, 6])
def test_videos_of_other_lengths_end_in_an_error_that_names_the_frame(tmp_path, capsys, views, count):
    source = video(tmp_path / "in.mkv", CLIPS["image"])
    right = video(tmp_path / "right.mkv", moving(count))
    ended = run(capsys, views, source, tmp_path / "out.mp4", right=right, left=source)
    words = "ends before frame 4 of" if count == 4 else "goes on after frame 4, the last one of"
    refused(ended, tmp_path, f"--stream right={right} {words}", f"has about {count} frames")


def test_what_damage_took_is_said_where_a_stream_ends(tmp_path, capsys, views):
    source = video(tmp_path / "in.mkv", CLIPS["image"])
    whole = source.read_bytes()
    (tmp_path / "right.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    ended = run(capsys, views, source, tmp_path / "out.mp4", right=tmp_path / "right.mkv", left=source)
    refused(ended, tmp_path, "ends before frame", "(", "right.mkv: after")


def test_the_memory_of_every_stream_counts(tmp_path, views):
    need = []
    for bundle in (negative_bundle(tmp_path / "bundle"), views):
        interface = replace(bundle.interface, working_bytes=100)
        backend = SimpleNamespace(name="onnxruntime", device="cpu", arithmetic="fp32", interface=interface)
        # Of a second tile the states and the frames of the window are there all the time.
        need.append([needed(backend, (1000, 1000), (1000, 1000), tiles) for tiles in (1, 2)])
    (one, one_tiled), (three, three_tiled) = need
    assert three - one == 2 * STREAM_PIXEL * 10**6
    assert three_tiled - three == 3 * (one_tiled - one) > 0


@pytest.mark.parametrize("make", [map_bundle, doubling_bundle])
def test_a_model_of_one_stream_takes_no_other(tmp_path, capsys, folders, make):
    ended = run(capsys, make(tmp_path / "bundle"), folders["image"], tmp_path / "out.mp4", right=folders["right"])
    refused(ended, tmp_path, "--stream right: the model test reads one stream, which is the input")


def test_every_run_over_one_opened_model_is_checked(tmp_path, views, folders):
    image, *others = (str(folders[name]) for name in STREAMS)
    job = Job(image, str(tmp_path / "out"), views.directory, streams=dict(zip(STREAMS[1:], others, strict=True)))
    with Models() as models:
        assert run_job(job, models=models).frames == 3
        for streams in ({}, {"right": others[0]}, {**job.streams, "depth": image}):
            with pytest.raises(InvalidInputError, match="the others are given with --stream right=PATH"):
                run_job(replace(job, target=str(tmp_path / "again"), streams=streams), models=models)
    assert not (tmp_path / "again").exists()


def test_no_stream_is_overwritten(tmp_path, capsys, views, folders):
    streams = {name: folders[name] for name in STREAMS[1:]}
    first = folders["left"] / "l0.png"
    before = first.read_bytes()
    for output, arguments, words in (
        (f"{folders['left']}/", (), "left is the stream"),
        (tmp_path / "left" / ".." / "right", (), "right itself"),
        (tmp_path, (), "holds the source"),
        (tmp_path / "out.mp4", ("--json", folders["left"]), "is a directory"),
        (tmp_path / "out.mp4", ("--json", first), "is one of the files of"),
        (tmp_path / "out.mp4", ("--save-maps", folders["left"]), "gives no map"),
    ):
        ended = run(capsys, views, folders["image"], output, "--overwrite", *arguments, **streams)
        refused(ended, tmp_path, words)
    assert first.read_bytes() == before and len(list(folders["left"].iterdir())) == 3


@pytest.mark.parametrize(
    "command",
    [
        ("mtu-calibrate", "ranges", "{b}", "--input", "{i}"),
    ],
)
def test_commands_that_read_one_stream_say_so(tmp_path, capsys, views, folders, command):
    filled = [word.format(b=views.directory, i=folders["image"]) for word in command]
    refused(cli.run(capsys, *filled), tmp_path, "reads 3 streams (image, right, left), and gets image")


def test_stored_scenes_are_of_all_streams(tmp_path, views):
    """Those of another picture in a further stream are no scenes of these."""
    taken = []
    changed = {**CLIPS, "left": [*CLIPS["left"][:3], *(255 - picture for picture in CLIPS["left"][3:])]}
    for clips in (CLIPS, CLIPS, changed):
        with contextlib.closing(open_backend("onnxruntime", views)) as backend:
            inner = Session(backend, scene_threshold=None)
            session = StoredSession(inner, SceneStore(tmp_path / "store", {}), 10.0)
            if clips is changed:
                with pytest.raises(InvalidInputError, match="other frames than the source has now, from frame 3 on"):
                    [session.push(moment) for moment in moments(clips)]
                continue
            found = [each.rgb for moment in moments(clips) for each in session.push(moment)]
            found += [each.rgb for each in session.flush()]
            assert all(np.array_equal(a, b) for a, b in zip(found, joined(CLIPS), strict=True))
            taken.append(session.taken)
    assert taken == [0, 5]
