"""Imports go down only: from floor to floor, and inside `runtime/video`, whose docstring names its files, lowest first.

Command modules stand on top of all floors, and nothing imports one; they and the consoles alone know typer and rich.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import mtu.runtime.video
from tests.conftest import ROOT

FLOORS = ("core", "plugins", "models", "runtime", "export", "calib", "training", "farm", "benchmarks")
"""Lowest first."""
FOLDER = ROOT / "runtime" / "video"
LISTED = re.findall(r"^    ([\w/]+)  +\S", mtu.runtime.video.__doc__ or "", re.MULTILINE)


def imported(name: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mtu.runtime.video"):
            module = (node.module or "").removeprefix("mtu.runtime.video").strip(".").replace(".", "/")
            inside = {f"{module}/{alias.name}".strip("/") for alias in node.names}
            found |= inside if module in ("", "pictures", "containers") else {module}
    return found


def is_command(path: Path) -> bool:
    return path.stem.endswith("cli") or "console" in path.parts


def modules_imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_a_library_file_imports_from_its_floor_and_those_below(floor):
    above = tuple(f"mtu.{name}" for name in FLOORS[FLOORS.index(floor) + 1 :])
    wrong = []
    for path in (ROOT / floor).rglob("*.py"):
        found = modules_imported(path)
        wrong += [(path.name, module) for module in found if module.endswith("cli") and module.startswith("mtu.")]
        if not path.stem.endswith("cli"):
            wrong += [(path.name, module) for module in found if module.startswith(above)]
        if not is_command(path.relative_to(ROOT)):
            wrong += [(path.name, module) for module in found if module.startswith("mtu.runtime.console")]
            wrong += [(path.name, module) for module in found if module.split(".")[0] in ("typer", "rich")]
    assert not wrong


def test_every_folder_of_code_is_a_floor():
    table = (ROOT / "pyproject.toml").read_text().split("[tool.setuptools.package-dir]")[1].split("\n[")[0]
    assert sorted(re.findall(r'= "(\w+)"', table)) == sorted(FLOORS)


def test_every_file_is_in_the_map_once():
    files = (path.relative_to(FOLDER) for path in FOLDER.rglob("*.py") if path.stem != "__init__")
    assert sorted(LISTED) == sorted(file.with_suffix("").as_posix() for file in files)


def test_imports_go_down_only():
    wrong = {name: upward for index, name in enumerate(LISTED) if (upward := imported(name) - set(LISTED[:index]))}
    assert not wrong
