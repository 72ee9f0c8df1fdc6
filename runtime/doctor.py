"""What of all that is optional is here, works, and can run a model. Every library is tried in a process of its own.

A library that is broken can end the process that imports it, and one that is imported changes what a later one finds;
so `python -m mtu.runtime.doctor NAME` tries one thing and says how it went. This file imports none of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from mtu.core.errors import InvalidInputError, MtuError
from mtu.core.extras import NEEDS, missing
from mtu.models.families import find_family
from mtu.plugins.op import OPS, revisions
from mtu.runtime.backends import FACTORIES, GPU_ONLY, Model, Stages, automatic, packages_missing
from mtu.runtime.bundle import open_bundle
from mtu.runtime.engine import Engine, check_files, refusals
from mtu.runtime.gpu import Gpu, driver_library, find_gpu
from mtu.runtime.tensorrt_library import LIBRARIES, LibraryName, is_importable, load_library, package_of

PATIENCE = 120.0
"""Seconds that a library may take to load."""

Status = Literal["found", "missing", "broken"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    status: Status
    detail: str
    """Its version, or what is wrong with it."""
    fix: str = ""
    """What puts it right, or what it is needed for; empty where it was found."""


@dataclass(frozen=True)
class Ability:
    """Whether something that this project does can be done here."""

    name: str
    works: bool
    detail: str
    """With what, or why not and what puts it right."""


@dataclass(frozen=True)
class Verdict:
    """Whether something can run a model here."""

    name: str
    """A backend."""
    reasons: tuple[str, ...]
    """Why not, each with what puts it right; empty if it can."""


# What is tried in a process of its own. Each returns a version or raises.


def _library(name: LibraryName) -> str:
    return load_library(name).version


def _module(name: str) -> str:
    return str(importlib.import_module(name).__version__)


def _onnxruntime() -> str:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    return f"{onnxruntime.__version__} ({providers})"


def _openvino() -> str:
    from mtu.core.processor import bf16_units
    from mtu.runtime.openvino_library import load_openvino

    openvino = load_openvino()
    core = openvino.Core()
    devices = {device: core.get_property(device, "OPTIMIZATION_CAPABILITIES") for device in core.available_devices}
    fast = {name: f"{name} with bf16" for name, abilities in devices.items() if "BF16" in abilities}
    if "CPU" in fast and (units := bf16_units()):
        fast["CPU"] += f" in {units}"
    found = ", ".join(fast.get(name, name) for name in devices) or "no device"
    return f"{openvino.__version__.split('-')[0]} ({found})"


def _pycuda() -> str:
    import pycuda

    driver_library()  # as the backend does
    import pycuda.driver as driver

    return f"{pycuda.VERSION_TEXT}, built with CUDA {'.'.join(map(str, driver.get_version()[:2]))}"


def _nvrtc() -> str:
    from mtu.plugins.nvrtc import compile_source

    gpu = find_gpu()
    arch = f"sm_{(gpu.compute_capability if gpu is not None else '9.0').replace('.', '')}"
    compile_source("__global__ void nothing() {}", arch, {})
    import cuda.core

    return f"cuda-core {cuda.core.__version__}; compiles for {arch}"


def _torch() -> str:
    import torch

    return f"{torch.__version__} ({'CUDA' if torch.cuda.is_available() else 'no CUDA device'})"


def _av() -> str:
    import av

    return f"{av.__version__}, FFmpeg {av.ffmpeg_version_info}"


def _plugin(library: LibraryName, path: str | None = None) -> str:
    from mtu.plugins.register import register_plugins

    plugins = revisions(OPS)
    register_plugins(load_library(library), [*plugins], None if path is None else Path(path))
    return f"{_revisions(plugins)}, registers with {library}"


def _revisions(plugins: Mapping[str, int]) -> str:
    return " and ".join(f"{op} revision {revision}" for op, revision in plugins.items())


def _model(directory: str) -> str:
    from mtu.models.families import in_words
    from mtu.runtime.backends import open_backend

    interface = open_backend("onnxruntime", open_bundle(directory), "cpu").interface
    settings = f" ({in_words(interface.settings)})" if interface.settings else ""
    return f"{interface.variant}{settings}, {interface.precision}, weights {interface.weights[:12]}"


TRIALS: dict[str, tuple[Callable[..., str], str, str]] = {
    # name: (what is tried, the module it needs, what puts it right)
    "TensorRT": (partial(_library, "tensorrt"), "tensorrt", 'pip install "mtu-trt[gpu]"'),
    "TensorRT-RTX": (partial(_library, "tensorrt-rtx"), "tensorrt_rtx", 'pip install "mtu-trt[rtx]"'),
    "pycuda": (_pycuda, "pycuda", "pip install pycuda (built from source: needs the CUDA toolkit)"),
    "cuda-bindings": (partial(_module, "cuda.bindings"), "cuda.bindings", 'pip install "mtu-trt[gpu]"'),
    "NVRTC": (_nvrtc, "cuda.core", 'pip install "mtu-trt[gpu]" nvidia-cuda-nvrtc'),
    "OpenVINO": (_openvino, "openvino", 'pip install "mtu-trt[openvino]" (the fastest on a CPU)'),
    "onnxruntime": (_onnxruntime, "onnxruntime", 'pip install "mtu-trt[cpu]", or [gpu] for its CUDA provider'),
    "onnx": (partial(_module, "onnx"), "onnx", 'pip install "mtu-trt[export]" (to export and build; for openvino)'),
    "torch": (_torch, "torch", 'pip install "mtu-trt[export]" (to export; backends torch and torch-compile)'),
    "PyAV": (_av, "av", "pip install av"),
}
PLUGIN, MODEL = "plugin", "model"


class Trial:
    """One thing that is being tried in a process of its own."""

    def __init__(self, name: str, arguments: Sequence[str] = ()) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "mtu.runtime.doctor", name, *arguments]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def outcome(self) -> tuple[bool, str]:
        """Whether it works, and its version or what is wrong."""
        try:
            output, _ = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return False, f"does not load within {PATIENCE:.0f} s"
        with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
            answer = json.loads(output.decode(errors="replace").splitlines()[-1])
            return bool(answer["works"]), str(answer["text"])
        code = self._process.returncode
        return False, f"loading it ends the process ({f'signal {-code}' if code < 0 else f'exit code {code}'})"


def examine_host(plugin_library: Path | None = None) -> list[Finding]:
    """Everything that this project can make use of, in the order it is needed in; `plugin_library` is a C++ plugin."""
    trials = {name: Trial(name) for name, (_, module, _) in TRIALS.items() if is_importable(module)}
    libraries = [name for name in LIBRARIES if is_importable(package_of(name))]
    plugins = {name: Trial(PLUGIN, [name, *([str(plugin_library)] if plugin_library else [])]) for name in libraries}
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    findings = [Finding("system", "found", system), *_driver()]
    for name, (_, _, fix) in TRIALS.items():
        absent = Finding(name, "missing", "not installed", fix)
        findings.append(_finding(name, trials[name], fix) if name in trials else absent)
    kind = "C++" if plugin_library else "Python"
    findings += [_finding(f"plugin ({kind}, {library})", trial) for library, trial in plugins.items()]
    if not plugins:
        findings.append(Finding(f"plugin ({kind})", "missing", "no TensorRT to register it with", "see TensorRT"))
    return [*findings, _nvcc()]


def _finding(name: str, trial: Trial, fix: str = "") -> Finding:
    works, text = trial.outcome()
    return Finding(name, "found", text) if works else Finding(name, "broken", text, fix)


def examine_abilities(findings: Sequence[Finding]) -> list[Ability]:
    """What works here now; `findings` are of `examine_host`."""
    broken = _broken(findings)
    obstacles = {name: _obstacles(name, broken) for name in FACTORIES}
    usable = [name for name, reasons in obstacles.items() if not reasons]
    first = obstacles["onnxruntime"][:1]  # what a machine of any kind can have
    if "pyav" in broken:
        usable, first = [], [_not_working(broken["pyav"])]
    abilities = [Ability("run", bool(usable), f"mtu-run with {', '.join(usable)}" if usable else first[0])]
    commands = {"export": "mtu-export", "train": "mtu-train", "measure": "mtu-eval", "farm": "mtu-farm"}
    for name, command in (commands | {"server": "mtu-run --server"}).items():
        extra, packages = NEEDS[command]
        reasons = [str(error) for error in missing(extra, command, packages)]
        reasons += [_not_working(broken[package]) for package in packages if package in broken]
        abilities.append(Ability(name, not reasons, reasons[0] if reasons else command))
    builders = ", ".join(library for library in LIBRARIES if _builds(library, broken))
    why = 'needs TensorRT and a GPU, or TensorRT-RTX without one: pip install "mtu-trt[rtx]"'
    return [*abilities, Ability("build", bool(builders), f"mtu-build-engine {'with ' + builders if builders else why}")]


def _builds(library: LibraryName, broken: dict[str, Finding]) -> bool:
    packages = ("onnx", package_of(library))
    works = all(is_importable(each) for each in packages) and not {"onnx", library} & set(broken)
    return works and (library != "tensorrt" or find_gpu() is not None)


def _broken(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {finding.name.lower(): finding for finding in findings if finding.status == "broken"}


def _not_working(finding: Finding) -> str:
    return f"{finding.name} does not work ({finding.detail}): {finding.fix}"


def _driver() -> list[Finding]:
    gpus: list[Gpu] = []
    while (gpu := find_gpu(len(gpus))) is not None:
        gpus.append(gpu)
    found = [
        Finding(
            f"GPU {g.index}",
            "found",
            f"{g.name}, compute capability {g.compute_capability}, {g.memory / 2**30:.1f} GiB",
        )
        for g in gpus
    ]
    version = _driver_version()
    if version is None:
        fix = "install NVIDIA's driver; in a container, start it with access to the GPU (docker run --gpus all)"
        driver = Finding("driver", "missing", "libcuda is not there or finds no GPU", fix)
        none = Finding("GPU", "missing", "none answers", "see driver")
    else:
        driver = Finding("driver", "found", version)
        fix = "nvidia-smi should list it; CUDA_VISIBLE_DEVICES may hide it"
        none = Finding("GPU", "missing", "the driver answers, and finds none", fix)
    return [driver, *(found or [none])]


def _driver_version() -> str | None:
    """NVIDIA's version of the driver and the CUDA version it brings, asked through ctypes."""
    driver = driver_library()
    number = ctypes.c_int()
    if driver is None or driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    cuda = f"for CUDA up to {number.value // 1000}.{number.value % 1000 // 10}"
    with contextlib.suppress(OSError, AttributeError):
        management = ctypes.CDLL("nvml.dll" if hasattr(ctypes, "WinDLL") else "libnvidia-ml.so.1")
        name = ctypes.create_string_buffer(96)
        if management.nvmlInit_v2() == 0 and management.nvmlSystemGetDriverVersion(name, len(name)) == 0:
            return f"{name.value.decode()}, {cuda}"
    return cuda


def _nvcc() -> Finding:
    program = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    fix = "install the CUDA toolkit; only mtu-build-plugin needs it, and pip to build pycuda"
    if program is None:
        return Finding("nvcc", "missing", "not in PATH or /usr/local/cuda/bin", fix)
    try:
        output = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=PATIENCE).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("nvcc", "broken", f"{program}: {error}", fix)
    release = re.search(r"release ([\d.]+)", output)
    return Finding("nvcc", "found" if release else "broken", f"{release[1] if release else 'no version'}, {program}")


def examine_model(model: Model, findings: Sequence[Finding]) -> tuple[str, list[Verdict]]:
    """What the model is, in words, and what can run it here; `findings` are of `examine_host`.

    Reads the files of an engine whole. Raises InvalidInputError for a bundle that is broken.
    """
    broken = _broken(findings)
    if isinstance(model, Stages):
        return _examine_chain(model, findings)
    if isinstance(model, Engine):
        return _describe(model), [_engine_verdict(model, findings)]
    words = f"bundle {model.directory}"
    if is_importable("onnxruntime") and "onnxruntime" not in broken:
        works, text = Trial(MODEL, [str(model.directory)]).outcome()
        words += f": {text}"
        if not works:
            return words, [Verdict(name, (text,)) for name in FACTORIES]
    reasons = {name: _obstacles(name, broken) for name in FACTORIES}
    for name in ("torch", "torch-compile"):  # they run the network itself
        try:
            find_family(model.interface.family)
        except InvalidInputError as error:
            reasons[name].append(str(error))
    return words, [Verdict(name, tuple(found)) for name, found in reasons.items()]


def _examine_chain(chain: Stages, findings: Sequence[Finding]) -> tuple[str, list[Verdict]]:
    """What runs all stages; "auto" where they are of different kinds."""
    lines, stages = [f"chain {chain.directory}"], []
    for model in chain.models:
        words, verdicts = examine_model(model, findings)
        lines.append(f"  {words}")
        stages.append({verdict.name: verdict.reasons for verdict in verdicts})
        stages[-1]["auto"] = stages[-1][automatic(model)]
    names = [name for name in ("auto", *FACTORIES) if all(name in stage for stage in stages)]
    if len({*map(type, chain.models)}) == 1:
        names.remove("auto")
    reasons = {name: dict.fromkeys(reason for stage in stages for reason in stage[name]) for name in names}
    return "\n".join(lines), [Verdict(name, tuple(found)) for name, found in reasons.items()]


def _obstacles(name: str, broken: dict[str, Finding]) -> list[str]:
    """Why a backend cannot run here at all."""
    reasons = [str(error) for error in packages_missing(name)]
    for package in FACTORIES[name][1]:
        finding = broken.get({"tensorrt_rtx": "tensorrt-rtx", "cuda.core": "nvrtc"}.get(package, package))
        if finding is not None:
            reasons.append(_not_working(finding))
    if name in GPU_ONLY and find_gpu() is None:
        reasons.append("no NVIDIA GPU answers: run it where there is one, or use --backend onnxruntime")
    return reasons


def _engine_verdict(engine: Engine, findings: Sequence[Finding]) -> Verdict:
    library = engine.manifest.library
    versions = {finding.name.lower(): finding.detail for finding in findings if finding.status == "found"}
    reasons = refusals(engine.manifest, versions.get(library), find_gpu())
    try:
        check_files(engine)
    except MtuError as error:
        reasons.append(str(error))
    broken = _broken(findings)
    # The library and the GPU have been named by `refusals` if they are not there.
    known = (f"'{library.replace('-', '_')}'", "no NVIDIA GPU answers")
    reasons += [reason for reason in _obstacles(library, broken) if not any(word in reason for word in known)]
    return Verdict(library, tuple(dict.fromkeys(reasons)))


def _describe(engine: Engine) -> str:
    m = engine.manifest
    plugin = f"plugin {_revisions(m.plugins)}" if m.plugins else "no plugin"
    return (
        f"engine {engine.directory}: {m.interface.variant} {m.precision}, frames {m.profile},"
        f" {m.library} {m.library_version}, compute capability {', '.join(m.compute_capabilities)}"
        + (f" ({m.gpu})" if m.gpu else "")
        + f", {plugin}, weights {m.interface.weights[:12]}"
    )


def _try(name: str, arguments: Sequence[str]) -> dict[str, object]:
    """What the process of a `Trial` says."""
    others: dict[str, Callable[..., str]] = {PLUGIN: _plugin, MODEL: _model}
    work = others[name] if name in others else TRIALS[name][0]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return {"works": True, "text": work(*arguments)}
    except Exception as error:
        kind = "" if isinstance(error, MtuError) else f"{type(error).__name__}: "
        return {"works": False, "text": kind + (str(error).strip().splitlines() or [""])[0]}


if __name__ == "__main__":
    print(json.dumps(_try(sys.argv[1], sys.argv[2:])))
