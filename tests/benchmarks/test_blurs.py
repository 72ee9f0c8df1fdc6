"""Clips of one kind of blur each, and the table of what weights gain on them."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")

from mtu.benchmarks import blurs, weights_cli  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", blurs.CAMERAS)
def test_the_blur_is_as_long_as_asked_for(kind: str) -> None:
    clip = blurs.blurred_clip(kind, 6, 3, 64)
    assert clip.blurred.shape == clip.sharp.shape == (blurs.FRAMES, 64, 64, 3)
    moved = np.linalg.norm(np.nan_to_num(clip.motion.astype(np.float32)), axis=-1)
    fastest = float(np.percentile(moved, 99.5))
    wanted = 6 / blurs.SHUTTER
    assert 0.3 * wanted < fastest < 1.1 * wanted if kind == "hand" else fastest == pytest.approx(wanted, rel=0.2)
    if kind in ("turn", "zoom"):  # the middle stands still
        assert moved[:, 31:33, 31:33].max() < 1
    if kind == "object":
        assert (moved < 0.01).mean() > 0.2 and (moved > 0.9 * wanted).mean() > 0.05


def test_the_pictures_of_a_seed_are_the_same_for_every_length() -> None:
    first, second = (blurs.blurred_clip("turn", length, 1, 48).sharp[0] for length in (3, 3.5))
    assert np.abs(first.astype(int) - second).mean() < 6
    assert np.abs(first.astype(int) - blurs.blurred_clip("turn", 3, 2, 48).sharp[0]).mean() > 12


def test_the_command_prints_a_line_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blurs, "LENGTHS", (4,))
    monkeypatch.setattr(blurs, "FRAMES", 3)
    ended = CliRunner().invoke(weights_cli.app, ["--by-blur", "--clips", "1", "--size", "32"])
    assert ended.exit_code == 0, ended.output
    assert [line.split(" | ")[0] for line in ended.output.splitlines() if "+" in line or "-0" in line] == [
        f"| {kind}" for kind in blurs.CAMERAS
    ]
