"""Colours: both conversions against the ITU formulas, and what files are tagged with on the way through."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from tests.media import BT601, BT709, BT2020, FULL, HLG, LIMITED, PQ, Pixels, make_video, moving
from tests.video_run import frames_of, run

from mtu.runtime.video import EncodeOptions, Frame, open_reader, open_writer
from mtu.runtime.video.colour import Colour, FromRGB, ToRGB, colour_of, quarter_turn, upright

WEIGHTS = {BT601: (0.299, 0.114), BT709: (0.2126, 0.0722), BT2020: (0.2627, 0.0593)}
MATRICES = pytest.mark.parametrize("matrix", WEIGHTS)
RANGES = pytest.mark.parametrize("color_range", [LIMITED, FULL])


def itu_yuv(rgb: Pixels, matrix: int, color_range: int) -> np.ndarray:
    """Y'CbCr codes of 8-bit R'G'B' by the formulas of BT.601, BT.709 and BT.2020."""
    red, blue = WEIGHTS[matrix]
    r, g, b = np.moveaxis(rgb / 255.0, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    planes = np.stack([y, (b - y) / (2 * (1 - blue)), (r - y) / (2 * (1 - red))], -1)
    scale, offset = ((255, 255, 255), (0, 128, 128)) if color_range == FULL else ((219, 224, 224), (16, 128, 128))
    return planes * scale + offset


def patches() -> Pixels:
    """64 flat patches of 16 x 16: corners of the cube, grays and random colours."""
    corners = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    grays = [[v, v, v] for v in (1, 16, 64, 128, 235, 254)]
    rest = np.random.default_rng(1).integers(0, 256, (64 - len(corners) - len(grays), 3)).tolist()
    colours = np.array(corners + grays + rest, np.uint8).reshape(8, 8, 3)
    return np.ascontiguousarray(colours.repeat(16, 0).repeat(16, 1))


def centres(picture: np.ndarray) -> np.ndarray:
    return picture[8::16, 8::16].astype(float)


@MATRICES
@RANGES
def test_rgb_to_yuv_is_the_formula(matrix: int, color_range: int) -> None:
    yuv = FromRGB("yuv444p", Colour(matrix, color_range))(patches()).to_ndarray(channel_last=True)
    assert np.abs(centres(yuv) - centres(itu_yuv(patches(), matrix, color_range))).max() <= 2


@MATRICES
@RANGES
@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p", "yuv422p", "nv12", "yuv420p10le", "yuv444p12le"])
def test_yuv_to_rgb_is_the_formula(matrix: int, color_range: int, pix_fmt: str) -> None:
    exact = np.round(itu_yuv(patches(), matrix, color_range)).clip(0, 255).astype(np.uint8)
    source = av.VideoFrame.from_ndarray(exact, "yuv444p", channel_last=True)
    depth_and_layout = source.reformat(format=pix_fmt, src_color_range=color_range, dst_color_range=color_range)
    depth_and_layout.colorspace, depth_and_layout.color_range = matrix, color_range
    colour, _ = colour_of(depth_and_layout)
    assert (colour.matrix, colour.range) == (matrix, color_range)
    assert np.abs(centres(ToRGB(colour)(depth_and_layout)) - centres(patches())).max() <= 2


def test_gray_and_rgb_sources_are_exact() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    gray = av.VideoFrame.from_ndarray(ramp, "gray")
    assert np.abs(ToRGB(colour_of(gray)[0])(gray).astype(int) - ramp[..., None]).max() <= 1
    for form in ("rgb24", "bgr24", "gbrp", "rgba"):
        picture = av.VideoFrame.from_ndarray(patches(), "rgb24").reformat(format=form)
        assert np.array_equal(ToRGB(colour_of(picture)[0])(picture), patches()), form


@pytest.mark.parametrize(("height", "name"), [(480, "BT.601"), (576, "BT.601"), (720, "BT.709"), (1080, "BT.709")])
def test_untagged_rule(height: int, name: str) -> None:
    colour, notes = colour_of(av.VideoFrame(16, height, "yuv420p"))
    assert colour.name == f"{name}, limited range"
    assert name in notes[0] and "not tagged" in notes[0]


def test_unknown_matrix_says_what_is_used() -> None:
    picture = av.VideoFrame(16, 16, "yuv420p")
    picture.colorspace = 8
    colour, notes = colour_of(picture)
    assert colour.matrix == BT601 and "YCgCo" in notes[0] and "BT.601" in notes[0]


def test_yuvj_is_full_range() -> None:
    assert colour_of(av.VideoFrame(16, 16, "yuvj420p"))[0].range == FULL


@MATRICES
@RANGES
@pytest.mark.parametrize(("codec", "ending"), [("libx264", "mp4"), ("ffv1", "mkv"), ("libvpx-vp9", "webm")])
def test_file_keeps_colours_and_tags(tmp_path: Path, matrix: int, color_range: int, codec: str, ending: str) -> None:
    lossless = {"libx264": {"qp": "0"}, "libvpx-vp9": {"lossless": "1"}}.get(codec, {})
    source = make_video(
        tmp_path / "in.mkv", [patches()] * 2, codec="ffv1", pix_fmt="yuv444p", matrix=matrix, color_range=color_range
    )
    target = tmp_path / f"out.{ending}"
    run(source, target, options=EncodeOptions(codec=codec, options=lossless))
    with open_reader(source) as before, open_reader(target) as after:
        first, second = frames_of(before)[0].rgb, frames_of(after)[0].rgb
        assert (after.info.colour.matrix, after.info.colour.range) == (matrix, color_range)
        # VP9 knows one BT.601.
        tagged = int(after.info.stream.codec_context.colorspace)
        assert tagged in {BT601: (5, 6)}.get(matrix, (matrix,)) and after.info.pix_fmt.endswith("444p")
    assert np.abs(first.astype(int) - patches()).max() <= 2
    assert np.abs(first.astype(int) - second).max() <= 2


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_is_tagged_and_not_tone_mapped(tmp_path: Path, transfer: int) -> None:
    source = make_video(
        tmp_path / "in.mkv",
        [patches()] * 2,
        codec="libx265",
        pix_fmt="yuv420p10le",
        options={"x265-params": "log-level=error:lossless=1"},
        matrix=BT2020,
        color_range=LIMITED,
        primaries=9,
        transfer=transfer,
    )
    run(source, tmp_path / "out.mp4", options=EncodeOptions(crf=0))
    with open_reader(source) as before, open_reader(tmp_path / "out.mp4") as after:
        assert "10 bits" in " ".join(before.info.notes) and "not tone-mapped" in " ".join(before.info.notes)
        assert (after.info.colour.matrix, after.info.colour.primaries, after.info.colour.transfer) == (
            BT2020,
            9,
            transfer,
        )
        assert np.abs(centres(frames_of(after)[0].rgb) - centres(patches())).max() <= 4


def test_full_range_mjpeg_and_gray(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", [patches()] * 2, codec="ffv1", pix_fmt="gray", color_range=FULL)
    run(source, tmp_path / "gray.mp4")
    run(source, tmp_path / "out.avi", options=EncodeOptions(codec="mjpeg"))
    for name in ("gray.mp4", "out.avi"):
        with open_reader(source) as before, open_reader(tmp_path / name) as after:
            assert after.info.colour.range == FULL
            assert np.abs(centres(frames_of(after)[0].rgb) - centres(frames_of(before)[0].rgb)).max() <= 4


def test_writer_does_not_keep_the_callers_array(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mkv", moving(6), codec="ffv1", pix_fmt="bgr0")
    buffer = np.empty((48, 64, 3), np.uint8)
    with open_reader(source) as reader:
        want = [frame.rgb for frame in frames_of(reader)]
    options = EncodeOptions(codec="libx264rgb", pix_fmt="rgb24", options={"qp": "0"})
    with open_reader(source) as reader, open_writer(tmp_path / "out.mkv", reader.info, options=options) as writer:
        for event in reader:
            if isinstance(event, Frame):
                buffer[:] = event.rgb
                writer.write(buffer, event)
                buffer[:] = 0
        writer.commit()
    with open_reader(tmp_path / "out.mkv") as reader:
        assert all(np.array_equal(a.rgb, b) for a, b in zip(frames_of(reader), want, strict=True))


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_upright_agrees_with_the_display_matrix(turns: int, flip: bool) -> None:
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    # Clockwise turns, after a mirroring: x' = a x + c y, y' = b x + d y.
    a, b, c, d = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][turns]
    matrix = tuple(65536 * v for v in ((-a if flip else a), (-b if flip else b), 0, c, d, 0, 0, 0, 16384))
    want = np.rot90(picture[:, ::-1] if flip else picture, -turns)
    assert quarter_turn(matrix) and np.array_equal(upright(picture, matrix), want)


def test_other_display_matrices_are_no_quarter_turn() -> None:
    assert not quarter_turn((46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30))
    assert not quarter_turn((131072, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))


def chroma_place(picture: Pixels, axis: int) -> float:
    """Position in pixels of a chroma wave of 32 pixels along an axis."""
    wave = (picture[..., 0].astype(float) - picture[..., 2]).mean(1 - axis)
    return float(np.angle((wave * np.exp(-2j * np.pi * np.arange(64) / 32)).sum()) * 32 / (2 * np.pi))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg4", "mpeg2video", "ffv1", "mjpeg", "libvpx-vp9"])
def test_chroma_does_not_move(tmp_path: Path, codec: str, axis: int) -> None:
    wave = (127 + 100 * np.sin(2 * np.pi * np.arange(64) / 32)).astype(np.uint8)
    picture = np.full((64, 64, 3), 100, np.uint8)
    picture[..., 0] = wave if axis == 1 else wave[:, None]
    picture[..., 2] = 255 - picture[..., 0]
    form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    options = {"libx265": {"x265-params": "log-level=error"}, "mjpeg": {"q": "2"}}.get(codec, {})
    source = make_video(tmp_path / "0.mkv", [picture] * 2, codec=codec, pix_fmt=form, options=options, matrix=BT601)
    # Decoders do not tag these two as sited left, so they are only comparable with themselves.
    target = codec if codec in ("ffv1", "libvpx-vp9") else None
    places = []
    for turn in range(3):
        with open_reader(source) as reader:
            places.append(chroma_place(frames_of(reader)[0].rgb, axis))
        run(source, tmp_path / f"{turn + 1}.mkv", options=EncodeOptions(codec=target))
        source = tmp_path / f"{turn + 1}.mkv"
    # Half a pixel per run would be the error of a wrong siting.
    assert max(places) - min(places) < 0.1
