"""Damaged sources: what decodes is given, the rest is said, and nothing crashes."""

from __future__ import annotations

import io
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.media import make_video, moving
from tests.video_run import frames_of, run

from mtu.core.errors import MtuError
from mtu.runtime.video import EncodeOptions, ReadOptions, Segment, damage, open_reader

KINDS: dict[str, dict[str, Any]] = {
    "mp4": {"container_options": {"movflags": "faststart"}},
    "mkv": {},
    "ts": {},
    "avi": {},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    pictures = [np.roll(picture, 7 * index, 1) for index, picture in enumerate(moving(40, 96, 128))]
    settings = {"crf": "20", "g": "10"}
    return {
        ending: make_video(folder / f"clip.{ending}", pictures, audio=True, options=settings, **special)
        for ending, special in KINDS.items()
    }


@pytest.mark.parametrize("ending", KINDS)
def test_whole_files_have_no_damage(clips: dict[str, Path], ending: str) -> None:
    with open_reader(clips[ending]) as reader:
        assert len(frames_of(reader)) == 40 and reader.damage is None and not reader.remarks


@pytest.mark.parametrize("ending", KINDS)
def test_truncated(tmp_path: Path, clips: dict[str, Path], ending: str) -> None:
    data = clips[ending].read_bytes()
    source = tmp_path / f"cut.{ending}"
    source.write_bytes(data[: len(data) * 6 // 10])
    result = run(source, tmp_path / "out.mp4")
    assert 10 < result.frames < 35
    # A transport stream does not know its length: there a cut is not damage.
    assert ending == "ts" or (result.damage is not None and f"after {result.frames} pictures" in result.damage)
    with open_reader(tmp_path / "out.mp4") as reader:
        assert len(frames_of(reader)) == result.frames


@pytest.mark.parametrize("ending", ["mp4", "ts", "avi"])
def test_damaged_in_the_middle(tmp_path: Path, clips: dict[str, Path], ending: str) -> None:
    data = bytearray(clips[ending].read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = bytes(1500)
    source = tmp_path / f"hole.{ending}"
    source.write_bytes(bytes(data))
    with open_reader(source) as reader:
        frames = frames_of(reader)
        assert 25 < len(frames) <= 40
        assert reader.damage is not None and "pictures" in reader.damage
    assert all(later.pts > earlier.pts for earlier, later in pairwise(frames))


def test_a_hole_that_the_container_hides_is_remarked(tmp_path: Path, clips: dict[str, Path]) -> None:
    data = bytearray(clips["mkv"].read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2500] = bytes(2500)
    (tmp_path / "hole.mkv").write_bytes(bytes(data))
    with open_reader(tmp_path / "hole.mkv") as reader:
        frames_of(reader)
        assert reader.damage is not None or any("gaps" in remark for remark in reader.remarks)


def test_endless_damage_ends(tmp_path: Path, clips: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage, "MAX_ERRORS_IN_A_ROW", 5)
    data = bytearray(clips["mp4"].read_bytes())
    data[len(data) // 3 :] = random.Random(0).randbytes(len(data) - len(data) // 3)
    (tmp_path / "noise.mp4").write_bytes(bytes(data))
    with open_reader(tmp_path / "noise.mp4") as reader:
        assert len(frames_of(reader)) >= 5
        assert reader.damage is not None and "damaged packets in a row" in reader.damage


@pytest.mark.parametrize("seed", range(12))
def test_any_damage_ends_in_a_message(tmp_path: Path, clips: dict[str, Path], seed: int) -> None:
    dice = random.Random(seed)
    ending = sorted(KINDS)[seed % len(KINDS)]
    data = bytearray(clips[ending].read_bytes())
    for _ in range(dice.randint(1, 6)):
        place = dice.randrange(len(data))
        data[place : place + dice.choice([1, 20, 500])] = dice.randbytes(dice.choice([1, 20, 500]))
    (tmp_path / f"bad.{ending}").write_bytes(bytes(data))
    try:
        result = run(tmp_path / f"bad.{ending}", tmp_path / "out.mkv")
    except MtuError as error:
        assert f"bad.{ending}" in str(error)
        assert not (tmp_path / "out.mkv").exists()
    else:
        with open_reader(tmp_path / "out.mkv") as reader:
            assert len(frames_of(reader)) == result.frames


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "gray"])
@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize(("cut", "given"), [(-1, 3), (-3000, 3), (-5, 3), (None, 4)])
def test_yuv4mpeg_that_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pix_fmt: str, piped: bool, cut: int | None, given: int
) -> None:
    source = tmp_path / "in.y4m"
    run(make_video(tmp_path / "in.mkv", 4), source, options=EncodeOptions(pix_fmt=pix_fmt))
    data = source.read_bytes()[:cut]
    source.write_bytes(data)
    if piped:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
    with open_reader("-" if piped else source) as reader:
        assert len(frames_of(reader)) == given
        assert (reader.damage is None) == (cut is None)
        assert cut is None or "its last picture is cut off" in str(reader.damage)


def test_yuv4mpeg_that_is_cut_off_behind_the_segment(tmp_path: Path) -> None:
    source = tmp_path / "in.y4m"
    run(make_video(tmp_path / "in.mkv", 4), source)
    source.write_bytes(source.read_bytes()[:-9])
    with open_reader(source, ReadOptions(segment=Segment(0, 0.06))) as reader:
        assert len(frames_of(reader)) == 2 and reader.damage is None
