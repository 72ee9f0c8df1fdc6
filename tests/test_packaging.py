"""The package list equals the tree; the wheel holds everything and works with the sources out of reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mtu.core.release import VERSION
from mtu.runtime.bundle import PACKAGED
from tests.conftest import ROOT
from tests.runtime.test_lean import PROJECT, SCRIPTS

SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_the_package_list_equals_the_tree():
    found = set()
    for package, folder in SETUPTOOLS["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    data = {name for name in SETUPTOOLS["package-data"] if name not in found} - {"*"}
    assert found | data == set(SETUPTOOLS["packages"])


def test_every_area_is_typed():
    for folder in SETUPTOOLS["package-dir"].values():
        assert (ROOT / folder / "py.typed").exists(), folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built in a copy, since a build leaves folders behind in the tree; with what is installed, from no index."""
    for package in ("build", "setuptools", "pip"):
        pytest.importorskip(package)
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in SETUPTOOLS["package-dir"].values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Package would be ignored" not in done.stdout + done.stderr
    return next(target.glob("*.whl"))


def test_the_wheel_has_the_version(wheel):
    assert wheel.name.startswith(f"mtu_trt-{VERSION}-")


def test_the_wheel_holds_every_module_and_the_bundled_models(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in SETUPTOOLS["package-dir"].items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = Path(*package.split("."), path.relative_to(ROOT / folder))
            assert str(inside) in names, f"{inside} is not in the wheel"
    for model in PACKAGED:
        for file in ("bundle.json", "first.onnx", "step.onnx"):
            assert f"mtu/models/weights/{model}/{file}" in names
    folders = ROOT / "plugins", ROOT / "runtime"
    found = (path for folder in folders for path in folder.rglob("*"))
    sources = [path for path in found if path.suffix in (".cu", ".cuh", ".h", ".cpp", ".map")]
    for path in (*sources, ROOT / "plugins/cpp/CMakeLists.txt"):
        assert f"mtu/{path.relative_to(ROOT)}" in names, path
    assert not [name for name in names if not name.startswith(("mtu/", "mtu_trt-"))]
    assert not [name for name in names if "tests/" in name or "test_" in name]


def test_the_installed_wheel_deblurs(wheel, tmp_path):
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    code = (
        "import numpy, mtu.runtime as r; print(r.__file__);"
        "print(len(list(r.deblur([numpy.full((8, 12, 3), 90, numpy.uint8)] * 3))))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.stdout.split() == [str(site / "mtu" / "runtime" / "__init__.py"), "3"], done.stderr
    entry = (site / "bin" / "mtu-run") if os.name == "posix" else None
    assert entry is None or entry.exists()
    assert set(SCRIPTS) <= {path.name for path in (site / "bin").iterdir()}
