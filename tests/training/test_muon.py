"""The optimiser Muon, and channels that are given another beginning. Networks are tiny."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")
pytest.importorskip("safetensors")

from safetensors.torch import load_file, save_file  # noqa: E402
from tests.cli import run as command  # noqa: E402
from tests.tiny_training import CPU, TINY, sliding_clip, tiny  # noqa: E402

from mtu.core.errors import InvalidInputError  # noqa: E402
from mtu.models.mtu.architecture import Network  # noqa: E402
from mtu.training import mtu_recipe, start  # noqa: E402
from mtu.training.muon import Muon  # noqa: E402
from mtu.training.options import Options  # noqa: E402
from mtu.training.validation import restore  # noqa: E402
from mtu.training.weights import initialise, is_centred  # noqa: E402

__all__ = ["tiny"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_step_has_the_same_length_in_every_direction() -> None:
    kernel, bias = torch.nn.Parameter(torch.zeros(20, 5, 3, 3)), torch.nn.Parameter(torch.zeros(20))
    small = torch.nn.Parameter(torch.zeros(3, 5, 3, 3))
    kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    optimiser = Muon([kernel, bias, small], 0.1)
    generator = torch.Generator().manual_seed(0)
    weights = torch.logspace(0, -2, 20)[:, None, None, None]
    kernel.grad = weights * torch.randn(20, 5, 3, 3, generator=generator)
    bias.grad, small.grad = torch.full((20,), 7.0), torch.full((3, 5, 3, 3), -0.01)
    optimiser.step()
    lengths = torch.linalg.svdvals(kernel.detach().flatten(1)) / (0.1 * 0.2 * 45**0.5)
    assert lengths.min() > 0.4 and lengths.max() < 1.3, lengths  # those of the gradient differ a hundredfold
    assert float((kernel.detach() * kernel.grad).sum()) < 0
    assert torch.allclose(bias, torch.full((20,), -0.1)) and torch.allclose(small, torch.full((3, 5, 3, 3), 0.1))
    optimiser.param_groups[0]["lr"] = 0.0
    before = kernel.detach().clone()
    optimiser.step()
    assert torch.equal(kernel, before)


def dead_network() -> Network:
    network = Network(TINY["mtu2"], auxiliary=True)
    initialise(network, torch.Generator().manual_seed(0))
    with torch.no_grad():
        network.inp_prev_conv[0].bias[1] = -100
        network.HGs[1].RBs[0][0].bias[2:5] = -100
        network.motion_layer[0][0].bias[:] = 1
        network.motion_layer[0][0].bias[3] = -100
    return network.eval()


def test_channels_that_are_never_on_begin_anew() -> None:
    network, clip = dead_network(), sliding_clip(5, 32, 32, (1, 2))
    before = [picture for picture, _ in restore(network, clip.blurred)]
    kept = network.inp_prev_conv[0].weight[0].clone()
    assert mtu_recipe.revive(network, [clip], Options()) == 5
    assert is_centred(network) and torch.equal(network.inp_prev_conv[0].weight[0], kept)
    assert network.inp_prev_conv[0].bias[1] == 0 and float(network.HGs[1].RBs[0][0].weight[3].detach().std()) > 0
    faint, other = (float(network.motion_layer[0][0].weight[n].detach().norm()) for n in (3, 0))
    assert 0 < faint < 0.3 * other
    after = [picture for picture, _ in restore(network, clip.blurred)]
    assert np.abs(np.stack(before).astype(int) - np.stack(after)).mean() < 1  # what centring makes of the zeros
    assert mtu_recipe.revive(network, [clip], Options()) == 0


def test_a_start_goes_on_as_it_is_centred_or_not(tiny: None, tmp_path: Path) -> None:
    """`--revive` of weights that a run begins with: in the run's network, in its average and on the disk."""
    network = dead_network()
    with torch.no_grad():
        network.HGs[0].enc2[0].weight += 0.01
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, tmp_path / "start.safetensors")
    given = {"crop": 16, "frames": 3, "batch": 1, "max_steps": 1, "rate": 1e-9, "centre": False}
    said: list[str] = []
    first = tmp_path / "start.safetensors"
    assert start.train(tmp_path / "run", given, CPU, start_from=first, revive=True, say=said.append).step == 1
    assert any("channels that are never on have new kernels" in text for text in said)
    last = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    for found in (load_file(tmp_path / "run" / "weights.safetensors"), last["network"], last["average"]):
        kernel = found["HGs.0.enc2.0.weight"]
        assert torch.allclose(kernel, network.HGs[0].enc2[0].weight, atol=1e-6)
        assert found["inp_prev_conv.0.bias"][1] > -1


def test_revive_is_for_weights_to_begin_with(tiny: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ended = command(capsys, "mtu-train", "-o", str(tmp_path / "run"), "--revive")
    assert ended.code == 2 and "--start-from" in ended.err and not (tmp_path / "run").exists()
    with pytest.raises(InvalidInputError, match="--optimiser means nothing to the training of ifan"):
        start.train(tmp_path / "run", {"preset": "ifan", "optimiser": "muon"}, CPU)
    with pytest.raises(InvalidInputError, match="--revive means nothing to the training of ifan"):
        start.train(tmp_path / "run", {"preset": "ifan"}, CPU, start_from=tmp_path / "weights", revive=True)
    assert not (tmp_path / "run").exists()
