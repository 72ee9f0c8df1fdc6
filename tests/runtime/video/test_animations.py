"""Animated WebP, APNG (also under the name .png) and GIF as sources: pictures, times, and how often they are played."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.media import Pixels, moving, times
from tests.video_run import frames_of, run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import ReadOptions, Segment, open_reader

Image: Any = pytest.importorskip("PIL.Image", reason="writes the animations (Pillow comes with scikit-image)")
TIMES = [40, 200, 30, 100]
"""Milliseconds of the frames."""


def animation(path: Path, pictures: list[Any], **options: Any) -> Path:
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **({"duration": TIMES, "loop": 0} | options))
    return path


def opaque(count: int = 4) -> list[Any]:
    return [Image.fromarray(picture) for picture in moving(count)]


def small_changes() -> list[Any]:
    """Pictures of which a writer stores the changed part alone."""
    first = moving(1)[0]
    pictures = [first]
    for at in (4, 21, 30):
        changed = pictures[-1].copy()
        changed[at : at + 9, at + 3 : at + 20] = at * 7
        pictures.append(changed)
    return [Image.fromarray(picture) for picture in pictures]


def transparent() -> list[Any]:
    pictures = []
    for index, rgb in enumerate(moving(4)):
        alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
        alpha[index * 5 : index * 5 + 20, 8:30] = 60 * index
        pictures.append(Image.fromarray(np.concatenate((rgb, alpha), 2), "RGBA"))
    return pictures


def on_black(path: Path) -> list[Pixels]:
    from PIL import ImageSequence

    shown = []
    for picture in ImageSequence.Iterator(Image.open(path)):
        pixels = np.asarray(picture.convert("RGBA")).astype(int)
        shown.append(((pixels[..., :3] * pixels[..., 3:] + 127) // 255).astype(np.uint8))
    return shown


@pytest.mark.parametrize(
    ("pictures", "options", "tolerance"),
    [
        (opaque, {"lossless": True}, 0),
        (opaque, {"quality": 95}, 5),
        (small_changes, {"lossless": True, "minimize_size": True}, 0),
        (transparent, {"lossless": True}, 0),
        (transparent, {"quality": 95, "allow_mixed": True}, 5),
    ],
)
def test_animated_webp(tmp_path: Path, pictures: Any, options: dict[str, Any], tolerance: int) -> None:
    path = animation(tmp_path / "a.webp", pictures(), **options)
    with open_reader(path) as reader:
        frames = frames_of(reader)
        assert (reader.info.width, reader.info.height, reader.info.frame_count, reader.damage) == (64, 48, 4, None)
        assert ("shown on black" in " ".join(reader.info.notes)) == (pictures is transparent)
    assert [frame.duration for frame in frames] == TIMES
    assert [frame.pts for frame in frames] == [0, 40, 240, 270]
    for frame, want in zip(frames, on_black(path), strict=True):
        assert np.abs(frame.rgb.astype(int) - want).mean() <= tolerance


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.apng"])
def test_apng_under_any_name(tmp_path: Path, name: str) -> None:
    path = animation(tmp_path / name, small_changes(), format="PNG")
    with open_reader(path) as reader:
        frames = frames_of(reader)
    starts = [float(frame.pts * frame.time_base) for frame in frames]
    assert starts == pytest.approx([0, 0.04, 0.24, 0.27])
    for frame, want in zip(frames, small_changes(), strict=True):
        assert np.array_equal(frame.rgb, np.asarray(want))


@pytest.mark.parametrize(
    ("ending", "written", "plays"),
    [
        *(("webp", plays, plays) for plays in (0, 1, 3)),
        *(("png", plays, plays) for plays in (0, 1, 3)),
        ("gif", 0, 0),
        ("gif", None, 1),
        ("gif", 2, 3),
    ],
)
def test_how_often_it_is_played(tmp_path: Path, ending: str, written: int | None, plays: int) -> None:
    path = animation(tmp_path / f"a.{ending}", opaque(), loop=written)
    with open_reader(path) as reader:
        assert reader.info.loops == plays


def test_what_is_no_animation_is_not_played_again(tmp_path: Path) -> None:
    for ending in ("png", "webp", "jpg"):
        opaque(1)[0].save(tmp_path / f"a.{ending}")
        with open_reader(tmp_path / f"a.{ending}") as reader:
            assert reader.info.loops is None and reader.info.frame_count == 1


@pytest.mark.parametrize("ending", ["webp", "png", "gif"])
def test_an_animation_becomes_a_video_with_its_times(tmp_path: Path, ending: str) -> None:
    result = run(animation(tmp_path / f"a.{ending}", opaque()), tmp_path / "out.mkv")
    assert result.frames == 4 and result.damage is None
    assert [round(float(time), 2) for time in times(tmp_path / "out.mkv")] == [0, 0.04, 0.24, 0.27]


def test_a_part_of_an_animated_webp(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.webp", small_changes(), lossless=True)
    with open_reader(path, ReadOptions(segment=Segment(0.2, 0.26))) as reader:
        (frame,) = frames_of(reader)
        # It is laid over those before, which are not given.
        assert np.array_equal(frame.rgb, np.asarray(small_changes()[2])) and reader.info.origin == Fraction(240, 1000)
    with pytest.raises(InvalidInputError, match=r"no pictures in segment 5:.* it lasts 0.37 s"):
        open_reader(path, ReadOptions(segment=Segment(5)))


@pytest.mark.parametrize("options", [ReadOptions(rate=Fraction(30)), ReadOptions(video_stream=1)])
def test_what_an_animated_webp_does_not_take(tmp_path: Path, options: ReadOptions) -> None:
    with pytest.raises(InvalidInputError, match="leave"):
        open_reader(animation(tmp_path / "a.webp", opaque()), options)


def test_a_cut_animated_webp_is_damaged(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.webp", opaque(), lossless=True)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    with open_reader(path) as reader:
        frames = frames_of(reader)
        assert 1 <= len(frames) < 4 and reader.damage is not None and "cut off" in reader.damage
    path.write_bytes(data[:60])
    with pytest.raises(InvalidInputError, match="not one picture could be decoded"):
        open_reader(path)


def test_frames_of_no_duration_are_shown_for_a_tenth_of_a_second(tmp_path: Path) -> None:
    path = animation(tmp_path / "a.webp", opaque(), duration=[0, 10, 11, 100])
    with open_reader(path) as reader:
        assert [frame.duration for frame in frames_of(reader)] == [100, 100, 11, 100]


def test_animations_in_a_directory_are_refused(tmp_path: Path) -> None:
    opaque(1)[0].save(tmp_path / "1.png")
    animation(tmp_path / "2.webp", opaque())
    with pytest.raises(InvalidInputError, match=r"holds animations \(2\.webp\): give each by itself"):
        open_reader(tmp_path)


def test_ffmpeg_still_needs_help_with_animated_webp(tmp_path: Path) -> None:
    # Fails when FFmpeg has learned it; then AnimatedWebPReader can go.
    path = animation(tmp_path / "a.webp", opaque())
    with pytest.raises(av.FFmpegError), av.open(str(path)) as container:
        next(container.decode(video=0))
