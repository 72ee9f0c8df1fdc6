"""Tests of mtu.training without its command line. Writes only under tmp_path; needs the extra [train]."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import math
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("skimage", "safetensors", "lightning_fabric", "tensorboard", "cv2"):
    pytest.importorskip(package)

from safetensors.torch import load_file, save_file  # noqa: E402
from tests.calib.test_datasets import make_gopro, write_video  # noqa: E402
from tests.tiny_training import CPU, OPTIONS, TINY, digest, make_tiny, sliding_clip  # noqa: E402
from torch import Tensor  # noqa: E402

from mtu.core.errors import InvalidInputError, MissingFileError, MtuError, OutputError  # noqa: E402
from mtu.core.interface import LOOK_AHEAD, MAX_DISPLACEMENT, WINDOW  # noqa: E402
from mtu.models.checkpoint import random_checkpoint  # noqa: E402
from mtu.models.mtu.architecture import Network  # noqa: E402
from mtu.plugins.correlation_argmax_warp.reference import displacement_vectors, warp  # noqa: E402
from mtu.training import data, losses, options, run  # noqa: E402
from mtu.training.batches import Batch, Batches, MadeClips, RecordedClips, batches, cut, training_clips  # noqa: E402
from mtu.training.data.clips import Clip, make_clip  # noqa: E402
from mtu.training.options import Options, resumed  # noqa: E402
from mtu.training.run import CHECKPOINT, WEIGHTS, Run, new_fabric, train  # noqa: E402
from mtu.training.validation import mean_psnr, restore, validate  # noqa: E402
from mtu.training.weights import centre, initialise, is_centred  # noqa: E402

STILL = MAX_DISPLACEMENT * (2 * MAX_DISPLACEMENT + 1) + MAX_DISPLACEMENT
"""The displacement index of no motion."""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    make_tiny(monkeypatch)
    monkeypatch.setattr(options, "WARM_UP", 1)
    data.kept_clip.cache_clear()
    yield
    data.kept_clip.cache_clear()


# --- losses


def test_image_losses() -> None:
    sharp = torch.zeros(2, 3, 4, 4)
    image = sharp.clone()
    image[0] += 0.2
    assert float(losses.image_loss(image, sharp, sharp, "l1+mse")) == pytest.approx(0.1 + 0.02)
    wrong = sharp + 0.5  # an input worse than all of these, so that nothing is penalised
    logs = math.log(0.04 + 3e-5) + math.log(3e-5)
    assert float(losses.image_loss(image, sharp, wrong, "psnr")) == pytest.approx(0.02 * logs / 2)
    # Halving the error is worth as much in a hard crop as in an easy one, and 50 dB are as good as 60.
    kept, halved = (float(losses.image_loss(sharp + error, sharp, wrong, "psnr")) for error in (0.2, 0.1))
    assert kept - halved == pytest.approx(0.02 * math.log(4), rel=0.01)
    assert float(losses.image_loss(sharp + 1e-5, sharp, wrong, "psnr")) == pytest.approx(
        0.02 * math.log(3e-5), rel=1e-4
    )


def test_at_the_end_of_a_run_a_decibel_lost_counts_three_times() -> None:
    sharp = torch.zeros(2, 3, 4, 4)
    blurred = sharp + 0.1

    def change(error: float, progress: float) -> float:
        got, kept = (losses.image_loss(sharp + e, sharp, blurred, "psnr", progress) for e in (error, 0.1))
        return float(got - kept)

    assert change(0.2, 1.0) == pytest.approx(-3 * change(0.05, 1.0), rel=0.02)
    # At the beginning there is no penalty, and errors below 1e-3 hardly count.
    assert change(0.2, 0.0) == pytest.approx(0.02 * math.log(0.041 / 0.011), rel=1e-3)


def test_a_frame_weighs_its_units_as_equation_1_does() -> None:
    sharp = torch.zeros(1, 3, 16, 16)
    out, inner = sharp + 0.3, [(sharp + 0.1, torch.rand(1, 8, 4, 4)), (sharp + 0.2, torch.rand(1, 8, 4, 4))]
    target = torch.full((1, 4, 4), STILL)

    def loss(x: float) -> float:
        return x + x * x

    image, motion = losses.frame_losses(out, inner, sharp, sharp, None, target, Options())
    assert float(image) == pytest.approx(loss(0.3) + 0.1 * (loss(0.1) + loss(0.2)))
    assert float(motion) == 0
    before = torch.rand(1, 8, 4, 4)
    _, motion = losses.frame_losses(out, inner, sharp, sharp, before, target, Options(motion_weight=0.5))
    parts = [float(losses.motion_loss(features, before, target)) for _, features in inner]
    assert float(motion) == pytest.approx(0.5 * sum(parts))


def test_every_layer_has_a_gradient_in_the_first_frame_too() -> None:
    """Several processes would wait for one that has none."""
    network = Network(TINY["mtu2"], auxiliary=True)
    out, _, inner = network.train_step(list(torch.rand(5, 1, 3, 16, 16)), None)
    target = torch.full((1, 4, 4), STILL)
    sum(losses.frame_losses(out, inner, torch.rand(1, 3, 16, 16), out, None, target, Options())).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


def test_motion_loss_of_a_map_of_one_position() -> None:
    motion = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    # Of 25 pooled terms one is inside, at displacement 0; the other 440 costs are 0.
    rest = math.log(440 + math.exp(1 / 25))
    hit, miss = (float(losses.motion_loss(motion, motion, torch.full((1, 1, 1), t))) for t in (STILL, 0))
    assert (hit, miss) == pytest.approx((rest - 1 / 25, rest))


def test_unknown_positions_do_not_count() -> None:
    motion, before = torch.rand(2, 1, 8, 3, 4)
    motion.requires_grad_()
    whole = torch.randint(0, 441, (1, 3, 4))
    part = whole.clone()
    part[:, :2] = losses.UNKNOWN
    costs = losses.cost_volume(motion, before)
    known = torch.nn.functional.cross_entropy(costs[:, :, 2:], whole[:, 2:])
    assert losses.motion_loss(motion, before, part).item() == pytest.approx(known.item())
    nothing = losses.motion_loss(motion, before, torch.full_like(whole, losses.UNKNOWN))
    nothing.backward()
    assert nothing.item() == 0 and motion.grad is not None and not motion.grad.any()


def test_displacement_targets() -> None:
    motion = torch.zeros(8, 12, 2)
    motion[:, :, 0], motion[:, :, 1] = 4, -8
    index = STILL + 21 - 2
    unknown = losses.UNKNOWN
    # Out of the map below and on the left.
    assert losses.displacement_targets(motion).tolist() == [[unknown, unknown, index], [unknown] * 3]
    motion[2, 10] = math.nan
    assert losses.displacement_targets(motion)[0, 2] == unknown
    motion[2, 10] = torch.tensor((1.9, -5.9))
    assert losses.displacement_targets(motion)[0, 2] == STILL - 1
    wide = torch.zeros(100, 100, 2)
    for pixels, expected in ((40.0, STILL + 10), (42.5, unknown), (-40.0, STILL - 10), (math.inf, unknown)):
        wide[..., 1] = pixels
        targets = losses.displacement_targets(wide)
        assert targets.dtype == torch.int16 and targets.shape == (25, 25) and targets[12, 12] == expected
    assert losses.displacement_targets(torch.zeros(2, 3, 8, 12, 2)).shape == (2, 3, 2, 3)


def test_targets_of_made_clips_lead_to_where_the_picture_was() -> None:
    warped_error = still_error = 0.0
    for seed in range(1, 5):
        clip = make_clip(seed, 3, 96, 96)
        target = losses.displacement_targets(torch.from_numpy(clip.motion[1:])).numpy()
        dy, dx = displacement_vectors(target, MAX_DISPLACEMENT)
        known = (target != losses.UNKNOWN).repeat(4, 1).repeat(4, 2)
        before, now = clip.sharp[:-1].astype(np.float32), clip.sharp[1:].astype(np.float32)
        warped = warp(before.transpose(0, 3, 1, 2), dy, dx, 4).transpose(0, 2, 3, 1)
        warped_error += float(np.abs(warped - now)[known].mean())
        still_error += float(np.abs(before - now)[known].mean())
    assert warped_error < 0.6 * still_error


# --- data


def test_a_cut_turns_pictures_and_motion_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SHARP", 0.1)
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


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(*pair) for pair in zip(a, b, strict=True))


def test_batches_are_what_their_seed_and_number_say(tiny: None) -> None:
    wanted = Options(**OPTIONS)
    source = Batches(wanted, MadeClips(wanted))
    third = source.batch(3)
    assert third.blurred.shape == (7, 2, 3, 16, 16) and third.sharp.shape == (3, 2, 3, 16, 16)
    assert third.blurred.dtype == third.sharp.dtype == torch.uint8
    assert third.target.shape == (3, 2, 4, 4) and third.target.dtype == torch.int16
    # Whatever was asked for before.
    data.kept_clip.cache_clear()
    other = Batches(wanted, MadeClips(wanted))
    assert not equal(other.batch(4), third) and equal(other.batch(3), third)
    another = dataclasses.replace(wanted, seed=1)
    assert not equal(Batches(another, MadeClips(another)).batch(3), third)


def test_the_loader_gives_each_process_its_batches_with_and_without_workers(tiny: None) -> None:
    wanted = Options(**OPTIONS)
    draw = MadeClips(wanted)
    source = Batches(wanted, draw)
    alone = list(itertools.islice(batches(wanted, draw, 1, 2, 0), 3))
    assert all(equal(batch, source.batch(number)) for batch, number in zip(alone, (1, 3, 5), strict=True))
    # A worker is another process, which knows nothing of what a test has changed: no margin of its own.
    recorded = Recorded((sliding_clip(7, 24, 24, (1, 2)), sliding_clip(7, 24, 24, (0, 3))))
    with contextlib.closing(batches(wanted, recorded, 1, 2, 1)) as loader:
        (process,) = multiprocessing.active_children()
        if (status := Path(f"/proc/{process.pid}/status")).exists():
            ignored = int(status.read_text().split("SigIgn:")[1].split()[0], 16)
            assert all(ignored >> (number - 1) & 1 for number in data.LEFT), (
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


def test_made_clips_come_in_shards_and_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(data, "kept_clip", lambda seed, *_: asked.append(seed))
    draw = MadeClips(Options(batch=4, seed=2))

    def drawn(batch: int) -> set[int]:
        asked.clear()
        for seed in range(300):
            draw(np.random.default_rng(seed), batch)
        return {number - 20_000_000 for number in asked}

    assert drawn(5) == {5, 21}
    late = drawn(5 + 16 * 1000)
    assert {number % 16 for number in late} == {5} and len(late) == data.KEPT
    # A clip for every eight crops.
    assert max(late) == 5 + 16 * (1 + 1000 * 4 // 8)


def write_gopro(folder: Path, frames: int = 11, size: tuple[int, int] = (24, 32)) -> Path:
    """A GoPro folder whose frames say where they are from."""
    from mtu.runtime.video import write_png

    clip = sliding_clip(frames, *size, (0, 4))
    for part in ("train", "test"):
        for kind, pictures in (("blur_gamma", clip.blurred), ("sharp", clip.sharp)):
            place = folder / part / f"GOPR_{part}" / kind
            place.mkdir(parents=True)
            for number, picture in enumerate(pictures):
                write_png(place / f"{number:06d}.png", picture)
    return folder


def test_a_data_set_is_read_as_it_lies(tmp_path: Path) -> None:
    folder = write_gopro(tmp_path / "set")
    wanted = Options(data=f"gopro:{folder}", crop=16, frames=3, batch=2)
    draw = training_clips(wanted)
    assert isinstance(draw, RecordedClips)
    batch = Batches(wanted, draw).batch(0)
    assert batch.blurred.shape == (7, 2, 3, 16, 16)
    assert torch.equal(batch.blurred[2:-2], 255 - batch.sharp)
    without = dataclasses.replace(wanted, motion_weight=0)
    unknown = Batches(without, training_clips(without)).batch(0)
    assert torch.equal(unknown.sharp, batch.sharp) and (unknown.target == losses.UNKNOWN).all()
    (clip,) = data.validation_clips(wanted)
    assert clip.sharp.shape == (11, 24, 32, 3) and np.array_equal(clip.blurred, 255 - clip.sharp)


def test_data_sets_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        training_clips(Options(data=f"dvd:{tmp_path / 'nowhere'}"))
    with pytest.raises(InvalidInputError, match="GOPR0372_07_00/blur_gamma"):
        training_clips(Options(data=f"gopro:{tmp_path}"))
    folder = make_gopro(tmp_path)
    with pytest.raises(InvalidInputError, match="fewer than 17 frames"):
        training_clips(Options(data=f"gopro:{folder}"))
    small = write_gopro(tmp_path / "small")
    wanted = Options(data=f"gopro:{small}", crop=32, frames=3)
    with pytest.raises(InvalidInputError, match="is 32x24: smaller than --crop 32"):
        training_clips(wanted)
    # Damage behind a sound header: a loader process's error comes as it is.
    wanted = Options(data=f"gopro:{write_gopro(tmp_path / 'damaged')}", crop=16, frames=3)
    for path in (tmp_path / "damaged/train").rglob("*.png"):
        content = path.read_bytes()
        path.write_bytes(content[:80] + bytes(len(content) - 96) + content[-16:])
    for workers in (0, 1):
        with (
            contextlib.closing(batches(wanted, training_clips(wanted), 0, 1, workers)) as loader,
            pytest.raises(InvalidInputError) as caught,
        ):
            next(loader)
        assert multiprocessing.active_children() == []
        assert "damaged/train/GOPR_train/" in str(caught.value) and "\n" not in str(caught.value)
    write_video(small / "train/other/blur_gamma", small / "train/other/sharp", 11)
    (next((small / "train/other/sharp").iterdir())).write_bytes(
        (small / "train/GOPR_train/sharp/000000.png").read_bytes()
    )
    wanted = Options(data=f"gopro:{small}", crop=16, frames=3, batch=16)
    with pytest.raises(InvalidInputError, match="must have one size"):
        training_clips(wanted)


# --- first weights


def test_centred_kernels_do_not_see_a_common_shift() -> None:
    network = Network(TINY["mtu2"], auxiliary=True)
    initialise(network, torch.Generator().manual_seed(0))
    assert is_centred(network)
    for name in ("HGs.0.enc1.0", "HGs.1.RBs.0.2", "HGs.0.dec1.0", "out", "deblur_layer.0"):
        layer = network.get_submodule(name)
        transposed = isinstance(layer, torch.nn.ConvTranspose2d)
        x = torch.rand(1, layer.weight.shape[0 if transposed else 1], 12, 12)
        middle = [layer(shifted)[..., 4:8, 4:8] for shifted in (x, x + 3)]
        assert torch.allclose(*middle, atol=1e-5)
        assert float(middle[0].detach().std()) > 1e-4
    before = copy.deepcopy(network.state_dict())
    centre(network)
    assert all(torch.allclose(before[name], value, atol=1e-7) for name, value in network.state_dict().items())
    assert not is_centred(random_checkpoint(TINY["mtu2"]).network())


def test_first_weights_are_near_the_identity_and_the_seed_s() -> None:
    networks = [Network(TINY["mtu2"], auxiliary=True) for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        initialise(network, torch.Generator().manual_seed(seed))
    weights = [digest(network.state_dict().values()) for network in networks]
    assert weights[0] == weights[1] != weights[2]
    frames = list(torch.rand(5, 1, 3, 16, 16))
    out, _, _ = networks[0].first(frames)
    assert 1e-5 < (out - frames[2]).abs().mean().item() < 0.1


# --- validation


def test_validation_is_the_gain_over_the_blurred_frames() -> None:
    identity = Network(TINY["mtu2"])
    for value in identity.out.parameters():
        value.data.zero_()
    clip = sliding_clip(3, 16, 24, (0, 1))
    found = validate(identity, [clip] * 6)
    assert found.gains == (0.0,) * 6 and found.gain == 0 and found.kept == (80.0,) * 4
    assert np.array_equal(found.picture, np.concatenate((clip.blurred[1], clip.blurred[1], clip.sharp[1]), 1))
    identity.out.bias.data.fill_(0.1)
    grey = Clip(np.full((3, 16, 24, 3), 100, np.uint8), np.full((3, 16, 24, 3), 126, np.uint8), clip.motion)
    (gain,) = validate(identity, [grey]).gains
    # 25.5 of the missing 26 steps, rounded.
    restored = [picture for picture, _ in restore(identity, grey.blurred)]
    (level,) = {int(value) for picture in restored for value in np.unique(picture)}
    assert level in (125, 126)
    expected = (80.0 if level == 126 else 20 * math.log10(255)) - 20 * math.log10(255 / 26)
    assert gain == pytest.approx(expected, abs=1e-3)
    assert mean_psnr(grey.blurred, grey.sharp) == pytest.approx(20 * math.log10(255 / 26), abs=1e-3)


# --- options


def test_learning_rate_schedules() -> None:
    steps = Options(max_steps=1_300_000, rate=1.0)
    assert [steps.rate_at(step) for step in (0, 199, 399, 999_999)] == pytest.approx([1 / 400, 0.5, 1, 1])
    assert [steps.rate_at(step) for step in (1_000_000, 1_249_999, 1_250_000, 1_300_000)] == pytest.approx(
        [1 / 4, 1 / 4, 1 / 16, 1 / 16]
    )
    cosine = Options(max_steps=10_000, rate=1.0, schedule="cosine")
    assert [cosine.rate_at(step) for step in (2_500, 5_000, 10_000)] == pytest.approx([0.8565, 0.51, 0.02], abs=1e-4)
    rates = [cosine.rate_at(step) for step in range(400, 10_000, 50)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_steps": 0},
        {"batch": 0},
        {"crop": 12},
        {"crop": 18},
        {"frames": 1},
        {"rate": 0.0},
        {"rate": math.nan},
        {"motion_weight": -0.1},
        {"motion_weight": math.inf},
        {"unroll": 0},
        {"average": 1.0},
        {"average": -0.1},
        {"seed": -1},
        {"validate_every": 0},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_their_option(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidInputError, match=f"--{name.replace('_', '-')} is "):
        Options(**wrong)


def test_a_resumed_run_keeps_what_makes_it_the_same_run() -> None:
    saved = Options(seed=3, rate=1e-3)
    assert resumed(saved, {"max_steps": 7, "seed": 3}) == dataclasses.replace(saved, max_steps=7)
    for given in ({"seed": 4}, {"preset": "mtu1"}, {"data": "dvd:x"}):
        with pytest.raises(InvalidInputError, match="start a new run"):
            resumed(saved, given)


# --- a run


def noted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The runs of this test write no TensorBoard log but into this list."""
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(Run, "_log", lambda self, values, picture=None: logged.append(values))
    return logged


def new_run(folder: Path, **changes: object) -> Run:
    wanted = Options(**{**OPTIONS, "max_steps": 1000, **changes})
    return Run(folder, wanted, new_fabric(CPU, folder), say=lambda text: None)


def sliding_batch(wanted: Options, step: tuple[int, int] = (4, -4), crop: int = 16) -> Batch:
    clip = sliding_clip(wanted.frames + 2 * LOOK_AHEAD, crop, crop, step)
    # Grey noise, and blurred frames that are a little darker.
    sharp = np.repeat(clip.sharp[..., :1] // 2 + 64, 3, -1)
    blurred, sharp = (
        (part + np.uint8(shift)).transpose(0, 3, 1, 2)[:, None] for part, shift in ((sharp, 0), (sharp, 30))
    )
    target = losses.displacement_targets(torch.from_numpy(clip.motion[2:-2]))[:, None]
    return Batch(torch.from_numpy(blurred), torch.from_numpy(sharp[2:-2]), target)


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"preset": "mtu1", "image_loss": "psnr"}], ids=str)
def test_a_tiny_network_learns_a_fixed_batch(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, str]
) -> None:
    logged = noted(monkeypatch)
    learning = new_run(tmp_path, motion_weight=0.0, **changes)
    batch = sliding_batch(learning.options)
    for _ in range(10):
        learning.train_batch(batch)
    first, last = (logged[n]["loss/image"] for n in (0, -1))
    assert last < (first - 0.01 if "image_loss" in changes else 0.7 * first)
    assert learning.step == 30 and learning.batch == 10
    assert all(p.dtype == torch.float32 for p in learning.plain.parameters())


def test_the_motion_loss_trains_the_motion_layer(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logged = noted(monkeypatch)
    without, with_it = (new_run(tmp_path, motion_weight=weight, rate=3e-3, image_loss="psnr") for weight in (0.0, 1.0))
    batch = sliding_batch(with_it.options, crop=48)
    before = digest(without.plain.motion_layer.parameters())
    without.train_batch(batch)
    assert digest(without.plain.motion_layer.parameters()) == before and logged[0]["loss/motion"] == 0
    for _ in range(12):
        with_it.train_batch(batch)
    # It cannot be below 5.1: costs are 1 at most, and there are 441 of them. A third of the frames have none.
    first, last = (np.mean([one["loss/motion"] for one in part]) * 3 / 2 for part in (logged[1:3], logged[-3:]))
    assert last < first - 0.08
    assert digest(with_it.plain.motion_layer.parameters()) != before


def test_unrolling_reaches_back_through_the_state(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noted(monkeypatch)
    learning = new_run(tmp_path, unroll=2, frames=5, motion_weight=0.0)
    fresh = copy.deepcopy(learning.plain)
    batch = sliding_batch(learning.options)
    gradients: list[Tensor] = []
    optimise = learning._optimise

    def watched(loss: Tensor) -> None:
        optimise(loss)
        if not gradients:
            gradients.extend(parameter.grad.clone() for parameter in learning.plain.parameters())

    monkeypatch.setattr(learning, "_optimise", watched)
    learning.train_batch(batch)
    # Five frames are two pairs and a single one.
    assert {int(state["step"]) for state in learning.optimiser.state.values()} == {3}
    assert learning.step == 5

    def by_hand(detached: bool) -> Tensor:
        network = copy.deepcopy(fresh)
        frames = list(batch.blurred.float() / 255)
        total, states = torch.zeros(()), None
        for t in range(2):
            window = [frames[t + LOOK_AHEAD + offset] for offset in WINDOW]
            out, states, inner = network.train_step(window, states)
            states = (states[0].clamp(0, 1), *states[1:])
            if detached:
                states = tuple(state.detach() for state in states)
            sharp = batch.sharp[t].float() / 255
            total = (
                total
                + sum(
                    losses.frame_losses(
                        out, inner, sharp, frames[t + LOOK_AHEAD], None, batch.target[t].long(), learning.options
                    )
                )
                / 2
            )
        total.backward()
        whole = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        return whole / max(1.0, float(whole.norm()))

    got = torch.cat([gradient.flatten() for gradient in gradients])
    assert torch.allclose(got, by_hand(False), atol=1e-4)
    assert not torch.allclose(got, by_hand(True), atol=1e-3)


def test_the_average_follows_the_weights(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noted(monkeypatch)
    slow, none = new_run(tmp_path, average=0.5), new_run(tmp_path, average=0.0)
    expected: Tensor | None = None
    follow = slow._average.update_parameters

    def watched(network: Network) -> None:
        nonlocal expected
        now = network.out.weight.detach().double()
        decay = min(0.5, (1 + slow.step) / (10 + slow.step))
        expected = now if expected is None else decay * expected + (1 - decay) * now
        follow(network)

    monkeypatch.setattr(slow._average, "update_parameters", watched)
    for learning in (slow, none):
        for number in range(4):
            learning.train_batch(sliding_batch(learning.options, (number, 1)))
    assert torch.equal(none.average.out.weight, none.plain.out.weight)
    assert torch.allclose(slow.average.out.weight.double(), expected, atol=1e-6)
    assert not torch.allclose(slow.average.out.weight, slow.plain.out.weight, atol=1e-4)


def content(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    return saved


def same(a: object, b: object) -> bool:
    """Equal to the last bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    "changes", [{}, {"unroll": 2, "precision": "bf16"}, {"preset": "mtu1", "schedule": "cosine"}], ids=str
)
def test_an_interrupted_run_resumed_is_the_run_not_interrupted(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any]
) -> None:
    given = {**OPTIONS, "max_steps": 12, **changes}
    noted(monkeypatch)
    ended = train(tmp_path / "whole", given, CPU)
    assert (ended.step, ended.signal) == (12, None)
    train_batch = Run.train_batch

    def interrupted(self: Run, batch: Batch) -> None:
        if self.batch == 1:
            signal.raise_signal(signal.SIGTERM)
        train_batch(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_batch", interrupted)
        before = signal.getsignal(signal.SIGTERM)
        ended = train(tmp_path / "part", given, CPU)
        assert (ended.step, ended.signal) == (6, signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before
    data.kept_clip.cache_clear()
    assert train(tmp_path / "part", {}, CPU, resume=True).step == 12
    whole, part = content(tmp_path / "whole"), content(tmp_path / "part")
    assert same(whole, part)
    assert whole["optimiser"]["state"] and not same(whole["network"], content_of_first_weights(given))


def content_of_first_weights(given: dict[str, Any]) -> dict[str, Tensor]:
    network = Network(TINY[given.get("preset", "mtu2")], auxiliary=True)
    initialise(network, torch.Generator().manual_seed(0))
    return network.state_dict()


def test_a_signal_in_the_last_batch_does_not_spoil_a_run_that_is_done(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noted(monkeypatch)
    train_batch = Run.train_batch

    def interrupted(self: Run, batch: Batch) -> None:
        train_batch(self, batch)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "train_batch", interrupted)
    ended = train(tmp_path, {**OPTIONS, "max_steps": 3}, CPU)
    assert (ended.step, ended.signal) == (3, None) and content(tmp_path)["step"] == 3


@pytest.fixture
def finished(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of a run that is through."""
    noted(monkeypatch)
    train(tmp_path / "run", {**OPTIONS, "max_steps": 3}, CPU)
    return tmp_path / "run"


def test_a_run_goes_on_with_other_options(finished: Path) -> None:
    assert train(finished, {}, CPU, resume=True).step == 3
    assert train(finished, {"max_steps": 5, "rate": 1e-5, "batch": 1}, CPU, resume=True).step == 5
    saved = content(finished)
    assert (saved["options"]["rate"], saved["options"]["batch"], saved["step"], saved["batch"]) == (1e-5, 1, 5, 2)
    assert saved["optimiser"]["param_groups"][0]["lr"] == pytest.approx(1e-5, rel=1) and saved["options"]["seed"] == 0


def test_weights_are_kept_for_export_and_the_best_ones(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, kept = content(finished), load_file(finished / WEIGHTS)
    assert kept.keys() == Network(TINY["mtu2"], auxiliary=True).state_dict().keys()
    before = (finished / WEIGHTS).read_bytes()
    worse = dataclasses.replace(validate(Network(TINY["mtu2"]), [sliding_clip(3, 16, 16, (0, 1))]), gains=(-50.0,))
    monkeypatch.setattr(run, "validate", lambda network, clips: worse)
    train(finished, {"max_steps": 5}, CPU, resume=True)
    assert (finished / WEIGHTS).read_bytes() == before and content(finished)["best"] == saved["best"]
    monkeypatch.setattr(run, "validate", lambda network, clips: dataclasses.replace(worse, gains=(50.0,)))
    assert train(finished, {"max_steps": 7}, CPU, resume=True).best == 50
    assert same(load_file(finished / WEIGHTS), dict(content(finished)["average"]))


def test_runs_that_cannot_be_resumed_or_begun(finished: Path, tmp_path: Path) -> None:
    def refused(message: str, error: type[MtuError] = InvalidInputError, **given: Any) -> None:
        with pytest.raises(error, match=message):
            train(given.pop("folder", finished), given.pop("options", {}), CPU, **given)

    before = (finished / CHECKPOINT).read_bytes()
    refused("holds a run already: add --resume", OutputError)
    refused("--preset mtu1 was given", resume=True, options={"preset": "mtu1"})
    refused("nothing to resume", MissingFileError, resume=True, folder=tmp_path / "none")
    refused("leave --start-from out", resume=True, start_from=finished / WEIGHTS)
    refused("must be above 0", resume=True, options={"rate": -1.0})
    assert not (tmp_path / "none").exists()
    assert (finished / CHECKPOINT).read_bytes() == before
    refused("--preset asks for", folder=tmp_path / "new", start_from=finished / WEIGHTS, options={"preset": "mtu1"})
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        refused("-o is the folder", OutputError, folder=folder, options=OPTIONS)
    assert not (tmp_path / "new").exists() and (tmp_path / "file").read_text() == "mine"


class Harmful:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "list", "tensor", "weights", "part", "options", "code"])
def test_files_that_are_no_checkpoint(finished: Path, tmp_path: Path, damage: str) -> None:
    path, whole = finished / CHECKPOINT, (finished / CHECKPOINT).read_bytes()
    saved = content(finished)
    if damage in ("empty", "text", "cut"):
        path.write_bytes({"empty": b"", "text": b"not a checkpoint\n", "cut": whole[: len(whole) // 2]}[damage])
    elif damage == "code":
        path.write_bytes(pickle.dumps(Harmful(tmp_path / "written"), protocol=2))
    else:
        other = {"list": [1], "tensor": torch.zeros(3, 2), "weights": saved["network"]}
        other["part"] = {name: part for name, part in saved.items() if name != "average"}
        other["options"] = {**saved, "options": {"preset": "mtu2", "colour": "red"}}
        torch.save(other[damage], path)
    with pytest.raises(InvalidInputError, match="is no checkpoint of mtu-train, or damaged"):
        train(finished, {}, CPU, resume=True)
    assert not (tmp_path / "written").exists()


def test_a_checkpoint_of_another_version(finished: Path) -> None:
    torch.save({**content(finished), "format": 99}, finished / CHECKPOINT)
    with pytest.raises(InvalidInputError, match=r"another version of mtu-train: start from weights\.safetensors"):
        train(finished, {}, CPU, resume=True)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    with pytest.raises(
        MtuError, match=r"the loss is (nan|inf) at step [45]: .*last\.ckpt is from before.*lower --rate"
    ):
        train(finished, {"max_steps": 9, "rate": 1e30}, CPU, resume=True)
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_weights_that_are_not_finite_are_never_saved(finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    broken = new_run(finished)
    for network in (broken.plain, broken.average):
        network.out.bias.data[0] = math.nan
    with pytest.raises(MtuError, match="not finite at step 0"):
        broken.keep([sliding_clip(3, 16, 16, (0, 1))])
    with pytest.raises(MtuError, match="not finite at step 0"):
        broken.save()
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_a_full_disk_keeps_the_old_checkpoint(finished: Path) -> None:
    """A file-size limit stands in for a full disk."""
    resource = pytest.importorskip("resource")
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(
            OutputError, match=r"cannot write .*(ckpt|safetensors): File too large; what was there is as it was"
        ):
            train(finished, {"max_steps": 5}, CPU, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_a_new_run_begins_with_the_weights_of_another(finished: Path, tmp_path: Path) -> None:
    said: list[str] = []
    weights = load_file(finished / WEIGHTS)
    weights["out.weight"] += torch.randn_like(weights["out.weight"]) * 0.05
    network = Network(TINY["mtu2"], auxiliary=True)
    network.load_state_dict(weights)
    centre(network)
    save_file(network.state_dict(), tmp_path / "centred.safetensors")
    ended = train(tmp_path / "new", OPTIONS, CPU, start_from=tmp_path / "centred.safetensors", say=said.append)
    assert ended.step == 6
    expected = validate(network, data.validation_clips(Options(**OPTIONS)))
    assert f"step 0: gain {expected.gain:+.3f} dB (worst clip {min(expected.gains):+.2f})" in said[1]
    assert not any(f"gain {expected.gain:+.3f} dB" in line for line in said[2:])


def test_weights_that_are_not_centred_need_no_centre(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(dict(random_checkpoint(TINY["mtu2"]).weights), path)
    with pytest.raises(InvalidInputError, match="add --no-centre"):
        train(tmp_path / "new", OPTIONS, CPU, start_from=path)
    assert train(tmp_path / "new", {**OPTIONS, "centre": False}, CPU, start_from=path).step == 6
    network = Network(TINY["mtu2"], auxiliary=True)
    network.load_state_dict(content(tmp_path / "new")["network"])
    assert not is_centred(network)


def test_kernels_stay_centred(finished: Path) -> None:
    network = Network(TINY["mtu2"], auxiliary=True)
    network.load_state_dict(content(finished)["network"])
    assert is_centred(network)
    assert not same(network.state_dict(), content_of_first_weights({}))


def test_the_log_is_one_that_tensorboard_reads(tiny: None, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, {**OPTIONS, "validate_every": 2}, CPU)
    log = EventAccumulator(str(tmp_path / "logs"))
    log.Reload()
    tags = log.Tags()
    assert tags["images"] == ["validation/blurred_restored_sharp"]
    assert set(tags["scalars"]) == {
        *("loss/image", "loss/motion", "loss/total", "rate", "speed/step_seconds", "speed/waiting_share"),
        *("validation/gain_db", "validation/sharp_kept_db", "validation/worst_gain_db"),
    }
    assert [event.step for event in log.Scalars("loss/total")] == [3, 6]
    assert [event.step for event in log.Scalars("validation/gain_db")] == [0, 3, 6]
    total = [log.Scalars(f"loss/{name}")[0].value for name in ("image", "motion", "total")]
    assert total[0] > 0 and total[1] > 0 and sum(total[:2]) == pytest.approx(total[2], rel=1e-5)


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
    generator = data._whole(loaded)
    assert next(generator) == "batch"
    generator.close()
    assert loaded.shut
