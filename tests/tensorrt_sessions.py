"""What the tests of the TensorRT backends share: a GPU that is not there, engines, frames, the truth. No test here."""

# ruff: noqa: E402
from __future__ import annotations

import functools
import gc
import shutil

import numpy as np
import pytest

from tests import fake_cuda, needs

needs.library("av", "onnx", "onnxruntime", "torch")

import onnx
from onnx import TensorProto, helper, numpy_helper

from mtu.core.errors import InvalidInputError
from mtu.runtime import Session, open_backend, open_bundle
from mtu.runtime.engine import Profile, Sizes
from tests.frames import moving_frames

ANY_SIZE = Profile(Sizes(4, 4), Sizes(32, 48), Sizes(128, 128))


@pytest.fixture
def make_gpu(monkeypatch, tmp_path):
    """Makes a GPU with a library; at the end, whatever the backends held has to be free again."""
    monkeypatch.setenv("MTU_CACHE_DIR", str(tmp_path / "cache"))
    made = []

    def make(**options):
        gpu = fake_cuda.Gpu(**options)
        fake_cuda.install(monkeypatch, gpu)
        made.append(gpu)
        return gpu

    yield make
    fake_cuda.uninstall()
    gc.collect()
    for gpu in made:
        assert gpu.contexts == [] and gpu.faults == [] and gpu.freed_outside == 0


@pytest.fixture
def gpu(make_gpu):
    return make_gpu()


@pytest.fixture(scope="module")
def overflowing(small, tmp_path_factory):
    """The small model, whose `step` gives an infinity in `motion` where the frame has a pixel of 255."""
    directory = tmp_path_factory.mktemp("overflowing") / "bundle"
    shutil.copytree(small.directory, directory)
    model = onnx.load(small.graph("step"))
    for node in model.graph.node:
        for number, name in enumerate(node.output):
            if name == "motion_out":
                node.output[number] = "motion_finite"
    values = {"top": np.float32(255), "zero": np.float32(0), "infinity": np.float32(np.inf)}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in values.items())
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["frame"], ["frame_float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["frame_float"], ["brightest"], keepdims=0),
            helper.make_node("Equal", ["brightest", "top"], ["is_top"]),
            helper.make_node("Where", ["is_top", "infinity", "zero"], ["added"]),
            helper.make_node("Add", ["motion_finite", "added"], ["motion_out"]),
        ]
    )
    onnx.save(model, directory / "step.onnx")
    return open_bundle(directory)


def dim_frames(count, height=32, width=48, seed=0):
    """Frames without a pixel of 255."""
    return [np.minimum(frame, 254) for frame in moving_frames(count, height, width, seed)]


def flashing(count, *flashes):
    frames = dim_frames(count)
    for flash in flashes:
        frames[flash][3, 5] = 255
    return frames


def truth(bundle, frames, **options):
    return collect(Session(opened(bundle), **options), frames)


def opened(bundle):
    return opened_directory(bundle.directory)


@functools.cache
def opened_directory(directory):
    return open_backend("onnxruntime", open_bundle(directory), "cpu")


def collect(session, frames):
    results = [r for frame in frames for r in session.push(frame)] + list(session.flush())
    return results, session


def assert_same(got, expected):
    assert [r.index for r in got] == [r.index for r in expected]
    for ours, theirs in zip(got, expected, strict=True):
        assert np.array_equal(ours.rgb, theirs.rgb), ours.index
        if theirs.displacement is None:
            assert ours.displacement is None
        else:
            assert np.array_equal(ours.displacement, theirs.displacement), ours.index


@pytest.fixture
def engine(small, tmp_path):
    return fake_cuda.write_engine(small, tmp_path / "engine", ANY_SIZE)


def refused(match, *arguments, **options):
    with pytest.raises(InvalidInputError, match=match) as caught:
        open_backend(*arguments, **options)
    assert "\n" not in str(caught.value)
