"""Tests of the pictures that IFAN is trained on, and of what mtu-train refuses. Writes only under tmp_path."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for package in ("skimage", "safetensors", "lightning_fabric", "tensorboard"):
    pytest.importorskip(package)

from tests import cli, ifan  # noqa: E402
from tests.ifan import TINY, arrays  # noqa: E402
from tests.media import moving  # noqa: E402
from tests.tiny_training import CPU  # noqa: E402
from tests.training.test_ifan_training import GIVEN, SMALL, tiny  # noqa: E402, F401
from tests.training.test_train_cli import refused  # noqa: E402

from mtu.core.errors import InvalidInputError  # noqa: E402
from mtu.runtime.video import write_png  # noqa: E402
from mtu.training import batches, ifan_recipe, stills  # noqa: E402
from mtu.training.options import Options, new_options, read_data, resumed  # noqa: E402
from mtu.training.start import train  # noqa: E402
from mtu.training.stills import Sample, cut, training_stills, validation_stills  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "tiny")


def write_dpdd(root: Path, count: int = 2, size: tuple[int, int] = (29, 37), views: str = "lr") -> Path:
    """Of the training and the validation split; a picture's views are it, one pixel darker or brighter."""
    for split, name in itertools.product(("train", "val"), ("c/target", "c/source", *(f"{v}/source" for v in views))):
        folder = root / f"{split}_{name}"
        folder.mkdir(parents=True)
        shift = {"c/target": 0, "c/source": 8, "l/source": 6, "r/source": 10}[name]
        for number in range(count):
            sharp = np.clip(moving(1, *size, seed=number)[0], 20, 235)
            write_png(folder / f"{name[0]}{name[2]}{number}.png", sharp + np.uint8(shift))
    return root


def sample(views: int = 2, size: tuple[int, int] = (12, 20)) -> Sample:
    random = np.random.default_rng(0)
    blurred, sharp, *seen = random.integers(0, 256, (2 + views, *size, 3), np.uint8)
    return Sample(blurred[None], sharp[None], np.stack(seen) if views else np.empty((0, *size, 3), np.uint8))


# --- crops and batches


def test_batches_are_what_their_seed_and_number_say() -> None:
    wanted = new_options(GIVEN)
    source = training_stills(wanted, 1)
    third = source.batch(3)
    assert third.blurred.shape == third.sharp.shape == (2, 3, 16, 16) and third.views.shape == (2, 2, 3, 16, 16)
    assert {part.dtype for part in third} == {torch.uint8} and source.has_views
    again = training_stills(wanted, 3)
    assert not torch.equal(again.batch(4).sharp, third.sharp)
    assert all(torch.equal(*pair) for pair in zip(again.batch(3), third, strict=True))
    another = training_stills(dataclasses.replace(wanted, seed=1), 1)
    assert not torch.equal(another.batch(3).sharp, third.sharp)
    (loaded,) = itertools.islice(batches.batches(source, 3, 1, 0), 1)
    assert torch.equal(loaded.blurred, third.blurred)


def test_what_belongs_together_is_cut_together() -> None:
    whole = sample()
    positions = np.mgrid[:12, :20].transpose(1, 2, 0).astype(np.uint8)
    marks = np.concatenate((positions, np.zeros((12, 20, 1), np.uint8)), 2)[None]
    same = Sample(marks, marks, np.concatenate((marks, marks)))
    for seed in range(40):
        found = cut(same, 8, np.random.default_rng(seed))
        assert np.array_equal(found.blurred, found.sharp) and (found.views == found.sharp).all()
        assert found.sharp.shape == (1, 8, 8, 3)
    seen = {cut(whole, 8, np.random.default_rng(seed)).sharp.tobytes() for seed in range(40)}
    assert len(seen) == 40


def test_with_views_rows_stay_rows_and_a_mirror_changes_them() -> None:
    """Brightness grows along the rows; the right view is brighter."""
    ramp = np.broadcast_to(np.arange(0, 80, 4, dtype=np.uint8)[:, None], (12, 20, 3))
    whole = Sample(ramp[None], ramp[None], np.stack((ramp + np.uint8(2), ramp)))
    mirrored, turned = set(), set()
    for seed in range(60):
        found = cut(whole, 8, np.random.default_rng(seed))
        steps = np.diff(found.sharp[0, 0, :, 0].astype(int))
        assert abs(steps[0]) == 4 and (steps == steps[0]).all()
        difference = int(found.views[0, 0, 0, 0]) - int(found.views[1, 0, 0, 0])
        if difference:  # not one of those that are sharp already
            assert difference == (2 if steps[0] > 0 else -2)
        mirrored.add(int(np.sign(steps[0])))
        alone = cut(Sample(ramp[None], ramp[None], whole.views[:0]), 8, np.random.default_rng(seed))
        turned.add(bool(np.diff(alone.sharp[0, 0, :, 0].astype(int)).any()))
        assert alone.views.shape == (0, 8, 8, 3)
    assert mirrored == {-1, 1} and turned == {False, True}


def test_some_are_sharp_already_with_their_views(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample()
    sharp = [np.array_equal(*cut(whole, 8, np.random.default_rng(seed))[:2]) for seed in range(400)]
    assert 2 <= sum(sharp) <= 30
    monkeypatch.setattr(stills, "SHARP", 1.0)
    for views in (0, 2):
        found = cut(sample(views), 8, np.random.default_rng(0))
        assert np.array_equal(found.blurred, found.sharp) and len(found.views) == views
        assert (found.views == found.sharp).all()


def test_made_pictures_are_larger_than_a_crop_and_serve_several(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, tuple[int, ...]]] = []

    def made(seed: int, *sides: int, photographs: object) -> Any:
        asked.append((seed - 20_000_000, sides))

    monkeypatch.setattr(stills, "make_still", made)
    monkeypatch.setattr(stills, "of_made", lambda still: still)
    draw = stills.made_stills(new_options({**GIVEN, "seed": 2, "batch": 4}))
    for seed in range(300):
        draw(np.random.default_rng(seed), 5 + 16 * 1000)
    assert {number % 16 for number, _ in asked} == {5} and len(asked) == batches.KEPT
    assert {sides for _, sides in asked} == {(16 + batches.MARGIN,) * 2}


# --- folders


@pytest.mark.parametrize("preset", ["ifan", "ifan-dual"])
def test_dpdd_is_read_as_it_lies(tmp_path: Path, preset: str) -> None:
    folder = write_dpdd(tmp_path / "dd_dp_dataset_png")
    wanted = new_options({**GIVEN, "preset": preset, "data": (f"dpdd:{tmp_path}",)})
    source = ifan_recipe.training_source(wanted, print)
    batch = next(batch for batch in map(source.batch, range(9)) if not torch.equal(batch.blurred, batch.sharp))
    first = batch.sharp[0].int()
    shifts = [int((part[0].int() - first).unique()) for part in (batch.blurred, *batch.views)]
    assert shifts[0] == 8 and set(shifts[1:]) == {6, 10}
    samples = ifan_recipe.validation_samples(wanted, print)
    assert [each.sharp.shape for each in samples] == [(1, 24, 32, 3)]
    right, left = samples[0].views.astype(int) - samples[0].sharp
    assert (right == 10).all() and (left == 6).all() and folder.is_dir()
    assert np.array_equal(samples[0].sharp[0], np.clip(moving(1, 29, 37)[0], 20, 235)[2:26, 2:34])


def test_a_network_of_one_picture_does_without_views_and_says_so(tmp_path: Path) -> None:
    folder = write_dpdd(tmp_path / "set", views="")
    said: list[str] = []
    given = {**GIVEN, "data": (f"dpdd:{folder}",), "max_steps": 1}
    assert train(tmp_path / "run", given, CPU, say=said.append).step == 1
    assert "the data has no views of a dual-pixel sensor: the disparity loss is left out" in said
    source = training_stills(new_options(given), 1)
    assert not source.has_views and source.batch(0).views.shape == (0, 2, 3, 16, 16)
    said.clear()
    train(tmp_path / "other", {**given, "data": ("defocus",)}, CPU, say=said.append)
    assert not [line for line in said if "views" in line]


def test_many_pictures_are_validated_on_a_few_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "VALIDATION_CLIPS", 2)
    wanted = new_options({**GIVEN, "data": (f"dpdd:{write_dpdd(tmp_path, 5, (16, 40))}",)})
    found = validation_stills(wanted, 1)
    assert [each.sharp.shape for each in found] == [(1, 16, 32, 3)] * 2  # twice the usual side at most
    assert not np.array_equal(found[0].sharp, found[1].sharp)


def test_made_pictures_of_own_photographs(tmp_path: Path) -> None:
    for number in range(2):
        write_png(tmp_path / f"{number}.png", moving(1, 256, 260, seed=number)[0])
    (tmp_path / "broken.jpg").write_bytes(b"x")
    said: list[str] = []
    given = {**GIVEN, "data": (f"defocus:{tmp_path}",)}
    own, usual = (training_stills(new_options(each), 1, said.append) for each in (given, GIVEN))
    assert own.has_views and not torch.equal(own.batch(0).sharp, usual.batch(0).sharp)
    assert len(said) == 1 and "left out" in said[0] and "broken.jpg" in said[0]
    assert len(validation_stills(new_options(given), 1)) == batches.VALIDATION_CLIPS


# --- options


def test_defaults_are_those_of_the_network() -> None:
    assert new_options({}) == Options()
    found = new_options({"preset": "ifan"})
    assert (found.data, found.max_steps, found.crop, found.batch, found.rate) == (("defocus",), 600_000, 256, 8, 1e-4)
    sizes = {preset: new_options({"preset": preset}).crop for preset in ("ifan-26", "ifan-35", "ifan-44", "ifan-dual")}
    assert sizes == {"ifan-26": 256, "ifan-35": 576, "ifan-44": 704, "ifan-dual": 256}
    assert new_options({"preset": "ifan-44", "crop": 64}).crop == 64
    rates = [dataclasses.replace(found, rate=1.0).rate_at(step) for step in (499_999, 500_000, 549_999, 550_000)]
    assert rates == [1, 0.5, 0.5, 0.25]
    assert read_data("defocus:a:b") == ("defocus", Path("a:b"), 1) and read_data("defocus") == ("defocus", None, 1)


def test_a_resumed_run_takes_no_option_of_another_network() -> None:
    saved = new_options(GIVEN)
    assert resumed(saved, {"crop": 32}).crop == 32
    for wrong in ({"frames": 3}, {"unroll": 2}, {"centre": False}):
        with pytest.raises(InvalidInputError, match="means nothing to the training of ifan: leave it out"):
            resumed(saved, wrong)
    with pytest.raises(InvalidInputError, match="multiple of 8"):
        resumed(saved, {"crop": 20})


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset=mtu2", "--data=defocus"], ["--data defocus is not what mtu2 is trained on", "--preset ifan"]),
        (["--preset=mtu1", "--data=dpdd:{tmp}/dpdd"], ["is not what mtu1 is trained on", "gopro:DIR"]),
        (["--data=defocus:{tmp}"], ["is not what mtu2 is trained on"]),
        (["--data=gopro:{tmp}"], ["is not what ifan is trained on (defocus or defocus:DIR, dpdd:DIR)", "mtu1"]),
        (["--data=synthetic"], ["--data synthetic is not what ifan"]),
        (["--data=photos:{tmp}"], ["photos:{tmp} is not what ifan"]),
        (["--data=realdof:{tmp}"], ["--data is 'realdof:{tmp}'", "dpdd:DIR"]),
        (["--data=dpdd"], ["--data is 'dpdd'"]),
        (["--data=defocus:"], ["--data is 'defocus:'"]),
        (["--data=dpdd:{tmp}/nowhere"], ["nowhere does not exist", "dpdd data set was unpacked"]),
        (["--data=defocus:{tmp}/nowhere"], ["nowhere does not exist", "photographs"]),
        (["--data=dpdd:{tmp}"], ["does not hold the train pictures of dpdd", "train_ and val_"]),
        (["--data=dpdd:{tmp}/dpdd", "--crop=32"], ["is 37x29: smaller than --crop 32"]),
        (
            ["--data=dpdd:{tmp}/plain", "--preset=ifan-dual"],
            ["has not as many pictures of each kind", "train_r/source 0"],
        ),
        (["--data=dpdd:{tmp}/left"], ["has not as many pictures of each kind", "train_r/source 0"]),
        (["--data=dpdd:{tmp}/dpdd", "--preset=ifan-99"], ["unknown preset 'ifan-99'", "ifan-dual"]),
        (["--preset=dmenet"], ["unknown preset 'dmenet'", "mtu10-large", "ifan-44"]),
        (["--crop=20"], ["--crop is 20", "multiple of 8"]),
        (["--frames=5"], ["--frames means nothing to the training of ifan"]),
        (["--motion-weight=0"], ["--motion-weight means nothing"]),
        (["--no-centre"], ["--centre means nothing"]),
        (["--image-loss=psnr"], ["--image-loss means nothing"]),
        (["--unroll=2"], ["--unroll means nothing"]),
        (["--start-from={tmp}/other.pytorch"], ["is of custom (3 iterations, 4 channels, 1 stream)", "asks for ifan"]),
        (["--start-from={tmp}/text"], ["checkpoint", "text"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_message(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    given = " ".join(arguments)
    (tmp_path / "text").write_text("not a checkpoint")
    for name, views in (("dpdd", "lr"), ("plain", ""), ("left", "l")):
        if f"{{tmp}}/{name}" in given:
            write_dpdd(tmp_path / name, 1, views=views)
    if "other" in given:
        ifan.save(tmp_path / "other.pytorch", arrays({**TINY, "channels": 4}), ifan.LAYOUTS[1])
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    preset: tuple[Any, ...] = () if "--preset" in given or given == "--data=defocus:{tmp}" else ("--preset=ifan",)
    ended = cli.run(capsys, "mtu-train", "-o", tmp_path / "run", *SMALL, *preset, *filled)
    refused(ended, *(word.format(tmp=tmp_path) for word in words))
    assert not (tmp_path / "run").exists()
