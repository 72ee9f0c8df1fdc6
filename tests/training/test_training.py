"""Tests of a training run without its command line: first weights, validation, learning. Writes only under tmp_path."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("skimage", "safetensors", "lightning_fabric", "tensorboard", "cv2"):
    pytest.importorskip(package)

from tests.tiny_training import CPU, OPTIONS, TINY, digest, new_run, noted, sliding_clip, tiny  # noqa: E402
from torch import Tensor  # noqa: E402

from mtu.core.errors import InvalidInputError  # noqa: E402
from mtu.models.checkpoint import random_checkpoint  # noqa: E402
from mtu.models.mtu.architecture import Network  # noqa: E402
from mtu.models.mtu.config import LOOK_AHEAD, WINDOW  # noqa: E402
from mtu.training import losses  # noqa: E402
from mtu.training.batches import Batch  # noqa: E402
from mtu.training.data.scene import Clip  # noqa: E402
from mtu.training.options import Options, resumed  # noqa: E402
from mtu.training.start import train  # noqa: E402
from mtu.training.validation import mean_psnr, restore, validate  # noqa: E402
from mtu.training.weights import centre, initialise, is_centred  # noqa: E402

__all__ = ["tiny"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert not is_centred(random_checkpoint("mtu", dataclasses.asdict(TINY["mtu2"])).network())


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
            window = [frames[t + LOOK_AHEAD + offset] for offset in WINDOW.values()]
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
