"""Tests of mtu.training.losses."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("skimage", "safetensors", "lightning_fabric", "tensorboard", "cv2"):
    pytest.importorskip(package)

from tests.tiny_training import TINY  # noqa: E402

from mtu.models.mtu.architecture import Inner, Network  # noqa: E402
from mtu.models.mtu.config import MAX_DISPLACEMENT, NetworkConfig  # noqa: E402
from mtu.plugins.correlation_argmax_warp.reference import displacement_vectors, warp  # noqa: E402
from mtu.training import losses  # noqa: E402
from mtu.training.data.clips import make_clip  # noqa: E402
from mtu.training.options import Options  # noqa: E402

STILL = MAX_DISPLACEMENT * (2 * MAX_DISPLACEMENT + 1) + MAX_DISPLACEMENT
"""The displacement index of no motion."""

pytestmark = pytest.mark.usefixtures("one_thread")


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
    out, inner = sharp + 0.3, [Inner(sharp + n, torch.rand(1, 8, 4, 4), None) for n in (0.1, 0.2)]
    target = torch.full((1, 4, 4), STILL)

    def loss(x: float) -> float:
        return x + x * x

    image, motion = losses.frame_losses(out, inner, sharp, sharp, None, target, Options())
    assert float(image) == pytest.approx(loss(0.3) + 0.1 * (loss(0.1) + loss(0.2)))
    assert float(motion) == 0
    before = torch.rand(1, 8, 4, 4)
    _, motion = losses.frame_losses(out, inner, sharp, sharp, before, target, Options(motion_weight=0.5))
    costs = [losses.cost_volume(unit.motion, before) for unit in inner]
    parts = [float(losses.motion_loss(each, target)) for each in costs]
    assert float(motion) == pytest.approx(0.5 * sum(parts))
    matched = [Inner(inner[0].image, inner[0].motion, costs[1]), inner[1]]
    _, motion = losses.frame_losses(out, matched, sharp, sharp, before, target, Options(motion_weight=0.5))
    assert float(motion) == pytest.approx(parts[1])


def test_every_layer_has_a_gradient_in_the_first_frame_too() -> None:
    """Several processes would wait for one that has none."""
    network = Network(TINY["mtu2"], auxiliary=True)
    out, _, inner = network.train_step(list(torch.rand(5, 1, 3, 16, 16)), None)
    target = torch.full((1, 4, 4), STILL)
    sum(losses.frame_losses(out, inner, torch.rand(1, 3, 16, 16), out, None, target, Options())).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("units", [2, 3])
def test_one_matching_serves_the_loss_and_the_warp(units: int) -> None:
    torch.manual_seed(0)
    network = Network(NetworkConfig(units, 4, 1), auxiliary=True)
    frames = list(torch.rand(5, 2, 3, 32, 32))
    _, states, _ = network.train_step(frames, None)
    later = [frame.roll(4, 3) for frame in frames]
    out, new_states, inner = network.train_step(later, states)
    again, same_states, matched = network.train_step(later, states, with_costs=True)
    for one, other in zip((out, *new_states), (again, *same_states), strict=True):
        torch.testing.assert_close(one, other)
    assert [unit.costs is None for unit in inner] == [True] * (units - 1)
    assert [unit.costs is None for unit in matched] == [False] + [True] * (units - 2)
    assert torch.equal(matched[0].costs, losses.cost_volume(matched[0].motion, states[1]))


def test_motion_loss_of_a_map_of_one_position() -> None:
    motion = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    # Of 25 pooled terms one is inside, at displacement 0; the other 440 costs are 0.
    rest = math.log(440 + math.exp(1 / 25))
    costs = losses.cost_volume(motion, motion)
    hit, miss = (float(losses.motion_loss(costs, torch.full((1, 1, 1), t))) for t in (STILL, 0))
    assert (hit, miss) == pytest.approx((rest - 1 / 25, rest))


def test_unknown_positions_do_not_count() -> None:
    motion, before = torch.rand(2, 1, 8, 3, 4)
    motion.requires_grad_()
    whole = torch.randint(0, 441, (1, 3, 4))
    part = whole.clone()
    part[:, :2] = losses.UNKNOWN
    costs = losses.cost_volume(motion, before)
    known = torch.nn.functional.cross_entropy(costs[:, :, 2:], whole[:, 2:])
    assert losses.motion_loss(costs, part).item() == pytest.approx(known.item())
    nothing = losses.motion_loss(costs, torch.full_like(whole, losses.UNKNOWN))
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
