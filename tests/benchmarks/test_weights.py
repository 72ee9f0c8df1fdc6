"""What weights make of clips, as docs/weights.md has it in tables, and where a training step's time goes."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
for package in ("skimage", "onnx", "lightning_fabric", "tensorboard"):
    pytest.importorskip(package)

from tests.tiny_training import TINY, make_tiny, sliding_clip  # noqa: E402

from mtu.benchmarks import weights, weights_cli  # noqa: E402
from mtu.benchmarks.training_step import PARTS, time_step  # noqa: E402
from mtu.core.errors import InvalidInputError  # noqa: E402
from mtu.models.mtu.architecture import Network  # noqa: E402
from mtu.training.options import Options  # noqa: E402
from mtu.training.validation import HIGHEST  # noqa: E402
from mtu.training.weights import initialise  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def network(out: float) -> Network:
    """A tiny one that changes pictures but little; its output layer times a factor."""
    made = Network(TINY["mtu2"])
    initialise(made, torch.Generator().manual_seed(0))
    with torch.no_grad():
        made.out.weight *= out
    return made.eval()


def test_what_is_measured_of_a_clip() -> None:
    """The blurred frames of `sliding_clip` are negatives, so a network that does nothing gains nothing."""
    clip = sliding_clip(4, 32, 32, (0, 4))
    idle = weights.measure(network(out=0), clip)
    assert idle.gain == 0 and idle.unmoved == idle.after.psnr and idle.kept == HIGHEST
    row = weights.measure(network(out=10), clip)
    assert row.gain != 0 and row.kept < 60 and row.unmoved != row.after.psnr
    assert 0 <= row.matched <= 1
    still = weights.measure(network(out=10), sliding_clip(4, 32, 32, (0, 0)))
    assert still.unmoved == pytest.approx(still.after.psnr, abs=1e-6)  # what stands still need not be moved
    cells = weights.table_row("7", [row, idle]).split(" | ")
    assert float(cells[3]) == pytest.approx((row.gain + idle.gain) / 2, abs=0.006)
    assert float(cells[-1].rstrip(" |")) == pytest.approx((row.kept + HIGHEST) / 2, abs=0.006)


def test_the_command_prints_the_mean_of_its_lines() -> None:
    ended = CliRunner().invoke(weights_cli.app, ["--clips", "2", "--size", "32"])
    assert ended.exit_code == 0, ended.output
    lines = [line.strip("| ").split(" | ") for line in ended.output.splitlines() if line.startswith("| ")]
    first, second, mean = lines[-3:]
    assert (first[0], second[0], mean[0]) == ("1000", "1001", "mean")
    for column in (1, 2, 3, 6):
        each, of_all = [float(row[column]) for row in (first, second)], float(mean[column])
        assert of_all == pytest.approx(np.mean(each), abs=0.011)
    assert "clips below -0.05" in ended.output
    with pytest.raises(InvalidInputError, match="multiple of 4"):
        CliRunner().invoke(weights_cli.app, ["--size", "33"], catch_exceptions=False)


def test_the_parts_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch)
    seconds, times = time_step(Options(crop=16, batch=1, frames=3), "cpu", say=lambda text: None)
    assert seconds > 0 and list(times) == [*PARTS, "the rest"] and min(times.values()) > 0
