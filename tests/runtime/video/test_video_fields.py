"""Interlaced sources: their field order is kept or its loss is said, and --deinterlace makes them progressive."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.codec.context import Flags
from tests.media import BT601, LIMITED, Pixels, make_video, yuv_frame
from tests.video_run import Result, frames_of, run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import EncodeOptions, ReadOptions, Segment, open_reader, write_png
from mtu.runtime.video.fields import Deinterlacer, FieldMarker, FieldOrder, Fields

DEINTERLACE = ReadOptions(deinterlace=True)


def woven(count: int, first: int) -> list[Pixels]:
    """Pictures in whose fields a bar stands at two places; rows from `first` on, every other, are the earlier field."""
    pictures = []
    for number in range(count):
        picture = np.full((48, 64, 3), 60, np.uint8)
        for half, start in enumerate((first, 1 - first)):
            left = 4 + 4 * (2 * number + half)
            picture[start::2, left : left + 8] = 200
        pictures.append(picture)
    return pictures


def interlaced(
    path: Path,
    orders: Sequence[Fields],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    sar: Fraction | None = None,
) -> Path:
    """A video whose pictures have these field orders."""
    mark = FieldMarker()
    settings = {"libx264": {"qp": "10", "bf": "0"}, "mpeg2video": {"q:v": "2"}, "ffv1": {}}.get(codec, {})
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options=settings)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        context = stream.codec_context
        context.colorspace, context.color_range = BT601, LIMITED
        context.thread_count = 1
        if sar is not None:
            context.sample_aspect_ratio = sar
        if set(orders) != {"progressive"}:
            context.flags |= int(Flags.interlaced_dct) | int(Flags.interlaced_me)
        for number, (order, rgb) in enumerate(zip(orders, woven(len(orders), orders[0] == "bff"), strict=True)):
            picture = yuv_frame(rgb, pix_fmt, BT601, LIMITED)
            picture.pts, picture.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(mark(picture, order)))
        out.mux(stream.encode(None))
    return path


def orders_of(path: Path) -> list[Fields]:
    with av.open(str(path)) as container:
        order = FieldOrder()
        return [order(picture) for picture in container.decode(video=0)]


def copy(source: Path, target: Path, **options: Any) -> Result:
    read = options.pop("read", None)
    return run(source, target, read=read, options=EncodeOptions(**options))


@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize(
    ("codec", "ending"),
    [
        ("libx264", "mp4"),
        ("libx264", "mkv"),
        ("libx264", "ts"),
        ("mpeg2video", "ts"),
        ("ffv1", "mkv"),
        ("prores", "mov"),
    ],
)
def test_field_order_is_kept(tmp_path: Path, order: Fields, codec: str, ending: str) -> None:
    source = interlaced(tmp_path / "in.mkv", [order] * 5)
    result = copy(source, tmp_path / f"out.{ending}", codec=codec)
    assert orders_of(source) == orders_of(tmp_path / f"out.{ending}") == [order] * 5
    assert "the source is interlaced" in result.text and "marked as progressive" not in result.text


@pytest.mark.parametrize("source", ["ts", "mkv", "mp4", "mov"])
def test_field_order_of_other_sources(tmp_path: Path, source: str) -> None:
    codec = {"ts": "mpeg2video", "mkv": "ffv1", "mov": "prores_ks"}.get(source, "libx264")
    pix_fmt = "yuv422p10le" if source == "mov" else "yuv420p"
    path = interlaced(tmp_path / f"in.{source}", ["bff"] * 12, codec=codec, pix_fmt=pix_fmt)
    copy(path, tmp_path / "out.mp4")
    assert orders_of(path) == orders_of(tmp_path / "out.mp4") == ["bff"] * 12


@pytest.mark.parametrize(
    ("codec", "ending"), [("libx265", "mp4"), ("vp9", "webm"), ("mjpeg", "avi"), ("libsvtav1", "mp4")]
)
def test_loss_of_the_field_order_is_said(tmp_path: Path, codec: str, ending: str) -> None:
    result = copy(interlaced(tmp_path / "in.mkv", ["tff"] * 4), tmp_path / f"out.{ending}", codec=codec)
    assert "does not mark pictures as interlaced here: the output is marked as progressive" in result.text
    assert orders_of(tmp_path / f"out.{ending}") == ["progressive"] * 4


def test_yuv4mpeg_says_the_order(tmp_path: Path) -> None:
    copy(interlaced(tmp_path / "in.mkv", ["bff"] * 2), tmp_path / "out.y4m")
    assert b" Ib " in (tmp_path / "out.y4m").read_bytes()[:100]


def test_turned_pictures_are_progressive(tmp_path: Path) -> None:
    source = interlaced(tmp_path / "in.mp4", ["tff"] * 2)
    target = tmp_path / "turned.mp4"
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        stream.set_display_matrix([0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    assert "pictures that are turned cannot be interlaced" in copy(target, tmp_path / "out.avi").text
    assert orders_of(tmp_path / "out.avi") == ["progressive"] * 2


def test_mixed_pictures_are_said(tmp_path: Path) -> None:
    first: list[Fields] = ["progressive", "progressive", "tff", "tff"]
    source = interlaced(tmp_path / "a.mkv", first, codec="ffv1")
    assert orders_of(source) == first
    assert "2 pictures are interlaced, but marked as progressive" in copy(source, tmp_path / "a.mp4").text
    source = interlaced(tmp_path / "b.mkv", first[::-1], codec="ffv1")
    assert "2 pictures are progressive, but may be marked" in copy(source, tmp_path / "b.mp4").text
    copy(source, tmp_path / "b2.mkv", codec="ffv1")
    assert orders_of(tmp_path / "b2.mkv") == first[::-1]


def combs(rgb: Pixels) -> float:
    """How much odd rows differ from the even ones around them."""
    rows = rgb[..., 1].astype(float)
    return float(np.abs(rows[1:-1] * 2 - rows[:-2] - rows[2:]).max())


@pytest.mark.parametrize("order", ["tff", "bff"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_deinterlacing(tmp_path: Path, order: Fields, count: int) -> None:
    source = interlaced(tmp_path / "in.mkv", [order] * count, sar=Fraction(4, 3))
    with open_reader(source) as plain, open_reader(source, DEINTERLACE) as reader:
        assert (reader.info.colour, reader.info.sample_aspect_ratio, reader.info.fields) == (
            plain.info.colour,
            Fraction(4, 3),
            "progressive",
        )
        before, after = frames_of(plain), frames_of(reader)
        assert f"{count} pictures were interlaced and made progressive" in reader.remarks
    assert [(a.pts, a.duration) for a in before] == [(b.pts, b.duration) for b in after] and len(after) == count
    for number, (comb, smooth) in enumerate(zip(before, after, strict=True)):
        assert combs(comb.rgb) > 100
        # The earlier field is kept: the bar stands where it was in that one.
        left = 4 + 8 * number
        bar = smooth.rgb[10:-10, :, 1] > 130
        # Of one picture alone nothing is known but its own rows.
        assert count == 1 or (bar[:, left + 1 : left + 7].all() and not bar[:, left + 10 :].any())
    copy(source, tmp_path / "out.mp4", read=DEINTERLACE)
    assert orders_of(tmp_path / "out.mp4") == ["progressive"] * count


def test_deinterlacing_leaves_progressive_pictures(tmp_path: Path) -> None:
    source = interlaced(tmp_path / "in.mkv", ["progressive"] * 3 + ["tff"] * 2, codec="ffv1")
    with open_reader(source) as plain, open_reader(source, DEINTERLACE) as reader:
        before, after = frames_of(plain), frames_of(reader)
        assert "2 pictures were interlaced and made progressive" in reader.remarks
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(before[:3], after[:3], strict=True))
    assert combs(after[-1].rgb) < 60 < combs(before[-1].rgb)
    assert (
        "nothing was interlaced" in copy(make_video(tmp_path / "p.mp4", 3), tmp_path / "o.mp4", read=DEINTERLACE).text
    )


def test_deinterlacing_with_sound_in_a_segment(tmp_path: Path) -> None:
    part = ReadOptions(segment=Segment(0.08, 0.16), deinterlace=True)
    with open_reader(interlaced(tmp_path / "in.mp4", ["tff"] * 6), part) as reader:
        assert [frame.pts * frame.time_base for frame in frames_of(reader)] == [Fraction(2, 25), Fraction(3, 25)]
    source = make_video(tmp_path / "sound.mp4", 5, audio=True)
    with open_reader(source) as plain, open_reader(source, DEINTERLACE) as reader:
        assert [type(event) for event in plain].count(av.Packet) == [type(event) for event in reader].count(av.Packet)


def test_deinterlacing_over_a_change_of_size(tmp_path: Path) -> None:
    parts = [interlaced(tmp_path / "0.ts", ["tff"] * 3), make_video(tmp_path / "1.ts", 4, pts=range(3, 7))]
    (tmp_path / "in.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    assert copy(tmp_path / "in.ts", tmp_path / "out.mp4", read=DEINTERLACE).frames == 7


def test_pictures_are_not_deinterlaced(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", woven(1, 0)[0])
    with pytest.raises(InvalidInputError, match="not interlaced: leave out --deinterlace"):
        open_reader(tmp_path / "a.png", DEINTERLACE)


def test_marks_change_neither_pixels_nor_times() -> None:
    picture = yuv_frame(woven(1, 0)[0], "yuv422p", BT601, LIMITED)
    picture.pts, picture.time_base, picture.duration = 7, Fraction(1, 90000), 3
    marked = FieldMarker()(picture, "bff")
    assert (marked.pts, marked.time_base, marked.duration) == (7, Fraction(1, 90000), 3)
    assert np.array_equal(marked.to_ndarray(), picture.to_ndarray()) and FieldOrder()(marked) == "bff"
    assert FieldOrder()(picture) == "progressive"


def test_pictures_that_change_their_size_are_all_deinterlaced() -> None:
    pictures, mark, deinterlace = [], FieldMarker(), Deinterlacer()
    for number, width in enumerate([64, 64, 64, 32, 32, 64]):
        picture = av.VideoFrame.from_ndarray(np.full((48, width, 3), 40 * number, np.uint8), "rgb24")
        picture.pts, picture.time_base = number, Fraction(1, 25)
        pictures.append(mark(picture.reformat(format="yuv420p"), "tff"))
    given = list(deinterlace(pictures))
    assert [(each.pts, each.width) for each in given] == [(0, 64), (1, 64), (2, 64), (3, 32), (4, 32), (5, 64)]
    assert deinterlace.count == 6 and not any(each.interlaced_frame for each in given)
