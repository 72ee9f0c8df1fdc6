"""Animations: how often they are played, their times, and the colours of GIF."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from tests.media import Pixels, make_video, moving, times
from tests.video_run import frames_of, run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import EncodeOptions, open_reader, open_writer, parse_muxer_options, write_png
from mtu.runtime.video.pictures.header import read_header

OPTION = {"gif": "loop", "apng": "plays", "webp": "loop"}
CODEC = {"gif": ("gif", "rgb8"), "apng": ("apng", "rgb24"), "webp": ("libwebp_anim", "bgra")}


def animation(path: Path, plays: int, frames: list[Pixels] | int = 4) -> Path:
    """An animation that is played so many times, 0 for ever."""
    kind = path.suffix[1:]
    value = {0: 0, 1: -1}.get(plays, plays - 1) if kind == "gif" else plays
    codec, form = CODEC[kind]
    return make_video(path, frames, codec=codec, pix_fmt=form, container_options={OPTION[kind]: str(value)})


@pytest.mark.parametrize("plays", [0, 1, 2, 7])
@pytest.mark.parametrize("target", ["gif", "apng", "webp"])
@pytest.mark.parametrize("source", ["gif", "apng", "webp"])
def test_number_of_plays_survives(tmp_path: Path, source: str, target: str, plays: int) -> None:
    path = animation(tmp_path / f"in.{source}", plays)
    assert read_header(path).loops == plays
    assert run(path, tmp_path / f"out.{target}").frames == 4
    assert read_header(tmp_path / f"out.{target}").loops == plays


@pytest.mark.parametrize("target", ["gif", "apng", "webp"])
def test_a_video_becomes_an_animation_for_ever(tmp_path: Path, target: str) -> None:
    source = make_video(tmp_path / "in.mp4", 4, audio=True)
    said = run(source, tmp_path / f"out.{target}").text
    assert f"{target} cannot hold audio stream 1 (aac, eng): dropped (it holds pictures only" in said
    assert read_header(tmp_path / f"out.{target}").loops == 0
    options = EncodeOptions(muxer_options=parse_muxer_options([f"{OPTION[target]}=3"]))
    run(source, tmp_path / f"thrice.{target}", options=options)
    assert read_header(tmp_path / f"thrice.{target}").loops == (4 if target == "gif" else 3)


@pytest.mark.parametrize(
    ("source", "plays", "words"),
    [("gif", 0, "for ever"), ("apng", 3, "3 times"), ("webp", 2, "2 times"), ("gif", 1, "")],
)
def test_lost_number_of_plays_is_said(tmp_path: Path, source: str, plays: int, words: str) -> None:
    path = animation(tmp_path / f"in.{source}", plays)
    said = run(path, tmp_path / "out.mkv").text
    assert (f"matroska does not say how often it is played: the source is, {words}" in said) is bool(words)


def test_pictures_become_an_animation(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index, rgb in enumerate(moving(3)):
        write_png(tmp_path / "in" / f"{index}.png", rgb)
    for ending in ("gif", "apng", "webp"):
        assert run(tmp_path / "in", tmp_path / f"out.{ending}").frames == 3
        assert read_header(tmp_path / f"out.{ending}").loops == 0


@pytest.mark.parametrize("target", ["gif", "apng", "webp"])
def test_times_of_an_animation(tmp_path: Path, target: str) -> None:
    pts = [0, 40, 120, 160, 500]
    source = make_video(tmp_path / "in.mkv", 5, pts=pts, time_base=Fraction(1, 1000))
    run(source, tmp_path / f"out.{target}")
    with open_reader(tmp_path / f"out.{target}") as reader:
        assert [frame.pts * frame.time_base * 1000 for frame in frames_of(reader)] == pts


def test_rates_that_gif_does_not_know(tmp_path: Path) -> None:
    fast = make_video(tmp_path / "fast.mp4", 5, rate=120, time_base=Fraction(1, 120))
    with open_reader(fast) as reader, pytest.raises(InvalidInputError, match=r"at most 100 .* not 120: choose \.apng"):
        open_writer(tmp_path / "out.gif", reader.info)
    quick = make_video(tmp_path / "quick.mp4", 5, rate=60, time_base=Fraction(1, 60))
    assert "most programs show a GIF of 60 pictures per second slower" in run(quick, tmp_path / "out.gif").text
    assert times(tmp_path / "out.gif") == [Fraction(tick, 100) for tick in (0, 2, 3, 5, 7)]


def error(path: Path, pictures: list[Pixels]) -> float:
    """PSNR of a file's pictures, in dB."""
    with open_reader(path) as reader:
        pairs = list(zip(frames_of(reader), pictures, strict=True))
    squares = np.mean([np.square(frame.rgb.astype(float) - rgb).mean() for frame, rgb in pairs])
    return float(10 * np.log10(255**2 / max(squares, 1e-6)))


def ramps(count: int) -> list[Pixels]:
    """Smooth pictures of many colours that differ from one to the next."""
    across, down = np.meshgrid(np.linspace(0, 1, 64), np.linspace(0, 1, 48))
    return [
        np.stack([across * 200, down * 90 + 20 * index, 60 + across * down * 120], -1).astype(np.uint8)
        for index in range(count)
    ]


def test_palette_is_made_for_the_video(tmp_path: Path) -> None:
    pictures = ramps(5)
    source = make_video(tmp_path / "in.mkv", pictures, codec="ffv1", pix_fmt="bgr0")
    run(source, tmp_path / "out.gif")
    run(source, tmp_path / "fixed.gif", options=EncodeOptions(pix_fmt="rgb8"))
    # The fixed palette has 8 levels of red and green, 4 of blue.
    assert error(tmp_path / "out.gif", pictures) > error(tmp_path / "fixed.gif", pictures) + 10


@pytest.mark.parametrize("colours", ["few", "gray", "one", "source"])
def test_palette_of_few_colours_is_exact(tmp_path: Path, colours: str) -> None:
    base = moving(3)
    pictures = {
        "few": [rgb // 64 * 64 for rgb in base],
        "gray": [np.repeat(rgb[..., :1], 3, 2) for rgb in base],
        "one": [np.full_like(rgb, 77 * index) for index, rgb in enumerate(base)],
        "source": base,
    }[colours]
    source = make_video(tmp_path / "in.mkv", pictures, codec="ffv1", pix_fmt="bgr0")
    if colours == "source":
        # What has been a GIF once stays as it is.
        run(source, tmp_path / "in.gif")
        source = tmp_path / "in.gif"
        with open_reader(source) as reader:
            pictures = [frame.rgb for frame in frames_of(reader)]
    run(source, tmp_path / "out.gif")
    assert error(tmp_path / "out.gif", pictures) > 60


def test_colours_of_webp(tmp_path: Path) -> None:
    pictures = ramps(3)
    source = make_video(tmp_path / "in.mkv", pictures, matrix=1, color_range=2)  # WebP is BT.601 in limited range
    run(source, tmp_path / "out.webp")
    assert error(tmp_path / "out.webp", pictures) > 38
