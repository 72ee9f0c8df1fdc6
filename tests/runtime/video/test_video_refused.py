"""What a muxer refuses, early or late, costs a stream or a packet and is said; the pictures are never lost to it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.media import make_video, moving, packets, times, yuv_frame
from tests.video_run import run

from mtu.core.errors import InvalidInputError, MtuError, OutputError
from mtu.runtime.video import EncodeOptions, Frame, ReadOptions, Segment, open_reader, open_writer, write_png

TICK = Fraction(1, 1000)
MOV = ("mov", "mp4", "m4v")


def source_with(path: Path, streams: Mapping[str, Sequence[tuple[int, int, bytes]]], *, timecode: str = "") -> Path:
    """Ten pictures and, of each codec, packets of any bytes: start and duration in ms, data."""
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=25, options={"crf": "1", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        if timecode:
            video.metadata["timecode"] = timecode
        others = [(out.add_mux_stream(codec), given) for codec, given in streams.items()]
        for stream, _ in others:
            stream.time_base = TICK
        out.start_encoding()
        for stream, given in others:
            for start, duration, data in given:
                packet: av.Packet[Any] = av.Packet(data)
                packet.pts = packet.dts = start
                packet.duration, packet.time_base, packet.stream = duration, TICK, stream
                out.mux(packet)
        for index, picture in enumerate(moving(10)):
            frame = yuv_frame(picture, "yuv420p", 1, 1)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
    return path


def kinds(path: Path) -> list[str]:
    with av.open(str(path)) as file:
        return [stream.type for stream in file.streams]


def timecode_in(path: Path) -> str | None:
    with av.open(str(path)) as file:
        tags = {**file.metadata, **file.streams.video[0].metadata}
        return next((value for key, value in tags.items() if key.lower() == "timecode"), None)


@pytest.mark.parametrize("source", ["mov", "mp4", "mkv", "mxf"])
@pytest.mark.parametrize("target", ["mov", "mp4", "mkv", "nut", "mxf", "ts"])
def test_timecode_is_kept_or_its_loss_is_said(tmp_path: Path, source: str, target: str) -> None:
    if source == "mxf":
        metadata = {"timecode": "01:02:03:04"}
        path = make_video(tmp_path / "in.mxf", 10, codec="mpeg2video", options={}, metadata=metadata)
    else:
        path = source_with(tmp_path / f"in.{source}", {}, timecode="01:02:03:04")
    result = run(path, tmp_path / f"out.{target}")
    assert len(times(tmp_path / f"out.{target}")) == 10
    kept = timecode_in(tmp_path / f"out.{target}") == "01:02:03:04"
    assert kept != ("mpegts cannot hold the timecode 01:02:03:04" in result.text)
    assert kept == (target != "ts") and "data stream" not in result.text
    assert ("data" in kinds(tmp_path / f"out.{target}")) == (target in MOV)


@pytest.mark.parametrize("between", ["mkv", "nut", "mxf", "mp4"])
def test_timecode_through_another_container_and_back(tmp_path: Path, between: str) -> None:
    source = source_with(tmp_path / "in.mov", {}, timecode="01:02:03:04")
    run(source, tmp_path / f"between.{between}")
    run(tmp_path / f"between.{between}", tmp_path / "out.mov")
    assert timecode_in(tmp_path / "out.mov") == "01:02:03:04" and kinds(tmp_path / "out.mov") == ["video", "data"]


@pytest.mark.parametrize("target", ["mov", "mkv"])
def test_timecode_of_a_segment_is_that_of_its_first_picture(tmp_path: Path, target: str) -> None:
    source = source_with(tmp_path / "in.mov", {}, timecode="01:02:03:04")
    run(source, tmp_path / f"out.{target}", read=ReadOptions(segment=Segment(0.2, None)))
    assert timecode_in(tmp_path / f"out.{target}") == "01:02:03:09"


TEXTS = [(0, 0, b"one"), (120, 0, b"two"), (240, 100, b"three"), (360, 0, b"four")]
DVD = [(start, duration, b"\0\x10" + bytes(14)) for start, duration, _ in TEXTS]


@pytest.mark.parametrize("target", ["mp4", "mov", "m4v", "mkv", "webm"])
@pytest.mark.parametrize("codec", ["subrip", "dvdsub"])
def test_subtitles_without_an_end(tmp_path: Path, codec: str, target: str) -> None:
    source = source_with(tmp_path / "in.mkv", {codec: TEXTS if codec == "subrip" else DVD})
    result = run(source, tmp_path / f"out.{target}")
    assert len(times(tmp_path / f"out.{target}")) == 10 and not result.remarks
    if codec == "dvdsub" and target in ("mov", "webm", "m4v"):
        assert "; .mkv would keep it" in result.text
        return
    with av.open(str(tmp_path / f"out.{target}")) as file:
        given = [packet for packet in file.demux(subtitles=0) if packet.size > 2]
        starts = [packet.pts * packet.time_base for packet in given]
        lengths = [packet.duration * packet.time_base for packet in given]
    assert starts == [start * TICK for start, *_ in TEXTS]
    if target in MOV:
        # What is no text is shown up to the next one there.
        assert lengths[1:] == [120 * TICK, (100 if codec == "subrip" else 120) * TICK, 40 * TICK]


CODECS: dict[str, tuple[str, list[tuple[int, int, bytes]]]] = {
    "pgs": ("pgssub", [(0, 0, b"\x16\0\0"), (120, 0, b"\x80\0\0")]),
    "klv": ("klv", [(0, 40, b"0123456789"), (120, 40, b"ab")]),
    "id3": ("timed_id3", [(0, 40, b"ID3456789"), (120, 40, b"ID3")]),
    "bytes": ("bin_data", [(0, 40, b"0123456789"), (120, 40, b"ab")]),
    "dvd": ("dvdsub", DVD),
    "ass": ("ass", [(0, 100, b"0,0,Default,,0,0,0,,one")]),
}


@pytest.mark.parametrize("kind", CODECS)
def test_hints_are_true(tmp_path: Path, kind: str) -> None:
    """Where a message says that a container would keep a stream, it does; what is kept comes back as what it was."""
    codec, given = CODECS[kind]
    source = source_with(tmp_path / f"in.{'ts' if kind in ('klv', 'id3', 'bytes') else 'mkv'}", {codec: given})
    before = kinds(source)
    for target in ("mp4", "mov", "mkv", "webm", "ts", "nut", "avi"):
        result = run(source, tmp_path / f"out.{target}")
        assert len(times(tmp_path / f"out.{target}")) == 10
        dropped = [note for note in result.writer_notes if "stream 1" in note and "converted" not in note]
        assert kinds(tmp_path / f"out.{target}") == (before[:1] if dropped else before)
        for ending in re.findall(r"(\.\w+) would keep it", " ".join(dropped)):
            again = run(source, tmp_path / f"hinted{ending}", overwrite=True)
            assert not [note for note in again.writer_notes if "dropped" in note]
            assert kinds(tmp_path / f"hinted{ending}") == before


def test_sound_of_a_transport_stream_that_nobody_would_hear(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 10, audio=True, audio_codec="pcm_s16le")
    result = run(source, tmp_path / "out.ts")
    assert "players would not find it there" in result.text or "would not be known there" in result.text
    assert ".mkv would keep it" in result.text and kinds(tmp_path / "out.ts") == ["video"]


def noisy(path: Path, codec: str) -> Path:
    """A video with a second of noise as sound, whose packets are as large as those of music."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, width=64, height=48, pix_fmt="yuv420p")
        sound = out.add_stream(codec, rate=44100, layout="stereo")
        for number, picture in enumerate(moving(5)):
            frame = yuv_frame(picture, "yuv420p", 1, 1)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(video.encode(frame))
        noise = np.random.default_rng(0).normal(0, 0.1, (2, 44100)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(noise, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        for each in av.AudioResampler(sound.format, "stereo", 44100, sound.frame_size or 1152).resample(frame):
            out.mux(sound.encode(each))
        for stream in (video, sound):
            out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("source", "codec"), [("mp4", "aac"), ("mkv", "aac"), ("mp4", "libmp3lame"), ("mov", "ac3"), ("mkv", "mp2")]
)
def test_sound_of_a_transport_stream_is_kept(tmp_path: Path, source: str, codec: str) -> None:
    """A file of a packet each is too short to be recognised as MPEG-TS."""
    result = run(noisy(tmp_path / f"in.{source}", codec), tmp_path / "out.ts")
    assert kinds(tmp_path / "out.ts") == ["video", "audio"] and "audio stream" not in result.text


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_alaw", "adpcm_swf"])
def test_sound_at_which_a_muxer_ends_the_process(tmp_path: Path, codec: str) -> None:
    source = tmp_path / "in.nut"
    with av.open(str(source), "w") as out:
        video: Any = out.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound: Any = out.add_stream(codec, rate=8000 if codec == "pcm_alaw" else 44100, layout="mono")
        for index, picture in enumerate(moving(4)):
            frame = yuv_frame(picture, "yuv420p", 1, 1)
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(video.encode(frame))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, sound.frame_size or 512), np.int16), "s16", "mono")
            silence.sample_rate, silence.pts = sound.rate, index * (sound.frame_size or 512)
            silence.time_base = Fraction(1, sound.rate)
            out.mux(sound.encode(silence))
        out.mux(video.encode(None))
    result = run(source, tmp_path / "out.flv")
    assert "flv cannot hold audio stream 1" in result.text and "FFmpeg cannot write it there" in result.text
    assert len(times(tmp_path / "out.flv")) == 4


def with_eac3(path: Path, broken: Sequence[int], streams: int = 1) -> Path:
    """Ten pictures and E-AC-3, whose packets of these numbers hold something else."""
    with av.open(str(path), "w") as out:
        video: Any = out.add_stream("libx264", rate=25, options={"crf": "1", "preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sounds: list[Any] = [out.add_stream("eac3", rate=48000, layout="mono") for _ in range(streams)]
        for sound in sounds:
            sound.codec_context.open(strict=False)
            given: list[av.Packet[Any]] = []
            for index in range(12):
                samples = np.full((1, 1536), 0.01 * index, np.float32)
                frame = av.AudioFrame.from_ndarray(samples, "fltp", "mono")
                frame.sample_rate, frame.pts, frame.time_base = 48000, index * 1536, Fraction(1, 48000)
                given += sound.encode(frame)
            for index, packet in enumerate(given):
                if index in broken:
                    other: av.Packet[Any] = av.Packet(bytes(packet.size))
                    other.pts, other.dts, other.duration = packet.pts, packet.dts, packet.duration
                    other.time_base, other.stream = packet.time_base, sound
                    packet = other
                out.mux(packet)
        for index, picture in enumerate(moving(10)):
            image = yuv_frame(picture, "yuv420p", 1, 1)
            image.pts, image.time_base = index, Fraction(1, 25)
            out.mux(video.encode(image))
        out.mux(video.encode(None))
    return path


@pytest.mark.parametrize("broken", [(5,), (1,), (3, 4, 10), (11,)])
@pytest.mark.parametrize("streams", [1, 2])
def test_packets_that_a_muxer_refuses_in_the_middle(tmp_path: Path, broken: tuple[int, ...], streams: int) -> None:
    source = with_eac3(tmp_path / "in.mkv", broken, streams)
    for target in ("mp4", "mov"):
        result = run(source, tmp_path / f"out.{target}")
        assert len(times(tmp_path / f"out.{target}")) == 10
        for number in range(streams):
            sound = packets(tmp_path / f"out.{target}", "audio", number)
            assert len(sound) == 12 - len(broken)
            assert f"stream {1 + number} (eac3): {len(broken)} packets" in result.text


def test_a_stream_of_which_every_packet_is_refused(tmp_path: Path) -> None:
    source = with_eac3(tmp_path / "in.mkv", range(12), 2)
    result = run(source, tmp_path / "out.mp4")
    assert kinds(tmp_path / "out.mp4") == ["video"] and len(times(tmp_path / "out.mp4")) == 10
    assert result.text.count("mp4 cannot hold audio stream") == 2


@pytest.mark.parametrize("target", ["mp4", "mkv", "flv", "mpg", "avi", "mxf", "asf"])
def test_several_streams_of_all_kinds(tmp_path: Path, target: str) -> None:
    source = make_video(tmp_path / "in.mkv", 10, audio=2, subtitles=("ass", "subrip"), attachment=True, cover=True)
    result = run(source, tmp_path / f"out.{target}")
    assert len(times(tmp_path / f"out.{target}")) == 10 and not result.remarks
    gone = [note for note in result.writer_notes if "cannot hold" in note and "dropped" in note]
    covers = target == "mkv"
    assert len(kinds(tmp_path / f"out.{target}")) == 7 - len(gone) or covers


class Late:
    """A container that reports, as muxers do, a packet of another stream, or something at its end."""

    def __init__(self, container: Any, fails: Sequence[int], error: Exception, *, end: bool) -> None:
        self._container, self._fails, self._error, self._end = container, fails, error, end
        self._count = 0

    def mux(self, packet: Any) -> None:
        self._container.mux(packet)
        self._count += 1
        if self._count in self._fails:
            raise self._error

    def close(self) -> None:
        self._container.close()
        if self._end:
            self._end = False
            raise self._error


@pytest.mark.parametrize("target", ["mp4", "mkv", "mov", "ts"])
@pytest.mark.parametrize(("fails", "end"), [((2,), False), ((1, 5, 7), False), ((), True), ((3,), True)])
def test_what_is_reported_late_ends_nothing(tmp_path: Path, target: str, fails: Sequence[int], end: bool) -> None:
    source = make_video(tmp_path / "in.mkv", 10, audio=True)
    with open_reader(source) as reader, open_writer(tmp_path / f"out.{target}", reader.info) as writer:
        wrong = av.error.InvalidDataError(1094995529, "Invalid data found when processing input")
        writer._container = Late(writer._container, fails, wrong, end=end)  # type: ignore[attr-defined]
        for event in reader:
            writer.write(event.rgb, event) if isinstance(event, Frame) else writer.copy(event)
        writer.commit()
        assert f"refused {len(fails) + end} packets (Invalid data" in " ".join(writer.remarks)
    assert len(times(tmp_path / f"out.{target}")) == 10


def test_a_full_disk_or_an_unreadable_file_ends_the_run(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 10, audio=True)
    full = av.error.OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    invalid = av.error.InvalidDataError(1094995529, "Invalid data found when processing input")
    for fails, end, error in (((4,), False, full), ((), True, full), ((), True, invalid)):
        with (
            pytest.raises(OutputError, match=r"disk full|cannot write"),
            open_reader(source) as reader,
            open_writer(tmp_path / "out.mp4", reader.info) as writer,
        ):
            writer._container = Late(writer._container, fails, error, end=end)  # type: ignore[attr-defined]
            for event in reader:
                writer.write(event.rgb, event) if isinstance(event, Frame) else writer.copy(event)
            if error is invalid:
                writer._temporary.write_bytes(b"no video")  # type: ignore[attr-defined]
            writer.commit()
        assert list(tmp_path.iterdir()) == [source]


ENDINGS = [
    "3gp",
    "amv",
    "dv",
    "f4v",
    "flm",
    "gxf",
    "ivf",
    "mjpeg",
    "mxf",
    "ogv",
    "rm",
    "swf",
    "vob",
    "wtv",
    "y4m",
    "wav",
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_container_holds_all_pictures_or_is_refused_at_once(tmp_path: Path, ending: str) -> None:
    source = make_video(tmp_path / "in.mkv", 5, audio=True, subtitles=True)
    frames = 0
    try:
        with open_reader(source) as reader, open_writer(tmp_path / f"out.{ending}", reader.info) as writer:
            for event in reader:
                if isinstance(event, Frame):
                    frames += 1
                    writer.write(event.rgb, event)
                else:
                    writer.copy(event)
            writer.commit()
    except MtuError:
        assert frames == 0 and list(tmp_path.iterdir()) == [source]
    else:
        assert len(times(tmp_path / f"out.{ending}")) == 5


@pytest.mark.parametrize("kind", ["gif", "directory", "gray", "alpha"])
@pytest.mark.parametrize("target", ["y4m", "mp4", "gif"])
def test_pictures_of_any_kind(tmp_path: Path, kind: str, target: str) -> None:
    source = tmp_path / "frames"
    if kind == "gif":
        source = make_video(tmp_path / "in.gif", 5, codec="gif", pix_fmt="rgb8", options={})
    elif kind == "directory":
        source.mkdir()
        for index, picture in enumerate(moving(5)):
            write_png(source / f"{index}.png", picture)
    else:
        form = "gray" if kind == "gray" else "bgra"
        source = make_video(tmp_path / "in.mkv", 5, codec="ffv1", pix_fmt=form, options={})
    assert run(source, tmp_path / f"out.{target}").frames == 5
    assert len(times(tmp_path / f"out.{target}")) == 5


def test_a_codec_that_a_container_cannot_write_is_refused_before_the_first_frame(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 5)
    for ending, codec in (("ogv", "libx264"), ("dv", None), ("webm", "mpeg4"), ("mxf", "libvpx-vp9")):
        with (
            open_reader(source) as reader,
            pytest.raises(InvalidInputError, match=r"cannot|choose"),
            open_writer(tmp_path / f"out.{ending}", reader.info, options=EncodeOptions(codec)),
        ):
            pass
    assert list(tmp_path.iterdir()) == [source]
