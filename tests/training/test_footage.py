"""Sharp footage of a user's own as what clips are made of (`mtu-train --data videos:DIR`), alone and beside others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("skimage", "safetensors", "lightning_fabric", "tensorboard", "cv2"):
    pytest.importorskip(package)

from numpy.typing import NDArray  # noqa: E402
from tests import cli  # noqa: E402
from tests.media import make_video  # noqa: E402
from tests.tiny_training import tiny  # noqa: E402

from mtu.core.errors import InvalidInputError, MissingFileError  # noqa: E402
from mtu.training import options, sources  # noqa: E402
from mtu.training.batches import MARGIN  # noqa: E402
from mtu.training.data import footage  # noqa: E402
from mtu.training.data.camera import to_linear, to_srgb  # noqa: E402
from mtu.training.data.flow import motion_between  # noqa: E402
from mtu.training.data.footage import Footage, find_footage, footage_clip  # noqa: E402
from mtu.training.options import Options, read_data  # noqa: E402

__all__ = ["tiny"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


def world(width: int, height: int = 64) -> NDArray[np.uint8]:
    """A landscape with edges and shades, as wide as asked for."""
    rng = np.random.default_rng(5)
    coarse = np.kron(rng.integers(30, 220, (height // 8, width // 8 + 1, 3)), np.ones((8, 8, 1)))[:, :width]
    fine = rng.normal(0, 20, (height, width, 1))
    blurred = sum(np.roll(coarse + fine, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
    return np.clip(blurred, 0, 255).astype(np.uint8)


def panned(count: int, speed: int, size: tuple[int, int] = (64, 96)) -> list[NDArray[np.uint8]]:
    """The landscape passing by, so many pixels a frame."""
    scene = world(size[1] + count * speed, size[0])
    return [np.ascontiguousarray(scene[:, t * speed :][:, : size[1]]) for t in range(count)]


def film(path: Path, pictures: list[NDArray[np.uint8]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_video(path, pictures, options={"crf": "6"})
    return path


@pytest.mark.parametrize(("speed", "steps"), [(1, 1), (4, 4), (9, 8)])
def test_an_exposure_is_the_mean_light_of_all_that_passes_by(speed: int, steps: int) -> None:
    pictures = np.stack(panned(9, speed))
    motion = motion_between(pictures)
    assert footage._steps(motion) == steps
    light = [to_linear(picture / np.float32(255)) for picture in pictures]
    exposed = footage._exposed(light, motion, 4, 4.0, steps)
    scene = to_linear(world(96 + 9 * speed) / np.float32(255))
    truth = np.mean([scene[:, 4 * speed + x :][:, :96] for x in range(-2 * speed, 2 * speed + 1)], 0)
    inner = np.s_[8:-8, 4 * speed : -4 * speed]
    error = np.abs(to_srgb(exposed) - to_srgb(truth.astype(np.float32)))[inner]
    assert error.mean() < 0.002 and np.percentile(error, 99) < 0.02
    # Only the frames themselves, without those made between them, are far from it.
    coarse = np.abs(to_srgb(np.mean(light[2:7], 0)) - to_srgb(truth.astype(np.float32)))[inner]
    assert speed == 1 or coarse.mean() > 4 * error.mean()


def test_light_is_averaged_and_not_pixels() -> None:
    black, white = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    light = [to_linear(picture / np.float32(255)) for picture in (black, white, black, white, white)]
    exposed = footage._exposed(light, np.zeros((5, 16, 16, 2), np.float16), 2, 4.0, 1)
    assert np.rint(255 * to_srgb(exposed)).max() == np.rint(255 * to_srgb(np.float32([0.6])))[0] == 203


def test_a_clip_has_the_frames_of_the_footage_and_is_the_same_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pictures = panned(60, 2)
    found = Footage((film(tmp_path / "a.mkv", pictures),))
    monkeypatch.setattr(footage, "STRIDES", (4,))
    monkeypatch.setattr(footage, "log_uniform", lambda *_: 1.0)
    clip, again = (footage_clip(3, 5, 64, 96, found) for _ in range(2))
    assert (clip.blurred == again.blurred).all() and (clip.sharp == again.sharp).all()
    assert clip.blurred.shape == clip.sharp.shape == (5, 64, 96, 3)
    nearest = [min(range(60), key=lambda t: int(np.abs(pictures[t].astype(int) - sharp).sum())) for sharp in clip.sharp]
    assert (np.diff(nearest) == 4).all()
    known = np.isfinite(clip.motion[1:]).all(-1)
    # What is at x now was 8 pixels further right one frame of the clip earlier.
    assert known.mean() > 0.6 and (np.abs(clip.motion[1:][known] - (0, 8)) < 1).mean() > 0.95
    assert np.abs(clip.blurred.astype(int) - clip.sharp).mean() > 4
    other = footage_clip(4, 5, 64, 96, found)
    assert (other.blurred != clip.blurred).any()


def test_what_stands_still_stays_sharp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = Footage((film(tmp_path / "a.mkv", panned(1, 0) * 30),))
    monkeypatch.setattr(footage, "_developed", lambda exposed, sharp, rng: (exposed, sharp))
    clip: Any = footage_clip(1, 5, 32, 32, found)
    exposed, sharp = clip
    assert np.abs(255 * to_srgb(exposed) - sharp).mean() < 0.5


def test_a_clip_never_goes_over_a_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ten frames, a cut, then as many as a clip needs."""
    dark, bright = [p // 4 for p in panned(10, 1)], [128 + p // 2 for p in panned(40, 1)]
    found = Footage((film(tmp_path / "a.mkv", dark + bright),))
    monkeypatch.setattr(footage, "STRIDES", (1,))
    for seed in range(6):
        clip = footage_clip(seed, 7, 48, 48, found)
        levels = clip.sharp.mean((1, 2, 3))
        assert (levels < 80).all() or (levels > 110).all()


def test_clips_come_from_the_whole_length_of_a_film_with_cuts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scenes too short for the stride that was drawn, but long enough for a smaller one."""
    scenes = [[shade + p // 6 for p in panned(20, 1)] for shade in (0, 90, 200)]
    found = Footage((film(tmp_path / "a.mkv", [picture for scene in scenes for picture in scene]),))
    monkeypatch.setattr(footage, "STRIDES", (1, 6))
    levels = [float(footage_clip(seed, 7, 48, 48, found).sharp.mean()) for seed in range(16)]
    later = sum(level > 80 for level in levels)
    assert 5 <= later < 16 and sum(level > 190 for level in levels) >= 2


@pytest.mark.parametrize("stride", footage.STRIDES)
def test_every_frame_is_exposed_for_as_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stride: int) -> None:
    found = Footage((film(tmp_path / "a.mkv", panned(30, 8)),))
    monkeypatch.setattr(footage, "STRIDES", (stride,))
    monkeypatch.setattr(footage, "log_uniform", lambda *_: 1.0)
    lengths: list[int] = []
    monkeypatch.setattr(footage, "_between", lambda light, *_: lengths.append(0) or light[0])
    monkeypatch.setattr(footage, "_developed", lambda exposed, sharp, rng: None)
    exposed = footage._exposed

    def counted(light: Any, motion: Any, middle: int, length: float, steps: int) -> Any:
        before = len(lengths)
        result = exposed(light, motion, middle, length, steps)
        counts.append((len(lengths) - before, length))
        return result

    counts: list[tuple[int, float]] = []
    monkeypatch.setattr(footage, "_exposed", counted)
    for seed in range(4):
        counts.clear()
        footage_clip(seed, 4, 48, 48, found)
        assert len(counts) == 4 and len(set(counts)) == 1 and counts[0][0] > 0


def test_motion_that_is_hardly_known_is_no_standing_still() -> None:
    motion = np.zeros((3, 10, 10, 2), np.float16)
    assert footage._steps(motion) == 1
    motion[2, 2:] = np.nan
    assert footage._steps(motion) is None


@pytest.mark.parametrize("speed", [31, 0])
def test_footage_of_which_nothing_can_be_made_is_refused(tmp_path: Path, speed: int) -> None:
    found = Footage((film(tmp_path / "fast.mkv", panned(12, speed, (96, 96)) if speed else panned(4, 1)),))
    with pytest.raises(InvalidInputError, match=r"are too few, or move more than 24 pixels.*faster camera"):
        footage_clip(0, 6, 96 if speed else 64, 96, found)


def test_every_folder_is_looked_at_and_what_is_of_no_use_is_named(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    for number in range(3):
        film(root / ("b" if number else "a") / f"{number}.mp4", panned(12, 1))
    film(root / "c" / "short.mp4", panned(11, 1))
    film(root / "c" / "small.mp4", panned(12, 1, (32, 96)))
    (root / "c" / "broken.mov").write_bytes(b"\0\0\0\x18ftypqt  this was a film once")
    (root / "c" / "notes.txt").write_text("no video")
    (root / "c" / ".hidden.mp4").write_bytes(b"")
    said: list[str] = []
    train = find_footage(root, "train", 10, 48, said.append)
    validation = find_footage(root, "validation", 10, 48, said.append)
    assert [path.name for path in validation.paths] == ["0.mp4"]
    assert [path.name for path in train.paths] == ["1.mp4", "2.mp4"]
    assert len(said) == 3 and all(text.startswith("left out: ") for text in said)
    assert any("short.mp4 has 11 frames before its first cut, fewer than the 12 for a clip" in text for text in said)
    assert any("small.mp4 is 96x32, smaller than 48 pixels" in text for text in said)
    assert any("broken.mov" in text for text in said)
    with pytest.raises(InvalidInputError, match="has no videos for train"):
        find_footage(root / "c", "train", 10, 48)
    with pytest.raises(MissingFileError, match="does not exist: give the folder with the videos"):
        find_footage(tmp_path / "nowhere", "train", 10, 48)


def test_a_run_draws_from_all_of_its_data_as_often_as_their_weights_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[str] = []

    def draw(name: str) -> Any:
        return lambda rng, batch: drawn.append(name)

    mixed = sources.Mixed((draw("a"), draw("b")), (0.25, 0.75))
    rng = np.random.default_rng(0)
    for _ in range(400):
        mixed(rng, 0)
    assert 70 < drawn.count("a") < 130
    for number in range(2):
        film(tmp_path / f"{number}.mp4", panned(12, 1, (256, 256)))
    wanted = Options(data=("synthetic", f"videos:{tmp_path}*3"), crop=64, frames=3, batch=1)
    assert wanted.sources == (("synthetic", None, 1.0), ("videos", tmp_path, 3.0))
    made: list[Any] = []

    def make(seed: int, frames: int, side: int, split: str, material: Any) -> None:
        assert (frames, side, split) == (7, 64 + MARGIN, "train")
        made.append(material)

    # A seed is of one material, whichever crop needs it first.
    monkeypatch.setattr(sources, "made_clip", make)
    draws = sources.training_clips(wanted)
    for batch in range(1600):
        draws(rng, batch)
    assert set(made) == {None, Footage((tmp_path / "1.mp4",))} and 180 <= len(made) <= 320
    assert 0.6 < sum(material is not None for material in made) / len(made) < 0.9


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("synthetic*2", ("synthetic", None, 2.0)),
        ("photos:a*b", ("photos", Path("a*b"), 1.0)),
        ("videos:a*0.5", ("videos", Path("a"), 0.5)),
        ("gopro:*3*4", ("gopro", Path("*3"), 4.0)),
    ],
)
def test_data_is_read_with_its_weight(text: str, found: Any) -> None:
    assert read_data(text) == found


@pytest.mark.parametrize("text", ["synthetic*0", "videos:x*0.0", "synthetic*1.2.3", "videos*2", "videos:*2"])
def test_data_without_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="--data is"):
        Options(data=("synthetic", text))


def test_networks_of_pictures_take_one_kind() -> None:
    with pytest.raises(InvalidInputError, match="--data is given 2 times: ifan is trained on one"):
        options.new_options({"preset": "ifan", "data": ("defocus", "defocus:x")})


@pytest.mark.usefixtures("tiny")
def test_the_command_trains_on_footage_and_goes_on(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for number in range(2):
        film(tmp_path / "videos" / f"{number}.mp4", panned(12, 1))
    (tmp_path / "videos" / "2.avi").write_bytes(b"RIFF")
    data = ("--data=synthetic", f"--data=videos:{tmp_path / 'videos'}*2")
    small = ("--crop=16", "--frames=3", "--batch=2", "--device=cpu", "--workers=0")
    ended = cli.run(capsys, "mtu-train", "-o", tmp_path / "run", *data, *small, "--max-steps=6")
    assert ended.code == 0 and "left out: " in ended.err and "2.avi" in ended.err
    assert "optical flow" in ended.err
    ended = cli.run(capsys, "mtu-train", "-o", tmp_path / "run", "--resume", "--device=cpu", "--workers=0", *data[:1])
    assert (
        ended.code == 2
        and "has --data synthetic, videos:" in ended.err
        and "and --data synthetic was given" in ended.err
    )
    ended = cli.run(
        capsys, "mtu-train", "-o", tmp_path / "run", "--resume", "--device=cpu", "--workers=0", "--max-steps=9", *data
    )
    assert ended.code == 0 and "from step 6 to 9" in ended.err
