"""What the tests of the GPU check share: records, and a device that is none. Nothing here is a test."""

from __future__ import annotations

import ctypes
import itertools
import time

import numpy as np
import pytest

from mtu.benchmarks.gpu_report import GpuReport


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
    monkeypatch.setattr("mtu.export.engine.build_engine", build)  # first: what it imports is to be the real one
    monkeypatch.setattr("mtu.plugins.register.register_plugins", lambda *_: None)
    return built


class Cpu:
    """A `Device` that is none: the kernels are emulated, and everything else runs on the CPU."""

    name = "cpu"

    def __init__(self, emulators) -> None:
        self.emulators, self.blocks = emulators, {}

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

    def launch(self, kernel, problem, pointers, count=None) -> None:
        self.emulators[kernel].launch(problem, pointers, count)

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
