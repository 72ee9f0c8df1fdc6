"""How tensors are placed and time is taken on a GPU. Imports torch; the kernel's launcher needs cuda-core.

The sections take a `Device` as an argument and name CUDA nowhere, so that the tests can run them on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from mtu.benchmarks.gpu_cases import Cuda
from mtu.benchmarks.gpu_report import Skip

cuda: Any = torch.cuda  # parts of it have no types
Enqueue = Callable[[], Any]


class Device(Cuda):
    """torch's first CUDA device; kernels go on torch's current stream. The tests have one that is the CPU."""

    name = "cuda"
    """As torch calls it."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise Skip("this torch finds no CUDA device: install one built with CUDA")
        super().__init__()

    @property
    def stream(self) -> int:
        """torch's current one."""
        return int(torch.cuda.current_stream().cuda_stream)

    def synchronize(self) -> None:
        """Waits for everything; raises RuntimeError if something went wrong on the device."""
        torch.cuda.synchronize()

    def graph(self, call: Enqueue) -> Enqueue:
        """What `call` puts on the device, as one thing to start; `call` runs twice before."""
        side = cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
            call()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def intervals(self, call: Enqueue, count: int) -> list[float]:
        """Milliseconds from the end of each call to the end of the next on the device, nothing between them."""
        events = [cuda.Event(enable_timing=True) for _ in range(count + 1)]
        torch.cuda.synchronize()
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in pairwise(events)]

    def peak_memory(self, call: Enqueue) -> float:
        """The most MiB that torch holds at once during the call."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20


def interleaved(device: Device, calls: dict[str, tuple[Enqueue, int]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call over the number beside it, `rounds` samples each, taken in turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call, _ in calls.values():
        device.intervals(call, 2)  # warm-up
    for _ in range(rounds):
        for name, (call, count) in calls.items():
            # The first starts on a device that has nothing to do: it shows the host's time, not the device's.
            samples[name].append(device.intervals(call, 2)[1] / count)
    return samples
