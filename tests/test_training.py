"""Tests of mtu.calib.clips and mtu.models.training. Writes only under pytest's tmp_path; needs the extra [train]."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")
pytest.importorskip("safetensors")

from safetensors.torch import load_file  # noqa: E402
from torch import Tensor  # noqa: E402

from mtu.calib import clips, demo_clip  # noqa: E402
from mtu.models import training  # noqa: E402
from mtu.models.errors import InvalidInputError, MissingFileError, MtuError  # noqa: E402
from mtu.models.interface import NetworkConfig  # noqa: E402
from mtu.models.network import Network  # noqa: E402

TINY = NetworkConfig(2, 4, 1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny networks gain nothing from threads and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def still(**changes: object) -> clips.Path4:
    zero = np.zeros(4, np.float32)
    parts = {"start": zero, "velocity": zero, "amplitude": np.zeros((4, 1), np.float32)}
    parts |= {"frequency": np.ones((4, 1), np.float32), "phase": np.zeros((4, 1), np.float32)}
    return clips.Path4(**{**parts, **changes})  # type: ignore[arg-type]


def textured_scene(velocity: tuple[float, float], *, shutter: float = 0.8, noise: float = 0.0) -> clips.Scene:
    texture = np.kron(np.random.default_rng(1).random((100, 100, 3)), np.ones((4, 4, 1))).astype(np.float32)
    camera = still(velocity=np.array((*velocity, 0, 0), np.float32))
    return clips.Scene((clips.object_layer(texture, None, still()),), camera, shutter, 15, noise)


# --- the clip maker


def test_a_seed_gives_the_same_clip_again_and_another_one_another() -> None:
    first, again, other = (clips.make_clip(seed, 3, 24, 32) for seed in (5, 5, 6))
    assert first.blurred.shape == first.sharp.shape == (3, 24, 32, 3)
    assert first.blurred.dtype == first.sharp.dtype == np.uint8
    assert np.array_equal(first.blurred, again.blurred) and np.array_equal(first.sharp, again.sharp)
    assert not np.array_equal(first.sharp, other.sharp)


def test_a_longer_clip_begins_with_the_same_sharp_frames() -> None:
    short, long = (clips.make_clip(3, frames, 24, 24) for frames in (2, 4))
    assert np.array_equal(short.sharp, long.sharp[:2])


def test_the_splits_share_no_photograph_and_no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not set(clips.TRAINED_ON) & set(clips.HELD_OUT)
    asked: set[str] = set()
    original = clips.photograph

    def noted(name: str) -> clips.Array:
        asked.add(name)
        return original(name)

    monkeypatch.setattr(clips, "photograph", noted)
    drawn = {}
    splits: tuple[clips.Split, ...] = ("train", "validation")
    for split in splits:
        asked.clear()
        for seed in range(12):
            clips.random_scene(np.random.default_rng(seed), 16, 16, split)
        drawn[split] = set(asked)
    assert drawn["train"] and drawn["train"] <= set(clips.TRAINED_ON)
    assert drawn["validation"] and drawn["validation"] <= set(clips.HELD_OUT)
    train, validation = clips.make_clip(2, 1, 24, 24), clips.make_clip(2, 1, 24, 24, split="validation")
    assert not np.array_equal(train.sharp, validation.sharp)


def test_without_motion_the_blurred_frame_is_the_sharp_one() -> None:
    clip = clips.render(textured_scene((0, 0)), 2, 32, 32, np.random.default_rng(0))
    assert np.abs(clip.blurred.astype(int) - clip.sharp).max() <= 1
    noisy = clips.render(textured_scene((0, 0), noise=1.5), 2, 64, 64, np.random.default_rng(0))
    assert 1 < (noisy.blurred.astype(float) - noisy.sharp).std() < 2


def test_the_blurred_frame_is_the_mean_of_its_exposure_in_linear_light() -> None:
    # A moving edge between black and white: a pixel half covered is the mean of LIGHT, which is 188 in sRGB.
    edge = np.zeros((400, 400, 3), np.float32)
    edge[:, 200:] = 1
    scene = clips.Scene(
        (clips.object_layer(edge, None, still()),), still(velocity=np.array((20, 0, 0, 0), np.float32)), 1.0, 31, 0
    )
    clip = clips.render(scene, 1, 8, 64, np.random.default_rng(0))
    light = clips.to_linear(clip.blurred[0].astype(np.float32) / 255)
    ramp = (np.arange(64) + 0.5 - 32 + 10) / 20
    assert np.abs(light[4, :, 0] - ramp.clip(0, 1)).max() < 0.04
    assert abs(int(clip.blurred[0, 4, 31:33].mean()) - 188) < 6


def test_blur_keeps_the_brightness_of_light_but_not_of_srgb_values() -> None:
    clip = clips.render(textured_scene((9, 4)), 1, 96, 96, np.random.default_rng(0))
    blurred, sharp = (part[0].astype(np.float32) / 255 for part in (clip.blurred, clip.sharp))
    assert ((blurred - sharp) ** 2).mean() > 1e-3
    assert clips.to_linear(blurred).mean() == pytest.approx(clips.to_linear(sharp).mean(), rel=0.03)
    assert blurred.mean() > 1.03 * sharp.mean()


def test_transforms_say_where_the_sharp_frame_went() -> None:
    scene = textured_scene((3, -2))
    clip = clips.render(scene, 2, 64, 64, np.random.default_rng(0))
    matrices = scene.transforms(scene.layers[0], np.arange(2, dtype=np.float32))
    dx, dy = (matrices[1] - matrices[0])[:2, 2]
    assert (dx, dy) == pytest.approx((3, -2))
    here, there = clip.sharp[1, 10:50, 10:50].astype(int), clip.sharp[0, 12:52, 7:47].astype(int)
    assert np.abs(here - there).max() <= 1


@pytest.mark.parametrize("arguments", [(-1, 2, 8, 8), (0, 0, 8, 8), (0, 2, 0, 8)])
def test_impossible_clips_are_refused(arguments: tuple[int, int, int, int]) -> None:
    with pytest.raises(InvalidInputError, match="seed"):
        clips.make_clip(*arguments)


def test_the_demo_takes_only_held_out_photographs() -> None:
    scene = demo_clip.demo_scene()
    assert set(demo_clip.PHOTOGRAPHS) <= set(clips.HELD_OUT)
    clip = clips.render(scene, 1, demo_clip.HEIGHT // 8, demo_clip.WIDTH // 8, np.random.default_rng(0))
    assert clip.blurred.shape == (1, demo_clip.HEIGHT // 8, demo_clip.WIDTH // 8, 3)


# --- training


def test_windows_are_clamped_at_both_ends() -> None:
    frames = [torch.full((1,), float(t)) for t in range(4)]
    numbers = [[int(frame) for frame in window] for window in training.windows(frames)]
    assert numbers == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 1, 2, 3, 3], [1, 2, 3, 3, 3]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_tiny_network_learns_a_fixed_batch(precision: str) -> None:
    torch.manual_seed(0)
    network = Network(TINY, auxiliary=True).train()
    training.initialise(network, torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    frames = [frame + 0.2 for frame in 0.6 * torch.rand(5, 2, 3, 32, 32)]
    sharp, losses = frames[2] - 0.1, []
    states: tuple[Tensor, ...] | None = None
    for _ in range(10):
        loss, states = training.train_frame(network, optimiser, frames, states, sharp, precision=precision)
        losses.append(loss)
    assert losses[-1] < 0.7 * losses[0]
    assert states is not None and not any(state.requires_grad for state in states)
    assert float(states[0].min()) >= 0 and float(states[0].max()) <= 1


def test_a_loss_that_is_not_finite_stops_and_leaves_the_weights() -> None:
    network = Network(TINY, auxiliary=True).train()
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    frames, broken = [torch.rand(1, 3, 16, 16)] * 5, torch.full((1, 3, 16, 16), math.nan)
    with pytest.raises(MtuError, match="the loss is nan"):
        training.train_frame(network, optimiser, frames, None, broken)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_batches_are_cropped_alike_and_repeatable() -> None:
    blurred, sharp = training.draw_batch(7, 3, 2, 16)
    again = training.draw_batch(7, 3, 2, 16)
    assert len(blurred) == len(sharp) == training.FRAMES
    assert blurred[0].shape == (2, 3, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(blurred + sharp, itertools.chain(*again), strict=True))
    # Sharp and blurred frames of one crop show the same thing.
    assert float((torch.stack(blurred) - torch.stack(sharp)).abs().mean()) < 0.2


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"FRAMES": 3, "CLIP_SIZE": 24, "VALIDATION_SIZE": 16, "VALIDATION_SEEDS": (2,)}.items():
        monkeypatch.setattr(training, name, value)
    monkeypatch.setattr(training, "preset_config", lambda name: TINY)
    training.pooled_clip.cache_clear()
    yield
    training.pooled_clip.cache_clear()


def test_an_interrupted_run_resumed_is_the_run_not_interrupted(quick: None, tmp_path: Path) -> None:
    options = training.Options(steps=12, crop=16, batch=2, workers=1, precision="float32")
    whole = training.Run(options, tmp_path / "whole")
    whole.go()
    assert whole.step == 12
    part = training.Run(options, tmp_path / "part")
    part.train_sequence(), part.train_sequence()
    part.save(0.0)
    resumed = training.Run(options, tmp_path / "part", resume=True)
    assert resumed.step == 6
    resumed.go()
    weights = [load_file(tmp_path / name / "last.safetensors") for name in ("whole", "part")]
    assert weights[0].keys() == weights[1].keys() == Network(TINY, auxiliary=True).state_dict().keys()
    assert all(torch.allclose(value, weights[1][name], atol=1e-6) for name, value in weights[0].items())
    log = (tmp_path / "part" / "log.csv").read_text().splitlines()
    assert len(log) == 3 and log[0].startswith("minutes,step,rate,loss,gain_db,clip2")


def test_stop_saves_and_ends(quick: None, tmp_path: Path) -> None:
    run = training.Run(training.Options(minutes=60, crop=16, workers=1), tmp_path)
    run.stop = True
    run.go()
    assert {path.name for path in tmp_path.iterdir()} == {
        "last.pt",
        "last.safetensors",
        "weights.safetensors",
        "log.csv",
    }
    Network(TINY, auxiliary=True).load_state_dict(load_file(tmp_path / "weights.safetensors"))


def test_a_second_worker_steps_the_same_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training, "VALIDATION_SEEDS", (2,))
    monkeypatch.setattr(training, "VALIDATION_SIZE", 16)
    run = training.Run(training.Options(preset="mtu1", minutes=60, crop=16, batch=1, workers=2), tmp_path)
    before = run.network.out.weight.detach().clone()

    def only_watch() -> float:
        run.stop = not torch.equal(run.network.out.weight, before)
        time.sleep(0.05)
        return 0.0

    monkeypatch.setattr(run, "train_sequence", only_watch)
    run.go()
    assert not torch.equal(run.network.out.weight, before)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    training.save_atomically(path, lambda part: part.write_text("old"))

    def fail(part: Path) -> None:
        part.write_text("half")
        raise RuntimeError("no space left")

    with pytest.raises(RuntimeError, match="no space"):
        training.save_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_resume_without_a_checkpoint_and_a_run_without_an_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"last\.pt"):
        training.Run(training.Options(steps=1), tmp_path, resume=True)
    with pytest.raises(InvalidInputError, match="--minutes or --steps"):
        training.Run(training.Options(), tmp_path)


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert training.main(["--out", str(tmp_path), "--preset", "mtu3", "--steps", "1"]) == 2
    assert "mtu10-large" in capsys.readouterr().err


def test_centred_kernels_do_not_see_a_common_shift() -> None:
    network = Network(TINY, auxiliary=True)
    training.initialise(network, torch.Generator().manual_seed(0))
    for name in ("HGs.0.enc1.0", "HGs.1.RBs.0.2", "HGs.0.dec1.0", "out"):
        layer = network.get_submodule(name)
        assert isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
        transposed = isinstance(layer, torch.nn.ConvTranspose2d)
        x = torch.rand(1, layer.weight.shape[0 if transposed else 1], 12, 12)
        middle = [layer(shifted)[..., 4:8, 4:8] for shifted in (x, x + 3)]
        assert torch.allclose(*middle, atol=1e-5)
        assert float(middle[0].detach().std()) > 1e-4
