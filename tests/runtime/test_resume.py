"""`mtu-run --resume`: an interrupted run goes on with its whole scenes, and the result is that of a run without."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from tests import cli
from tests.frames import moving_frames
from tests.media import make_video, moving
from tests.processes import environment, wait_until
from tests.small_models import trail

from mtu.core.errors import InvalidInputError, OutputError
from mtu.runtime import open_backend, open_session
from mtu.runtime.hold import Hold
from mtu.runtime.scene_store import SceneStore
from mtu.runtime.stored_session import StoredSession, store_beside

SCENES = (7, 5, 9)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return trail(tmp_path_factory.mktemp("models") / "trail")


@pytest.fixture
def frames():
    """Three scenes, which differ so that the detection finds them."""
    return [frame // 8 + 90 * k for k, count in enumerate(SCENES) for frame in moving_frames(count, 40, 56, seed=k)]


@pytest.fixture
def clip(tmp_path, frames):
    return make_video(tmp_path / "in.mkv", frames, codec="ffv1", pix_fmt="bgr0", audio=True)


def run_to(count, session, frames):
    """The pictures that `count` frames give, without the end of the stream."""
    return [each.rgb for frame in frames[:count] for each in session.push(frame)]


def through(session, frames):
    return run_to(len(frames), session, frames) + [each.rgb for each in session.flush()]


@pytest.mark.parametrize("reached", [3, 7, 8, 14, 21])
def test_it_goes_on_wherever_it_was_ended(tmp_path, model, frames, reached):
    backend = open_backend("onnxruntime", model)
    expected = through(open_session(backend), frames)
    made = {"by": "this test"}
    with_end = StoredSession(open_session(backend, scene_threshold=None), SceneStore(tmp_path / "s", made), 10.0)
    run_to(reached, with_end, frames)
    with_end.close()
    assert not list((tmp_path / "s").glob("*.part"))
    again = StoredSession(open_session(backend, scene_threshold=None), SceneStore(tmp_path / "s", made), 10.0)
    assert all(np.array_equal(a, b) for a, b in zip(through(again, frames), expected, strict=True))
    # A scene is whole where the next one has begun.
    whole = [sum(SCENES[:k]) for k in range(3) if sum(SCENES[:k]) < reached]
    assert again.taken == max(whole)
    assert again.cuts == [7, 12]
    backend.close()


def test_a_killed_run_gives_the_same_file(capsys, tmp_path, model, clip):
    # With mbtree x264 does not always give the same.
    encode = ("-e", "x264-params=mbtree=0")
    plain = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "plain.mp4", "--model", model.directory, *encode)
    assert plain.code == 0, plain.err
    options = [str(clip), "-o", str(tmp_path / "out.mp4"), "--model", str(model.directory), "--resume", *encode]
    # Waits for ever in the third scene.
    code = (
        "import time\nfrom mtu.runtime import cli, stored_session\nfind = stored_session.SceneStore.find\n"
        "def slow(store, first):\n    if first == 12:\n        time.sleep(600)\n    return find(store, first)\n"
        "stored_session.SceneStore.find = slow\ncli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *options], env=environment(), stderr=subprocess.DEVNULL)
    store = store_beside(str(tmp_path / "out.mp4"))
    wait_until(lambda: (store / "00000007.json").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out.mp4").exists()
    assert cli.has_part(tmp_path)
    (store / "00000012.abcd.part").write_text("a scene that was not whole")

    report = tmp_path / "report.json"
    ended = cli.run(capsys, "mtu-run", *options, "--json", report)
    assert ended.code == 0, ended.err
    assert "12 frames were restored by an earlier run" in ended.err
    assert json.loads(report.read_text())["resumed"] == 12
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()
    assert not store.exists()
    assert not cli.has_part(tmp_path)


def test_a_second_run_is_refused_while_one_goes_on(capsys, tmp_path, model, clip, frames):
    options = [clip, "-o", tmp_path / "out.mp4", "--model", model.directory, "--resume"]
    store = store_beside(str(tmp_path / "out.mp4"))
    with Hold(store) as hold:
        part = tmp_path / ".out.abcd.part.mp4"
        part.write_text("of the other run")
        hold.remember(part)
        (store / "00000000.json").write_text("of the other run")
        ended = cli.run(capsys, "mtu-run", *options)
        assert ended.code == 2 and "another run is writing" in ended.err and part.exists()
        assert sorted(path.name for path in store.iterdir()) == ["00000000.json", "lock"]
        part.unlink()
    assert [path.name for path in store.iterdir()] == ["00000000.json"]
    ended = cli.run(capsys, "mtu-run", *options)
    assert ended.code == 0 and not store.exists(), ended.err


def test_an_empty_store_goes_with_who_held_it(tmp_path):
    with Hold(tmp_path / "s"):
        pass
    assert not (tmp_path / "s").exists()
    with pytest.raises(OutputError, match="none does not exist"):
        Hold(tmp_path / "none" / "s")


@pytest.mark.parametrize("left", ["mine.mp4", ".mine.mp4", "../.out.part.mp4"])
def test_nothing_else_is_taken_for_what_a_killed_run_has_left(tmp_path, left):
    (tmp_path / "a" / "s").mkdir(parents=True)
    path = tmp_path / "a" / left
    path.write_text("mine")
    (tmp_path / "a" / "s" / "lock").write_text(left)
    with Hold(tmp_path / "a" / "s"):
        assert path.read_text() == "mine"


def test_a_store_that_is_deleted_meanwhile_is_an_error(tmp_path, model, frames):
    backend = open_backend("onnxruntime", model)
    store = SceneStore(tmp_path / "s", {"by": 1})
    session = StoredSession(open_session(backend, scene_threshold=None), store, 10.0)
    run_to(4, session, frames)
    store.remove()
    with pytest.raises(OutputError, match="cannot be written"):
        through(session, frames[4:])
    session.close()


def test_a_failure_says_what_was_kept(capsys, tmp_path, model, clip, monkeypatch):
    push = StoredSession._push

    def fail(session, frames):
        if session._pushed == 9:
            raise InvalidInputError("enough")
        return push(session, frames)

    monkeypatch.setattr(StoredSession, "_push", fail)
    options = [clip, "-o", tmp_path / "out.mp4", "--model", model.directory]
    ended = cli.run(capsys, "mtu-run", *options, "--resume")
    cli.refused(ended, tmp_path, "enough", ".out.mp4.resume")
    assert [path.name for path in sorted(store_beside(str(tmp_path / "out.mp4")).iterdir())] == [
        "00000000.json",
        "00000000.mkv",
        "store.json",
    ]
    monkeypatch.undo()
    assert "--resume goes on with them" in cli.run(capsys, "mtu-run", *options).err


def test_nothing_stays_where_no_scene_was_whole(capsys, tmp_path, model, clip, monkeypatch):
    def fail(*_):
        raise InvalidInputError("enough")

    monkeypatch.setattr(StoredSession, "_push", fail)
    options = [clip, "-o", tmp_path / "out.mp4", "--model", model.directory, "--resume"]
    cli.refused(cli.run(capsys, "mtu-run", *options), tmp_path, "enough")
    assert not store_beside(str(tmp_path / "out.mp4")).exists()


def test_nothing_stays_of_a_run_that_is_refused(capsys, tmp_path, model, clip):
    options = [clip, "-o", tmp_path / "out.mp4", "--model", model.directory, "--resume", "--codec", "none"]
    cli.refused(cli.run(capsys, "mtu-run", *options), tmp_path, "none")
    assert not store_beside(str(tmp_path / "out.mp4")).exists()


def stored(tmp_path, model, frames, **options):
    backend = open_backend("onnxruntime", model)
    session = StoredSession(
        open_session(backend, scene_threshold=None), SceneStore(tmp_path / "s", {"by": 1}, **options), 10.0
    )
    return session, through(session, frames)


def test_the_same_pictures_of_another_source_are_no_scene_of_it(tmp_path, model, frames):
    stored(tmp_path, model, frames)
    other = [*frames[:3], frames[3] + 1, *frames[4:]]
    with pytest.raises(InvalidInputError, match="other frames than the source has now, from frame 3 on"):
        stored(tmp_path, model, other)


def test_a_scene_that_ends_elsewhere_is_refused(tmp_path, model, frames):
    stored(tmp_path, model, frames)
    with pytest.raises(InvalidInputError, match="has 7 frames, and the source has 5 there now"):
        stored(tmp_path, model, frames[:5])


@pytest.mark.parametrize("name", ["00000007.mkv", "00000007.json"])
@pytest.mark.parametrize("how", ["cut", "other", "gone"])
def test_a_broken_scene_is_restored_again(tmp_path, model, frames, name, how):
    _, expected = stored(tmp_path, model, frames)
    path = tmp_path / "s" / name
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        half = len(content) // 2
        path.write_bytes(content[:half] if how == "cut" else content[:half] + b"XYZW" * 3 + content[half + 12 :])
    session, again = stored(tmp_path, model, frames)
    assert session.taken == len(frames) - 5
    assert all(np.array_equal(a, b) for a, b in zip(again, expected, strict=True))
    assert stored(tmp_path, model, frames)[0].taken == len(frames)


def test_a_store_of_another_configuration_is_refused(tmp_path):
    SceneStore(tmp_path / "s", {"arithmetic": "fp32", "tiles": None})
    with pytest.raises(InvalidInputError, match="arithmetic was fp32, and is bf16"):
        SceneStore(tmp_path / "s", {"arithmetic": "bf16", "tiles": None})
    with pytest.raises(InvalidInputError, match="tiles was None"):
        SceneStore(tmp_path / "s", {"arithmetic": "fp32"} | {"tiles": {"count": 4}})
    (tmp_path / "s" / "store.json").write_text("{")
    with pytest.raises(InvalidInputError, match="is broken"):
        SceneStore(tmp_path / "s", {"arithmetic": "fp32", "tiles": None})


def test_beyond_the_limit_scenes_are_not_kept_and_that_is_said(tmp_path, model, frames):
    session, _ = stored(tmp_path, model, frames, limit=0)
    assert session.remarks == ["3 scenes were too large to be kept for --resume"]
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["store.json"]


def test_a_store_that_cannot_be_written_is_an_error(tmp_path, model, frames):
    (tmp_path / "s").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        stored(tmp_path, model, frames)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "-"], "stdout"),
        (["-o", "out.mp4", "--save-motion", "motion"], "--save-motion"),
    ],
)
def test_what_it_cannot_keep_is_refused(capsys, tmp_path, small, options, said, monkeypatch):
    source = make_video(tmp_path / "in.mp4", moving(3))
    monkeypatch.chdir(tmp_path)
    ended = cli.run(capsys, "mtu-run", source, *options, "--model", small.directory, "--resume")
    cli.refused(ended, tmp_path, "--resume", said)
    assert not list(tmp_path.glob(".*"))


def test_maps_are_refused(capsys, tmp_path, dmenet):
    source = make_video(tmp_path / "in.mp4", moving(3))
    ended = cli.run(capsys, "mtu-run", source, "-o", tmp_path / "out.mp4", "--model", dmenet.directory, "--resume")
    cli.refused(ended, tmp_path, "--resume", "maps")
