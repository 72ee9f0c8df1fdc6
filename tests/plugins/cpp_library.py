"""What the tests of the C++ plugin share. Nothing here is a test.

TENSORRT_INCLUDE_DIR names directories of TensorRT headers, separated as in PATH; with one each of 8.6, 10 and 11
everything is covered. Without it only the errors of the command are tested.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

INCLUDES = [Path(part) for part in os.environ.get("TENSORRT_INCLUDE_DIR", "").split(os.pathsep) if part]
FOLDER = Path(__file__).parent
PLUGINS = ROOT / "plugins"
ARCHITECTURE = "86"


def headers(
    path: Path, version: str = "#define NV_TENSORRT_MAJOR 10 //!< x\n#define NV_TENSORRT_MINOR 3 //!< x\n"
) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "NvInferRuntime.h").touch()
    (path / "NvInferVersion.h").write_text(version)
    return path


def opened(code: str, path: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process of its own; `path` is its sys.argv[1]."""
    command = [sys.executable, "-c", f"import ctypes, sys\n{code}", str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)
