"""Shared by all tests: where the repository is, small models, the rule for tests that need a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def cuda_missing() -> str | None:
    """Why tests that need a GPU cannot run here, or None."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    return None if torch.cuda.is_available() else "no CUDA device"


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
