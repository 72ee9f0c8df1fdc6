"""The documentation is true: its Python runs, its commands and options exist, its links lead somewhere."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tests.media import make_video, moving
from tests.runtime.test_lean import SCRIPTS, run

PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(path for folder in ("docs", "plugins", "models") for path in (ROOT / folder).rglob("*.md")),
    ]
)


def blocks(language: str):
    for page in PAGES:
        if page.name == "your-own-network.md":  # tests/models/test_own_network.py
            continue
        for index, code in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            yield pytest.param(code, id=f"{page.name}-{index}")


@pytest.mark.parametrize("code", list(blocks("python")))
def test_python_examples_run(code, tmp_path, monkeypatch, small, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mtu.runtime.bundle.bundled_directory", lambda name="mtu2": small.directory)
    for name in ("blurred.mp4", "left.mp4"):
        make_video(tmp_path / name, moving(5, 16, 24))
    exec(compile(code, "example", "exec"), {"__name__": "example"})
    lines = len(capsys.readouterr().out.splitlines())
    assert lines and lines % 5 == 0  # one for each frame of each stream


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_option_in_the_documentation_exists(script):
    module, function = SCRIPTS[script].split(":")
    helps = ""
    subcommands = {
        "mtu-export": ["onnx", "chain", "triton"],
        "mtu-calibrate": ["ranges", "int8"],
        "mtu-farm": ["plan", "run", "verify"],
    }.get(script, [])
    for arguments in (["--help"], *([name, "--help"] for name in subcommands)):
        helps += run(f"sys.argv[0] = {script!r}\nfrom {module} import {function}\n{function}()", *arguments).stdout
    shown = 0
    for page in PAGES:
        for command in re.findall(rf"{script} [^`|\n]*", page.read_text().replace("\\\n", " ")):
            for option in re.findall(r"(?<!\S)--?[a-z][a-z0-9-]*", command):
                shown += 1
                assert re.search(rf"{option}\b", helps), f"{page.name}: {command} uses {option}, which {script} lacks"
    assert shown or script == "mtu-bench"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_fill_in(page):
    assert not re.findall(r"@[A-Z]+@|\bTODO\b|\bTBD\b", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)\)", prose):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
