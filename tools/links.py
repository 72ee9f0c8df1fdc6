"""Makes the git-ignored `.links/mtu/<area>` folder that type checkers, editors and uninstalled test runs read.

`mtu` is a namespace without a folder (pyproject.toml, package-dir): setuptools' import hook knows, checkers do not.
Touches `.links/` only. Standard library only, and Python 3.10 has no TOML reader: hence the pattern.
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    table = (ROOT / "pyproject.toml").read_text().split("[tool.setuptools.package-dir]")[1].split("\n[")[0]
    for package, folder in re.findall(r'^"([\w.]+)" = "(\w+)"$', table, re.MULTILINE):
        link = ROOT / ".links" / Path(*package.split("."))
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(ROOT / folder, target_is_directory=True)


if __name__ == "__main__":
    main()
