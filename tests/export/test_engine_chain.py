"""Engines of chains and of models that are no network of this project."""

# ruff: noqa: E402
from __future__ import annotations

import json
import shlex

import pytest
from tests import cli, needs

needs.library("onnx", "torch")

from tests.engine_builds import PROGRAM, SMALL, left_over, of_one_stream, rtx
from tests.small_models import difference, opposite, trail

from mtu.core.errors import InvalidInputError, OutputError
from mtu.export.chain_files import write_chain
from mtu.export.engine import build_chain, build_engine
from mtu.export.engine_options import BuildOptions
from mtu.runtime.backends import Stages, open_model
from mtu.runtime.engine import Profile, Sizes, check_files, open_engine


@pytest.fixture
def doubled(tmp_path, small):
    """A stage that doubles the size, of multiples of 8 from 16, and one with a plugin."""
    root = tmp_path / "made"
    return write_chain([opposite(root / "twice").directory, small.directory], root / "chain")


@rtx
def test_a_chain_becomes_a_chain_of_engines(doubled, tmp_path, capsys):
    ended = cli.run(
        capsys, PROGRAM, doubled.directory, "--size", "48x32", "--compute-capability", "8.6", "-o", tmp_path / "E"
    )
    assert ended.code == 0, ended.err
    names = [stage.directory.name for stage in doubled.models]
    assert left_over(tmp_path / "E") == sorted(["bundle.json", *names])
    found = open_model(tmp_path / "E")
    assert isinstance(found, Stages)
    stages = zip(found.models, doubled.models, ("48x32", "96x64"), ended.out.splitlines(), strict=True)
    for stage, bundle, size, line in stages:
        check_files(stage)
        assert (stage.interface, str(stage.manifest.profile)) == (of_one_stream(bundle.interface), size)
        assert stage.directory.name == bundle.directory.name and f", frames {size}, tensorrt-rtx" in line
        for graph in stage.interface.graphs:
            assert f"{PROGRAM}: {stage.directory.name}: {graph.name}.engine: 0% of" in ended.err
    # The command in the manifest builds the stage again, where it is.
    words = shlex.split(found.models[1].manifest.command)
    assert cli.run(capsys, *words).code == 0
    assert open_engine(found.models[1].directory).manifest == found.models[1].manifest
    assert cli.run(capsys, PROGRAM, doubled.directory, "--size", "48x32", "-o", tmp_path / "E").code == 2


@rtx
@pytest.mark.parametrize("make", [opposite, difference, trail])
def test_models_of_any_kind_become_engines(tmp_path, make):
    bundle = make(tmp_path / "B")
    engine = build_engine(bundle, tmp_path / "E", BuildOptions(SMALL, compute_capability=("8.6",)))
    assert engine.interface == of_one_stream(bundle.interface) and engine.manifest.plugins == {}
    assert [path.stem for path in engine.files] == [graph.name for graph in bundle.interface.graphs]


@rtx
@pytest.mark.parametrize("fp16", [False, True])
def test_a_network_of_one_graph_becomes_an_engine(mimo, tmp_path, fp16):
    said = []
    options = BuildOptions(SMALL, fp16=fp16, compute_capability=("8.6",))
    made = build_engine(mimo, tmp_path / "E", options, say=said.append).manifest
    assert (made.precision, made.plugins) == ("fp16" if fp16 else "fp32", {})
    (graph,) = mimo.interface.graphs
    assert said[-1].startswith(f"{graph.name}.engine: {'9' if fp16 else '0%'}")


def test_each_stage_has_its_own_sizes(doubled, tmp_path, fake):
    """Those of the source, times the scale of the stages before, padded as the stage pads."""
    trt = fake("10.16.1.11")
    profile = Profile(Sizes(16, 24), Sizes(32, 48), Sizes(64, 72))
    made = build_chain(doubled, tmp_path / "E", BuildOptions(profile))
    assert made == open_model(tmp_path / "E")
    shapes = [next(iter(config.profiles[0].shapes.values())) for config in trt.configs]
    assert shapes[0] == ((1, 16, 24, 3), (1, 32, 48, 3), (1, 64, 72, 3))
    assert shapes[1] == shapes[2] == ((1, 32, 48, 3), (1, 64, 96, 3), (1, 128, 144, 3))


def test_a_stage_that_fails_leaves_nothing(doubled, tmp_path, fake, monkeypatch):
    trt = fake("10.16.1.11")
    (tmp_path / "keep.txt").write_text("out")

    def say(text):
        trt.plan = None  # the first graph is built

    with pytest.raises(InvalidInputError, match=r"could not build first.engine"):
        build_chain(doubled, tmp_path / "E", BuildOptions(SMALL), say=say)
    assert left_over(tmp_path) == ["keep.txt", "made"]
    for options, words in (
        (
            BuildOptions(SMALL, fp16=True, keep_fp32=tmp_path / "keep.txt"),
            "--keep-fp32 names the layers of one network",
        ),
        (BuildOptions(Profile.fixed(30, 48)), "48x30 is no multiple of 8 from 16; .* build it for 48x32"),
        (BuildOptions(Profile.fixed(8, 48)), "build it for 48x16"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            build_chain(doubled, tmp_path / "E", options)
    (tmp_path / "E").mkdir()
    (tmp_path / "E" / "letter.txt").touch()
    with pytest.raises(OutputError, match=r"letter.txt, which is no part of a chain"):
        build_chain(doubled, tmp_path / "E", BuildOptions(SMALL), overwrite=True)


def test_engines_are_built_of_bundles_alone(small, tmp_path, fake, capsys):
    fake("10.16.1.11")
    build_engine(small, tmp_path / "E", BuildOptions(SMALL))
    ended = cli.run(capsys, PROGRAM, tmp_path / "E", "--size", "48x32", "-o", tmp_path / "F")
    assert ended.code == 2 and "is an engine already: give the bundle it was built from" in ended.err
    mixed = write_chain([small.directory, tmp_path / "E"], tmp_path / "mixed")
    ended = cli.run(capsys, PROGRAM, mixed.directory, "--size", "48x32", "-o", tmp_path / "F")
    assert ended.code == 2 and "a stage of" in ended.err and "is an engine already" in ended.err
    broken = json.loads((mixed.directory / "bundle.json").read_text())
    (mixed.directory / "bundle.json").write_text(json.dumps({**broken, "stages": ["1"]}))
    ended = cli.run(capsys, PROGRAM, mixed.directory, "--size", "48x32", "-o", tmp_path / "F")
    assert ended.code == 2 and "names two sub-directories" in ended.err
    assert left_over(tmp_path) == ["E", "mixed"]
