"""The simulation of `mtu.benchmarks.farm`: how evenly units spread over workers."""

from __future__ import annotations

import pytest

from mtu.benchmarks.farm import FPS, balance, scene_lengths, simulate


@pytest.mark.parametrize(
    ("units", "workers", "expected"), [([2.0] * 8, 4, 1.0), ([1, 1, 2], 2, 2 / 3), ([2, 1, 1], 2, 1.0), ([5], 5, 0.2)]
)
def test_each_worker_takes_the_next_unit_as_it_is_free(units, workers, expected):
    assert balance(units, workers) == pytest.approx(expected)


def test_films_have_scenes_of_all_lengths():
    scenes = scene_lengths(2)
    assert sum(scenes) == 2 * 3600 * FPS and 4 < sum(scenes) / len(scenes) / FPS < 6
    assert scenes != scene_lengths(2, seed=1) and max(scenes) > 20 * FPS


def test_units_of_the_default_length_keep_16_workers_busy():
    default = {hours: longest for hours, least, _, _, longest in simulate(0.13, 0.03) if least == 240}
    assert len(default) == 4 and all(share > 0.9 for share in default.values())
