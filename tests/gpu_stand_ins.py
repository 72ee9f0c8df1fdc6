"""What the tests of the GPU check share: records, and a device that is none. Nothing here is a test."""

from __future__ import annotations

import ctypes
import itertools
import time

import numpy as np
import pytest

from mtu.benchmarks.gpu_report import GpuReport
from mtu.plugins.correlation_argmax_warp import cuda_op


@pytest.fixture
def records():
    return []


@pytest.fixture
def report(records):
    return GpuReport(records.append)


def of(records, kind):
    return [record for record in records if record["kind"] == kind]


def fails(error):
    raise error


def emulate(emulator, problem, pointers, count=2):
    """Runs the first `count` of the kernel's two launches on memory of the host."""
    half = int(problem.motion_type == "float16")
    names = ("emulator_prepare", "emulator_match")[:count]
    for name, launch in zip(names, cuda_op.launches(problem, *pointers, 4), strict=False):
        extra = [half] if name == "emulator_prepare" else [half, problem.pool_size]
        values = [kind(value) for kind, value in zip(launch.types, launch.arguments, strict=True)]
        getattr(emulator, name)(*extra, *launch.grid, launch.threads, *values)


def hand_out_engines(monkeypatch, small, flavour):
    """A host with a library, whose builder hands out engines of the small network; the list of what it was asked."""
    from tests import fake_cuda

    built = []

    def build(bundle, directory, options):
        built.append((directory.name, options.fp16, options.plugin, options.plugin_library))
        changes = {"library": options.runtime, "library_version": fake_cuda.VERSIONS[flavour]}
        return fake_cuda.write_engine(small, directory, options.profile, **changes)

    fake_cuda.install(monkeypatch, fake_cuda.Gpu(flavour=flavour, registered={"CorrelationArgmaxWarp"}))
    monkeypatch.setattr(fake_cuda.Event, "time_till", lambda self, later: 0.25, raising=False)
    monkeypatch.setattr("mtu.plugins.register.register_plugins", lambda *_: None)
    monkeypatch.setattr("mtu.export.engine.build_engine", build)
    return built


class Cpu:
    """A `Device` that is none: the kernel is emulated, and everything else runs on the CPU."""

    name = "cpu"

    def __init__(self, emulator) -> None:
        self.emulator, self.blocks = emulator, {}

    def allocate(self, size) -> int:
        block = np.empty(size + 256, np.uint8)
        address = block.ctypes.data + -block.ctypes.data % 256
        self.blocks[address] = block
        return address

    def free(self, address) -> None:
        del self.blocks[address]

    def write(self, address, array) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def read(self, address, array) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def start(self, problem, pointers, count) -> None:
        emulate(self.emulator, problem, pointers, count)

    def launch(self, problem, *pointers) -> None:
        self.start(problem, pointers, 2)

    def launch_prepare(self, problem, *pointers) -> None:
        self.start(problem, pointers, 1)

    def synchronize(self) -> None:
        pass

    def graph(self, call):
        call()
        return call

    def intervals(self, call, count):
        times = [time.perf_counter()]
        for _ in range(count):
            call()
            times.append(time.perf_counter())
        return [1000 * (after - before) for before, after in itertools.pairwise(times)]

    def peak_memory(self, call):
        call()
        return 1.0
