"""Model repositories: what is written, that it is whole, what is refused before anything is."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from tests import cli, fake_cuda
from tests.bundles import doubling_bundle, map_bundle, negative_bundle, views_bundle

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Interface
from mtu.export.chain_files import write_chain
from mtu.export.triton_files import Serving, config, read_threshold, write_repository
from mtu.runtime import open_model
from mtu.runtime.chain import interface_of
from mtu.runtime.engine import Profile, Sizes

ANY_SIZE = Profile(Sizes(16, 16), Sizes(32, 32), Sizes(64, 64))


def export(capsys, *arguments):
    return cli.run(capsys, "mtu-export", "triton", *arguments)


def parameters(directory):
    text = (directory / "config.pbtxt").read_text()
    found = re.findall(r'parameters \{ key: ("[^"]*") value \{ string_value: ("(?:[^"\\]|\\.)*") \} \}', text)
    return {json.loads(key): json.loads(value) for key, value in found}, text


def chain(tmp_path):
    models = [negative_bundle(tmp_path / "negative"), doubling_bundle(tmp_path / "doubling")]
    return write_chain([model.directory for model in models], tmp_path / "both").directory


@pytest.mark.parametrize(
    ("make", "name", "inputs", "outputs"),
    [
        (lambda path: negative_bundle(path / "m").directory, "test", ["image"], {"picture": "[-1, -1, -1, 3]"}),
        (lambda path: map_bundle(path / "m").directory, "test", ["image"], {"map": "[-1, -1, -1]"}),
        (lambda path: views_bundle(path / "m").directory, "test", ["image", "right", "left"], {}),
        (chain, "both", ["image"], {"picture": "[-1, -1, -1, 3]"}),
        (lambda path: None, "mtu2", ["image"], {"displacement": "[-1, -1, -1]"}),
    ],
)
def test_a_repository_holds_a_whole_model(tmp_path, capsys, make, name, inputs, outputs):
    model = make(tmp_path)
    ended = export(capsys, *([] if model is None else [model]), "-o", tmp_path / "models")
    assert ended.code == 0 and f"model {name}" in ended.out
    directory = tmp_path / "models" / name
    assert [path.name for path in (tmp_path / "models").iterdir()] == [name]
    given, text = parameters(directory)
    assert interface_of(open_model(directory / "1" / "model")).digest == interface_of(open_model(model)).digest
    described = Interface.from_dict(json.loads(given["interface"]), "config")
    assert described.digest == interface_of(open_model(model)).digest
    assert all(f'name: "{each}" data_type: TYPE_UINT8 dims: [-1, -1, 3]' in text for each in inputs)
    assert all(f'name: "{each}"' in text and dims in text for each, dims in outputs.items())
    assert "max_batch_size: 8" in text and "max_candidate_sequences: 32" in text
    assert (given["scene_threshold"], given["backend"], given["frame_size"]) == ("10.0", "auto", "")
    compile((directory / "1" / "model.py").read_text(), "model.py", "exec")


def test_options_go_into_the_configuration(tmp_path, capsys):
    options = "--name blur --max-batch 2 --max-streams 3 --idle 1.5 --backend onnxruntime --device cpu --precision fp32"
    assert export(capsys, "-o", tmp_path, *options.split(), "--no-scene-detection").code == 0
    given, text = parameters(tmp_path / "blur")
    assert 'name: "blur"' in text and "max_batch_size: 2\n" in text
    assert "max_candidate_sequences: 3 " in text and "max_sequence_idle_microseconds: 1500000\n" in text
    config = {
        "parameters": {name: {"string_value": value} for name, value in given.items()},
        "max_batch_size": 2,
        # Triton gives numbers of 64 bits as text.
        "sequence_batching": {"oldest": {"max_candidate_sequences": 3}, "max_sequence_idle_microseconds": "1500000"},
    }
    expected = Serving("onnxruntime", "cpu", "fp32", None, max_batch=2, max_streams=3, idle=1.5)
    assert Serving.read(config) == expected
    for broken in ({}, {**config, "parameters": {}}, {**config, "max_batch_size": "x"}):
        with pytest.raises(InvalidInputError, match="as mtu-export triton writes it"):
            Serving.read(broken)


@pytest.mark.parametrize("text", ["-1", "101", "nan", "high", ""])
def test_thresholds_that_are_none(text):
    with pytest.raises(InvalidInputError, match="scene_threshold"):
        read_threshold(text)


def test_names_with_quotes_and_other_letters_are_quoted(tmp_path):
    model = negative_bundle(tmp_path / "m")
    model = dataclasses.replace(model, interface=dataclasses.replace(model.interface, variant='a "b" \\ é'))
    (tmp_path / "config.pbtxt").write_text(config("x", model, Serving()))
    assert json.loads(parameters(tmp_path)[0]["interface"])["variant"] == 'a "b" \\ é'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "a/b"], ["--name a/b", "letters"]),
        (["--name", ".."], ["--name .."]),
        (["--max-batch", "0"], ["--max-batch 0"]),
        (["--max-streams", "0"], ["--max-streams 0"]),
        (["--idle", "0"], ["--idle 0"]),
        (["--idle", "nan"], ["--idle nan"]),
        (["--backend", "tensorrt"], ["--backend tensorrt", "mtu-build-engine"]),
        (["--backend", "openvin"], ["did you mean openvino"]),
        (["--backend", "onnxruntime", "--precision", "bf16"], ["--precision bf16"]),
        (["--backend", "openvino", "--device", "cuda"], ["openvino does not run on cuda"]),
        (["--device", "gpu7x"], ["unknown device"]),
        (["nowhere"], ["model nowhere does not exist"]),
    ],
)
def test_what_cannot_be_served_is_refused_and_nothing_written(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    cli.refused(export(capsys, *arguments, "-o", tmp_path / "models"), tmp_path, *words)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_for_one_size(tmp_path, capsys):
    bundle = negative_bundle(tmp_path / "bundle")
    fixed = fake_cuda.write_engine(bundle, tmp_path / "fixed", Profile.fixed(48, 64))
    ranged = fake_cuda.write_engine(bundle, tmp_path / "ranged", ANY_SIZE)
    write_repository(fixed.directory, tmp_path / "models", Serving())
    directory = tmp_path / "models" / "test"
    assert parameters(directory)[0]["frame_size"] == "64x48"
    assert {path.name for path in (directory / "1" / "model").iterdir()} == {"engine.json", "picture.engine"}
    before = sorted(tmp_path.rglob("*"))
    cli.refused(export(capsys, ranged.directory, "-o", tmp_path / "m"), tmp_path, "range of sizes", "--size")
    other = export(capsys, fixed.directory, "--backend", "onnxruntime", "-o", tmp_path / "m")
    cli.refused(other, tmp_path, "--backend onnxruntime", "engine of tensorrt")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_is_replaced_only_when_asked_and_only_a_model(tmp_path, capsys):
    model, models = negative_bundle(tmp_path / "m").directory, tmp_path / "models"
    assert export(capsys, model, "-o", models).code == 0
    (models / "other").mkdir()
    assert export(capsys, chain(tmp_path), "-o", models, "--name", "chain").code == 0
    refused = export(capsys, model, "-o", models)
    cli.refused(refused, tmp_path, "exists already", "--overwrite")
    for name, given in (("test", tmp_path / "both"), ("chain", model)):
        assert export(capsys, given, "-o", models, "--name", name, "--overwrite").code == 0
        assert interface_of(open_model(models / name / "1" / "model")).digest == interface_of(open_model(given)).digest
    assert sorted(path.name for path in models.iterdir()) == ["chain", "other", "test"]
    for place in (".", "1", "1/model"):
        foreign = models / "test" / place / "notes.txt"
        foreign.write_text("mine")
        refused = export(capsys, model, "-o", models, "--overwrite")
        cli.refused(refused, tmp_path, "notes.txt", "not overwritten")
        foreign.unlink()
    file = tmp_path / "file"
    file.write_text("")
    cli.refused(export(capsys, model, "-o", file), tmp_path, "is a file")
    cli.refused(export(capsys, model, "-o", tmp_path, "--name", "m", "--overwrite"), tmp_path, "is or holds")
