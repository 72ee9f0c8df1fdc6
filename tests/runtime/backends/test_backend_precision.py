"""fp32 is fp32 on every device, and a value that is not finite is seen, whatever its sign."""

from __future__ import annotations

import contextlib

import numpy as np
import onnxruntime
import pytest

pytest.importorskip("torch")

import torch
from tests.frames import moving_frames, submit, windows

from mtu.core.errors import NonFiniteError
from mtu.runtime import open_backend
from mtu.runtime.backends import non_finite, ort_backend
from mtu.runtime.backends.torch_backend import without_tf32


def window(backend):
    return next(windows(backend.interface, moving_frames(5, 16, 24)))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_one_bad_value_anywhere_is_seen(dtype, bad, place):
    values = np.linspace(-1, 1, 24).astype(dtype).reshape(1, 2, 3, 4)
    damaged = values.copy()
    damaged.flat[place] = bad
    assert non_finite({"motion_out": values, "detail_out": damaged}) == ["detail_out"]


def test_the_largest_finite_values_are_finite():
    for dtype in ("float32", "float16"):
        largest = np.finfo(dtype).max
        assert non_finite({"motion_out": np.array([largest, -largest])}) == []


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_torch_sees_it_in_its_states(small, monkeypatch, bad):
    backend = open_backend("torch", small, "cpu")
    first = backend._graphs["first"]

    def spoilt(*inputs):
        outputs = first(*inputs)
        outputs[2][0, 1, 2, 3] = bad
        return outputs

    monkeypatch.setitem(backend._graphs, "first", spoilt)
    with pytest.raises(NonFiniteError, match="in motion_out:"):
        submit(backend, window(backend)).result()


def flags():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("before", [(False, True), (True, True), (False, False), (True, False)])
@pytest.mark.parametrize("fails", [False, True])
def test_torch_computes_without_tf32_and_leaves_the_process_as_it_was(small, monkeypatch, before, fails):
    found = flags()
    seen = []
    backend = open_backend("torch", small, "cpu")
    for name in ("first", "step"):
        original = backend._graphs[name]

        def watched(*arguments, original=original):
            seen.append(flags())
            if fails:
                raise RuntimeError("it failed")
            return original(*arguments)

        monkeypatch.setitem(backend._graphs, name, watched)
    try:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        with contextlib.suppress(RuntimeError):
            states = submit(backend, window(backend)).states
            submit(backend, window(backend), states)
        assert seen == [(False, False)] * (1 if fails else 2)
        assert flags() == before
        with without_tf32():
            pass
        assert flags() == before
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = found


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "cpu"])
def test_onnxruntime_is_told_to_do_without_tf32_on_cuda(small, monkeypatch, device):
    asked = []

    class Asked(onnxruntime.InferenceSession):
        def __init__(self, path, options, providers):
            asked.extend(providers)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(ort_backend.onnxruntime, "InferenceSession", Asked)
    ort_backend.OrtBackend(small, device)
    index = int(device[5:] or 0)
    cuda = [("CUDAExecutionProvider", {"device_id": index, "use_tf32": 0})] if device != "cpu" else []
    assert asked == [*cuda, "CPUExecutionProvider"] * 2
