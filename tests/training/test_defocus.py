"""Tests of mtu.training.data.defocus."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")

from mtu.core.errors import InvalidInputError  # noqa: E402
from mtu.training.data.camera import SRGB  # noqa: E402
from mtu.training.data.defocus import (  # noqa: E402
    LARGEST_RADIUS,
    MARGIN,
    Plane,
    disc,
    exposed,
    make_still,
    photographed,
    random_planes,
)
from mtu.training.data.textures import sample_photographs  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 32
RADII = [0.0, 0.3, 0.7, 1.0, 1.37, 2.5, 7.9, -3.2, LARGEST_RADIUS, -LARGEST_RADIUS]


def plane(value: float, radius: float, mask: NDArray[np.bool_] | None = None, seed: int = 0) -> Plane:
    """A plane of random light up to `value`, cut out by `mask`."""
    side = SIZE + 2 * MARGIN
    light = np.ones((side, side, 4), np.float32)
    light[..., :3] = value * np.random.default_rng(seed).random((side, side, 3), np.float32)
    return Plane(light * (np.ones((side, side, 1), np.float32) if mask is None else mask[..., None]), radius)


def left_half() -> NDArray[np.bool_]:
    side = SIZE + 2 * MARGIN
    return np.broadcast_to(np.arange(side) < side // 2, (side, side))


def test_the_same_arguments_give_the_same_pictures() -> None:
    first, again = make_still(3, 40, 56), make_still(3, 40, 56)
    for name in ("blurred", "sharp", "left", "right"):
        assert getattr(first, name).shape == (40, 56, 3) and getattr(first, name).dtype == np.uint8
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.sharp, make_still(4, 40, 56).sharp)
    assert not np.array_equal(first.sharp, make_still(3, 40, 56, split="validation").sharp)


@pytest.mark.parametrize("wrong", [(-1, 8, 8), (0, 0, 8), (0, 8, -1)])
def test_no_such_picture(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidInputError, match="the seed is at least 0"):
        make_still(*wrong)


@pytest.mark.parametrize("radius", RADII)
def test_a_disc_keeps_the_energy_and_is_of_its_halves(radius: float) -> None:
    whole, left, right = (disc(radius, half).astype(np.float64) for half in (0, -1, 1))
    assert whole.sum() == pytest.approx(1, abs=1e-6) and left.sum() == pytest.approx(1, abs=1e-6)
    assert np.allclose((left + right) / 2, whole, atol=1e-7) and np.allclose(left, right[:, ::-1])
    assert whole.shape[0] // 2 <= LARGEST_RADIUS < MARGIN
    if radius > 1:  # a disc's second moment is r^2 / 4; a pixel adds 1/12
        x = np.arange(len(whole)) - len(whole) // 2
        assert (whole.sum(0) * x**2).sum() == pytest.approx(radius**2 / 4 + 1 / 12, rel=0.05)
        assert (left.sum(0) * x).sum() == pytest.approx(-4 * radius / (3 * np.pi), rel=0.1)
    if radius < -1:
        assert np.array_equal(disc(radius, -1), disc(-radius, 1))


def test_radii_between_pixels_differ() -> None:
    spreads = [float(np.square(disc(radius, 0)).sum()) for radius in np.arange(0.6, 4, 0.1)]
    assert all(after < before for before, after in itertools.pairwise(spreads))


def test_what_is_in_focus_stays_bit_for_bit() -> None:
    in_front = plane(1.0, 0.0, left_half())
    still = photographed([plane(1.0, -4.0, seed=1), in_front], 0.0, SRGB, np.random.default_rng(0))
    inside = np.s_[:, : SIZE // 2]
    for picture in (still.blurred, still.left, still.right):
        assert np.array_equal(picture[inside], still.sharp[inside])
        assert not np.array_equal(picture[:, SIZE // 2 :], still.sharp[:, SIZE // 2 :])
    every = photographed([plane(1.0, 0.0), in_front], 0.0, SRGB, np.random.default_rng(0))
    assert np.array_equal(every.blurred, every.sharp)


@pytest.mark.parametrize("radius", [1.3, 4.0, -6.5])
def test_light_is_kept(radius: float) -> None:
    side = SIZE + 2 * MARGIN
    middle = np.zeros((side, side), bool)
    middle[side // 2 - 2 : side // 2 + 2, side // 2 - 2 : side // 2 + 2] = True
    black = plane(0.0, 0.0)
    sharp, blurred = (exposed([black, plane(1.0, r, middle)], 1) for r in (0.0, radius))
    assert blurred.sum() == pytest.approx(sharp.sum(), rel=1e-5) and blurred.max() < sharp.max()


def test_edges_in_front_are_soft_and_edges_behind_are_not_mixed_in() -> None:
    white = np.ones((SIZE + 2 * MARGIN,) * 2 + (4,), np.float32)
    black = white * np.float32((0, 0, 0, 1))
    edge = SIZE // 2
    # A blurred black object before a sharp white wall: the wall is seen through its edge, and nowhere is brighter.
    soft = exposed([Plane(white, 0.0), Plane(black * left_half()[..., None], 5.0)], 0)[10, :, 0]
    assert soft[edge - 6] == 0 and soft[edge + 6] == 1 and 0.4 < soft[edge - 1 : edge + 1].mean() < 0.6
    assert (np.diff(soft) >= -1e-6).all()
    # A sharp black object before a blurred white wall: its edge is sharp, and the wall has none of its black.
    hard = exposed([Plane(white, -5.0), Plane(black * left_half()[..., None], 0.0)], 0)[10, :, 0]
    assert (hard[:edge] == 0).all() and hard[edge:] == pytest.approx(1, abs=1e-5)


def test_the_views_have_the_picture_as_their_mean_and_move_against_each_other() -> None:
    planes = [plane(1.0, -3.0), plane(1.0, 4.0, left_half(), seed=1)]
    still = photographed(planes, 1.0, SRGB, np.random.default_rng(0))
    light = [(((value / 255 + 0.055) / 1.055) ** 2.4) for value in (still.left, still.right, still.blurred)]
    assert np.abs((light[0] + light[1]) / 2 - light[2]).max() < 0.01  # steps of 8 bits
    left, right = (exposed([planes[0]], half)[..., 0] for half in (-1, 1))

    def likeness(shift: int) -> float:
        return float(np.corrcoef(left[:, 6:-6].ravel(), np.roll(right, shift, 1)[:, 6:-6].ravel())[0, 1])

    best = max(range(-5, 6), key=likeness)
    assert 1 <= abs(best) <= 4
    flipped = [exposed([Plane(planes[0].light, 3.0)], half)[..., 0] for half in (1, -1)]
    assert np.array_equal(flipped[0], left) and np.array_equal(flipped[1], right)


def test_scenes_are_of_every_kind() -> None:
    counts, focused, largest = set(), 0, 0.0
    for seed in range(40):
        planes = random_planes(np.random.default_rng(seed), 12, 16, sample_photographs("train"))
        radii = [each.radius for each in planes]
        assert all(each.light.shape == (12 + 2 * MARGIN, 16 + 2 * MARGIN, 4) for each in planes)
        assert radii == sorted(radii) and (planes[0].light[..., 3] == 1).all()
        counts.add(len(planes))
        focused += 0.0 in radii
        largest = max(largest, *map(abs, radii))
    assert counts == {1, 2, 3, 4, 5, 6} and 20 < focused < 40 and largest > 6
