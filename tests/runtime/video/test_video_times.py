"""Times of the streams that are copied, late starts, hidden parts, and containers that hold no times."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from av.video.frame import PictureType
from tests.media import make_video, moving, packets, times, yuv_frame
from tests.video_run import run

from mtu.runtime.video import EncodeOptions, Frame, ReadOptions, Segment, open_reader
from mtu.runtime.video.timing import Drift, later_timecode
from mtu.runtime.video.track import Track

TICK = Fraction(1, 1000)


def two_videos(path: Path, count: int = 16, *, late: int = 0, codec: str = "libx264") -> Path:
    """Two videos with B-frames and a group of pictures of 8; the second starts `late` pictures later."""
    with av.open(str(path), "w") as out:
        streams: list[Any] = []
        for _ in range(2):
            options = {"bf": "2", "g": "8", "x264-params": "scenecut=0:bframes=2:b-adapt=0"} if "264" in codec else {}
            stream = out.add_stream(codec, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            streams.append(stream)
        for index, picture in enumerate(moving(count)):
            for number, stream in enumerate(streams):
                frame = yuv_frame(picture, "yuv420p", 1, 1)
                frame.pts, frame.time_base = index + number * late, Fraction(1, 25)
                out.mux(stream.encode(frame))
        for stream in streams:
            out.mux(stream.encode(None))
    return path


def shown(path: Path, number: int = 1) -> list[Fraction]:
    """Times at which the pictures of a video stream are shown, to a millisecond, from the file's first picture on."""
    with av.open(str(path)) as file:
        stamps = [frame.pts * frame.time_base for frame in file.decode(file.streams.video[number])]
    return [round((stamp - times(path)[0]) / TICK) * TICK for stamp in stamps]


@pytest.fixture(scope="module")
def twos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("two")
    return {ending: two_videos(folder / f"in.{ending}") for ending in ("mkv", "nut", "mp4", "ts", "mov")}


@pytest.mark.parametrize("source", ["mkv", "nut", "mp4", "ts", "mov"])
@pytest.mark.parametrize("target", ["mkv", "mp4", "nut"])
def test_second_video_keeps_its_times(tmp_path: Path, twos: dict[str, Path], source: str, target: str) -> None:
    result = run(twos[source], tmp_path / f"out.{target}")
    assert not result.remarks
    assert shown(tmp_path / f"out.{target}") == [index * Fraction(1, 25) for index in range(16)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_second_video_of_few_pictures(tmp_path: Path, count: int) -> None:
    # The whole stream ends before the demuxer of Matroska gives a decoding time.
    source = two_videos(tmp_path / "in.mkv", count)
    for target in (tmp_path / "out.mkv", tmp_path / "out.mp4"):
        run(source, target)
        assert shown(target) == [index * Fraction(1, 25) for index in range(count)]


@pytest.mark.parametrize(("source", "target"), [("mkv", "mp4"), ("mp4", "mkv"), ("nut", "mkv"), ("ts", "mov")])
def test_second_video_that_starts_late_stays_late(tmp_path: Path, source: str, target: str) -> None:
    path = two_videos(tmp_path / f"in.{source}", late=10)
    result = run(path, tmp_path / f"out.{target}")
    assert shown(tmp_path / f"out.{target}") == [(10 + index) * Fraction(1, 25) for index in range(16)]
    assert result.damage is None


def test_second_video_of_avi_is_said(tmp_path: Path) -> None:
    source = two_videos(tmp_path / "in.avi")
    assert "does not say when the pictures of video stream 1" in run(source, tmp_path / "out.mkv").text
    assert "does not say when" not in run(source, tmp_path / "out.avi").text


def test_second_video_in_a_segment(tmp_path: Path, twos: dict[str, Path]) -> None:
    # Its key pictures are the 1st and the 9th; the segment begins with the 5th.
    part = ReadOptions(segment=Segment(0.16, 0.56))
    for source in (twos["mkv"], twos["mp4"]):
        run(source, tmp_path / "out.mp4", read=part, overwrite=True)
        assert shown(tmp_path / "out.mp4") == [index * Fraction(1, 25) for index in range(10)]
        result = run(source, tmp_path / "out.mkv", read=part, overwrite=True)
        assert shown(tmp_path / "out.mkv") == [index * Fraction(1, 25) for index in range(4, 10)]
        assert "4 packets that need a part which was cut off" in result.text


def trimmed(path: Path, **more: Any) -> Path:
    """20 pictures and their sound, of which an edit list hides 10 pictures and 0.4 s."""
    return make_video(path, 30, pts=range(-10, 20), audio=True, audio_start=-0.4, options={"g": "100"}, **more)


@pytest.mark.parametrize("source", ["mp4", "mov", "m4v", "3gp"])
@pytest.mark.parametrize("target", ["mkv", "nut", "ts", "avi"])
def test_trimmed_sound_does_not_come_back(tmp_path: Path, source: str, target: str) -> None:
    path = trimmed(tmp_path / f"in.{source}")
    out = tmp_path / f"out.{target}"
    run(path, out)
    first = times(out)[0] if target != "avi" else Fraction(0)
    with av.open(str(out)) as file:
        sound = [packet.pts * packet.time_base for packet in file.demux(audio=0) if packet.size]
    # One packet of 64 ms may lie across the beginning.
    assert abs(sound[0] - first) <= Fraction(64, 1000)
    assert sound[-1] - first < times(path)[-1] + Fraction(1, 10)


def test_trimmed_sound_stays_hidden_where_it_can_be(tmp_path: Path) -> None:
    path = trimmed(tmp_path / "in.mp4")
    run(path, tmp_path / "out.mp4")
    # What a decoder needs before the first sample is there, and hidden.
    assert packets(tmp_path / "out.mp4", "audio") == packets(path, "audio")
    assert times(tmp_path / "out.mp4") == times(path)
    run(tmp_path / "out.mp4", tmp_path / "again.mkv")
    assert abs(times(tmp_path / "again.mkv")[0]) <= Fraction(64, 1000)


@pytest.mark.parametrize("target", ["mkv", "mp4", "nut"])
def test_priming_costs_no_sound(tmp_path: Path, target: str) -> None:
    source = make_video(tmp_path / "in.mp4", 20, audio=True)
    assert packets(source, "audio")[0][0] == -1024
    run(source, tmp_path / f"out.{target}")
    heard = [data for stamp, data in packets(source, "audio") if stamp is not None and stamp >= 0]
    assert [data for _, data in packets(tmp_path / f"out.{target}", "audio")][-len(heard) :] == heard
    with av.open(str(tmp_path / f"out.{target}")) as file:
        first = next(p.pts * p.time_base for p in file.demux(audio=0) if bytes(p) == heard[0])
    assert abs(first - times(tmp_path / f"out.{target}")[0]) <= TICK


def test_sound_trimmed_at_its_end(tmp_path: Path) -> None:
    source = make_video(tmp_path / "whole.mp4", 50, audio=True)
    data = bytearray(source.read_bytes())
    place = data.rindex(b"elst") + 12
    data[place : place + 4] = (1000).to_bytes(4, "big")  # the sound's edit lasts 1 s in place of 2 s
    (tmp_path / "in.mp4").write_bytes(data)
    for ending in ("mkv", "mp4", "nut", "ts"):
        out = tmp_path / f"out.{ending}"
        run(tmp_path / "in.mp4", out)
        with av.open(str(out)) as file:
            last = [packet.pts * packet.time_base for packet in file.demux(audio=0) if packet.size][-1]
        assert last - times(out)[0] < 1.1, ending


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory, twos: dict[str, Path]) -> Path:
    """The two videos, the edit list of the second shortened from 16 pictures to 8."""
    data = bytearray(twos["mp4"].read_bytes())
    place = data.rindex(b"elst") + 12
    data[place : place + 4] = (320).to_bytes(4, "big")
    path = tmp_path_factory.mktemp("cut") / "in.mp4"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("target", ["mkv", "mp4", "nut"])
def test_second_video_trimmed_at_its_end(tmp_path: Path, cut: Path, target: str) -> None:
    run(cut, tmp_path / f"out.{target}")
    assert shown(tmp_path / f"out.{target}") == [index * Fraction(1, 25) for index in range(8)]


@pytest.mark.parametrize("kind", ["subtitle", "data", "audio"])
@pytest.mark.parametrize("edit_lists", [False, True])
def test_packets_that_an_edit_list_hides_are_left_out(cut: Path, kind: str, edit_lists: bool) -> None:
    with av.open(str(cut)) as file:
        given = [packet for packet in file.demux(video=1) if packet.size]
        line = Track(kind, given[0].time_base, Fraction(0), edit_lists=edit_lists)
        assert sum(packet.is_discard for packet in given) >= 6
        assert len(given_by(line, given)) == sum(not packet.is_discard for packet in given)


def test_second_video_trimmed_by_an_edit_list(tmp_path: Path, twos: dict[str, Path]) -> None:
    # A segment of the middle of a group of pictures is written with an edit list.
    run(twos["mkv"], tmp_path / "in.mp4", read=ReadOptions(segment=Segment(0.16, None)))
    run(tmp_path / "in.mp4", tmp_path / "out.mp4")
    assert shown(tmp_path / "out.mp4") == [index * Fraction(1, 25) for index in range(12)]
    result = run(tmp_path / "in.mp4", tmp_path / "out.mkv")
    assert shown(tmp_path / "out.mkv") == [index * Fraction(1, 25) for index in range(4, 12)]
    assert "4 packets that need a part which was cut off" in result.text


def packet(pts: int | None, dts: int | None, duration: int = 40, data: bytes = b"1") -> av.Packet[Any]:
    made: av.Packet[Any] = av.Packet(data)
    made.pts, made.dts, made.duration, made.time_base = pts, dts, duration, TICK
    made.is_keyframe = True
    return made


def track(kind: str, *, origin: Fraction = Fraction(0), edit_lists: bool = False) -> Track:
    return Track(kind, TICK, origin, edit_lists=edit_lists)


def given_by(line: Track, given: Sequence[av.Packet[Any]], end: Fraction = Fraction(1)) -> list[tuple[Any, ...]]:
    ready = [each for one in given for each in line.ready(one)] + line.rest(end)
    return [(each.pts, each.dts, each.duration) for each in ready]


def test_decoding_times_that_a_container_lacks() -> None:
    lacking = [(0, None), (120, None), (40, 0), (80, 40)]
    assert given_by(track("video"), [packet(*each) for each in lacking]) == [
        (0, -80, 40),
        (120, -40, 40),
        (40, 0, 40),
        (80, 40, 40),
    ]
    # None at all: in the order of the pictures, no later than these.
    never = given_by(track("video"), [packet(pts, None) for pts in (0, 120, 40, 80)])
    assert [pts for pts, _, _ in never] == [0, 120, 40, 80]
    assert all(dts <= pts for pts, dts, _ in never)
    assert [dts for _, dts, _ in never] == sorted({dts for _, dts, _ in never})


def test_joined_clocks_of_a_second_video() -> None:
    line = track("video")
    joined = [(0, -40), (80, 0), (40, 40), (5000, 4960), (0, -40), (80, 0), (40, 40)]
    stamps = given_by(line, [packet(*each) for each in joined])
    assert [pts for pts, _, _ in stamps] == [0, 80, 40, 5000, 5040, 5120, 5080]
    assert "clock falls back" in " ".join(line.remarks())


def test_disordered_decoding_times_leave_the_pictures_where_they_are() -> None:
    stamps = given_by(track("video"), [packet(0, -80), packet(120, -80), packet(40, -80), packet(80, 0)])
    assert [pts for pts, _, _ in stamps] == [0, 120, 40, 80]
    assert [dts for _, dts, _ in stamps] == [-80, -79, -78, 0]


def test_subtitles_at_the_beginning() -> None:
    texts = [packet(0, 0, 300), packet(400, 400, 200), packet(550, 550, 100)]
    assert given_by(track("subtitle", origin=Fraction(1, 2)), texts) == [(0, 0, 100), (50, 50, 100)]


def test_subtitles_without_an_end() -> None:
    def lines() -> list[av.Packet[Any]]:
        return [packet(0, 0, 0), packet(100, 100, 2**32 - 1), packet(300, 300, 50), packet(400, 400, 0)]

    assert [duration for *_, duration in given_by(track("subtitle", edit_lists=True), lines())] == [100, 200, 50, 600]
    assert [duration for *_, duration in given_by(track("subtitle"), lines())] == [0, 0, 50, 0]


def test_sound_without_durations_keeps_its_last_packet(tmp_path: Path) -> None:
    stamps = given_by(track("audio", edit_lists=True), [packet(pts, pts, 0) for pts in (0, 20, 40)])
    assert [duration for *_, duration in stamps] == [0, 20, 20]
    source = make_video(tmp_path / "in.mkv", 20, audio=True, audio_codec="flac")
    run(source, tmp_path / "out.mp4")
    assert [d for _, d in packets(tmp_path / "out.mp4", "audio")] == [d for _, d in packets(source, "audio")]


@pytest.mark.parametrize("ending", ["mkv", "webm", "nut", "ts", "mp4", "mov"])
def test_a_clock_that_begins_late_is_whole(tmp_path: Path, ending: str) -> None:
    codec = "libvpx-vp9" if ending == "webm" else "libx264"
    source = make_video(tmp_path / f"in.{ending}", 8, pts=range(125, 133), codec=codec)
    with open_reader(source) as reader:
        frames = [event for event in reader if isinstance(event, Frame)]
        assert len(frames) == 8 and reader.damage is None
        assert reader.info.frame_count is not None and abs(reader.info.frame_count - 8) <= 1
    for target in ("mkv", "mp4"):
        assert run(source, tmp_path / f"out.{target}", overwrite=True).damage is None


def test_a_late_clock_that_is_cut_is_damaged(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 50, pts=range(125, 175), options={"g": "5", "crf": "10"})
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 3])
    with open_reader(source) as reader:
        list(reader)
        assert reader.damage is not None


VARIABLE = [0, 40, 41, 120, 500, 503, 900, 1400]


@pytest.mark.parametrize(
    ("ending", "exact"),
    [
        *(("avi", 0), ("h264", 0), ("mpg", 0), ("gif", 0), ("ogv", 0), ("rm", 0)),
        *(("mkv", 1), ("mp4", 1), ("nut", 1), ("ts", 1), ("asf", 1), ("flv", 1)),
    ],
)
def test_a_variable_rate_that_is_lost_is_said(tmp_path: Path, ending: str, exact: int) -> None:
    source = make_video(tmp_path / "in.mkv", len(VARIABLE), pts=VARIABLE, time_base=TICK)
    result = run(source, tmp_path / f"out.{ending}")
    assert any("does not hold the times" in remark for remark in result.remarks) != bool(exact)
    result = run(make_video(tmp_path / "even.mkv", 8), tmp_path / f"evenly.{ending}")
    assert not any("does not hold the times" in remark for remark in result.remarks)


@pytest.mark.parametrize(("ending", "codec"), [("ogv", None), ("rm", None), ("avi", "libx264")])
def test_an_even_rate_is_kept_where_a_container_holds_nothing_else(
    tmp_path: Path, ending: str, codec: str | None
) -> None:
    source = make_video(tmp_path / "in.mp4", 10, time_base=Fraction(1, 90000), pts=range(0, 36000, 3600))
    run(source, tmp_path / f"out.{ending}", options=EncodeOptions(codec=codec))
    stamps = times(tmp_path / f"out.{ending}")
    assert [stamp - stamps[0] for stamp in stamps] == pytest.approx([n / 25 for n in range(10)], abs=0.001)


@pytest.mark.parametrize("ending", ["avi", "asf", "wmv"])
def test_pictures_stay_in_order_where_a_place_is_a_time(tmp_path: Path, ending: str) -> None:
    run(make_video(tmp_path / "in.mp4", 12), tmp_path / f"out.{ending}")
    with av.open(str(tmp_path / f"out.{ending}")) as file:
        kinds = [frame.pict_type for frame in file.decode(video=0)]
        assert len(kinds) == 12 and set(kinds) == {int(PictureType.I), int(PictureType.P)}


def test_drift_counts_from_the_first_picture() -> None:
    drift = Drift()
    for wanted, written in ((5, 0), (6, 1), (7, 2)):
        drift.see(Fraction(wanted), Fraction(written))
    assert drift.worst == 0 and not drift.remarks("avi")
    drift.see(Fraction(8), Fraction(16, 5))
    assert "up to 0.2 s" in drift.remarks("avi")[0]


@pytest.mark.parametrize(
    ("timecode", "pictures", "rate", "later"),
    [
        ("01:02:03:04", 25, 25, "01:02:04:04"),
        ("23:59:59:24", 1, 25, "00:00:00:00"),
        ("00:00:59;29", 1, Fraction(30000, 1001), "00:01:00;02"),
        ("00:09:59;29", 1, Fraction(30000, 1001), "00:10:00;00"),
        ("00:00:00;00", 107892, Fraction(30000, 1001), "01:00:00;00"),
        ("00:00:59;59", 1, Fraction(60000, 1001), "00:01:00;04"),
        ("10:00:00:00", 24, Fraction(24000, 1001), "10:00:01:00"),
        ("no timecode", 1, 25, None),
    ],
)
def test_later_timecodes(timecode: str, pictures: int, rate: Fraction, later: str | None) -> None:
    assert later_timecode(timecode, pictures, Fraction(rate)) == later
    if later is not None:
        assert later_timecode(timecode, 0, Fraction(rate)) == timecode
