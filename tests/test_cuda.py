"""The backends on a GPU give what they give on the CPU. Skipped without one; a failure under MTU_REQUIRE_CUDA=1."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from mtu.runtime import open_backend, restore
from tests.frames import moving_frames


@pytest.mark.needs_cuda
@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_a_gpu_gives_what_the_cpu_gives(small, name):
    if name == "onnxruntime" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime was built without CUDA")
    frames = moving_frames(8, 64, 96)
    runs = []
    for device in ("cpu", "cuda"):
        backend = open_backend(name, small, device)
        assert backend.device.startswith(device)
        runs.append(list(restore(frames, backend, scene_threshold=None)))
        backend.close()
    for cpu, gpu in zip(*runs, strict=True):
        # TF32 and other summation orders: a level here and there, and a displacement where two candidates nearly tie.
        assert np.abs(cpu.rgb.astype(int) - gpu.rgb).mean() < 0.2
        assert np.mean(cpu.displacement == gpu.displacement) > 0.99
