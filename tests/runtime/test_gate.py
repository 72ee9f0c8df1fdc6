"""Restoring where a map says blur (mtu-run --where): the mask, sessions, runs. Writes only under tmp_path."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from tests import cli
from tests.bundles import doubling_bundle, map_bundle, negative_bundle, views_bundle
from tests.cli import refused
from tests.frames import moving_frames, write_clip
from tests.small_models import trail

from mtu.core.interface import Output, Size, Tensor, Unit
from mtu.runtime import Session, open_backend, open_session, read_frames
from mtu.runtime.chain import StagedBackend
from mtu.runtime.gate import Gate, GatedBackend
from mtu.runtime.memory import COSTS, needed
from mtu.runtime.video import read_picture, write_png

SIGMA = Unit("sigma", 7.5, -0.5)
MAP = Output(Tensor("map", "float32", (1, "H", "W")), "map", unit=SIGMA)
NO_CUTS = {"scene_threshold": None}


def map_of(*sigmas):
    """The map [1, w] that says these."""
    return (np.array([sigmas], np.float64) + 0.5).astype(np.float32) / 7.5


def weight(sigma, threshold):
    """The facts, in plain words: nothing up to the threshold, all from one and a half of it on, smooth between."""
    if sigma <= threshold:
        return 0.0
    t = min(1.0, (sigma - threshold) / (threshold / 2)) if threshold else 1.0
    return t * t * (3 - 2 * t)


def mixed(frame, restored, values, threshold=1.0):
    """What a gate is to give, pixel by pixel; and its mask."""
    sigma = np.maximum(0, 7.5 * values.astype(np.float64) - 0.5)
    mask = np.vectorize(lambda each: weight(each, threshold))(sigma)[..., None]
    return frame + mask * (restored.astype(float) - frame), mask[..., 0]


def close(found, wanted, atol=0.51):
    return found.dtype == np.uint8 and np.abs(found - wanted).max() <= atol


@pytest.fixture
def models(tmp_path):
    """Opens bundles, in onnxruntime; closes them."""
    with contextlib.ExitStack() as stack:

        def opened(bundle):
            return stack.enter_context(contextlib.closing(open_backend("onnxruntime", bundle)))

        yield opened


def restored_by(backend, frames, **how):
    session = open_session(backend, **{**NO_CUTS, **how})
    found = [each for frame in frames for each in session.push(frame)] + session.flush()
    return found, session


@pytest.mark.parametrize("threshold", [0, 0.01, 0.5, 1.0, 3.0, 4.6])
def test_the_mask_rises_from_the_threshold_to_half_as_much_again(threshold):
    sigmas = [0, threshold * 0.999, threshold * 1.1, threshold * 1.25, threshold * 1.4, threshold * 1.5, 6.9]
    mask = Gate(MAP, threshold).mask(map_of(*sigmas), 1, len(sigmas))
    assert mask.dtype == np.float32 and mask[0, 0] == mask[0, 1] == 0 and mask[0, -1] == 1
    if threshold:
        assert mask[0, 3] == pytest.approx(0.5, abs=1e-3)
        assert np.allclose(mask[0], [weight(each, threshold) for each in sigmas], rtol=0, atol=2e-3)
    assert (np.diff(mask[0]) >= 0).all()


def test_a_threshold_of_0_restores_all_that_is_not_quite_sharp():
    assert list(Gate(MAP, 0).mask(map_of(0, 0.0001, 5), 1, 3)[0]) == [0, 1, 1]


@pytest.mark.parametrize("threshold", [0.0, 1.0, 2.5])
def test_outside_the_mask_nothing_changes_and_inside_all_is_restored(threshold):
    rng = np.random.default_rng(0)
    frame, restored = rng.integers(0, 256, (2, 40, 50, 3), np.uint8)
    values, gate = rng.random((40, 50), np.float32), Gate(MAP, threshold)
    mask, found = gate.mask(values, 40, 50), gate.blend(frame, restored, values)
    assert np.array_equal(found[mask == 0], frame[mask == 0]) and (mask == 0).sum() > 50
    assert np.array_equal(found[mask == 1], restored[mask == 1]) and (mask == 1).sum() > 50
    assert close(found, mixed(frame, restored, values, threshold)[0])
    assert gate.share(values) == (mask > 0).mean()


def test_a_map_of_half_the_size_covers_the_frame():
    gate = Gate(Output(Tensor("map", "float32", (1, "H/2", "W/2")), "map", unit=SIGMA), 1.0)
    values = map_of(0, 5)
    assert [list(row) for row in gate.mask(values, 2, 3)] == [[0, 0, 1]] * 2


@pytest.mark.parametrize("offset", [-1, 0, 1, 3, 5])
def test_frames_and_maps_of_the_same_number_go_together(tmp_path, models, offset):
    """However far either looks ahead, with states, and over a cut."""
    restoring = models(trail(tmp_path / "trail"))
    seeing = models(map_bundle(tmp_path / "map", SIGMA, offset))
    base = moving_frames(1, 8, 12)[0] // 2
    frames = [base + 5 * number for number in range(7)] + [255 - base // 2 - 4 * number for number in range(4)]
    pictures, alone = restored_by(restoring, frames, scene_threshold=20.0)
    assert alone.cuts == [7]
    maps = [frames[min(max(n + offset, 0 if n < 7 else 7), 6 if n < 7 else 10)].mean(2) / 255 for n in range(11)]
    found, session = restored_by(GatedBackend(restoring, seeing, 1.0), frames, scene_threshold=20.0)
    assert [each.index for each in found] == list(range(11)) and session.cuts == [7]
    for frame, picture, values, each in zip(frames, pictures, maps, found, strict=True):
        wanted, mask = mixed(frame, picture.rgb, values)
        assert close(each.rgb, wanted, 0.6) and np.allclose(each.map, values, rtol=0, atol=1e-6)
        assert np.array_equal(each.rgb[mask == 0], frame[mask == 0])


@pytest.mark.parametrize("offset", [1, 5])
def test_a_reset_forgets_what_waits_in_both(tmp_path, models, offset):
    gated = GatedBackend(models(trail(tmp_path / "trail")), models(map_bundle(tmp_path / "map", SIGMA, offset)))
    frames, other = moving_frames(5, 8, 12), moving_frames(4, 6, 10, seed=3)
    session = open_session(gated, **NO_CUTS)
    for frame in other:
        session.push(frame)
    session.reset()
    found = [each for frame in frames for each in session.push(frame)] + session.flush()
    wanted, _ = restored_by(gated, frames)
    assert all(np.array_equal(a.rgb, b.rgb) for a, b in zip(found, wanted, strict=True))


def test_models_that_are_chains_themselves(tmp_path, models):
    negative, seeing = models(negative_bundle(tmp_path / "n")), models(map_bundle(tmp_path / "m", SIGMA))
    frames = moving_frames(3, 8, 12)
    found, _ = restored_by(GatedBackend(StagedBackend([negative] * 3), seeing), frames)
    other, _ = restored_by(GatedBackend(negative, StagedBackend([negative, seeing])), frames)
    for frame, one, two in zip(frames, found, other, strict=True):
        assert close(one.rgb, mixed(frame, 255 - frame, frame.mean(2) / 255)[0], 0.6)
        assert close(two.rgb, mixed(frame, 255 - frame, 1 - frame.mean(2) / 255)[0], 0.6)


def test_a_model_of_several_streams_is_gated_by_the_first(tmp_path, models):
    gated = GatedBackend(models(views_bundle(tmp_path / "v")), models(map_bundle(tmp_path / "m", SIGMA)))
    image, right, left = moving_frames(3, 8, 12)
    (found,), _ = restored_by(gated, [{"image": image, "right": right, "left": left}])
    restored = np.stack((image[..., 0], right[..., 1], left[..., 2]), 2)
    assert close(found.rgb, mixed(image, restored, image.mean(2) / 255)[0], 0.6)


def test_the_size_rule_is_that_of_both(tmp_path, models):
    restoring = models(negative_bundle(tmp_path / "n", size=Size(6, 12)))
    seeing = models(map_bundle(tmp_path / "m", SIGMA))
    assert GatedBackend(restoring, seeing).interface.size == Size(6, 12)
    frame = moving_frames(1, 7, 5)[0]
    (found,), _ = restored_by(GatedBackend(restoring, seeing), [frame])
    assert close(found.rgb, mixed(frame, 255 - frame, frame.mean(2) / 255)[0], 0.6)


def test_the_memory_of_both_models_counts(tmp_path):
    known = {"name": "onnxruntime", "device": "cpu", "arithmetic": "fp32", "remarks": [], "in_flight": 0}
    bundles = negative_bundle(tmp_path / "n"), map_bundle(tmp_path / "m", SIGMA)
    one, other = (SimpleNamespace(interface=replace(each.interface, working_bytes=900), **known) for each in bundles)
    gated = GatedBackend(StagedBackend([one, one]), other)
    size = (1000, 1000)
    assert needed(gated, size, size, 1) - needed(one, size, size, 1) == 2 * COSTS["onnxruntime", "fp32"].of(900, 10**6)


# mtu-run


def run(capsys, source, output, model, *arguments):
    return cli.run(capsys, "mtu-run", source, "-o", output, "--model", getattr(model, "directory", model), *arguments)


@pytest.mark.parametrize("threshold", [None, 0.0, 2.5])
def test_a_recurrent_network_restores_where_the_map_says_so(tmp_path, capsys, small, threshold):
    source, where = write_clip(tmp_path / "in", 4, 24, 32), map_bundle(tmp_path / "map", SIGMA)
    assert run(capsys, source, tmp_path / "alone", small).code == 0
    given = () if threshold is None else ("--threshold", threshold)
    beside = ("--json", tmp_path / "r.json", "--save-maps", tmp_path / "maps")
    ended = run(capsys, source, tmp_path / "out", small, "--where", where.directory, *given, *beside)
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["map"]["threshold"] == (1.0 if threshold is None else threshold)
    assert (
        report["model"] == f"{small.interface.variant} where test" and report["checkpoint"] == small.interface.weights
    )
    shares = []
    for number, told in enumerate(report["map"]["frames"]):
        frame, alone, found = (read_picture(tmp_path / each / f"{number}.png") for each in ("in", "alone", "out"))
        values = np.load(tmp_path / "maps" / f"{number}.npy")
        wanted, mask = mixed(frame, alone, values, report["map"]["threshold"])
        assert close(found, wanted, 0.6)
        assert np.array_equal(found[mask == 0], frame[mask == 0]) and np.array_equal(found[mask == 1], alone[mask == 1])
        sigma = np.maximum(0, 7.5 * values - 0.5)
        assert told["mean"] == pytest.approx(sigma.mean(), abs=1e-3)
        assert told["restored"] == pytest.approx((mask > 0).mean(), abs=1e-3)
        shares.append(told["restored"])
    assert threshold == 0 or 0 < np.mean(shares) < 1
    assert f"{np.mean(shares):.1%} of all pixels were restored" in ended.err


def test_sizes_that_neither_model_takes_as_they_are(tmp_path, capsys, mimo, dmenet):
    source = write_clip(tmp_path / "in", 1, 18, 35)
    (tmp_path / "one").mkdir()
    for name, model in ("alone", mimo), ("maps", dmenet):
        extra = ("--picture-format", "npy") if name == "maps" else ()
        assert run(capsys, source, tmp_path / "one" / name, model, *extra).code == 0
    values = np.load(tmp_path / "one" / "maps" / "0.npy")
    threshold = float(np.median(np.maximum(0, 7.5 * values - 0.5)))
    ended = run(capsys, source, tmp_path / "out", mimo, "--where", dmenet.directory, "--threshold", threshold)
    assert ended.code == 0, ended.err
    frame, alone, found = (
        read_picture(each / "0.png") for each in (source, tmp_path / "one" / "alone", tmp_path / "out")
    )
    wanted, mask = mixed(frame, alone, values, threshold)
    assert close(found, wanted, 0.6) and 0.3 < (mask > 0).mean() < 0.7


def test_tiles_give_what_whole_frames_give(tmp_path, capsys):
    source = write_clip(tmp_path / "in", 2, 20, 500)
    model, where = negative_bundle(tmp_path / "n"), map_bundle(tmp_path / "m", SIGMA)
    for name, tile in ("tiles", "264x20"), ("whole", "off"):
        ended = run(capsys, source, tmp_path / name, model, "--where", where.directory, "--tile", tile)
        assert ended.code == 0, ended.err
        assert ("near the seams the result differs" in ended.err) == (name == "tiles")
    pairs = zip(read_frames(tmp_path / "tiles"), read_frames(tmp_path / "whole"), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


def test_the_frame_can_be_shown_beside_what_became_of_it(tmp_path, capsys):
    source, where = write_clip(tmp_path / "in", 1, 8, 12), map_bundle(tmp_path / "m", SIGMA)
    model = negative_bundle(tmp_path / "n")
    ended = run(capsys, source, tmp_path / "out", model, "--where", where.directory, "--compare", "side-by-side")
    assert ended.code == 0, ended.err
    frame, both = (read_picture(each / "0.png") for each in (source, tmp_path / "out"))
    assert np.array_equal(both[:, :12], frame)
    assert close(both[:, 12:], mixed(frame, 255 - frame, frame.mean(2) / 255)[0], 0.6)


@pytest.mark.parametrize(
    ("model", "where", "arguments", "words"),
    [
        ("twice", "map", (), "the model test gives pictures 2 times as large as the frames"),
        ("map", "map", (), "--where: the model test gives a map and no picture"),
        ("negative", "negative", (), "--where: the model test gives no map"),
        ("negative", "plain", (), "its unit is not sigma"),
        ("negative", "none", (), "none does not exist"),
        ("negative", "map", ("--threshold", "7"), "--threshold 7: give pixels of sigma, from 0 and below 7"),
        ("negative", "map", ("--threshold", "-0.5"), "--threshold -0.5: give pixels of sigma"),
        ("negative", "map", ("--threshold", "nan"), "--threshold nan: give pixels of sigma"),
        ("negative", "map", ("--threshold", "inf"), "--threshold inf: give pixels of sigma"),
        ("negative", "map", ("--resume",), "--resume keeps pictures, and not the maps of test where test"),
        ("negative", "map", ("--heat",), "--heat shows a map and --where uses one"),
        ("negative", None, ("--threshold", "1"), "--threshold 1 is for --where, which is not given"),
        ("negative", None, ("--save-maps", "maps"), "--save-maps: the model test gives no map"),
    ],
)
def test_what_cannot_be_gated_is_refused_before_the_first_frame(tmp_path, capsys, model, where, arguments, words):
    makers = {
        "twice": doubling_bundle,
        "negative": negative_bundle,
        "plain": map_bundle,
        "map": lambda path: map_bundle(path, SIGMA),
    }
    for name in {model, where} & makers.keys():
        makers[name](tmp_path / name)
    source = write_clip(tmp_path / "in", 1, 8, 12)
    given = () if where is None else ("--where", tmp_path / where)
    refused(run(capsys, source, tmp_path / "out.mp4", tmp_path / model, *given, *arguments), tmp_path, words)


def test_frames_that_the_map_is_not_made_of_are_refused(tmp_path, capsys, dmenet):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "0.png", np.zeros((9, 40, 3), np.uint8))
    ended = run(
        capsys, tmp_path / "in", tmp_path / "out.mp4", negative_bundle(tmp_path / "n"), "--where", dmenet.directory
    )
    refused(ended, tmp_path, "frames of 40x9 are too small")


def test_a_session_is_needed(tmp_path, models):
    gated = GatedBackend(models(negative_bundle(tmp_path / "n")), models(map_bundle(tmp_path / "m", SIGMA)))
    assert not isinstance(open_session(gated), Session) and math.isclose(gated.gate.threshold, 1.0)
