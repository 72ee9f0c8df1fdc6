"""Tests of the training of IFAN: the losses, a run, what it leaves. Writes only under tmp_path."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("skimage", "safetensors", "lightning_fabric", "tensorboard", "onnx", "onnxruntime"):
    pytest.importorskip(package)

import onnx  # noqa: E402
from tests import cli, ifan  # noqa: E402
from tests.graphs import before_rounding  # noqa: E402
from tests.ifan import DUAL, TINY, arrays, reference  # noqa: E402
from tests.tiny_training import CPU, new_run, noted, tiny  # noqa: E402
from tests.training.test_checkpoints import content, same  # noqa: E402
from tests.training.test_train_cli import train_with_two  # noqa: E402

from mtu.models import ifan as family  # noqa: E402
from mtu.models.checkpoint import load_checkpoint  # noqa: E402
from mtu.runtime.bundle import open_bundle  # noqa: E402
from mtu.training import ifan_recipe  # noqa: E402
from mtu.training.ifan_network import Reblurring, TrainedNetwork, initialise  # noqa: E402
from mtu.training.options import new_options  # noqa: E402
from mtu.training.run import CHECKPOINT, WEIGHTS, Run  # noqa: E402
from mtu.training.start import train  # noqa: E402
from mtu.training.stills import Sample, StillBatch  # noqa: E402

__all__ = ["tiny"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread", "tiny")

GIVEN: dict[str, Any] = {"preset": "ifan", "max_steps": 4, "crop": 16, "batch": 2, "rate": 1e-3, "validate_every": 2}
SMALL = ("--crop=16", "--batch=2", "--rate=1e-3", "--device=cpu", "--workers=0", "--max-steps=4", "--validate-every=2")


def new_trained(settings: dict[str, int], seed: int = 0) -> TrainedNetwork:
    trained = TrainedNetwork(settings)
    initialise(trained, torch.Generator().manual_seed(seed))
    return trained


# --- the network


@pytest.mark.parametrize("settings", [TINY, DUAL], ids=["one picture", "dual"])
def test_a_step_computes_what_the_facts_say(settings: dict[str, int]) -> None:
    trained = new_trained(settings)
    trained.Network.load_state_dict(arrays(settings))
    sharp, *seen = torch.rand(1 + settings["streams"], 1, 3, 32, 40)
    restored, disparity, blurred = trained.train_step(sharp, *seen)
    assert (restored.clamp(0, 1) - reference(arrays(settings), *seen)).abs().max() < 2e-5
    assert disparity.shape == (1, 1, 4, 5) and blurred.shape == (1, 3, 4, 5)
    assert torch.equal(trained.inference_network()(*seen), restored)


def test_first_weights_are_near_the_identity_and_every_layer_learns() -> None:
    trained, again, other = (new_trained(DUAL, seed) for seed in (0, 0, 1))
    assert same(dict(trained.state_dict()), dict(again.state_dict()))
    assert not same(dict(trained.state_dict()), dict(other.state_dict()))
    sharp, *seen = torch.rand(4, 2, 3, 32, 40)
    restored, disparity, blurred = trained.train_step(sharp, *seen)
    assert 1e-5 < (restored - seen[0]).abs().mean() < 0.1
    (restored.square().mean() + disparity.square().mean() + blurred.square().mean()).backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in trained.parameters())


def test_first_filters_change_nothing_however_many() -> None:
    trained = new_trained({**TINY, "iterations": 17})
    sharp, blurred = torch.rand(2, 1, 3, 32, 40)
    with torch.no_grad():
        _, _, filters = trained.inference_network().train_step(blurred)
        again = trained.train_step(sharp, blurred)[2]
    above, here, below, bias = torch.cat(filters).unflatten(1, (4, -1)).unbind(1)
    assert max(float(part.abs().max()) for part in (above, here - 1, below, bias)) < 0.2
    assert (again - sharp[..., ::8, ::8]).abs().mean() < 0.1


def test_the_released_network_that_blurs_again_has_as_many_rows() -> None:
    """357 for 17 iterations: three colours, two times three taps and a bias; 20 tensors."""
    with torch.device("meta"):
        reblurring = Reblurring(17, 32)
    assert len(reblurring.state_dict()) == 20
    assert reblurring.state_dict()["RBF.3.weight"].shape == (357, 128, 3, 3)


def test_blurring_again_adds_the_picture_and_has_no_activation_at_the_end() -> None:
    reblurring = Reblurring(2, 1)
    for value in reblurring.parameters():
        value.data.zero_()
    sharp = torch.rand(1, 3, 4, 5)
    filters = torch.zeros(1, 4 * 4 * 2, 4, 5)
    assert torch.equal(reblurring(filters, sharp), sharp)
    reblurring.RBF[3].bias.data[-3:] = -2.0  # the biases of the last iteration
    assert torch.allclose(reblurring(filters, sharp), sharp - 2)
    reblurring.RBF[3].bias.data[18:21] = -1.0  # of the first, whose LeakyReLU makes a tenth of them
    reblurring.RBF[3].bias.data[[21 + 3, 21 + 12]] = 1.0  # the middles of red
    found = reblurring(filters, sharp)
    assert torch.allclose(found[:, 0], sharp[:, 0] - 2.1) and torch.allclose(found[:, 1:], sharp[:, 1:] - 2)


# --- the losses


@pytest.mark.parametrize("shift", [-2, 0, 1])
def test_the_disparity_that_is_there_has_no_loss(shift: int) -> None:
    scene = np.random.default_rng(0).random((1, 3, 4, 12), np.float32)
    right, left = (
        torch.from_numpy(scene[..., at : at + 8]).repeat_interleave(8, 2).repeat_interleave(8, 3)
        for at in (2, 2 + shift)
    )

    def loss(disparity: float) -> float:
        moved = torch.full((1, 1, 4, 8), disparity)
        whole = ifan_recipe.disparity_loss(moved[..., 2:6], right[..., 16:48], left[..., 16:48])
        return float(whole)

    inner = np.s_[..., 2:6]
    moved = ifan_recipe.small(right).roll(-shift, 3)[inner]
    assert torch.allclose(moved, ifan_recipe.small(left)[inner], atol=1e-6)
    assert min((loss(float(d)), d) for d in range(-2, 3))[1] == shift
    found = torch.full((1, 1, 4, 8), shift + 0.4, requires_grad=True)
    ifan_recipe.disparity_loss(found, right, left).backward()
    assert found.grad is not None and found.grad[..., 3:5].sum() > 0  # less would be better


def fixed_batch(views: int) -> StillBatch:
    random = torch.Generator().manual_seed(1)
    sharp = torch.randint(64, 192, (2, 3, 16, 16), generator=random).byte()
    return StillBatch(
        sharp - 30, sharp, torch.stack([sharp - 30] * views) if views else torch.empty(0, 2, 3, 16, 16).byte()
    )


@pytest.mark.parametrize(
    ("changes", "views"),
    [({}, 2), ({}, 0), ({"preset": "ifan-dual"}, 2), ({"precision": "bf16"}, 2)],
    ids=str,
)
def test_a_tiny_network_learns_a_fixed_batch(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, str], views: int
) -> None:
    logged = noted(monkeypatch)
    learning = new_run(tmp_path, **{**GIVEN, "data": ("defocus",), "max_steps": 1000, "rate": 1e-2, **changes})
    for _ in range(30):
        learning.train_batch(fixed_batch(views))
    assert learning.step == learning.batch == 30
    first, last = logged[0], logged[-1]
    assert set(first) == {"loss/deblurring", "loss/disparity", "loss/reblurring", "loss/total", "rate"}
    assert last["loss/deblurring"] < 0.7 * first["loss/deblurring"]
    assert last["loss/reblurring"] < first["loss/reblurring"]
    assert (first["loss/disparity"] > 0) == (views > 0)
    assert first["loss/total"] == pytest.approx(sum(first[f"loss/{name}"] for name in ifan_recipe.LOSSES), rel=1e-6)


@pytest.mark.parametrize("settings", [TINY, DUAL], ids=["one picture", "dual"])
def test_validation_is_of_the_picture_and_its_views_in_their_order(settings: dict[str, int]) -> None:
    trained = new_trained(settings)
    trained.Network.load_state_dict(arrays(settings))
    noise = np.random.default_rng(0).integers(0, 256, (4, 16, 24, 3), np.uint8)
    found = ifan_recipe.validate(trained, [Sample(noise[:1], noise[1:2], noise[2:])])
    seen = [torch.from_numpy(noise[n])[None].permute(0, 3, 1, 2) / 255 for n in (0, 2, 3)]
    restored = reference(arrays(settings), *seen[: settings["streams"]])[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found.picture[:, 24:48] - restored).max() <= 0.51


# --- a run


@pytest.mark.parametrize(("preset", "streams"), [("ifan", ["image"]), ("ifan-dual", ["image", "right", "left"])])
def test_what_a_run_leaves_exports_and_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, preset: str, streams: list[str]
) -> None:
    folder = tmp_path / "run"
    ended = cli.run(capsys, "mtu-train", "--preset", preset, *SMALL, "-o", folder)
    assert ended.code == 0, ended.err
    lines = ended.err.splitlines()
    assert lines[0] == f"mtu-train: {preset} on 1 x cpu, fp32, from step 0 to 4"
    assert "(worst picture " in lines[1] and "sharp pictures kept to " in lines[1]
    assert ended.out.endswith(" dB on the validation pictures after 4 steps\n")
    ended = cli.run(capsys, "mtu-export", "onnx", "--checkpoint", folder / WEIGHTS, "-o", tmp_path / "bundle")
    assert ended.code == 0, ended.err
    wrong = cli.run(capsys, "mtu-export", "onnx", "--checkpoint", folder / CHECKPOINT, "-o", tmp_path / "no")
    assert wrong.code == 2 and f"give {folder / WEIGHTS}" in wrong.err
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.interface.variant == preset and list(bundle.interface.streams) == streams
    found = load_checkpoint(folder / WEIGHTS)
    random = np.random.default_rng(0)
    frames = {
        tensor.tensor.name: random.integers(0, 256, (1, 24, 32, 3), np.uint8)
        for tensor in bundle.interface.graphs[0].inputs
    }
    pictures = [torch.from_numpy(frame).permute(0, 3, 1, 2) / 255 for frame in frames.values()]
    with torch.no_grad():
        wanted = found.network()(*pictures).clamp(0, 1)
    assert np.abs(before_rounding(onnx.load(bundle.graph("picture")), frames) - wanted.numpy()).max() < 1e-5
    assert (wanted - reference(found.arrays, *pictures)).abs().max() < 2e-5
    trained = new_trained(family.PRESETS[preset])  # type: ignore[arg-type]
    trained.load_state_dict(content(folder)["average"])
    assert content(folder)["step"] == 4 and len(content(folder)["optimiser"]["state"]) == len(trained.state_dict())


def test_an_interrupted_run_resumed_is_the_run_not_interrupted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    noted(monkeypatch)
    assert train(tmp_path / "whole", GIVEN, CPU).step == 4
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_stop_asked", lambda self: signal.SIGTERM if self.step == 1 else 0)
        ended = train(tmp_path / "part", GIVEN, CPU)
        assert (ended.step, ended.signal) == (1, signal.SIGTERM)
    assert train(tmp_path / "part", {}, CPU, resume=True).step == 4
    assert same(content(tmp_path / "whole"), content(tmp_path / "part"))


@pytest.mark.parametrize("settings", [TINY, DUAL], ids=["one picture", "dual"])
def test_a_run_begins_with_a_released_file(tmp_path: Path, settings: dict[str, int]) -> None:
    preset = "ifan" if settings is TINY else "ifan-dual"
    path = ifan.save(tmp_path / "IFAN.pytorch", arrays(settings), ifan.LAYOUTS[0])
    wanted = new_options({**GIVEN, "preset": preset})
    trained = new_trained(settings)
    trained.Network.load_state_dict(arrays(settings))
    expected = ifan_recipe.validate(trained, ifan_recipe.validation_samples(wanted, lambda text: None))
    said: list[str] = []
    train(tmp_path / "run", {**GIVEN, "preset": preset, "max_steps": 1}, CPU, start_from=path, say=said.append)
    assert f"step 0: gain {expected.gain:+.3f} dB" in said[1]


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    _, ranks = train_with_two(tmp_path, *SMALL, "--preset=ifan")
    assert len({number for rank in ranks for number, _ in rank}) == 8  # each has batches of its own
    assert [after for _, after in ranks[0]] == [after for _, after in ranks[1]]
