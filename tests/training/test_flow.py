"""Tests of mtu.training.data.flow, which needs OpenCV."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.frames import moving_frames

from mtu.core.errors import InvalidInputError, MissingExtraError
from mtu.training.data.flow import motion_between


def textured(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blobs of many sizes, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for size in (4, 8, 16, 32):
        coarse = rng.standard_normal((height // size + 2, width // size + 2, 3))
        rows, columns = (np.arange(n) / size for n in (height, width))
        y, x = rows.astype(int), columns.astype(int)
        fy, fx = (rows - y)[:, None, None], (columns - x)[:, None]
        upper = coarse[y][:, x] * (1 - fx) + coarse[y][:, x + 1] * fx
        lower = coarse[y + 1][:, x] * (1 - fx) + coarse[y + 1][:, x + 1] * fx
        total += size**0.5 * (upper * (1 - fy) + lower * fy)
    return (128 + 12 * total).clip(0, 255).astype(np.uint8)


def moved(scene: NDArray[np.uint8], dy: int, dx: int, size: int = 120) -> NDArray[np.uint8]:
    """Two views [2, size, size, 3]: what is at (y, x) in the second was at (y + dy, x + dx) in the first."""
    return np.stack([scene[50 + top :, 50 + left :][:size, :size] for top, left in ((0, 0), (dy, dx))])


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (3, -5), (-12, 7), (40, 28)])
def test_the_motion_of_a_moved_picture(dy: int, dx: int) -> None:
    pytest.importorskip("cv2")
    motion = motion_between(moved(textured(220, 220), dy, dx))
    assert motion.shape == (2, 120, 120, 2) and motion.dtype == np.float16
    assert np.isnan(motion[0]).all()
    y, x = np.mgrid[:120, :120]
    inside = (y + dy >= 0) & (y + dy < 120) & (x + dx >= 0) & (x + dx < 120)
    given: NDArray[np.bool_] = ~np.isnan(motion[1, ..., 0])
    assert given[inside].mean() > 0.9
    assert not given[~inside].any() or given[~inside].mean() < 0.1
    assert (np.abs(motion[1] - np.array([dy, dx], np.float16)).max(-1)[given & inside] < 1).mean() > 0.98


def test_hidden_points_have_no_motion() -> None:
    pytest.importorskip("cv2")
    background, thing = textured(128, 128, 1), textured(48, 48, 2)
    clip = np.stack([background] * 3)
    for t in range(3):
        clip[t, 40:88, 20 + 10 * t : 68 + 10 * t] = thing
    motion = motion_between(clip)
    given: NDArray[np.bool_] = ~np.isnan(motion[..., 0])
    for t in (1, 2):
        left = 20 + 10 * t
        uncovered, on_it = np.s_[t, 42:86, left - 9 : left - 1], np.s_[t, 42:86, left + 2 : left + 46]
        assert given[uncovered].mean() < 0.4
        assert given[on_it].mean() > 0.9
        assert (np.abs(motion[on_it] - np.array([0, -10], np.float16)).max(-1)[given[on_it]] < 1).mean() > 0.95
        assert given[t, :, 110:].mean() > 0.95 and np.nanmax(np.abs(motion[t, :, 110:])) < 1


def test_the_same_clip_has_the_same_motion() -> None:
    pytest.importorskip("cv2")
    clip = np.stack(moving_frames(3, 40, 48))
    motion = motion_between(clip)
    assert motion.shape == (3, 40, 48, 2) and np.array_equal(motion, motion_between(clip), equal_nan=True)
    assert motion_between(clip[:1]).shape == (1, 40, 48, 2)


@pytest.mark.parametrize("levels", [(0, 0), (90, 90), (0, 255)])
def test_flat_pictures_do_not_move(levels: tuple[int, int]) -> None:
    pytest.importorskip("cv2")
    flat = np.stack([np.full((40, 48, 3), level, np.uint8) for level in levels])
    assert np.nanmax(np.abs(motion_between(flat)[1]), initial=0) < 0.5


@pytest.mark.parametrize(
    "clip",
    [
        np.zeros((2, 16, 16), np.uint8),
        np.zeros((2, 16, 16, 4), np.uint8),
        np.zeros((2, 16, 16, 3), np.float32),
        np.zeros((2, 7, 16, 3), np.uint8),
    ],
)
def test_frames_that_are_no_clip(clip: Any) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(InvalidInputError, match="H and W at least 8, got"):
        motion_between(clip)


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r'optical flow needs .*opencv-python-headless.*"mtu-trt\[train\]"'):
        motion_between(np.zeros((2, 16, 16, 3), np.uint8))
