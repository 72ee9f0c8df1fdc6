"""The optimiser Muon, and channels that are given another beginning. Networks are tiny."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from tests.cli import run as command  # noqa: E402
from tests.tiny_training import CPU, TINY, sliding_clip, tiny  # noqa: E402

from mtu.core.errors import InvalidInputError  # noqa: E402
from mtu.models.mtu.architecture import Network  # noqa: E402
from mtu.training import start  # noqa: E402
from mtu.training.muon import Muon  # noqa: E402
from mtu.training.validation import restore  # noqa: E402
from mtu.training.weights import initialise, is_centred, revive  # noqa: E402

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
    assert revive(network, [clip], torch.Generator().manual_seed(0)) == 5
    assert is_centred(network) and torch.equal(network.inp_prev_conv[0].weight[0], kept)
    assert network.inp_prev_conv[0].bias[1] == 0 and float(network.HGs[1].RBs[0][0].weight[3].detach().std()) > 0
    faint, other = (float(network.motion_layer[0][0].weight[n].detach().norm()) for n in (3, 0))
    assert 0 < faint < 0.3 * other
    after = [picture for picture, _ in restore(network, clip.blurred)]
    assert np.abs(np.stack(before).astype(int) - np.stack(after)).mean() < 1  # what centring makes of the zeros
    assert revive(network, [clip], torch.Generator().manual_seed(0)) == 0


def test_revive_is_for_weights_to_begin_with(tiny: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ended = command(capsys, "mtu-train", "-o", str(tmp_path / "run"), "--revive")
    assert ended.code == 2 and "--start-from" in ended.err and not (tmp_path / "run").exists()
    with pytest.raises(InvalidInputError, match="--optimiser means nothing to the training of ifan"):
        start.train(tmp_path / "run", {"preset": "ifan", "optimiser": "muon"}, CPU)
    with pytest.raises(InvalidInputError, match="--revive means nothing to the training of ifan"):
        start.train(tmp_path / "run", {"preset": "ifan"}, CPU, start_from=tmp_path / "weights", revive=True)
    assert not (tmp_path / "run").exists()
