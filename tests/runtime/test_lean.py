"""The base install is enough for `import mtu.runtime` and every --help."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.conftest import ROOT
from tests.processes import LIMIT

from mtu.core.release import VERSION

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "onnxscript", "tensorrt", "tensorrt_rtx", "pycuda", "cuda")
TOOLS = ("polygraphy", "safetensors", "skimage", "scipy", "PIL", "cv2", "lightning_fabric", "tensorboard")
OPTIONAL = (*HEAVY, *TOOLS, "openvino_telemetry", "tritonclient", "grpc")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = PROJECT["project"]["scripts"]

BLOCKER = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Block())
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {OPTIONAL!r} else find_spec(name, *rest)
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code, *arguments],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / ".links"), "COLUMNS": "120", "PATH": "/usr/bin:/bin"},
        timeout=LIMIT,
    )


@pytest.mark.parametrize(
    "module",
    [
        "mtu.benchmarks",
        "mtu.calib",
        "mtu.export",
        "mtu.models",
        "mtu.core.interface",
        "mtu.plugins",
        "mtu.plugins.correlation_argmax_warp",
        "mtu.plugins.correlation_argmax_warp.cases",
        "mtu.plugins.correlation_argmax_warp.reference",
        "mtu.runtime",
        "mtu.runtime.job",
        "mtu.runtime.video",
    ],
)
def test_these_import_with_the_base_alone(module):
    done = run(f"import {module}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_works_with_the_base_alone(script):
    module, function = SCRIPTS[script].split(":")
    done = run(f"sys.argv[0] = {script!r}\nfrom {module} import {function}\n{function}()", "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: {script}" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_version_works_with_the_base_alone(script):
    """In a checkout that is not installed, too."""
    module, function = SCRIPTS[script].split(":")
    not_installed = "import importlib.metadata\ndel importlib.metadata.version\n"
    done = run(f"{not_installed}sys.argv[0] = {script!r}\nfrom {module} import {function}\n{function}()", "--version")
    assert (done.returncode, done.stdout.strip()) == (0, VERSION), done.stderr


def test_importing_the_runtime_imports_nothing_heavy():
    done = run(f"import mtu.runtime\nprint(sorted(set(sys.modules) & {{'av', 'rich', *{OPTIONAL!r}}}))")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "extra"),
    [
        ("mtu-run", ["calib/demo/blurred.mp4", "-o", "{tmp}/out"], "cpu"),
        ("mtu-run", ["calib/demo/blurred.mp4", "-o", "{tmp}/out", "--backend", "torch"], "export"),
        ("mtu-run", ["calib/demo/blurred.mp4", "-o", "{tmp}/out", "--backend", "openvino"], "openvino"),
        ("mtu-run", ["calib/demo/blurred.mp4", "-o", "{tmp}/out", "--precision", "bf16"], "openvino"),
        ("mtu-run", ["calib/demo/blurred.mp4", "-o", "{tmp}/out", "--server", "127.0.0.1"], "triton"),
        ("mtu-export", ["onnx", "--preset", "mtu1", "-o", "{tmp}/out"], "export"),
        ("mtu-train", ["-o", "{tmp}/out"], "train"),
    ],
)
def test_a_missing_extra_names_the_install_command(tmp_path, script, arguments, extra):
    module, function = SCRIPTS[script].split(":")
    filled = [str(ROOT / a) if a.startswith("calib") else a.format(tmp=tmp_path) for a in arguments]
    done = run(f"sys.argv[0] = {script!r}\nfrom {module} import {function}\n{function}()", *filled)
    assert done.returncode == 2, done.stderr
    assert f'pip install "mtu-trt[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_onnxruntime_sends_and_stores_nothing(tmp_path, small):
    opened = f"open_backend('onnxruntime', open_bundle({str(small.directory)!r}))"
    code = f"from mtu.runtime import open_backend, open_bundle; {opened}"
    environment = {"PYTHONPATH": str(ROOT / ".links"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=LIMIT)
    assert list(tmp_path.iterdir()) == []
