"""Options of containers: an index at the beginning stays there, and what a muxer does not take is refused."""

from __future__ import annotations

from pathlib import Path

import av
import pytest
from tests.cli import run as run_command
from tests.media import make_video, moving
from tests.video_run import run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import EncodeOptions, open_reader, open_writer, parse_muxer_options, write_png


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 4, audio=True)


def boxes(path: Path) -> list[str]:
    """The kinds of the boxes of an MP4 file, in order."""
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        found.append(data[place + 4 : place + 8].decode("latin-1"))
        place += int.from_bytes(data[place : place + 4], "big")
    return found


def options(*items: str) -> EncodeOptions:
    return EncodeOptions(muxer_options=parse_muxer_options(items))


@pytest.mark.parametrize("target", ["mp4", "mov", "m4v"])
@pytest.mark.parametrize(
    ("source", "flags", "first"),
    [("mp4", "", False), ("mp4", "faststart", True), ("mov", "faststart", True), ("mp4", "frag_keyframe", True)],
)
def test_index_stays_where_it_is(tmp_path: Path, source: str, flags: str, first: bool, target: str) -> None:
    options = {"movflags": f"+{flags}+empty_moov" if "frag" in flags else flags} if flags else None
    path = make_video(tmp_path / f"in.{source}", 4, audio=True, container_options=options)
    assert (boxes(path).index("moov") < boxes(path).index("mdat")) is first
    run(path, tmp_path / f"out.{target}")
    found = boxes(tmp_path / f"out.{target}")
    assert (found.index("moov") < found.index("mdat")) is first and found.count("moov") == 1


def test_index_and_tags_of_a_phone_stay(tmp_path: Path) -> None:
    source = make_video(
        tmp_path / "in.mov",
        4,
        metadata={"com.apple.quicktime.make": "Apple"},
        container_options={"movflags": "+faststart+use_metadata_tags"},
    )
    run(source, tmp_path / "out.mp4", options=options("movie_timescale=90000"))
    found = boxes(tmp_path / "out.mp4")
    assert found.index("moov") < found.index("mdat")
    with open_reader(tmp_path / "out.mp4") as reader:
        assert (
            reader.info.container is not None and reader.info.container.metadata["com.apple.quicktime.make"] == "Apple"
        )


@pytest.mark.parametrize(
    "items", [["faststart"], ["movflags=faststart"], ["movflags=+faststart"], ["faststart", "brand=isom"]]
)
def test_faststart_is_asked_for(tmp_path: Path, clip: Path, items: list[str]) -> None:
    assert boxes(clip)[-1] == "moov"
    run(clip, tmp_path / "out.mp4", options=options(*items))
    assert boxes(tmp_path / "out.mp4")[-1] == "mdat"


def test_the_user_has_the_last_word(tmp_path: Path, clip: Path) -> None:
    run(clip, tmp_path / "fast.mp4", options=options("faststart"))
    run(tmp_path / "fast.mp4", tmp_path / "slow.mp4", options=options("movflags=-faststart"))
    assert boxes(tmp_path / "slow.mp4")[-1] == "moov"
    run(clip, tmp_path / "pieces.mp4", options=options("frag_keyframe", "empty_moov"))
    assert "moof" in boxes(tmp_path / "pieces.mp4")


@pytest.mark.parametrize("target", ["mp4", "mov"])
@pytest.mark.parametrize(
    "item", ["frag_keyframe", "movflags=frag_every_frame", "frag_duration=100000", "movflags=frag_custom"]
)
def test_fragments_without_an_empty_moov(tmp_path: Path, item: str, target: str) -> None:
    clip = make_video(tmp_path / "in.mp4", 4, audio=True)
    with open_reader(clip) as reader, open_writer(tmp_path / f"no.{target}", reader.info, options=options(item)):
        pass  # it is closed without a frame
    run(clip, tmp_path / f"out.{target}", options=options(item))
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", f"out.{target}"}
    with av.open(str(tmp_path / f"out.{target}")) as written:
        assert len([*written.decode(video=0)]) == 4


def test_options_of_other_containers(tmp_path: Path, clip: Path) -> None:
    run(clip, tmp_path / "out.mkv", options=options("reserve_index_space=5000"))
    run(clip, tmp_path / "plain.mkv")
    assert (tmp_path / "out.mkv").stat().st_size - (tmp_path / "plain.mkv").stat().st_size > 3000
    run(clip, tmp_path / "out.ts", options=options("mpegts_service_id=777", "avoid_negative_ts=make_zero"))
    assert (tmp_path / "out.ts").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "items", "words"),
    [
        ("o.mp4", ["movflag=faststart"], r"-m movflag: mp4 has no such option \(did you mean movflags"),
        ("o.mkv", ["faststart"], r"-m movflags: matroska has no such option; it is one of \.mp4 and \.mov; its own"),
        ("o.mkv", ["cluster_size=5"], r"matroska has no such option \(did you mean cluster_size_limit"),
        ("o.mp4", ["crf=5"], "-m crf: mp4 has no such option"),
        ("o.avi", ["nonsense=5"], "-m nonsense: avi has no such option"),
        ("o.mp4", ["fast_start"], r"-m movflags=\+fast_start: mp4 does not take this value"),
        ("o.mkv", ["cluster_size_limit=much"], "-m cluster_size_limit=much: matroska does not take this value"),
        ("o.ts", ["mpegts_service_id=99999999"], "mpegts does not take this value .*out of range"),
        ("o.y4m", ["faststart"], "yuv4mpeg takes no -m"),
        ("pictures", ["faststart"], "png pictures take no -m"),
    ],
)
def test_option_that_is_refused(tmp_path: Path, clip: Path, name: str, items: list[str], words: str) -> None:
    with open_reader(clip) as reader, pytest.raises(InvalidInputError, match=words):
        open_writer(tmp_path / name, reader.info, options=options(*items))
    assert not list(tmp_path.iterdir())


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "in.png", moving(1)[0])
    arguments = [tmp_path / "in.png", "-o", tmp_path / "out.mp4", "--video-stream", "0"]
    ended = run_command(capsys, "mtu-run", *arguments, "-m", "brnd=isom")
    assert ended.code == 2 and "-m brnd: mp4 has no such option (did you mean brand?)" in ended.err
    assert run_command(capsys, "mtu-run", *arguments, "--mux", "faststart", "-m", "brand=mp42").code == 0
    assert boxes(tmp_path / "out.mp4")[-1] == "mdat" and b"mp42" in (tmp_path / "out.mp4").read_bytes()[:16]
