"""mtu-build-engine: what it refuses, the library and the GPUs that it chooses, what is in its way."""

# ruff: noqa: E402
from __future__ import annotations

import os
import shutil
import types

import pytest
from tests import cli, needs

needs.library("onnx", "torch")

from tests.engine_builds import GPU, PROGRAM, SIZE, SMALL, left_over, rtx

from mtu.core.errors import InvalidInputError, MissingExtraError, OutputError
from mtu.export import engine_options
from mtu.export.engine import build_engine
from mtu.export.engine_options import USUAL_CAPABILITIES, BuildOptions
from mtu.runtime import tensorrt_library
from mtu.runtime.bundle import bundled_directory, open_bundle
from mtu.runtime.engine import check_files, open_engine
from mtu.runtime.gpu import Gpu


@rtx
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep-fp32", "keep.txt"), "--keep-fp32 is for --fp16"),
        (("--fp16", "--keep-fp32", "none.txt"), "--keep-fp32 none.txt does not exist"),
        (("--fp16", "--keep-fp32", "."), "--keep-fp32 . cannot be read"),
        (("--fp16", "--keep-fp32", "other.txt"), "names HGs.2.enc1.0, which the network has not: its layers are base"),
    ],
)
def test_bad_files_of_layers(small, tmp_path, capsys, monkeypatch, keep, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("HGs.2.enc1.0\nout")
    ended = cli.run(capsys, PROGRAM, small.directory, *SIZE, *options, "-o", tmp_path / "E")
    assert ended.code == 2 and words in ended.err and ended.err.count("error:") == 1, ended.err
    assert not (tmp_path / "E").exists()


SIZES = ("--min-size", "--opt-size", "--max-size")


@rtx
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say which frames the engine is for"),
        (("--height", 32), "say which frames the engine is for"),
        ((*SIZE, "--opt-size", "48x32"), "say which frames the engine is for"),
        ((SIZES[0], "16x16", SIZES[2], "64x64"), "say which frames the engine is for"),
        (("--size", "1918x1078"), "build it for 1920x1080"),
        (("--size", "4x0"), "whole numbers from 1"),
        ((SIZES[0], "16x16", SIZES[1], "16x16", SIZES[2], "64:96"), "'64:96' is no frame size: write WIDTHxHEIGHT"),
        ((SIZES[0], "16x16", SIZES[1], "96x64", SIZES[2], "64x96"), "the widths have to rise"),
        (("--height", 1078, "--width", 1918), "write --size 1918x1078"),
        (("--min-shapes", "16x16", "--opt-shapes", "64x96", "--max-shapes", "96x64"), "the widths have to rise"),
        ((*SIZE, "--compute-capability", "8.6,9.0,x"), "does not know 9.0, x, it knows 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
        ((*SIZE, "--runtime", "tensorrt"), "tensorrt"),
        ((*SIZE, "--builder-optimization-level", 6), "choose 0 (quick build) to 5"),
        ((*SIZE, "--workspace", 0), "at least 1 MiB"),
        ((*SIZE, "--hardware-compatibility-level", "ampere-plus"), "is not for tensorrt-rtx: name the GPUs with"),
        ((*SIZE, "--plugin-library", "no.so"), "no.so does not exist: build it with mtu-build-plugin"),
        ((*SIZE, "--plugin-library", __file__), "is no CorrelationArgmaxWarp plugin for tensorrt-rtx"),
        ((*SIZE, "--plugin-library", __file__, "--no-plugin"), "contradict each other"),
        ((*SIZE, "--timing-cache", __file__), "is no timing cache of mtu-build-engine and is not replaced"),
        ((*SIZE, "--timing-cache", "no/such/cache"), "the timing cache no/such/cache cannot be written"),
        ((*SIZE, "--workspace", 1), "could not build first.engine"),
    ],
)
def test_bad_options_get_one_message(small, tmp_path, capsys, monkeypatch, arguments, words):
    if words.startswith("is no CorrelationArgmaxWarp"):
        import tensorrt_rtx as trt

        if trt.get_plugin_registry().get_creator("CorrelationArgmaxWarp", "1", "mtu") is not None:
            nothing = types.SimpleNamespace(get_creator=lambda *names: None, load_library=lambda path: None)
            monkeypatch.setattr(trt, "get_plugin_registry", lambda: nothing)
    if words.startswith("could not build"):  # the tiny network is content with 1 MiB
        monkeypatch.setattr("mtu.export.engine_cli.open_model", lambda path: open_bundle())
        arguments = ("--size", "1280x720", "--workspace", 1)
    monkeypatch.chdir(tmp_path)
    ended = cli.run(capsys, PROGRAM, small.directory, *arguments, "-o", "E")
    assert ended.code == 2 and words in ended.err, ended.err
    assert ended.err.count(f"{PROGRAM}: error:") == 1 and "Traceback" not in ended.err
    assert ended.out == "" and left_over(tmp_path) == []


@rtx
@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07"], ids=["empty", "text", "no metadata"])
def test_a_broken_bundle_gets_one_message(small, tmp_path, capsys, content):
    shutil.copytree(small.directory, tmp_path / "bad")
    (tmp_path / "bad" / "first.onnx").write_bytes(content)
    ended = cli.run(capsys, PROGRAM, tmp_path / "bad", *SIZE, "-o", tmp_path / "E")
    assert ended.code == 2 and ended.err.count("error:") == 1 and "first.onnx" in ended.err, ended.err
    assert left_over(tmp_path) == ["bad"]


@rtx
def test_a_mixed_or_truncated_bundle_is_refused(small, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(small.directory, mixed)
    shutil.copy(bundled_directory() / "step.onnx", mixed)
    with pytest.raises(InvalidInputError, match=r"step.onnx is not the graph step that bundle.json describes"):
        build_engine(open_bundle(mixed), tmp_path / "E", BuildOptions(SMALL))
    content = small.graph("first").read_bytes()
    (mixed / "first.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidInputError, match=r"first.onnx"):
        build_engine(open_bundle(mixed), tmp_path / "E", BuildOptions(SMALL))


@rtx
def test_outputs_that_are_in_the_way(small, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    (tmp_path / "E").mkdir()
    (tmp_path / "E" / "engine.json").touch()
    for name, options, words in (
        ("file", ("--overwrite",), "is a file; an engine is a directory"),
        ("full", ("--overwrite",), "holds letter.txt, which is no part of an engine"),
        ("E", (), "exists already: choose another name or add --overwrite"),
        ("file/E", (), "cannot write beside"),
    ):
        ended = cli.run(capsys, PROGRAM, small.directory, *SIZE, *options, "-o", tmp_path / name)
        assert ended.code == 2 and words in ended.err, ended.err
    ended = cli.run(capsys, PROGRAM, small.directory, *SIZE, "--overwrite", "-o", tmp_path / "E")
    assert ended.code == 0, ended.err
    assert left_over(tmp_path) == ["E", "file", "full"]


def test_an_engine_that_appears_during_the_build_is_not_replaced(small, tmp_path, fake):
    fake("10.16.1.11")

    def other(text):
        (tmp_path / "E").mkdir(exist_ok=True)
        (tmp_path / "E" / "engine.json").write_text("theirs")

    with pytest.raises(OutputError, match="has appeared meanwhile, written by another process, and is not replaced"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL), say=other)
    assert (tmp_path / "E" / "engine.json").read_text() == "theirs"
    build_engine(small, tmp_path / "E", BuildOptions(SMALL), say=other, overwrite=True)
    check_files(open_engine(tmp_path / "E"))
    assert left_over(tmp_path) == ["E"]


def test_a_full_disk_leaves_nothing(small, tmp_path, fake, monkeypatch):
    fake("10.16.1.11")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write first.engine: No space left on device"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL))
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("runtime", "installed", "gpu", "chosen"),
    [
        ("auto", {"tensorrt", "tensorrt-rtx"}, GPU, "tensorrt"),
        ("auto", {"tensorrt", "tensorrt-rtx"}, None, "tensorrt-rtx"),
        ("auto", {"tensorrt-rtx"}, GPU, "tensorrt-rtx"),
        ("tensorrt-rtx", {"tensorrt", "tensorrt-rtx"}, GPU, "tensorrt-rtx"),
        ("auto", set(), GPU, 'pip install "mtu-trt[gpu]"'),
        ("auto", set(), None, 'pip install "mtu-trt[rtx]"'),
        ("auto", {"tensorrt"}, None, 'pip install "mtu-trt[rtx]"'),
        ("tensorrt", set(), None, 'pip install "mtu-trt[gpu]"'),
        ("tensorrt", {"tensorrt"}, None, "no NVIDIA GPU answers here: build it there, or use --runtime tensorrt-rtx"),
    ],
)
def test_the_library_that_fits_is_chosen(monkeypatch, runtime, installed, gpu, chosen):
    def load(name):
        if name not in installed:
            raise MissingExtraError(name, tensorrt_library.EXTRAS[name], name)
        return name

    monkeypatch.setattr(engine_options, "is_installed", installed.__contains__)
    monkeypatch.setattr(engine_options, "load_library", load)
    try:
        found = engine_options._choose_library(BuildOptions(SMALL, runtime=runtime), gpu)
    except (InvalidInputError, MissingExtraError) as error:
        found = str(error)
    assert chosen in found


@rtx
@pytest.mark.parametrize(
    ("asked", "gpu", "found"),
    [
        ((), None, USUAL_CAPABILITIES),
        ((), GPU, ("8.6",)),
        (("12.0", "8.6", "8.6"), GPU, ("8.6", "12.0")),
        ((), Gpu(0, "NVIDIA H200", "9.0", 1), "does not support NVIDIA H200 (compute capability 9.0)"),
        (("9.0",), GPU, "does not know 9.0"),
    ],
)
def test_the_gpus_that_rtx_builds_for(asked, gpu, found):
    library = tensorrt_library.load_library("tensorrt-rtx")
    options = BuildOptions(SMALL, compute_capability=asked)
    try:
        assert engine_options._capabilities(library, options, gpu, lambda text: None) == found
    except InvalidInputError as error:
        assert isinstance(found, str) and found in str(error)


@pytest.mark.parametrize(
    ("version", "options", "gpu", "words"),
    [
        (
            "10.16.1",
            {"compute_capability": ("8.6",)},
            GPU,
            "builds for the GPU at hand (NVIDIA GeForce RTX 3090, 8.6)",
        ),
        (
            "8.6.1",
            {"hardware_compatibility_level": "same-compute-capability"},
            GPU,
            "has no hardware compatibility level",
        ),
        (
            "10.16.1",
            {"hardware_compatibility_level": "ampere-plus"},
            Gpu(0, "T4", "7.5", 1 << 34),
            "T4 has 7.5: use none",
        ),
    ],
)
def test_options_that_tensorrt_cannot_do(small, tmp_path, fake, version, options, gpu, words):
    fake(version, gpu)
    with pytest.raises(InvalidInputError) as refused:
        build_engine(small, tmp_path / "E", BuildOptions(SMALL, **options))
    assert words in str(refused.value)
