"""What a stream says of its pictures besides their pixels: a hidden border, stereo 3D, 360 degrees, alpha."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.media import BT709, make_video, moving
from tests.video_run import frames_of, run

from mtu.runtime.video import EncodeOptions, ReadOptions, Segment, open_reader
from mtu.runtime.video.normalise import Normaliser

LOSSLESS = {"qp": "0", "preset": "ultrafast", "bf": "0"}
CROP = {"top": b"\x54\xbb", "bottom": b"\x54\xaa", "left": b"\x54\xcc", "right": b"\x54\xdd"}
ALPHA = b"\x53\xc0\x81\x01"
# Equirectangular, turned by half a degree.
PROJECTION = b"\x76\x70\x8b\x76\x71\x81\x01\x76\x73\x84" + struct.pack(">f", 0.5)


def element(name: bytes, content: bytes) -> bytes:
    return name + (len(content) | 1 << 56).to_bytes(8, "big") + content


def content(data: bytes, at: int, name: int) -> tuple[int, int]:
    """Where the content of an element at a place begins and ends; its name has so many bytes."""
    length = 9 - data[at + name].bit_length()
    begin = at + name + length
    return begin, begin + (int.from_bytes(data[at + name : begin], "big") & ((1 << 7 * length) - 1))


def patched(folder: Path, elements: bytes, **options: Any) -> Path:
    """A Matroska file of one video track that says more of it."""
    options = {"frames": 4, "options": LOSSLESS, "matrix": BT709, "container_options": {"write_crc32": "0"}, **options}
    data = make_video(folder / "plain.mkv", options.pop("frames"), **options).read_bytes()
    name = b"\x16\x54\xae\x6b"
    # The first is the entry of a table of contents.
    segment, tracks = data.index(b"\x18\x53\x80\x67"), data.index(name, data.index(name) + 1)
    entry = content(data, tracks, 4)[0]
    video = data.index(b"\xe0", data.index(b"V_"))
    settings = element(b"\xe0", data[slice(*content(data, video, 1))] + elements)
    begin, end = content(data, entry, 1)
    track = element(b"\xae", data[begin:video] + settings + data[content(data, video, 1)[1] : end])
    rest = data[content(data, tracks, 4)[1] :]
    inner = data[content(data, segment, 4)[0] : tracks] + element(name, track) + rest
    (folder / "in.mkv").write_bytes(data[:segment] + element(b"\x18\x53\x80\x67", inner))
    return folder / "in.mkv"


def cropped(folder: Path, **options: Any) -> Path:
    borders = {side: options.pop(side) for side in CROP if side in options}
    return patched(folder, b"".join(CROP[side] + b"\x81" + bytes([size]) for side, size in borders.items()), **options)


def remux(source: Path, target: Path) -> Path:
    """Copy a video with all its properties."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for packet in old.demux(video=0):
            if packet.size:
                packet.dts, packet.stream = packet.pts, stream
                new.mux(packet)
    return target


BORDERS: list[dict[str, int]] = [
    {"top": 8, "bottom": 8},
    {"left": 4, "right": 12},
    {"top": 1, "left": 3, "right": 1},
    {"top": 2, "bottom": 4, "left": 6, "right": 8},
]


@pytest.mark.parametrize("borders", BORDERS, ids=str)
@pytest.mark.parametrize("form", ["mkv", "mov"])
def test_hidden_border_is_cut_off(tmp_path: Path, borders: dict[str, int], form: str) -> None:
    pictures = moving(4)
    source = cropped(tmp_path, frames=pictures, pix_fmt="yuv444p", **borders)
    if form == "mov":
        source = remux(source, tmp_path / "in.mov")
        assert b"clap" in source.read_bytes()
    top, bottom, left, right = (borders.get(side, 0) for side in ("top", "bottom", "left", "right"))
    result = run(source, tmp_path / "out.mkv", options=EncodeOptions(options=LOSSLESS))
    size = f"{64 - left - right}x{48 - top - bottom}"
    assert f"hides a border of the 64x48 pictures (crop): {size} are processed" in result.text
    with open_reader(source) as before, open_reader(tmp_path / "out.mkv") as after:
        for whole, first, second in zip(pictures, frames_of(before), frames_of(after), strict=True):
            shown = whole[top : 48 - bottom, left : 64 - right].astype(int)
            assert np.abs(first.rgb - shown).max() <= 4 and np.abs(second.rgb - first.rgb.astype(int)).max() <= 4
        assert not [note for note in after.info.notes if "border" in note]
        assert after.info.sample_aspect_ratio in (None, 1)


def test_border_and_shape(tmp_path: Path) -> None:
    """Matroska's shape is that of the shown part: 64x24 shown as 128x24 has pixels of 2:1."""
    shape = b"\x54\xb0\x81\x80" + b"\x54\xba\x81\x18" + b"\x54\xb2\x81\x00"
    borders = CROP["top"] + b"\x81\x0c" + CROP["bottom"] + b"\x81\x0c"
    source = patched(tmp_path, borders + shape)
    run(source, tmp_path / "out.mkv")
    with open_reader(tmp_path / "out.mkv") as reader:
        assert (reader.info.width, reader.info.height, reader.info.sample_aspect_ratio) == (64, 24, Fraction(2))


def test_border_in_a_segment_and_in_another_codec(tmp_path: Path) -> None:
    source = cropped(tmp_path, top=8, codec="ffv1", options={}, frames=30)
    with open_reader(source, ReadOptions(segment=Segment(0.8))) as reader:
        assert {frame.rgb.shape for frame in frames_of(reader)} == {(40, 64, 3)}


def test_border_of_everything_is_ignored() -> None:
    normalise = Normaliser("in.mov", av.VideoFrame(64, 48, "yuv420p"), (24, 24, 0, 0), stop=False)
    assert (normalise.width, normalise.height) == (64, 48)


def stereo(folder: Path, mode: str) -> Path:
    """A Matroska file with a stereo mode."""
    plain = make_video(folder / "plain.mkv", 4, options=LOSSLESS)
    target = folder / "in.mkv"
    with av.open(str(plain)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        stream.metadata["stereo_mode"] = mode
        for packet in old.demux(video=0):
            if packet.size:
                packet.dts, packet.stream = packet.pts, stream
                new.mux(packet)
    return target


@pytest.mark.parametrize("mode", ["left_right", "right_left", "top_bottom", "row_interleaved_rl"])
@pytest.mark.parametrize("ending", ["mkv", "webm", "mp4", "ts"])
def test_stereo_is_kept_or_said(tmp_path: Path, mode: str, ending: str) -> None:
    result = run(stereo(tmp_path, mode), tmp_path / f"out.{ending}")
    with open_reader(tmp_path / f"out.{ending}") as reader:
        kept = reader.info.stereo_mode
    said = f"is not told of the stereo 3D ({mode})" in result.text
    assert kept == (None if said else mode)
    assert said == (ending in ("mp4", "ts") or (ending == "webm" and mode == "row_interleaved_rl"))


def test_stereo_in_the_pictures_is_kept_in_matroska(tmp_path: Path) -> None:
    """H.264's own mark (frame packing) has no container; Matroska's header takes it."""
    source = make_video(tmp_path / "in.mp4", 4, options={**LOSSLESS, "x264-params": "frame-packing=3"})
    assert "stereo 3D (left_right)" in run(source, tmp_path / "out.mp4").text
    run(source, tmp_path / "out.mkv")
    with open_reader(tmp_path / "out.mkv") as reader:
        assert reader.info.stereo_mode == "left_right"


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
def test_projection_is_said(tmp_path: Path, ending: str) -> None:
    said = run(patched(tmp_path, PROJECTION), tmp_path / f"out.{ending}").text
    assert "the projection of 360-degree pictures" in said
    assert "360" not in run(make_video(tmp_path / "flat.mov", 2), tmp_path / f"flat.{ending}").text


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
@pytest.mark.parametrize("ending", ["webm", "mkv"])
def test_alpha_beside_the_pictures_is_said_and_its_tag_dropped(tmp_path: Path, codec: str, ending: str) -> None:
    source = patched(tmp_path, ALPHA, codec=codec, options={"cpu-used": "8", "deadline": "realtime"})
    result = run(source, tmp_path / f"out.{ending}", options=EncodeOptions(codec=codec))
    assert "an alpha channel beside its pictures: dropped" in result.text
    for path, tag in ((source, "1"), (tmp_path / f"out.{ending}", None)):
        with av.open(str(path)) as container:
            tags = {key.lower(): value for key, value in container.streams.video[0].metadata.items()}
            assert tags.get("alpha_mode") == tag
    assert "alpha" not in run(make_video(tmp_path / "a.mkv", 2), tmp_path / "b.mkv").text
