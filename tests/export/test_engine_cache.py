"""The cache of engines: what is kept, what is built again, and what two processes make of it."""

from __future__ import annotations

import multiprocessing
import shutil
import types
from dataclasses import replace

import pytest
from tests import cli, fake_cuda
from tests.frames import moving_frames

from mtu.core.errors import InvalidInputError, OutputError
from mtu.export import engine_cache
from mtu.export.engine_cache import cached_engine
from mtu.runtime import open_engine
from mtu.runtime.bundle import Bundle, open_bundle
from mtu.runtime.gpu import Gpu, find_gpu
from mtu.runtime.tensorrt_library import load_library
from mtu.runtime.video import write_png

GPU = Gpu(0, fake_cuda.NAME, "9.0", 1 << 30)
LIBRARY = types.SimpleNamespace(name="tensorrt", version=fake_cuda.VERSIONS["tensorrt"])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def built(monkeypatch):
    """What the builder, which needs a GPU, was asked for."""
    calls = []

    def build(bundle, directory, options, *, say):
        calls.append((directory, options))
        if directory.exists():
            raise OutputError(f"{directory} exists already")
        return fake_cuda.write_engine(bundle, directory, options.profile)

    monkeypatch.setattr("mtu.export.engine.build_engine", build)
    monkeypatch.setattr(engine_cache, "find_gpu", lambda: GPU)
    return calls


def ask(bundle, size=(32, 48), library=LIBRARY, gpu=GPU):
    said = []
    return cached_engine(bundle, library, gpu, size, None, said.append), said


def test_an_engine_is_built_once(small, built, cache):
    engine, said = ask(small)
    assert engine.directory.parent == cache / "engines" and engine.directory.name.startswith("tensorrt-48x32-")
    assert len(said) == 1 and "building an engine for 48x32 with tensorrt 10.16.1.11, once" in said[0]
    assert str(engine.directory) in said[0]
    assert built[0][1].runtime == "tensorrt" and not built[0][1].fp16
    assert ask(small) == (engine, [])
    assert len(built) == 1


def test_whatever_an_engine_depends_on_makes_another(small, built, tmp_path, monkeypatch):
    other = Bundle(tmp_path / "other", small.interface)
    shutil.copytree(small.directory, other.directory)
    same, _ = ask(other)
    assert same.directory == ask(small)[0].directory  # not where the bundle lies
    newer = types.SimpleNamespace(name="tensorrt", version="10.17.0")
    directories = {ask(small)[0].directory, ask(small, (32, 52))[0].directory, ask(small, library=newer)[0].directory}
    directories.add(ask(small, gpu=replace(GPU, memory=1))[0].directory)  # says nothing
    monkeypatch.setattr(engine_cache, "revisions", lambda ops: dict.fromkeys(ops, 99))
    directories.add(ask(small)[0].directory)
    other.graph("first").write_bytes(small.graph("first").read_bytes() + b"\n")
    directories.add(ask(other)[0].directory)
    assert len(directories) == 5


@pytest.mark.parametrize("damage", ["truncated", "flipped", "manifest", "missing"])
def test_a_damaged_engine_is_said_and_built_again(small, built, damage):
    engine, _ = ask(small)
    path = engine.graph("step")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "manifest":
        (engine.directory / "engine.json").write_text("{")
    else:
        path.write_bytes(content[:-1] if damage == "truncated" else content[:-1] + bytes([content[-1] ^ 1]))
    again, said = ask(small)
    assert len(built) == 2 and again == engine and path.read_bytes() == content
    assert len(said) == 2 and said[0].startswith("note: the cached engine is removed: ")


def test_a_cache_that_cannot_be_written(small, built, cache):
    cache.write_text("")
    with pytest.raises(OutputError, match=r"cannot be written \(.*\): set MTU_CACHE_DIR to a directory that can, or"):
        ask(small)
    assert built == []


def test_another_process_may_be_quicker(small, built, monkeypatch):
    def overtaken(bundle, directory, options, *, say):
        fake_cuda.write_engine(bundle, directory, options.profile)
        raise OutputError(f"{directory} has appeared meanwhile")

    monkeypatch.setattr("mtu.export.engine.build_engine", overtaken)
    engine, said = ask(small)
    assert open_engine(engine.directory) == engine and len(said) == 1


def test_a_build_that_cannot_be_written_is_an_error(small, built, monkeypatch):
    def fails(*arguments, **options):
        raise OutputError("no space left on device")

    monkeypatch.setattr("mtu.export.engine.build_engine", fails)
    with pytest.raises(OutputError, match="no space"):
        ask(small)


def test_the_second_gpu_is_of_another_kind(small, built):
    with pytest.raises(InvalidInputError, match=r"cuda:1 is another \(Other\): set CUDA_VISIBLE_DEVICES=1"):
        ask(small, gpu=Gpu(1, "Other", "8.6", 1))
    assert ask(small, gpu=replace(GPU, index=1))[0]


def test_mtu_run_builds_for_the_size_of_the_video_and_keeps_the_engine(capsys, small, built, tmp_path, monkeypatch):
    gpu = fake_cuda.Gpu()
    fake_cuda.install(monkeypatch, gpu)
    try:
        (tmp_path / "in").mkdir()
        for number, frame in enumerate(moving_frames(4, 30, 45)):
            write_png(tmp_path / "in" / f"{number}.png", frame)
        for name in ("a", "b"):
            arguments = (tmp_path / "in", "-o", tmp_path / name, "--model", small.directory, "--backend", "tensorrt")
            ended = cli.run(capsys, "mtu-run", *arguments)
            assert ended.code == 0, ended.err
            assert ("mtu-run: building an engine for 48x32" in ended.err) == (name == "a")
        assert len(built) == 1
    finally:
        fake_cuda.uninstall()


def build_for_real(directory, pipe):
    said = []
    gpu = Gpu(0, "NVIDIA GeForce RTX 4090", "8.9", 24 << 30)
    engine = cached_engine(open_bundle(directory), load_library("tensorrt-rtx"), gpu, (32, 48), None, said.append)
    pipe.send((engine.directory, len(said)))


@pytest.mark.skipif(find_gpu() is not None, reason="builds for a GPU that is not here")
def test_two_processes_build_the_same_engine(small, cache):
    pytest.importorskip("tensorrt_rtx")
    context = multiprocessing.get_context("spawn")
    answers = []
    processes = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=build_for_real, args=(small.directory, theirs))
        process.start()
        processes.append(process)
        answers.append(ours)
    directories = {answer.recv()[0] for answer in answers}
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (directory,) = directories
    assert [path.name for path in (cache / "engines").iterdir()] == [directory.name]
    engine_cache.check_files(open_engine(directory))
