"""How fast a model forgets: one with a short memory, and photographs that pass by."""

from __future__ import annotations

from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
from tests.frames import moving_frames
from tests.small_models import trail

from mtu.benchmarks import forgetting
from mtu.runtime import open_backend

pytestmark = pytest.mark.needs_library("skimage")


def test_the_longer_the_warm_up_the_nearer(tmp_path):
    """`trail` halves what it remembers with each frame, so that nothing of it is left in 8 bits after some."""
    with closing(open_backend("onnxruntime", trail(tmp_path / "trail"))) as backend:
        found = list(forgetting.compare(backend, moving_frames(60, 32, 48, seed=1)))
    # Of the starts 12, 25 and 38 the first has 40 frames and three to look ahead after it.
    assert [warm_up for warm_up, _ in found] == [0, 1, 2, 5, 10, 20, 40, 0, 1, 2, 5, 10, 20, 0, 1, 2, 5, 10]
    for values in ([v for _, v in found[:7]], [v for _, v in found[7:13]], [v for _, v in found[13:]]):
        assert values == sorted(values) and values[0] < 40
    assert found[6][1] == np.inf


def test_a_photograph_passes_by():
    photograph = np.random.default_rng(0).integers(0, 256, (forgetting.HEIGHT + 9, 400, 3), dtype=np.uint8)
    frames = forgetting.passing(photograph, 1)
    assert len(frames) == forgetting.FRAMES and frames[0].shape == (forgetting.HEIGHT, forgetting.WIDTH, 3)
    assert all(np.array_equal(a[:, 1:], b[:, :-1]) for a, b in pairwise(frames))
