"""What stays as it was: timestamps, and every stream that is not processed."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.media import FONT, make_video, moving, packets, times
from tests.video_run import frames_of, packets_of, run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import Frame, ReadOptions, Segment, open_reader, open_writer
from mtu.runtime.video.timing import Clock

VFR = [0, 40, 41, 120, 500, 503, 900, 1400]


def lag(path: Path) -> float:
    """Seconds from the first picture to the first packet of sound."""
    with av.open(str(path)) as file:
        first = next(packet for packet in file.demux(audio=0) if packet.size)
        return float((first.pts or 0) * first.time_base - times(path)[0])


def offsets(path: Path) -> list[Fraction]:
    stamps = times(path)
    return [stamp - stamps[0] for stamp in stamps]


@pytest.mark.parametrize("source_ending", ["mp4", "mkv"])
@pytest.mark.parametrize("target_ending", ["mp4", "mkv", "mov", "webm"])
def test_variable_frame_rate_is_exact(tmp_path: Path, source_ending: str, target_ending: str) -> None:
    source = make_video(tmp_path / f"in.{source_ending}", len(VFR), pts=VFR, time_base=Fraction(1, 1000))
    result = run(source, tmp_path / f"out.{target_ending}")
    assert result.frames == len(VFR) and result.damage is None
    assert times(source) == [Fraction(stamp, 1000) for stamp in VFR]
    assert times(tmp_path / f"out.{target_ending}") == times(source)


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24), Fraction(120), Fraction(1, 2)])
def test_constant_rates_are_exact(tmp_path: Path, rate: Fraction) -> None:
    source = make_video(tmp_path / "in.mp4", 9, time_base=1 / rate, rate=rate)
    run(source, tmp_path / "out.mp4")
    assert times(tmp_path / "out.mp4") == times(source) == [index / rate for index in range(9)]
    with open_reader(tmp_path / "out.mp4") as reader:
        assert reader.info.average_rate == rate and reader.info.frame_count == 9


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("start", [0.0, 0.2, 1.5])
def test_sound_that_starts_late_stays_late(tmp_path: Path, ending: str, start: float) -> None:
    source = make_video(tmp_path / f"in.{ending}", 50, audio=True, audio_start=start)
    run(source, tmp_path / f"out.{ending}")
    assert lag(tmp_path / f"out.{ending}") == pytest.approx(lag(source), abs=0.002)


def test_video_that_starts_late_stays_late(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 10, pts=range(15, 25), audio=True)
    run(source, tmp_path / "out.mkv")
    assert times(tmp_path / "out.mkv") == times(source)
    assert packets(tmp_path / "out.mkv", "audio") == packets(source, "audio")


def test_negative_first_timestamp(tmp_path: Path) -> None:
    # The clock of a transport stream has 33 bits: three pictures lie before its overflow.
    ticks = [2**33 + 3600 * index for index in range(-3, 7)]
    source = make_video(
        tmp_path / "in.ts", 10, pts=ticks, time_base=Fraction(1, 90000), audio=True, audio_start=2**33 / 90000
    )
    assert times(source)[0] < 0
    for ending in ("mp4", "mkv"):
        result = run(source, tmp_path / f"out.{ending}")
        assert "moved to begin at 0" in result.text and result.frames == 10
        assert offsets(tmp_path / f"out.{ending}") == offsets(source)
        # Sound and pictures are moved together.
        assert lag(tmp_path / f"out.{ending}") == pytest.approx(lag(source), abs=0.002)


def test_edit_list_hides_the_same_frames(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", 20, pts=range(-5, 15))
    shown = times(source)
    assert len(shown) < 20
    assert run(source, tmp_path / "out.mp4").frames == len(shown)
    assert offsets(tmp_path / "out.mp4") == offsets(source)


def test_transport_stream_clock_begins_at_zero(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.ts", 10, pts=range(250, 260))
    assert times(source)[0] >= 10
    run(source, tmp_path / "out.mp4")
    assert offsets(tmp_path / "out.mp4") == offsets(source) and times(tmp_path / "out.mp4")[0] < Fraction(1, 5)


def test_avi_with_b_frames_is_in_order(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.avi", 20, options={"bf": "3", "crf": "10"})
    with open_reader(source) as reader:
        assert [frame.pts for frame in frames_of(reader)] == list(range(20))
        assert not reader.remarks
    assert "holds no timestamps" in run(source, tmp_path / "out.avi").text
    assert len(times(tmp_path / "out.avi")) == 20


def test_source_without_timestamps(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.h264", 12, format="h264")
    result = run(source, tmp_path / "out.mp4")
    assert "no timestamps: 25 pictures per second are assumed" in result.text
    assert times(tmp_path / "out.mp4") == [Fraction(index, 25) for index in range(12)]


@given(
    st.lists(st.one_of(st.none(), st.integers(-(10**6), 10**6)), min_size=1, max_size=40),
    st.sampled_from([Fraction(1, 25), Fraction(1, 1000), Fraction(1, 90000)]),
)
def test_any_timestamps_rise_after_the_clock(stamps: list[int | None], time_base: Fraction) -> None:
    clock = Clock(time_base, Fraction(25))
    given_out = [clock.stamp(stamp, None) for stamp in stamps]
    assert all(later[0] > earlier[0] for earlier, later in pairwise(given_out))
    assert all(duration >= 1 for _, duration in given_out)
    known = [stamp for stamp in stamps if stamp is not None]
    if len(known) == len(stamps) and all(b > a for a, b in pairwise(known)):
        assert [pts for pts, _ in given_out] == known and not [r for r in clock.remarks("pictures") if "gaps" not in r]


def test_clock_says_what_it_changed() -> None:
    clock = Clock(Fraction(1, 100), Fraction(25))
    assert [clock.stamp(pts, None)[0] for pts in (0, None, 8, 8, 300, 0, 4)] == [0, 4, 8, 9, 300, 304, 308]
    said = " ".join(clock.remarks("pictures"))
    assert "1 pictures without a timestamp" in said and "1 pictures with a timestamp that does not rise" in said
    assert "clock falls back" in said


def test_disordered_timestamps_do_not_stop_the_muxer(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 8, audio=True)
    with open_reader(source) as reader, open_writer(tmp_path / "out.mp4", reader.info) as writer:
        for event in reader:
            if isinstance(event, Frame):
                writer.write(event.rgb, Frame(event.rgb, event.pts // 80 * 80, event.time_base, event.duration))
            else:
                event.dts = event.pts = 100
                writer.copy(event)
        writer.commit()
        assert any("pictures lie too close" in remark for remark in writer.remarks)
        assert any("does not rise" in remark for remark in writer.remarks)
    assert len(times(tmp_path / "out.mp4")) == 8


@pytest.mark.parametrize("ending", ["mkv", "mp4", "webm"])
def test_everything_else_is_copied(tmp_path: Path, ending: str) -> None:
    special: dict[str, Any] = {
        "mkv": {"audio": 2, "subtitles": ("subrip", "ass"), "attachment": True, "cover": True},
        "mp4": {"audio": 2, "subtitles": True, "cover": True},
        "webm": {"audio": 2, "subtitles": True, "codec": "libvpx-vp9", "audio_codec": "libopus"},
    }[ending]
    source = make_video(tmp_path / f"in.{ending}", 20, chapters=True, metadata={"title": "A title"}, **special)
    target = tmp_path / f"out.{ending}"
    result = run(source, target)
    assert result.frames == 20 and not result.writer_notes and not result.damage
    with av.open(str(source)) as before, av.open(str(target)) as after:
        assert after.metadata["title"] == "A title"
        assert [c["metadata"]["title"] for c in after.chapters()] == ["first", "second"]
        assert [c["start"] * c["time_base"] for c in after.chapters()] == [0, Fraction(1, 5)]
        kinds = [(s.type, s.codec_context and s.codec_context.codec.canonical_name) for s in before.streams]
        assert kinds == [(s.type, s.codec_context and s.codec_context.codec.canonical_name) for s in after.streams]
        assert [s.metadata.get("language") for s in before.streams] == [
            s.metadata.get("language") for s in after.streams
        ]
        assert [s.disposition for s in before.streams] == [s.disposition for s in after.streams]
        fonts = [s.data for s in after.streams if isinstance(s, av.stream.AttachmentStream)]
        assert fonts == ([FONT] if ending == "mkv" else [])
    for number in range(2):
        assert packets(target, "audio", number) == packets(source, "audio", number)
    for number in range({"mkv": 2}.get(ending, 1)):
        texts = [packet for packet in packets(source, "subtitle", number) if packet[1] != b"\0\0"]
        assert len(texts) == 2
        assert [packet for packet in packets(target, "subtitle", number) if packet[1] != b"\0\0"] == texts
    if ending != "webm":
        assert packets(target, "video", 1)[0][1] == packets(source, "video", 1)[0][1]


@pytest.mark.parametrize(
    ("source_ending", "target_ending", "codec"),
    [("mkv", "mp4", "mov_text"), ("mp4", "mkv", "subrip"), ("mkv", "webm", "webvtt"), ("mkv", "mov", "mov_text")],
)
def test_text_subtitles_are_converted(tmp_path: Path, source_ending: str, target_ending: str, codec: str) -> None:
    source = make_video(tmp_path / f"in.{source_ending}", 20, subtitles=True)
    target = tmp_path / f"out.{target_ending}"
    assert f"converted to {codec}" in run(source, target).text
    with av.open(str(target)) as file:
        stream = file.streams.subtitles[0]
        assert stream.codec_context.codec.canonical_name == codec and stream.metadata["language"] == "ger"
        shown = [
            (packet.pts * packet.time_base, packet.duration * packet.time_base, packet.decode()[0].dialogue)
            for packet in file.demux(stream)
            if packet.size > 2
        ]
    assert shown == [
        (Fraction(40, 1000), Fraction(150, 1000), b"text 0 0"),
        (Fraction(240, 1000), Fraction(150, 1000), b"text 0 1"),
    ]


def test_what_a_container_refuses_is_said_before_the_first_frame(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 5, audio=True, subtitles=("ass",), attachment=True, chapters=True)
    with open_reader(source) as reader, open_writer(tmp_path / "out.webm", reader.info) as writer:
        said = " | ".join(writer.notes)
        assert "webm cannot hold audio stream 1 (aac, eng): dropped" in said and ".mkv would keep it" in said
        assert "webm cannot hold attachment stream" in said and "converted to webvtt" in said
    assert list(tmp_path.iterdir()) == [source]


def test_copy_streams_can_be_left_out(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 5, audio=True, subtitles=True)
    run(source, tmp_path / "out.mkv", copy_streams=False)
    with av.open(str(tmp_path / "out.mkv")) as file:
        assert [stream.type for stream in file.streams] == ["video"]


def test_quicktime_keys_survive(tmp_path: Path) -> None:
    keys = {"com.apple.quicktime.location.ISO6709": "+47.0+008.0/", "title": "t"}
    source = make_video(tmp_path / "in.mov", 5, metadata=keys, container_options={"movflags": "use_metadata_tags"})
    run(source, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as file:
        assert keys.items() <= file.metadata.items()


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_sample_aspect_ratio_is_kept(tmp_path: Path, ending: str) -> None:
    source = make_video(tmp_path / "in.mp4", 4, sar=Fraction(4, 3))
    run(source, tmp_path / f"out.{ending}")
    with open_reader(tmp_path / f"out.{ending}") as reader:
        assert reader.info.sample_aspect_ratio == Fraction(4, 3)


def test_interleaving_is_the_demuxers(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 100, audio=True)
    run(source, tmp_path / "out.mkv")
    with open_reader(tmp_path / "out.mkv") as reader:
        kinds = ["frame" if isinstance(event, Frame) else "packet" for event in reader]
    assert "packet" in kinds[: len(kinds) // 3] and "frame" in kinds[-len(kinds) // 3 :]


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("1:2.5", 1, 2.5),
        (":3", None, 3),
        ("4:", 4, None),
        (":", None, None),
        ("00:01:00-00:02:30", 60, 150),
        ("1:02:03.5-", 3723.5, None),
        ("-0:45", None, 45),
        ("1:30-90:00.25", 90, 5400.25),
        ("12.5-20", 12.5, 20),
        ("0:59.9 - 1:00", 59.9, 60),
    ],
)
def test_segment_texts(text: str, start: float | None, end: float | None) -> None:
    assert Segment.parse(text) == Segment(start, end)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "a:b",
        "1:2:3",
        "3:2",
        "2:2",
        "-1:2",
        "nan:",
        ":inf",
        "-",
        "00:01:00",
        "1:75-2:00",
        "1:5-2:5",
        "2:00-1:00",
        "1:61:00-",
        "0:1-0:2-0:3",
    ],
)
def test_bad_segments(text: str) -> None:
    with pytest.raises(InvalidInputError, match="segment"):
        Segment.parse(text)


def test_a_bad_segment_shows_both_forms() -> None:
    with pytest.raises(InvalidInputError, match=r"10:12\.5.*00:01:00-00:02:30"):
        Segment.parse("00:01:00")


# Each has subtitles from 40 to 190 ms and from 240 to 390 ms.
@pytest.mark.parametrize(
    ("name", "subtitles"), [("in.mkv", "subrip"), ("in.mkv", "ass"), ("in.mp4", "mov_text"), ("in.webm", "webvtt")]
)
@pytest.mark.parametrize(
    ("start", "expected"),
    [(0.12, [(0, 70), (120, 150)]), (0.2, [(40, 150)]), (0.32, [(0, 70)]), (0.04, [(0, 150), (200, 150)]), (0.4, [])],
)
def test_a_segment_keeps_the_subtitle_showing_at_its_start(
    tmp_path: Path, name: str, subtitles: str, start: float, expected: list[tuple[int, int]]
) -> None:
    codec = "libvpx-vp9" if name.endswith("webm") else "libx264"
    source = make_video(tmp_path / name, 20, codec=codec, subtitles=subtitles)
    run(source, tmp_path / f"out.{name}", read=ReadOptions(segment=Segment(start)))
    with open_reader(tmp_path / f"out.{name}") as reader:
        kept = [packet for packet in packets_of(reader) if packet.size > 2]
        milliseconds = [
            tuple(round(float(value * packet.time_base) * 1000) for value in (packet.pts, packet.duration))
            for packet in kept
        ]
    assert milliseconds == expected


def test_a_subtitle_that_begins_before_the_key_picture_is_kept(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 100, options={"g": "5", "preset": "ultrafast"}, subtitles=True)
    long = tmp_path / "long.mkv"
    with av.open(str(source)) as before, av.open(str(long), "w") as after:
        streams = {stream.index: after.add_stream_from_template(stream) for stream in before.streams}
        for packet in before.demux():
            if packet.size:
                if packet.stream.type == "subtitle":
                    packet.duration = 3000
                packet.stream = streams[packet.stream_index]
                after.mux(packet)
    with open_reader(long, ReadOptions(segment=Segment(2, 3))) as reader:
        found = [(float(packet.pts * packet.time_base), bytes(packet)) for packet in packets_of(reader)]
    assert [time for time, _ in found] == [2, 2] and found[0][1] != found[1][1]


@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts", "avi"])
@pytest.mark.parametrize(("start", "end"), [(None, 0.4), (2.0, 2.4), (2.6, None), (0.52, 0.6), (None, None)])
def test_segments(tmp_path: Path, ending: str, start: float | None, end: float | None) -> None:
    path = tmp_path / f"in.{ending}"
    pictures = [np.full((48, 64, 3), 3 * index, np.uint8) for index in range(80)]
    make_video(path, pictures, audio=True, options={"g": "10", "bf": "2", "crf": "1"})
    begin, stop = start or 0, 3.2 if end is None else end
    with open_reader(path, ReadOptions(Segment(start, end))) as reader:
        events = list(reader)
        frames = [event for event in events if isinstance(event, Frame)]
        want = [index for index in range(80) if begin <= index / 25 < stop - 1e-9]
        assert [round(float(frame.rgb.mean()) / 3) for frame in frames] == want
        assert reader.info.origin == frames[0].pts * frames[0].time_base and reader.damage is None
        assert reader.info.frame_count is not None and abs(reader.info.frame_count - len(want)) <= 2
        sound = [event for event in events if not isinstance(event, Frame)]
        length = float(sum(packet.duration * packet.time_base for packet in sound))
        assert length == pytest.approx(stop - begin, abs=0.2)
    run(path, tmp_path / "out.mkv", read=ReadOptions(Segment(start, end)))
    assert len(times(tmp_path / "out.mkv")) == len(want)
    assert times(tmp_path / "out.mkv")[0] <= (Fraction(1, 10) if start else times(path)[0] + Fraction(1, 10))


def test_segment_cuts_chapters_and_sound(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 20, audio=True, chapters=True)
    run(source, tmp_path / "out.mkv", read=ReadOptions(Segment(0.3, 0.6)))
    with av.open(str(tmp_path / "out.mkv")) as file:
        chapters = [
            (c["metadata"]["title"], c["start"] * c["time_base"], c["end"] * c["time_base"]) for c in file.chapters()
        ]
    assert chapters == [("second", 0, Fraction(8, 100))]
    assert 0.2 < len(packets(tmp_path / "out.mkv", "audio")) * 0.064 < 0.5


def test_segment_outside(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", 10)
    with pytest.raises(InvalidInputError, match=r"no pictures in segment 50:60: it lasts 0\.4 s"):
        open_reader(source, ReadOptions(Segment(50, 60)))


def test_cover_is_given_first_and_in_a_segment(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", 60, cover=True)
    with open_reader(source, ReadOptions(Segment(1.5, 2))) as reader:
        assert [packet.stream.type for packet in packets_of(reader)] == ["video"]


def test_several_videos_are_said_and_copied(tmp_path: Path) -> None:
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("mpeg4", rate=25, width=32, height=32) for _ in range(2)]
        for index in range(5):
            for number, stream in enumerate(streams):
                picture = av.VideoFrame.from_ndarray(moving(1, 32, 32, seed=index + number)[0], "rgb24")
                picture.pts, picture.time_base = index, Fraction(1, 25)
                out.mux(stream.encode(picture.reformat(format="yuv420p")))
        for stream in streams:
            out.mux(stream.encode(None))
    assert "2 video streams: number 0, the first, is processed" in run(path, tmp_path / "out.mkv").text
    assert [data for _, data in packets(tmp_path / "out.mkv", "video", 1)] == [
        data for _, data in packets(path, "video", 1)
    ]
