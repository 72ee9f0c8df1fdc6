"""Streams whose pictures change on the way: colours, size, pixel aspect."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.media import BT601, BT709, BT2020, FULL, LIMITED, PQ, Pixels, make_video
from tests.video_run import frames_of, run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import EncodeOptions, ReadOptions, open_reader
from mtu.runtime.video.colour import PrimariesChange

LOSSLESS = {"qp": "0", "preset": "ultrafast"}
GREEN = (40, 160, 70)


def flat(height: int = 48, width: int = 64) -> list[Pixels]:
    return [np.full((height, width, 3), GREEN, np.uint8)] * 4


def join(folder: Path, *parts: dict[str, Any]) -> Path:
    """A transport stream whose parts are made by `make_video` with these options, four pictures each."""
    data = b""
    for index, part in enumerate(parts):
        options = {
            "frames": flat(),
            "options": LOSSLESS,
            "matrix": BT709,
            "pts": range(4 * index, 4 * index + 4),
            **part,
        }
        data += make_video(folder / f"part{index}.ts", options.pop("frames"), **options).read_bytes()
    (folder / "in.ts").write_bytes(data)
    return folder / "in.ts"


COLOURS = [
    ({"matrix": BT709}, {"matrix": BT601}),
    ({"matrix": BT709, "color_range": LIMITED}, {"matrix": BT709, "color_range": FULL}),
    ({"matrix": BT601, "color_range": FULL}, {"matrix": BT2020, "color_range": LIMITED}),
    ({"matrix": BT709}, {"matrix": BT601}, {"matrix": BT709}, {"matrix": BT2020}),
    ({"matrix": BT709, "pix_fmt": "yuv444p"}, {"matrix": BT601, "pix_fmt": "yuv420p"}),
]


@pytest.mark.parametrize("parts", COLOURS, ids=str)
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_colours_are_followed(tmp_path: Path, parts: tuple[dict[str, Any], ...], ending: str) -> None:
    result = run(join(tmp_path, *parts), tmp_path / f"out.{ending}", options=EncodeOptions(options=LOSSLESS))
    assert result.frames == 4 * len(parts)
    assert "the colours change at picture 4 from" in result.text and "the output is" in result.text
    with open_reader(tmp_path / f"out.{ending}") as reader:
        for frame in frames_of(reader):
            assert np.abs(frame.rgb[20, 30].astype(int) - GREEN).max() <= 3
        assert not reader.remarks


def test_equal_tags_are_no_change(tmp_path: Path) -> None:
    said = run(join(tmp_path, {"matrix": 5}, {"matrix": 6}), tmp_path / "out.mkv").text
    assert "change" not in said


def test_primaries_are_followed(tmp_path: Path) -> None:
    source = join(tmp_path, {"matrix": BT709, "primaries": 1}, {"matrix": BT709, "primaries": 9})
    result = run(source, tmp_path / "out.mkv", options=EncodeOptions(options=LOSSLESS))
    assert "the primaries change at picture 4 from BT.709 primaries to BT.2020 primaries: each picture" in result.text
    with open_reader(tmp_path / "out.mkv") as reader:
        shown = [frame.rgb[20, 30].astype(int) for frame in frames_of(reader)]
        # What a wide green is in the narrow primaries: less red, more green.
        wide = PrimariesChange(9, 1)(np.array([[GREEN]], np.uint8))[0, 0]
        assert np.abs(shown[0] - GREEN).max() <= 3 and np.abs(shown[-1] - wide).max() <= 3
        assert wide[0] < GREEN[0] - 10 and wide[1] > GREEN[1]


def test_change_of_primaries() -> None:
    grays = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    assert np.abs(PrimariesChange(6, 1)(grays).astype(int) - grays).max() <= 1
    picture = np.random.default_rng(0).integers(40, 200, (8, 8, 3)).astype(np.uint8)
    there = PrimariesChange(1, 9)(picture)
    assert np.abs(PrimariesChange(9, 1)(there).astype(int) - picture).max() <= 3
    # BT.709 red in BT.2020, linear light (BT.2087): 0.6274, 0.0691, 0.0164.
    red = PrimariesChange(1, 9)(np.array([[[255, 0, 0]]], np.uint8))[0, 0] / 255
    assert np.abs(red**2.4 - (0.6274, 0.0691, 0.0164)).max() < 0.01


def test_change_of_the_dynamic_range_is_said(tmp_path: Path) -> None:
    sdr, hdr = {"matrix": BT709, "primaries": 1, "transfer": 1}, {"matrix": BT2020, "primaries": 9, "transfer": PQ}
    assert "the dynamic range changes at picture 4" in run(join(tmp_path, sdr, hdr), tmp_path / "out.mkv").text


@pytest.mark.parametrize("height", [24, 96, 50])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_other_sizes_are_scaled(tmp_path: Path, height: int, ending: str) -> None:
    source = join(tmp_path, {}, {"frames": flat(height, height * 4 // 3 // 2 * 2)}, {})
    result = run(source, tmp_path / f"out.{ending}")
    assert result.frames == 12 and result.damage is None
    assert (
        f"the size changes at picture 4 from 64x48 to {height * 4 // 3 // 2 * 2}x{height} and 1 times more"
        in result.text
    )
    assert "scaled to 64x48" in result.text
    with open_reader(tmp_path / f"out.{ending}") as reader:
        for frame in frames_of(reader):
            assert frame.rgb.shape == (48, 64, 3)
            assert np.abs(frame.rgb[2:-2, 2:-2].astype(int) - GREEN).max() <= 6  # no bars


def test_scaling_keeps_places_and_details(tmp_path: Path) -> None:
    """A sine that is drawn in both sizes is the same one after scaling."""
    x = (np.arange(256) + 0.5) / 256
    big = (128 + 90 * np.sin(2 * np.pi * 6 * x)).astype(np.uint8)
    small = (128 + 90 * np.sin(2 * np.pi * 6 * (np.arange(128) + 0.5) / 128)).astype(np.uint8)
    pictures = [
        np.ascontiguousarray(np.broadcast_to(wave[None, :, None], (len(wave) // 2, len(wave), 3)))
        for wave in (small, big)
    ]
    source = join(tmp_path, {"frames": pictures[:1] * 4}, {"frames": pictures[1:] * 4})
    with open_reader(source) as reader:
        frames = frames_of(reader)
    assert np.abs(frames[-1].rgb[32, 4:-4].astype(int) - frames[0].rgb[32, 4:-4]).max() <= 6


def test_another_shape_gets_bars(tmp_path: Path) -> None:
    wide, tall = {"frames": flat(48, 128)}, {"frames": flat(96, 64)}
    with open_reader(join(tmp_path, {}, wide, tall)) as reader:
        frames = frames_of(reader)
    lit = [np.abs(frame.rgb.astype(int) - GREEN).max(2) < 30 for frame in frames]
    assert lit[0].all()
    assert lit[4].sum() == 64 * 24 and lit[4][12:36].all()  # twice as wide: half as high
    assert lit[8].sum() == 32 * 48 and lit[8][:, 16:48].all()


def test_anamorphic_pictures_of_another_size_keep_their_shape(tmp_path: Path) -> None:
    """48x48 with pixels of 4:3 has the shape of 64x48 with square ones: no bars."""
    narrow = {"frames": flat(48, 48), "sar": Fraction(4, 3)}
    with open_reader(join(tmp_path, {"sar": Fraction(1)}, narrow)) as reader:
        assert all(np.abs(frame.rgb.astype(int) - GREEN).max() < 30 for frame in frames_of(reader))


def test_change_of_the_aspect_is_said(tmp_path: Path) -> None:
    said = run(join(tmp_path, {"sar": Fraction(16, 15)}, {"sar": Fraction(64, 45)}), tmp_path / "out.mp4").text
    assert "the pixel aspect changes at picture 4 from 16/15 to 64/45" in said and "size" not in said


def test_size_change_is_refused_on_request(tmp_path: Path) -> None:
    source = join(tmp_path, {}, {"frames": flat(96, 128)})
    with (
        open_reader(source, ReadOptions(on_size_change="stop")) as reader,
        pytest.raises(InvalidInputError, match="changes its size from 64x48 to 128x96 after 4 pictures"),
    ):
        list(reader)
