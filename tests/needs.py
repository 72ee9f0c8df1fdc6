"""What a test needs beside the package. Without it the test is skipped, with a reason that the GPU check knows.

A test says it by `@pytest.mark.needs_library("name", ...)`; a file whose imports need it, by `needs.library("name")`.
"""

from __future__ import annotations

from typing import NoReturn

import pytest

from mtu.benchmarks.gpu_tests import MISSING
from mtu.runtime.tensorrt_library import is_importable


def skip(library: str, why: str) -> NoReturn:
    """Skips the test, or the file where it is called at its top, for want of a library or a program."""
    pytest.skip(f"{MISSING}{library}: {why}", allow_module_level=True)


def library(*names: str) -> None:
    """Skips unless all these modules can be imported."""
    for name in names:
        if not is_importable(name):
            skip(name, "it is not installed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """The hook of tests/conftest.py that honours the marker."""
    for mark in item.iter_markers("needs_library"):
        library(*mark.args)
