"""Imports inside `runtime/video` go down only, and its docstring names every file, lowest first."""

from __future__ import annotations

import ast
import re

import mtu.runtime.video
from tests.conftest import ROOT

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


def test_every_file_is_in_the_map_once():
    files = (path.relative_to(FOLDER) for path in FOLDER.rglob("*.py") if path.stem != "__init__")
    assert sorted(LISTED) == sorted(file.with_suffix("").as_posix() for file in files)


def test_imports_go_down_only():
    wrong = {name: upward for index, name in enumerate(LISTED) if (upward := imported(name) - set(LISTED[:index]))}
    assert not wrong
