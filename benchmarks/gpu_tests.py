"""The section of the GPU check that runs the tests marked needs_cuda, in a pytest of their own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from mtu.benchmarks.gpu_report import GpuReport, Skip

TESTS = Path(__file__).resolve().parent.parent / "tests"
MISSING = "missing library: "
"""How the reason of a skip begins where a test or a file of tests lacks a library; tests/needs.py writes it."""


def run_tests(report: GpuReport, folder: Path = TESTS) -> None:
    """Every test marked needs_cuda in `folder`. One that is skipped has failed, unless for want of a library."""
    if importlib.util.find_spec("pytest") is None:
        raise Skip("the package pytest is not installed")
    files = [path for path in sorted(folder.rglob("test_*.py")) if "mark.needs_cuda" in path.read_text("utf-8")]
    if not files:
        raise Skip(f"no tests in {folder}: run it in a checkout")
    with tempfile.TemporaryDirectory() as temporary:
        xml = Path(temporary) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "needs_cuda", "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors", f"--junitxml={xml}", *map(str, files)]
        done = subprocess.run(
            command, env={**os.environ, "MTU_REQUIRE_CUDA": "1"}, cwd=folder.parent, stdout=sys.stderr, check=False
        )
        if not xml.exists():
            raise RuntimeError(f"pytest ended with {done.returncode} and no results")
        outcomes = list(read_junit(xml))
    for name, outcome, message in outcomes:
        if outcome == "skipped" and message.startswith(MISSING):
            report.skip(name, message)
        else:
            report.check(name, outcome == "passed", "" if outcome == "passed" else f"{outcome}: {message}")
    if not outcomes:
        report.check("tests were found", False, f"pytest ended with {done.returncode} and ran none")


def read_junit(path: Path) -> Iterator[tuple[str, str, str]]:
    """Name, outcome (passed, failed, error, skipped) and message of each test in a JUnit file."""
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name')}".removeprefix(".")
        found = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if found is None:
            yield name, "passed", ""
            continue
        message, text = found.get("message") or "", (found.text or "").strip()
        if message == "collection skipped":  # the text is a tuple: file, line, reason
            message = text.partition("'Skipped: ")[2].removesuffix("')")
        elif found.tag == "error":
            message = next((line for line in text.splitlines() if line.startswith("E  ")), message)
        yield name, {"failure": "failed"}.get(found.tag, found.tag), message.partition("\n")[0]
