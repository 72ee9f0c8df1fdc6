"""Outputs that hold little: raw video, yuv4mpeg, elementary streams, and codecs that know few rates."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.media import make_video, moving, times
from tests.video_run import frames_of, run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import EncodeOptions, open_reader, open_writer, write_png

NTSC = Fraction(30000, 1001)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with sound, subtitles and chapters."""
    path = tmp_path_factory.mktemp("full") / "full.mkv"
    return make_video(path, 6, audio=True, subtitles=True, chapters=True)


@pytest.mark.parametrize(
    ("ending", "form", "pixel"), [("yuv", "yuv420p", 1.5), ("yuv", "yuv444p", 3), ("rgb", "rgb24", 3)]
)
def test_raw_video_is_pictures_alone(tmp_path: Path, full: Path, ending: str, form: str, pixel: float) -> None:
    options = EncodeOptions(pix_fmt=form if ending == "yuv" else None)
    said = run(full, tmp_path / f"out.{ending}", options=options).text
    assert (tmp_path / f"out.{ending}").stat().st_size == 6 * 64 * 48 * pixel
    assert "cannot hold audio stream 1 (aac, eng): dropped" in said and "cannot hold subtitle stream 2" in said
    assert "cannot hold chapters" in said
    assert f"-f rawvideo -pixel_format {form} -video_size 64x48 -framerate 25" in said


def test_raw_video_of_odd_size_reads_as_it_was(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", moving(3, 47, 63), codec="ffv1", pix_fmt="bgr0")
    run(source, tmp_path / "out.rgb")
    raw = np.fromfile(tmp_path / "out.rgb", np.uint8).reshape(3, 47, 63, 3)
    with open_reader(source) as reader:
        assert all(np.array_equal(frame.rgb, picture) for frame, picture in zip(frames_of(reader), raw, strict=True))


def header(path: Path) -> list[str]:
    with path.open("rb") as file:
        return file.readline().decode().split()


@pytest.mark.parametrize("rate", [Fraction(25), NTSC, Fraction(15), Fraction(1, 2)])
def test_y4m_file_has_the_rate(tmp_path: Path, rate: Fraction) -> None:
    source = make_video(tmp_path / "in.mp4", 4, time_base=1 / rate, rate=rate, audio=True)
    run(source, tmp_path / "out.y4m")
    assert f"F{rate.numerator}:{rate.denominator}" in header(tmp_path / "out.y4m")
    with open_reader(tmp_path / "out.y4m") as reader:
        assert reader.info.average_rate == rate and len(frames_of(reader)) == 4


@pytest.mark.parametrize(
    ("source_options", "options", "words"),
    [
        ({"sar": Fraction(4, 3)}, {}, {"A4:3", "C420mpeg2", "F25:1"}),
        ({"sar": Fraction(4, 3), "display_matrix": (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)}, {}, {"A3:4", "W48"}),
        ({"pix_fmt": "yuv422p"}, {}, {"C422"}),
        ({}, {"pix_fmt": "gray"}, {"Cmono"}),
        ({"color_range": 2, "matrix": 1}, {}, {"XCOLORRANGE=FULL"}),
    ],
)
def test_header_of_a_y4m_file(
    tmp_path: Path, source_options: dict[str, Any], options: dict[str, str], words: set[str]
) -> None:
    source = make_video(tmp_path / "in.mp4", 3, **source_options)
    result = run(source, tmp_path / "out.y4m", options=EncodeOptions(**options))
    assert words <= set(header(tmp_path / "out.y4m")) and "no sound, no timestamps" in result.text


def test_y4m_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index, rgb in enumerate(moving(3)):
        write_png(tmp_path / "in" / f"{index}.png", rgb)
    run(tmp_path / "in", tmp_path / "out.y4m")
    assert {"F25:1", "C444"} <= set(header(tmp_path / "out.y4m"))
    with open_reader(tmp_path / "in") as before, open_reader(tmp_path / "out.y4m") as after:
        pairs = zip(frames_of(before), frames_of(after), strict=True)
        assert max(np.abs(a.rgb.astype(int) - b.rgb).max() for a, b in pairs) <= 3


def test_y4m_file_is_whole_or_not_there(tmp_path: Path, full: Path) -> None:
    with open_reader(full) as reader, open_writer(tmp_path / "out.y4m", reader.info) as writer:
        frame = frames_of(reader)[0]
        writer.write(frame.rgb, frame)
        assert [path.name[0] for path in tmp_path.iterdir()] == ["."]
    assert not list(tmp_path.iterdir())
    with open_reader(full) as reader, pytest.raises(InvalidInputError, match="yuv4mpeg takes no --codec"):
        open_writer(tmp_path / "out.y4m", reader.info, options=EncodeOptions(codec="libx264"))


FAST = {"libx264": {"preset": "ultrafast"}, "libx265": {"preset": "ultrafast"}, "libsvtav1": {"preset": "12"}}


@pytest.mark.parametrize(
    ("ending", "codec", "timed"),
    [
        ("h264", "libx264", False),
        ("hevc", "libx265", False),
        ("m2v", None, False),
        ("m1v", None, False),
        ("mjpeg", None, False),
        ("ivf", None, True),
        ("obu", "libsvtav1", False),
    ],
)
def test_elementary_streams_say_what_they_lose(
    tmp_path: Path, full: Path, ending: str, codec: str | None, timed: bool
) -> None:
    options = EncodeOptions(codec=codec, options=FAST.get(codec or "", {}))
    said = run(full, tmp_path / f"out.{ending}", options=options).text
    for lost in ("audio stream 1 (aac, eng): dropped (it holds pictures only", "subtitle stream 2", "chapters"):
        assert f"cannot hold {lost}" in said
    assert ("holds no timestamps: written at 25 pictures per second" in said) is not timed
    with open_reader(tmp_path / f"out.{ending}") as reader:
        assert len(frames_of(reader)) == 6


@pytest.mark.parametrize(
    ("ending", "codec", "rate", "words"),
    [
        (
            "mpg",
            None,
            Fraction(15),
            r"mpeg1video knows no 15 pictures per second, but 23\.976, .*-c mpeg2video, or an",
        ),
        ("mpeg", None, Fraction(2983, 100) * 2 / 3, r"mpeg1video knows no 19\.887 .* choose an ending such as \.mp4"),
        ("m1v", None, Fraction(12), r"mpeg1video knows no 12 pictures .* choose an ending such as \.mp4"),
        ("m2v", None, Fraction(2983, 100), r"mpeg2video knows no 29\.83 pictures per second, but .*29\.97, 30, "),
        ("ts", "mpeg1video", Fraction(15), "knows no 15 .*-c mpeg2video"),
        ("mkv", "mpeg1video", Fraction(10), "knows no 10 .*-c mpeg2video"),
    ],
)
def test_rate_that_mpeg_does_not_know(
    tmp_path: Path, ending: str, codec: str | None, rate: Fraction, words: str
) -> None:
    source = make_video(tmp_path / "in.mp4", 4, time_base=1 / rate, rate=rate)
    with open_reader(source) as reader, pytest.raises(InvalidInputError, match=words):
        open_writer(tmp_path / f"out.{ending}", reader.info, options=EncodeOptions(codec=codec))
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(
    ("ending", "codec", "rate"),
    [
        ("mpg", None, NTSC),
        ("mpg", "mpeg2video", Fraction(15)),
        ("m2v", None, Fraction(12)),
        ("m1v", None, Fraction(60)),
        ("vob", None, Fraction(24000, 1001)),
    ],
)
def test_rate_that_mpeg_knows(tmp_path: Path, ending: str, codec: str | None, rate: Fraction) -> None:
    source = make_video(tmp_path / "in.mp4", 8, time_base=1 / rate, rate=rate)
    assert "knows no" not in run(source, tmp_path / f"out.{ending}", options=EncodeOptions(codec=codec)).text
    with av.open(str(tmp_path / f"out.{ending}")) as out:
        assert out.streams.video[0].guessed_rate == rate
    assert len(times(tmp_path / f"out.{ending}")) == 8


def test_rate_near_one_that_mpeg_knows(tmp_path: Path) -> None:
    # A phone: thirty a second, of which a few are missing. Noise, so that each picture is a packet of its own.
    pts = [index for index in range(60) if index not in (20, 41)]
    noise = np.random.default_rng(0).integers(0, 256, (58, 96, 128, 3), dtype=np.uint8)
    source = make_video(tmp_path / "in.mp4", list(noise), pts=pts, time_base=Fraction(1, 30), rate=30)
    with open_reader(source) as reader:
        assert reader.info.average_rate is not None and 29 <= reader.info.average_rate < 29.9
    assert "written as 29.97, each picture at the nearest 1/29.97 s" in run(source, tmp_path / "out.mpg").text
    found = times(tmp_path / "out.mpg")
    assert len(found) == 58
    assert max(abs(float(t - found[0]) - p / 30) for t, p in zip(found, pts, strict=True)) < 0.02
