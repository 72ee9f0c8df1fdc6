"""Shared by all tests: where the repository is, small models, the rule for tests that need a GPU."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mtu.runtime.gpu import driver_library
from tests import needs
from tests.needs import pytest_runtest_setup

if TYPE_CHECKING:
    from mtu.runtime import Bundle

__all__ = ["pytest_runtest_setup"]  # a hook
ROOT = Path(__file__).resolve().parent.parent


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background; the commands that tests interrupt would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def cuda_missing() -> str | None:
    """Why tests that need a GPU cannot run here, or None. The driver knows; what else a test needs, it says itself."""
    driver = driver_library()
    if driver is None:
        return "there is no NVIDIA driver (libcuda.so.1)"
    count = ctypes.c_int()
    for call in (lambda: driver.cuInit(0), lambda: driver.cuDeviceGetCount(ctypes.byref(count))):
        code = call()
        if code != 0:
            return f"the NVIDIA driver answers with error {code}"
    return None if count.value else "the NVIDIA driver finds no device"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = cuda_missing()
    if reason is None or os.environ.get("MTU_REQUIRE_CUDA") == "1":
        return
    for item in items:
        if item.get_closest_marker("needs_cuda"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def required_cuda(request: pytest.FixtureRequest) -> None:
    reason = cuda_missing() if request.node.get_closest_marker("needs_cuda") else None
    if reason is not None:
        pytest.fail(f"MTU_REQUIRE_CUDA=1, but {reason}")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled is kept for one run of the tests and all its workers, not for the user or another run."""
    run = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTU_CACHE_DIR", str((run.parent if "PYTEST_XDIST_WORKER" in os.environ else run) / "cache"))
        yield


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a tiny network of two units with random weights."""
    needs.library("torch")
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import random_checkpoint

    return export_bundle(
        random_checkpoint("mtu", {"units": 2, "channels": 4, "blocks": 1}), tmp_path_factory.mktemp("small") / "bundle"
    )


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of one unit with random weights: no motion, and six layers that can be int8."""
    needs.library("torch")
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import random_checkpoint

    return export_bundle(
        random_checkpoint("mtu", {"units": 1, "channels": 4, "blocks": 0}), tmp_path_factory.mktemp("single") / "bundle"
    )


@pytest.fixture(scope="session")
def mimo(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a tiny network with one graph, no states, no displacement and no look-ahead."""
    needs.library("torch")
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import random_checkpoint

    checkpoint = random_checkpoint("mimo_unet", {"blocks": 1, "channels": 4})
    return export_bundle(checkpoint, tmp_path_factory.mktemp("mimo") / "bundle")


@pytest.fixture(scope="session")
def dmenet(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a tiny network that gives a map, from a file as its authors save it."""
    needs.library("torch")
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import load_checkpoint
    from tests.dmenet import SMALL, arrays, extras, write_npz

    folder = tmp_path_factory.mktemp("dmenet")
    checkpoint = load_checkpoint(write_npz(folder / "DMENet.npz", {**arrays(SMALL), **extras()}))
    return export_bundle(checkpoint, folder / "bundle")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads, which are slow where other processes want the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
