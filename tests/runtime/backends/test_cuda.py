"""The backends on a GPU give what they give on the CPU. Skipped without one; a failure under MTU_REQUIRE_CUDA=1."""

from __future__ import annotations

import ctypes
import sys
import types

import numpy as np
import pytest
from tests import conftest, needs
from tests.frames import moving_frames

from mtu.runtime import gpu, open_backend, restore


def driver(init, counted, count):
    """A driver that answers so."""

    def count_devices(value):
        value._obj.value = count
        return counted

    return types.SimpleNamespace(cuInit=lambda flags: init, cuDeviceGetCount=count_devices)


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (None, "there is no NVIDIA driver"),
        (driver(999, 0, 1), "answers with error 999"),
        (driver(0, 3, 1), "answers with error 3"),
        (driver(0, 0, 0), "finds no device"),
        (driver(0, 0, 1), None),
        (driver(0, 0, 8), None),
    ],
)
def test_whether_there_is_a_gpu_is_asked_of_the_driver(monkeypatch, library, reason):
    monkeypatch.setitem(sys.modules, "torch", None)  # cannot be imported
    monkeypatch.setattr(conftest, "driver_library", lambda: library)
    missing = conftest.cuda_missing()
    assert missing is None if reason is None else reason in missing


def test_the_driver_is_there_for_libraries_loaded_later(monkeypatch):
    """A pycuda that was linked beside an empty libcuda.so does not name it, and finds its functions so alone."""
    opened = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name, mode=ctypes.DEFAULT_MODE: opened.append((name, mode)))
    gpu.driver_library()
    assert opened == [("libcuda.so.1", ctypes.RTLD_GLOBAL)]


@pytest.mark.needs_cuda
@pytest.mark.needs_library("onnxruntime", "torch")
@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_a_gpu_gives_what_the_cpu_gives(small, name):
    import onnxruntime
    import torch

    if name == "onnxruntime" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        needs.skip("onnxruntime-gpu", "this onnxruntime was built without CUDA")
    if name == "torch" and not torch.cuda.is_available():
        pytest.skip("this torch finds no CUDA device")
    frames = moving_frames(8, 64, 96)
    runs = []
    for device in ("cpu", "cuda"):
        backend = open_backend(name, small, device)
        assert backend.device.startswith(device)
        runs.append(list(restore(frames, backend, scene_threshold=None)))
        backend.close()
    # As near as fp32 is to fp32: sums in another order, so a level now and then, and hardly ever the other one of two
    # displacements that nearly tie. Two executors on a CPU give no difference here, TF32 0.0075 levels and 0.9987.
    levels, same = zip(*map(distance, *runs), strict=True)
    assert np.mean(levels) < 0.002
    assert np.mean(same) > 0.999


def distance(one, other):
    """Mean difference in levels, and the share of equal displacements."""
    return np.abs(one.rgb.astype(int) - other.rgb).mean(), np.mean(one.displacement == other.displacement)


@pytest.mark.needs_library("onnxruntime", "torch")
def test_two_executors_in_fp32_are_within_the_tolerance(small):
    frames = moving_frames(8, 64, 96)
    runs = [
        list(restore(frames, open_backend(name, small, "cpu"), scene_threshold=None))
        for name in ("onnxruntime", "torch")
    ]
    levels, same = zip(*map(distance, *runs), strict=True)
    assert np.mean(levels) < 0.002 and np.mean(same) > 0.999
