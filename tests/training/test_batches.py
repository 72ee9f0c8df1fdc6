"""Tests of mtu.training.batches: crops, seeds, loader processes, data sets. Writes only under tmp_path."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("skimage", "safetensors", "lightning_fabric", "tensorboard", "cv2"):
    pytest.importorskip(package)

from tests.calib.test_datasets import make_gopro, write_video  # noqa: E402
from tests.tiny_training import OPTIONS, sliding_clip, tiny, write_gopro  # noqa: E402

from mtu.core.errors import InvalidInputError, MissingFileError  # noqa: E402
from mtu.models.mtu.config import LOOK_AHEAD  # noqa: E402
from mtu.training import batches, losses, sources  # noqa: E402
from mtu.training.batches import Batch, Batches, cut  # noqa: E402
from mtu.training.data.scene import Clip  # noqa: E402
from mtu.training.options import Options  # noqa: E402
from mtu.training.sources import RecordedClips, made_clips, training_clips  # noqa: E402

__all__ = ["tiny"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_cut_turns_pictures_and_motion_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SHARP", 0.1)
    frames, seen = 6, set()
    already = negative = 0
    clip = sliding_clip(frames + 2 * LOOK_AHEAD, 22, 20, (2, -3))
    for seed in range(80):
        blurred, sharp, motion = cut(clip, 16, np.random.default_rng(seed))
        assert blurred.shape == (frames + 2 * LOOK_AHEAD, 16, 16, 3) and sharp.shape == (frames, 16, 16, 3)
        assert motion.shape == (frames, 16, 16, 2)
        already += bool((blurred[LOOK_AHEAD:-LOOK_AHEAD] == sharp).all())
        negative += bool((blurred[LOOK_AHEAD:-LOOK_AHEAD] == 255 - sharp).all())
        repeated = bool((blurred[:2] == blurred[2]).all() and (blurred[-2:] == blurred[-3]).all())
        y, x = np.argwhere(np.isfinite(motion[1, :, :, 0])).T
        dy, dx = motion[1, y[0], x[0]].astype(int)
        assert (motion[:, y, x] == (dy, dx)).all()
        inside = (y + dy >= 0) & (y + dy < 16) & (x + dx >= 0) & (x + dx < 16)
        y, x = y[inside], x[inside]
        assert len(y) > 100
        np.testing.assert_array_equal(sharp[1:, y, x], sharp[:-1, y + dy, x + dx])
        seen.add((int(dy), int(dx), repeated))
    assert already + negative == 80 and 2 <= already <= 16
    assert seen == {
        (dy, dx, repeated)
        for a, b in ((2, 3), (3, 2))
        for dy in (a, -a)
        for dx in (b, -b)
        for repeated in (False, True)
    }


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 30, 70), (1.0, 68, 100)])
def test_of_two_places_the_more_blurred_is_cut(
    monkeypatch: pytest.MonkeyPatch, share: float, least: int, most: int
) -> None:
    monkeypatch.setattr(batches, "HARD", share)
    monkeypatch.setattr(batches, "SHARP", 0.0)
    clip = sliding_clip(7, 16, 48, (0, 0))
    clip.blurred[:, :, :24], clip.blurred[:, :, 24:] = clip.sharp[:, :, :24], 255 - clip.sharp[:, :, 24:]
    blurred = 0
    for seed in range(100):
        before, after, _ = cut(clip, 16, np.random.default_rng(seed))
        blurred += int((before[LOOK_AHEAD:-LOOK_AHEAD] != after).mean() > 0.5)
    assert least <= blurred <= most


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


def test_batches_are_what_their_seed_and_number_say(tiny: None) -> None:
    wanted = Options(**OPTIONS)
    source = Batches(wanted, made_clips(wanted))
    third = source.batch(3)
    assert third.blurred.shape == (7, 2, 3, 16, 16) and third.sharp.shape == (3, 2, 3, 16, 16)
    assert third.blurred.dtype == third.sharp.dtype == torch.uint8
    assert third.target.shape == (3, 2, 4, 4) and third.target.dtype == torch.int16
    # Whatever was asked for before.
    other = Batches(wanted, made_clips(wanted))
    assert not equal(other.batch(4), third) and equal(other.batch(3), third)
    another = dataclasses.replace(wanted, seed=1)
    assert not equal(Batches(another, made_clips(another)).batch(3), third)


def test_the_loader_gives_each_process_its_batches_with_and_without_workers(tiny: None) -> None:
    wanted = Options(**OPTIONS)
    draw = made_clips(wanted)
    source = Batches(wanted, draw)
    alone = list(itertools.islice(batches.batches(source, 1, 2, 0), 3))
    assert all(equal(batch, source.batch(number)) for batch, number in zip(alone, (1, 3, 5), strict=True))
    # A worker is another process, which knows nothing of what a test has changed: no margin of its own.
    recorded = Recorded((sliding_clip(7, 24, 24, (1, 2)), sliding_clip(7, 24, 24, (0, 3))))
    with contextlib.closing(batches.batches(Batches(wanted, recorded), 1, 2, 1)) as loader:
        (process,) = multiprocessing.active_children()
        if (status := Path(f"/proc/{process.pid}/status")).exists():
            ignored = int(status.read_text().split("SigIgn:")[1].split()[0], 16)
            assert all(ignored >> (number - 1) & 1 for number in batches.LEFT), (
                "Ctrl-C would end a loader that has just begun"
            )
        helped = list(itertools.islice(loader, 3))
    assert multiprocessing.active_children() == []
    source = Batches(wanted, recorded)
    assert all(equal(batch, source.batch(number)) for batch, number in zip(helped, (1, 3, 5), strict=True))


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Draws one of these."""

    clips: tuple[Clip, ...]

    def __call__(self, rng: np.random.Generator, batch: int) -> Clip:
        return self.clips[int(rng.integers(len(self.clips)))]


def test_what_is_made_comes_in_shards_and_is_replaced() -> None:
    asked: list[int] = []

    def make(seed: int) -> int:
        asked.append(seed - 20_000_000)
        return seed - 20_000_000

    draw = batches.Made(Options(batch=4, seed=2), make)

    def drawn(batch: int) -> set[int]:
        asked.clear()
        found = {draw(np.random.default_rng(seed), batch) for seed in range(300)}
        assert sorted(asked) == sorted(found)  # none of them twice
        return found

    assert drawn(5) == {5, 21}
    late = drawn(5 + 16 * 1000)
    assert {number % 16 for number in late} == {5} and len(late) == batches.KEPT
    # A clip for every eight crops.
    assert max(late) == 5 + 16 * (1 + 1000 * 4 // 8)
    # What will not be drawn again is forgotten; what will be is there still, whatever other shards need.
    draw(np.random.default_rng(0), 6)
    asked.clear()
    newer = {draw(np.random.default_rng(seed), 5 + 16 * 1010) for seed in range(300)}
    assert len(newer) == batches.KEPT and sorted(asked) == sorted(newer - late) and len(asked) == 5
    assert len(draw._kept[5]) == batches.KEPT


def test_a_data_set_is_read_as_it_lies(tmp_path: Path) -> None:
    folder = write_gopro(tmp_path / "set")
    wanted = Options(data=(f"gopro:{folder}",), crop=16, frames=3, batch=2)
    draw = training_clips(wanted)
    assert isinstance(draw, RecordedClips)
    batch = Batches(wanted, draw).batch(0)
    assert batch.blurred.shape == (7, 2, 3, 16, 16)
    assert torch.equal(batch.blurred[2:-2], 255 - batch.sharp)
    without = dataclasses.replace(wanted, motion_weight=0)
    unknown = Batches(without, training_clips(without)).batch(0)
    assert torch.equal(unknown.sharp, batch.sharp) and (unknown.target == losses.UNKNOWN).all()
    (clip,) = sources.validation_clips(wanted)
    assert clip.sharp.shape == (11, 24, 32, 3) and np.array_equal(clip.blurred, 255 - clip.sharp)


def test_data_sets_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        training_clips(Options(data=(f"dvd:{tmp_path / 'nowhere'}",)))
    with pytest.raises(InvalidInputError, match="GOPR0372_07_00/blur_gamma"):
        training_clips(Options(data=(f"gopro:{tmp_path}",)))
    folder = make_gopro(tmp_path)
    with pytest.raises(InvalidInputError, match="fewer than 17 frames"):
        training_clips(Options(data=(f"gopro:{folder}",)))
    small = write_gopro(tmp_path / "small")
    wanted = Options(data=(f"gopro:{small}",), crop=32, frames=3)
    with pytest.raises(InvalidInputError, match="is 32x24: smaller than --crop 32"):
        training_clips(wanted)
    # Damage behind a sound header: a loader process's error comes as it is.
    wanted = Options(data=(f"gopro:{write_gopro(tmp_path / 'damaged')}",), crop=16, frames=3)
    for path in (tmp_path / "damaged/train").rglob("*.png"):
        content = path.read_bytes()
        path.write_bytes(content[:80] + bytes(len(content) - 96) + content[-16:])
    for workers in (0, 1):
        with (
            contextlib.closing(batches.batches(Batches(wanted, training_clips(wanted)), 0, 1, workers)) as loader,
            pytest.raises(InvalidInputError) as caught,
        ):
            next(loader)
        assert multiprocessing.active_children() == []
        assert "damaged/train/GOPR_train/" in str(caught.value) and "\n" not in str(caught.value)
    write_video(small / "train/other/blur_gamma", small / "train/other/sharp", 11)
    (next((small / "train/other/sharp").iterdir())).write_bytes(
        (small / "train/GOPR_train/sharp/000000.png").read_bytes()
    )
    wanted = Options(data=(f"gopro:{small}",), crop=16, frames=3, batch=16)
    with pytest.raises(InvalidInputError, match="must have one size"):
        training_clips(wanted)


def test_a_loader_process_that_aborts_while_it_ends_is_no_error() -> None:
    class Loaded:
        shut = False

        def __iter__(self) -> Loaded:
            return self

        def __next__(self) -> str:
            return "batch"

        def _shutdown_workers(self) -> None:
            self.shut = True
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Aborted.")

    loaded = Loaded()
    generator = batches._whole(loaded)
    assert next(generator) == "batch"
    generator.close()
    assert loaded.shut
