"""Makes the git-ignored `.links/mtu/<area>` folder that type checkers, editors and uninstalled test runs read.

`mtu` is a namespace without a folder (pyproject.toml, package-dir): setuptools' import hook knows, checkers do not.
Touches `.links/` only.
"""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    for package, folder in table.items():
        link = ROOT / ".links" / Path(*package.split("."))
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(ROOT / folder, target_is_directory=True)


if __name__ == "__main__":
    main()
