"""Chains: what they give is what their models give one after the other; what cannot be a chain is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests import cli
from tests.frames import moving_frames

from mtu.core.errors import InvalidInputError, MissingFileError, OutputError
from mtu.core.interface import Output, Size, Tensor
from mtu.export.chain_files import write_chain
from mtu.export.engine import build_chain
from mtu.export.engine_options import BuildOptions
from mtu.export.to_onnx import export_bundle
from mtu.models import families
from mtu.models.checkpoint import random_checkpoint
from mtu.runtime import open_bundle
from mtu.runtime.backends import open_model
from mtu.runtime.bundle import bundle_json
from mtu.runtime.chain import combined
from mtu.runtime.engine import Profile
from mtu.runtime.video import read_picture, write_png

OWN = Path(__file__).parent.parent / "models" / "own_families"


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """A bundle that doubles the size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "_own", {})
        name = families.load_family_file(OWN / "twice.py")
        return export_bundle(random_checkpoint(name, {"channels": 3}), tmp_path_factory.mktemp("twice") / "bundle")


def write(directory: Path, frames) -> Path:
    directory.mkdir()
    for number, frame in enumerate(frames):
        write_png(directory / f"{number:03}.png", frame)
    return directory


def read(directory: Path):
    return [read_picture(path) for path in sorted(directory.iterdir())]


def run(capsys, source, target, model, *options):
    """The pictures and what was said."""
    ended = cli.run(capsys, "mtu-run", source, "-o", target, "--model", model, *options)
    assert ended.code == 0, ended.err
    return read(target), ended.err


def in_a_row(capsys, source: Path, models, *options):
    """By one command after the other, over PNGs."""
    for number, model in enumerate(models):
        target = source.with_name(f"{source.name}-{number}")
        pictures, _ = run(capsys, source, target, model, "--no-scene-detection", *options)
        source = target
    return pictures


def same(found, wanted) -> bool:
    return len(found) == len(wanted) and all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("names", ["mimo small", "small mimo", "twice small", "single twice mimo"])
def test_a_chain_gives_what_its_models_give_one_after_the_other(tmp_path, capsys, request, names):
    models = [request.getfixturevalue(name).directory for name in names.split()]
    source = write(tmp_path / "in", moving_frames(5, 29, 38))
    ended = cli.run(capsys, "mtu-export", "chain", *models, "-o", tmp_path / "chain")
    assert ended.code == 0 and ended.out.count(" then ") == len(models) - 1, ended.err
    found, _ = run(capsys, source, tmp_path / "out", tmp_path / "chain", "--no-scene-detection")
    assert same(found, in_a_row(capsys, source, models))
    scale = 2 if "twice" in names else 1
    assert found[0].shape == (29 * scale, 38 * scale, 3)


def test_scene_cuts_of_the_source_reset_all_stages(tmp_path, capsys, small, single):
    scenes = moving_frames(4, 24, 32), [frame // 5 for frame in moving_frames(4, 24, 32, seed=1)]
    chain = write_chain([single.directory, small.directory], tmp_path / "chain").directory
    found, said = run(capsys, write(tmp_path / "in", [*scenes[0], *scenes[1]]), tmp_path / "out", chain)
    assert "1 scene cut" in said
    models = [single.directory, small.directory]
    parts = [in_a_row(capsys, write(tmp_path / f"part{n}", frames), models) for n, frames in enumerate(scenes)]
    assert same(found, parts[0] + parts[1])
    whole, _ = run(capsys, tmp_path / "in", tmp_path / "uncut", chain, "--no-scene-detection")
    assert not same(whole, found)


def test_tiles_of_a_chain(tmp_path, capsys, mimo, twice):
    """Where neighbours overlap by more than the networks see, the seams do not show."""
    chain = write_chain([twice.directory, mimo.directory], tmp_path / "chain").directory
    source = write(tmp_path / "in", moving_frames(2, 24, 408))
    whole, _ = run(capsys, source, tmp_path / "whole", chain)
    tiled, _ = run(capsys, source, tmp_path / "tiled", chain, "--tile", "288x24")
    assert tiled[0].shape == (48, 816, 3)
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(whole, tiled, strict=True)) <= 1


def test_what_a_chain_is_like_from_outside(small, mimo, twice):
    chain = combined([twice.interface, mimo.interface, small.interface])
    assert (chain.scale, chain.size, chain.look_back, chain.look_ahead) == (2, Size(12, 12), 2, 2)
    assert chain.the("picture").tensor.shape == (1, "2*H", "2*W", 3)
    assert chain.the("displacement").tensor.shape == (1, "2*H/4", "2*W/4")
    assert chain.the("displacement").radius == small.interface.the("displacement").radius
    assert not chain.states and len(chain.graphs) == 1
    twice_over = combined([small.interface, small.interface])
    assert (twice_over.scale, twice_over.look_back, twice_over.look_ahead) == (1, 4, 4)
    picky = replace(small.interface, size=Size(4, 4, 15))
    assert (
        combined([twice.interface, picky]).size.smallest == 8 and combined([picky, mimo.interface]).size.smallest == 15
    )


def described(bundle, directory: Path, **changes) -> Path:
    """A copy of a bundle with another description."""
    shutil.copytree(bundle.directory, directory)
    (directory / "bundle.json").write_bytes(bundle_json(replace(bundle.interface, **changes)))
    return directory


def of_maps(bundle, directory: Path) -> Path:
    graph = bundle.interface.graphs[0]
    output = Output(Tensor("output", "float32", (1, "H", "W")), "map")
    return described(bundle, directory, graphs=(replace(graph, outputs=(output,)),))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("mimo",), "a chain has two models or more, 1 given"),
        (("map", "mimo"), "stage 1 (custom) gives a map and no picture: it can only be the last of a chain"),
        (("mimo", "map", "mimo"), "stage 2 (custom) gives a map and no picture"),
        (("mimo", "two"), "stage 2 (custom) reads 2 streams (image, events), and a chain has one"),
        (("two", "mimo"), "stage 1 (custom) reads 2 streams"),
        (("mimo", "chain"), "is a chain itself: give its stages"),
        (("chain", "mimo"), "is a chain itself"),
        (("mimo", "nothing"), "does not exist"),
        (("mimo", "empty"), "lacks bundle.json"),
        (("mimo", "file"), "is a file"),
        ((), "MODEL"),
    ],
)
def test_what_cannot_be_a_chain(tmp_path, capsys, mimo, arguments, words):
    shutil.copytree(mimo.directory, tmp_path / "mimo")
    of_maps(mimo, tmp_path / "map")
    described(mimo, tmp_path / "two", streams=("image", "events"))
    write_chain([mimo.directory, mimo.directory], tmp_path / "chain")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a model")
    before = sorted(tmp_path.iterdir())
    paths = [tmp_path / name for name in arguments]
    ended = cli.run(capsys, "mtu-export", "chain", *paths, "-o", tmp_path / "out")
    assert ended.code == 2 and words in ended.err and ended.err.count("error:") == 1, ended.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("output", ["mimo", "."])
def test_a_chain_is_not_written_over_or_into_its_stages(tmp_path, capsys, mimo, output):
    shutil.copytree(mimo.directory, tmp_path / "mimo")
    files = {path: path.read_bytes() for path in (tmp_path / "mimo").iterdir()}
    options = ("-o", tmp_path / output, "--overwrite")
    ended = cli.run(capsys, "mtu-export", "chain", tmp_path / "mimo", tmp_path / "mimo", *options)
    assert ended.code == 2 and ended.err.count("error:") == 1, ended.err
    assert {path: path.read_bytes() for path in (tmp_path / "mimo").iterdir()} == files


def test_a_chain_is_replaced_when_asked(tmp_path, capsys, mimo, small):
    write_chain([mimo.directory, small.directory, mimo.directory], tmp_path / "chain")
    arguments = ("mtu-export", "chain", small.directory, mimo.directory, "-o", tmp_path / "chain")
    ended = cli.run(capsys, *arguments)
    assert ended.code == 2 and "exists already" in ended.err
    ended = cli.run(capsys, *arguments, "--overwrite")
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (tmp_path / "chain").iterdir()) == ["1-bundle", "2-bundle", "bundle.json"]
    (tmp_path / "chain" / "thesis.txt").write_text("mine")
    ended = cli.run(capsys, *arguments, "--overwrite")
    assert ended.code == 2 and "thesis.txt" in ended.err


@pytest.mark.parametrize("foreign", ["2024-holiday/a.jpg", "1-bundle/thesis.txt", "3-mimo-unet/bundle.json"])
def test_what_is_no_part_of_a_chain_survives(tmp_path, capsys, mimo, small, foreign):
    models = [small.directory, mimo.directory]
    write_chain(models, tmp_path / "chain")
    path = tmp_path / "chain" / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    ended = cli.run(capsys, "mtu-export", "chain", *models, "-o", tmp_path / "chain", "--overwrite")
    assert ended.code == 2 and "is no part of a" in ended.err and path.read_text() == "mine", ended.err


def test_a_chain_is_not_replaced_by_the_engines_built_from_it(tmp_path, mimo, small):
    chain = write_chain([small.directory, mimo.directory], tmp_path / "chain")
    with pytest.raises(OutputError, match="which is still needed"):
        build_chain(chain, tmp_path / "chain", BuildOptions(Profile.fixed(64, 64)), overwrite=True)


def stages(directory: Path, value) -> Path:
    path = directory / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "stages": value}))
    return directory


@pytest.mark.parametrize(
    "value",
    [
        ["1-bundle"],
        [],
        "1-bundle",
        {"1-bundle": 1},
        ["1-bundle", "../other"],
        ["1-bundle", ".."],
        ["1-bundle", "/"],
        ["1-bundle", ""],
        ["1-bundle", 2],
        ["1-bundle", "1-bundle/../2-bundle"],
        ["1-bundle", "2-bundle\0"],
        None,
        ["x" * 5000, "2-bundle"],
        ["1-bundle", "3-gone"],
    ],
)
def test_stages_that_are_none(tmp_path, capsys, mimo, value):
    chain = write_chain([mimo.directory, mimo.directory], tmp_path / "chain").directory
    source = write(tmp_path / "in", moving_frames(1, 8, 8))
    shutil.copytree(mimo.directory, tmp_path / "other")
    ended = cli.run(capsys, "mtu-run", source, "-o", tmp_path / "out", "--model", stages(chain, value))
    assert ended.code == 2 and ended.err.count("error:") == 1 and str(chain) in ended.err, ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["gone", "empty", "a chain"])
def test_a_stage_that_is_broken_on_disk(tmp_path, mimo, what):
    chain = write_chain([mimo.directory, mimo.directory], tmp_path / "chain").directory
    stage = chain / "1-bundle"
    shutil.rmtree(stage)
    if what == "empty":
        stage.mkdir()
    elif what == "a chain":
        write_chain([mimo.directory, mimo.directory], stage)
    with pytest.raises((InvalidInputError, MissingFileError), match="1-bundle"):
        open_model(chain)
    with pytest.raises(InvalidInputError, match="is a chain, and one bundle is wanted here"):
        open_bundle(chain)
