"""What the tests of export share."""

from __future__ import annotations

import pytest

from mtu.export import engine_options


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """As on a machine without one; tests that want another set it."""
    monkeypatch.setattr(engine_options, "find_gpu", lambda: None)


@pytest.fixture
def fake(monkeypatch):
    """Puts a stand-in for a version of TensorRT, and a GPU, in place; returns it."""
    from tests.engine_builds import GPU
    from tests.fake_tensorrt import FakeTensorRT

    def install(version, gpu=GPU):
        found = FakeTensorRT(version)
        monkeypatch.setattr(engine_options, "load_library", lambda name: found.library)
        monkeypatch.setattr(engine_options, "is_installed", lambda name: True)
        monkeypatch.setattr(engine_options, "find_gpu", lambda: gpu)
        return found

    return install


@pytest.fixture
def keep(tmp_path):
    """A file of layers."""
    from tests.engine_builds import KEPT

    path = tmp_path / "keep.txt"
    path.write_text("# of a test\n" + "\n".join(KEPT))
    return path
