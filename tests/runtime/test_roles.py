"""Models that are not ours through mtu-run: one that gives a map, one that enlarges. Writes only under tmp_path."""

from __future__ import annotations

import av
import numpy as np
import pytest
from tests import cli
from tests.bundles import doubling_bundle, map_bundle
from tests.cli import refused

from mtu.runtime import read_frames
from mtu.runtime.video import read_picture, write_png


@pytest.fixture
def pictures(tmp_path):
    """Two of 9x6 pixels."""
    (tmp_path / "in").mkdir()
    drawn = list(np.random.default_rng(0).integers(0, 256, (2, 6, 9, 3), np.uint8))
    for number, picture in enumerate(drawn):
        write_png(tmp_path / "in" / f"{number}.png", picture)
    return drawn


def run(capsys, tmp_path, bundle, *arguments):
    return cli.run(capsys, "mtu-run", tmp_path / "in", "--model", bundle.directory, *arguments)


def gray16(path):
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="gray16le")


def test_a_map_becomes_gray_pictures_of_16_bits_and_exact_numbers_beside_them(capsys, tmp_path, pictures):
    bundle = map_bundle(tmp_path / "bundle")
    ended = run(capsys, tmp_path, bundle, "-o", tmp_path / "maps", "--save-maps", tmp_path / "exact")
    assert ended.code == 0, ended.err
    for number, picture in enumerate(pictures):
        wanted = picture.astype(np.float32).mean(2) / np.float32(255)
        exact = np.load(tmp_path / "exact" / f"{number}.npy")
        assert exact.dtype == np.float32 and np.allclose(exact, wanted, rtol=0, atol=1e-6)
        assert np.array_equal(gray16(tmp_path / "maps" / f"{number}.png"), np.rint(exact.astype(np.float64) * 65535))


def test_a_map_becomes_a_gray_video(capsys, tmp_path, pictures):
    bundle = map_bundle(tmp_path / "bundle")
    ended = run(capsys, tmp_path, bundle, "-o", tmp_path / "map.mkv", "--codec", "ffv1")
    assert ended.code == 0, ended.err
    for shown, picture in zip(read_frames(tmp_path / "map.mkv"), pictures, strict=True):
        assert np.abs(shown.astype(float) - picture.astype(np.float64).mean(2)[..., None]).max() <= 2


def test_a_picture_twice_the_size_and_before_and_after_in_one(capsys, tmp_path, pictures):
    bundle = doubling_bundle(tmp_path / "bundle")
    assert run(capsys, tmp_path, bundle, "-o", tmp_path / "large").code == 0
    assert run(capsys, tmp_path, bundle, "-o", tmp_path / "both", "--compare", "side-by-side").code == 0
    for number, picture in enumerate(pictures):
        large = picture.repeat(2, 0).repeat(2, 1)
        assert np.array_equal(read_picture(tmp_path / "large" / f"{number}.png"), large)
        assert np.array_equal(read_picture(tmp_path / "both" / f"{number}.png"), np.concatenate((large, large), 1))


def test_what_the_model_does_not_give_is_refused_before_the_first_frame(capsys, tmp_path, pictures, single):
    maps, large = map_bundle(tmp_path / "m"), doubling_bundle(tmp_path / "l")
    out, beside = ("-o", tmp_path / "out.mp4"), tmp_path / "beside"
    for bundle, option, words in (
        (large, ("--save-maps", beside), "--save-maps: the model test gives no map"),
        (single, ("--save-maps", beside), "gives no map"),
        (maps, ("--save-motion", beside), "--save-motion: the model test estimates no motion"),
        (maps, ("--compare", "split"), "show the map in colours with --heat"),
        (large, ("--heat",), "--heat: the model test gives no map; leave it out, or use a model that does"),
        (single, ("--heat", "--compare", "split"), "gives no map"),
        (maps, ("--heat", "--picture-format", "npy", "-o", tmp_path / "heat"), "npy files are for maps"),
        (maps, ("--save-maps", tmp_path / "out.mp4" / "in"), "lie in each other"),
    ):
        refused(run(capsys, tmp_path, bundle, *out, *option), tmp_path, words)
        assert not beside.exists()


def test_maps_in_tiles_are_those_of_whole_frames(capsys, tmp_path):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "0.png", np.random.default_rng(1).integers(0, 256, (20, 600, 3), np.uint8))
    bundle = map_bundle(tmp_path / "bundle")
    for name, tile in ("tiles", "264x20"), ("whole", "off"):
        ended = run(capsys, tmp_path, bundle, "-o", tmp_path / name, "--tile", tile)
        assert ended.code == 0, ended.err
        assert "mtu2" not in ended.err and ("near the seams the result differs" in ended.err) == (name == "tiles")
    assert np.array_equal(gray16(tmp_path / "tiles" / "0.png"), gray16(tmp_path / "whole" / "0.png"))
