"""Pictures in directories, single pictures, orientation, and sizes that codecs do not like."""

from __future__ import annotations

import gc
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.media import Pixels, make_video, moving, times
from tests.video_run import frames_of, run

from mtu.core.errors import InvalidInputError, MissingFileError, OutputError
from mtu.runtime.video import EncodeOptions, Frame, open_reader, open_writer, read_picture, write_png
from mtu.runtime.video.colour import upright
from mtu.runtime.video.pictures.files import natural_key

QUARTER = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
"""Shown turned by 90 degrees clockwise."""


def directory(path: Path, names: list[str], pictures: list[Pixels]) -> Path:
    path.mkdir()
    for name, picture in zip(names, pictures, strict=True):
        write_png(path / name, picture)
    return path


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 5), (48, 64), (37, 2000)])
def test_png_is_exact(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    write_png(tmp_path / "a.png", picture)
    assert np.array_equal(read_picture(tmp_path / "a.png"), picture)
    write_png(tmp_path / "b.png", picture[:, ::-1])
    assert np.array_equal(read_picture(tmp_path / "b.png"), picture[:, ::-1])


def test_a_colour_profile_is_said_and_ends_no_process(tmp_path: Path) -> None:
    """PyAV frees the name of a PNG's profile twice, once by its garbage collector."""
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    write_png(tmp_path / "plain.png", picture)
    plain = (tmp_path / "plain.png").read_bytes()
    profile = b"iCCPDisplay P3\0\0" + zlib.compress(bytes(128))
    chunk = struct.pack(">I", len(profile) - 4) + profile + struct.pack(">I", zlib.crc32(profile))
    path = tmp_path / "profile.png"
    path.write_bytes(plain[:33] + chunk + plain[33:])  # behind the header
    gc.freeze()  # what other tests imported is not searched each time
    try:
        for _ in range(20):
            assert np.array_equal(read_picture(path), picture)
            gc.collect()
    finally:
        gc.unfreeze()
    with open_reader(path) as reader:
        assert any("profile (ICC)" in note for note in reader.info.notes)
    with open_reader(tmp_path / "plain.png") as reader:
        assert not any("profile" in note for note in reader.info.notes)


def test_png_refuses_what_is_no_picture(tmp_path: Path) -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InvalidInputError, match=r"uint8 \[H, W, 3\]"):
            write_png(tmp_path / "a.png", wrong)
    with pytest.raises(OutputError, match="cannot write"):
        write_png(tmp_path / "no" / "a.png", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(MissingFileError):
        read_picture(tmp_path / "no.png")


@pytest.mark.parametrize(
    ("ending", "codec", "pix_fmt", "tolerance"),
    [
        ("jpg", "mjpeg", "yuvj444p", 6),
        ("bmp", "bmp", "bgr24", 0),
        ("tif", "tiff", "rgb24", 0),
        ("ppm", "ppm", "rgb24", 0),
        ("webp", "libwebp", "bgra", 0),
        ("png", "png", "rgba", 0),
        ("png", "png", "rgb48be", 0),
    ],
)
def test_kinds_of_pictures(tmp_path: Path, ending: str, codec: str, pix_fmt: str, tolerance: int) -> None:
    picture = moving(1)[0]
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 48, pix_fmt, Fraction(1, 25)
    encoder.options = {"lossless": "1"} if codec == "libwebp" else {}
    if codec == "mjpeg":
        encoder.options = {"qmin": "1", "qmax": "1"}
    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(
        format=pix_fmt, dst_colorspace=5 if codec == "mjpeg" else None, src_color_range=2, dst_color_range=2
    )
    data = b"".join(bytes(packet) for packet in encoder.encode(frame) + encoder.encode(None))
    (tmp_path / f"a.{ending}").write_bytes(data)
    assert np.abs(read_picture(tmp_path / f"a.{ending}").astype(int) - picture).max() <= tolerance
    with open_reader(tmp_path / f"a.{ending}") as reader:
        assert reader.info.frame_count == 1 and len(frames_of(reader)) == 1
        assert ("alpha" in " ".join(reader.info.notes)) == (pix_fmt in ("rgba", "bgra"))
        assert ("16 bits" in " ".join(reader.info.notes)) == (pix_fmt == "rgb48be")


def test_natural_order() -> None:
    names = ["frame10.png", "frame2.png", "Frame1.png", "frame2b.png", "a.png", "10.png", "9.png"]
    want = ["9.png", "10.png", "a.png", "Frame1.png", "frame2.png", "frame2b.png", "frame10.png"]
    assert sorted(names, key=natural_key) == want


def test_directory_in_natural_order_with_other_files(tmp_path: Path) -> None:
    pictures = moving(12)
    source = directory(tmp_path / "in", [f"frame{index}.png" for index in range(12)], pictures)
    (source / "notes.txt").write_text("x")
    (source / ".frame5.png").write_text("hidden")
    (source / "deep.png").mkdir()
    result = run(source, tmp_path / "out")
    assert result.frames == 12 and not result.text.strip(" |")
    for index, picture in enumerate(pictures):
        assert np.array_equal(read_picture(tmp_path / "out" / f"frame{index}.png"), picture)
    assert len(list((tmp_path / "out").iterdir())) == 12


def test_directory_to_video_says_the_rate(tmp_path: Path) -> None:
    source = directory(tmp_path / "in", ["a.png", "b.png"], moving(2))
    assert "pictures have no timing: written at 25 per second" in run(source, tmp_path / "out.mp4").text
    assert times(tmp_path / "out.mp4") == [0, Fraction(1, 25)]


def test_directory_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(InvalidInputError, match="holds no pictures"):
        open_reader(tmp_path)


def test_pictures_of_two_sizes(tmp_path: Path) -> None:
    source = directory(tmp_path / "in", ["a.png", "b.png"], [moving(1)[0], moving(1, 20, 30)[0]])
    with pytest.raises(InvalidInputError, match=r"b\.png is 30x20, but a\.png is 64x48"):
        open_reader(source)


def test_same_stems_keep_their_endings(tmp_path: Path) -> None:
    source = directory(tmp_path / "in", ["a.png", "b.png"], moving(2))
    (source / "a.bmp").write_bytes((source / "a.png").read_bytes())
    run(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.bmp.png", "a.png.png", "b.png.png"]


def test_video_to_directory(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", 3, codec="ffv1", pix_fmt="bgr0", audio=True)
    assert "holds pictures only" in run(source, tmp_path / "out").text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png", "000002.png"]
    assert np.array_equal(read_picture(tmp_path / "out" / "000001.png"), moving(3)[1])


def test_single_picture_to_picture(tmp_path: Path) -> None:
    write_png(tmp_path / "in.png", moving(1)[0])
    run(tmp_path / "in.png", tmp_path / "out.png")
    assert np.array_equal(read_picture(tmp_path / "out.png"), moving(1)[0])


def test_directories_are_never_lost(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", 2)
    for name, content in (("mixed", ["a.png", "thesis.txt"]), ("deep", ["a.png", "sub.png/"])):
        folder = tmp_path / name
        folder.mkdir()
        for entry in content:
            (folder / entry).mkdir() if entry.endswith("/") else (folder / entry).write_text("precious")
        for overwrite in (False, True):
            with open_reader(source) as reader, pytest.raises(OutputError, match=r"not empty|more than png files"):
                open_writer(folder, reader.info, overwrite=overwrite)
        assert (folder / "a.png").read_text() == "precious"
    old = directory(tmp_path / "old", ["x.png"], moving(1))
    with open_reader(source) as reader, pytest.raises(OutputError, match="not empty"):
        open_writer(old, reader.info)
    run(source, old, overwrite=True)
    assert sorted(path.name for path in old.iterdir()) == ["000000.png", "000001.png"]
    (tmp_path / "empty").mkdir()
    run(source, tmp_path / "empty")
    run(source, f"{tmp_path / 'new.dir'}/")
    assert len(list((tmp_path / "empty").iterdir())) == len(list((tmp_path / "new.dir").iterdir())) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    with open_reader(old) as reader, pytest.raises(OutputError, match="is the source itself"):
        open_writer(old, reader.info, overwrite=True)


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm"])
@pytest.mark.parametrize(
    "matrix", [QUARTER, (-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30), (0, 65536, 0, 65536, 0, 0, 0, 0, 1 << 30)]
)
def test_display_matrix_is_carried_over(tmp_path: Path, ending: str, matrix: tuple[int, ...]) -> None:
    source = make_video(tmp_path / "in.mp4", 3, display_matrix=matrix)
    assert not run(source, tmp_path / f"out.{ending}").writer_notes
    with open_reader(source) as before, open_reader(tmp_path / f"out.{ending}") as after:
        assert before.info.display_matrix == after.info.display_matrix == matrix
        assert (after.info.width, after.info.height) == (64, 48)


@pytest.mark.parametrize("target", ["out.avi", "out.ts", "out"])
def test_pictures_are_turned_where_the_target_holds_no_matrix(tmp_path: Path, target: str) -> None:
    source = make_video(tmp_path / "in.mp4", 3, display_matrix=QUARTER, sar=Fraction(4, 3))
    assert "turned upright" in run(source, tmp_path / target).text
    with open_reader(source) as before, open_reader(tmp_path / target) as after:
        assert (after.info.width, after.info.height, after.info.display_matrix) == (48, 64, None)
        if target != "out":
            assert after.info.sample_aspect_ratio == Fraction(3, 4)
        stored, shown = frames_of(before)[1].rgb, frames_of(after)[1].rgb
    # Another turn would be far off; 4:2:0 and the codec blur the colours of single pixels.
    assert (
        np.abs(np.rot90(stored, -1).astype(int) - shown).mean()
        < 10
        < np.abs(np.rot90(stored).astype(int) - shown).mean()
    )
    assert np.array_equal(upright(stored, QUARTER), np.rot90(stored, -1))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 8), (9, 1), (33, 17), (64, 47)])
@pytest.mark.parametrize("ending", ["mp4", "webm", "mkv"])
def test_odd_sizes(tmp_path: Path, width: int, height: int, ending: str) -> None:
    source = directory(tmp_path / "in", ["0.png", "1.png", "2.png"], moving(3, height, width))
    result = run(source, tmp_path / f"out.{ending}")
    with open_reader(tmp_path / f"out.{ending}") as reader:
        frames = frames_of(reader)
        assert (reader.info.width, reader.info.height, len(frames)) == (width, height, 3)
        assert ("encoded as yuv444p" in result.text) == (reader.info.pix_fmt == "yuv444p")
    assert np.abs(frames[1].rgb.astype(int) - moving(3, height, width)[1]).mean() < 12


def test_odd_size_with_a_chosen_format_is_refused(tmp_path: Path) -> None:
    source = directory(tmp_path / "in", ["0.png"], moving(1, 33, 17))
    with open_reader(source) as reader, pytest.raises(InvalidInputError, match="cannot encode 17x33 as yuv420p"):
        open_writer(tmp_path / "o.mp4", reader.info, options=EncodeOptions(pix_fmt="yuv420p"))


def test_wider_pictures_for_comparison(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", 3)
    with open_reader(source) as reader, open_writer(tmp_path / "o.mp4", reader.info, width=128) as writer:
        for event in reader:
            if isinstance(event, Frame):
                writer.write(np.concatenate([event.rgb, event.rgb], 1), event)
        writer.commit()
    with open_reader(tmp_path / "o.mp4") as reader:
        assert (reader.info.width, reader.info.height) == (128, 48)


@pytest.mark.parametrize("ending", ["gif", "mov", "avi", "ts", "flv", "wmv", "mpg", "3gp", "m4v", "mxf"])
def test_other_containers(tmp_path: Path, ending: str) -> None:
    source = make_video(tmp_path / "in.mp4", moving(8, 144, 176), audio=True)
    result = run(source, tmp_path / f"out.{ending}")
    with open_reader(tmp_path / f"out.{ending}") as reader:
        assert len(frames_of(reader)) == result.frames == 8
        assert (reader.info.width, reader.info.height) == (176, 144)


@pytest.mark.parametrize("codec", ["prores", "hevc", "av1", "ffv1", "mpeg4", "mjpeg"])
def test_other_codecs(tmp_path: Path, codec: str) -> None:
    source = make_video(tmp_path / "in.mp4", moving(4, 128, 128))
    run(source, tmp_path / "out.mkv", options=EncodeOptions(codec=codec))
    with open_reader(source) as before, open_reader(tmp_path / "out.mkv") as after:
        first, second = frames_of(before), frames_of(after)
        assert np.abs(first[2].rgb.astype(int) - second[2].rgb).mean() < 10
        assert [frame.pts * frame.time_base for frame in first] == [frame.pts * frame.time_base for frame in second]


def test_animated_pictures_are_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.apng"), "w", format="apng") as out:
        stream = out.add_stream("apng", rate=10, width=16, height=16, pix_fmt="rgb24")
        for picture in moving(3, 16, 16):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode(None))
    (tmp_path / "a.apng").rename(tmp_path / "a.png")
    with pytest.raises(InvalidInputError, match="is animated"):
        read_picture(tmp_path / "a.png")
