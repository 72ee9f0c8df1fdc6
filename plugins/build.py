"""Builds the C++ TensorRT plugin with CMake and nvcc: finds the tools and the headers. Standard library only."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtu.core.errors import InvalidInputError, MissingFileError, OutputError

SOURCE = Path(__file__).parent / "cpp"
"""Where the CMakeLists.txt is."""

CUDA = Path("/usr/local/cuda")
INCLUDES = (
    *(Path("/usr/include") / machine for machine in ("x86_64-linux-gnu", "aarch64-linux-gnu")),
    Path("/usr/include"),
    Path("/usr/local/tensorrt/include"),
    Path("/usr/local/TensorRT/include"),
    Path("/opt/tensorrt/include"),
)
"""Where packages and containers put TensorRT's headers."""

HEADER = "NvInferRuntime.h"


@dataclass(frozen=True)
class PluginLibrary:
    """A library that was built."""

    path: Path
    registers: Path | None
    """The library beside it that registers it when it is opened; None for TensorRT 8.6, which has none."""
    tensorrt: tuple[int, int]
    """Major and minor version of the headers. The library is for every release of that major (8: for 8.6)."""
    architectures: str
    """The GPUs it holds code for, as CMake names them: "80-real 86-real 86-virtual"."""


def build_plugin(
    directory: Path,
    *,
    tensorrt_include: Path | None = None,
    fetch_tensorrt: str | None = None,
    nvcc: Path | None = None,
    architectures: Sequence[str] = (),
    cmake_arguments: Sequence[str] = (),
    overwrite: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> PluginLibrary:
    """Builds `libmtu_plugin_trt<major>.so` into `directory`, where it appears when it is whole.

    Beside it, except for TensorRT 8.6, `libmtu_plugin_trt<major>_register.so`, for programs that only open a file: it
    registers the first in the TensorRT of the process that opens it.

    Headers are those in `tensorrt_include`, or of the release `fetch_tensorrt` ("10.16") of github.com/NVIDIA/TensorRT,
    which CMake downloads, or else those of the environment (TENSORRT_INCLUDE_DIR, TENSORRT_ROOT) or the system.
    `architectures` are compute capabilities without the dot ("86"), or "native"; none means all that the plugin
    supports and nvcc knows. `say` is called with one line for each stage.

    Raises MissingFileError if nvcc, cmake or the headers are not found, InvalidInputError for headers of an unsupported
    TensorRT, for arguments that contradict each other or for a failed build (the message names the log file),
    OutputError if a library exists (without `overwrite`) or cannot be written.
    """
    for architecture in architectures:
        if not re.fullmatch(r"\d{2,3}[af]?|native", architecture):
            raise InvalidInputError(
                f"unknown GPU architecture '{architecture}': give compute capabilities without the dot, as 86,"
                " or native"
            )
    if fetch_tensorrt is None:
        include = find_headers(tensorrt_include)
        version, source = header_version(include), str(include)
        headers = f"-DTENSORRT_INCLUDE_DIR={include}"
    elif tensorrt_include is not None:
        raise InvalidInputError("--tensorrt-include and --fetch-tensorrt contradict each other: give one of them")
    else:
        version, source = _release(fetch_tensorrt), f"TensorRT {fetch_tensorrt} from github.com/NVIDIA/TensorRT"
        headers = f"-DMTU_FETCH_TENSORRT={fetch_tensorrt}"
    check_version(version, source)
    compiler = find_nvcc(nvcc)
    cmake = find_cmake()
    target = directory / f"libmtu_plugin_trt{version[0]}.so"
    registers = None if version[0] == 8 else target.with_stem(f"{target.stem}_register")
    targets = [target, registers] if registers else [target]
    for path in targets:
        _check_target(path, overwrite)

    configure: list[str | Path] = [
        cmake,
        "-S",
        SOURCE,
        "-B",
        ".",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CUDA_COMPILER={compiler}",
    ]
    if architectures:
        configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(architectures)}")
    configure += [headers, *cmake_arguments]
    with tempfile.TemporaryDirectory(prefix="mtu-build-plugin-", ignore_cleanup_errors=True) as name:
        build = Path(name)
        say(f"configuring with {compiler} and {source}")
        said = _run(configure, build, "cmake could not configure the plugin")
        built = re.search(r"^-- TensorRT (\d+)\.(\d+), .*, GPUs (.*)$", said, re.M)
        assert built is not None, "CMakeLists.txt says what it builds"
        say("compiling, which takes a minute or two")
        _run([cmake, "--build", ".", "--parallel", str(os.cpu_count() or 1)], build, "the plugin could not be compiled")
        for path in targets:
            _publish(build / path.name, path)
    return PluginLibrary(target, registers, (int(built[1]), int(built[2])), built[3])


def find_nvcc(given: Path | None = None) -> Path:
    """nvcc: `given`, or from PATH, CUDA_HOME, /usr/local/cuda. Raises MissingFileError if there is none."""
    if given is not None:
        path = shutil.which(given)
        if path is None:
            raise MissingFileError(f"--nvcc {given}: is no program; give the path of nvcc")
        return Path(path).absolute()
    candidates = [shutil.which("nvcc")]
    for home in (os.environ.get("CUDA_HOME"), str(CUDA)):
        candidates.append(shutil.which(Path(home) / "bin" / "nvcc") if home else None)
    found = next(filter(None, candidates), None)
    if found is None:
        raise MissingFileError(
            f"nvcc is not on PATH, in CUDA_HOME or in {CUDA}: install the CUDA toolkit, or say where it is with --nvcc"
        )
    return Path(found).absolute()


def find_cmake() -> Path:
    """cmake, from PATH or beside this Python. Raises MissingFileError if there is none."""
    folders = os.pathsep.join([os.environ.get("PATH", ""), str(Path(sys.executable).parent)])
    found = shutil.which("cmake", path=folders)
    if found is None:
        raise MissingFileError("cmake is not on PATH: install it, for example with pip install cmake")
    return Path(found).absolute()


def find_headers(given: Path | None = None) -> Path:
    """The directory of TensorRT's headers: `given`, or TENSORRT_INCLUDE_DIR, TENSORRT_ROOT, or a usual place.

    Each may be the directory itself or the one above its `include`. Raises MissingFileError if there are none where
    they should be.
    """
    named = [("--tensorrt-include", given)] if given is not None else []
    for variable in ("TENSORRT_INCLUDE_DIR", "TENSORRT_ROOT"):
        if value := os.environ.get(variable):
            named.append((variable, Path(value)))
    for name, path in named:
        for candidate in (path, path / "include"):
            if (candidate / HEADER).is_file():
                return candidate.absolute()
        raise MissingFileError(f"{name} {path}: has no {HEADER}; give the directory of TensorRT's headers")
    for candidate in INCLUDES:
        if (candidate / HEADER).is_file():
            return candidate
    raise MissingFileError(
        f"TensorRT's headers ({HEADER}) are not installed: say where they are with --tensorrt-include, or download"
        " those of your TensorRT with --fetch-tensorrt, for example 8.6.1, 10.16 or 11.1"
    )


def header_version(include: Path) -> tuple[int, int]:
    """Major and minor version that the headers in `include` say they have; InvalidInputError if they say none."""
    path = include / "NvInferVersion.h"
    text = path.read_text(errors="replace") if path.is_file() else ""
    # In newer headers NV_TENSORRT_MAJOR stands for another macro.
    found = [
        re.search(rf"^#define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE|_RTX)? +(\d+)", text, re.M)
        for part in ("MAJOR", "MINOR")
    ]
    if found[0] is None or found[1] is None:
        raise InvalidInputError(
            f"{path} does not say which TensorRT it is of: give the headers of another installation"
        )
    return int(found[0][1]), int(found[1][1])


def check_version(version: tuple[int, int], source: str) -> None:
    """Raises InvalidInputError unless a plugin can be built for this TensorRT: 8.6, or 10 and later."""
    major, minor = version
    if major == 1:
        raise InvalidInputError(
            f"{source}: these are TensorRT-RTX's own headers ({major}.{minor}); a plugin for it is built with those of"
            " TensorRT 11, which --fetch-tensorrt 11.1 downloads"
        )
    if version != (8, 6) and major < 10:
        raise InvalidInputError(
            f"{source}: TensorRT {major}.{minor} cannot be used; the plugin is for 8.6, and for 10 and later"
        )


def _release(text: str) -> tuple[int, int]:
    parts = re.fullmatch(r"(\d+)\.(\d+)(\.\d+)?", text)
    if parts is None:
        raise InvalidInputError(
            f"--fetch-tensorrt {text}: give a release of github.com/NVIDIA/TensorRT, for example 8.6.1, 10.16 or 11.1"
        )
    return int(parts[1]), int(parts[2])


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir() or (target.exists() and not overwrite):
        raise OutputError(f"{target} exists already: choose another directory or add --overwrite")
    existing = next(parent for parent in target.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise OutputError(f"{existing} is a file: choose another directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(f"{existing} cannot be written: choose another directory")


def _run(command: Sequence[str | Path], build: Path, problem: str) -> str:
    """Runs a command in `build` and returns what it said; InvalidInputError with its first error if it fails."""
    words = [str(word) for word in command]
    # What ends this program is held back until the process is known that it has to end too.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process = subprocess.Popen(
            words,
            cwd=build,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),
        )
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise InvalidInputError(f"{problem}: {words[0]} does not run ({error.strerror})") from None
    with process:
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            output, _ = process.communicate()
        except BaseException:
            # make and the compilers would go on without us.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode != 0:
        with tempfile.NamedTemporaryFile("w", prefix="mtu-build-plugin-", suffix=".log", delete=False) as log:
            log.write(f"$ {' '.join(words)}\n{output}")
        raise InvalidInputError(f"{problem}: {_first_error(output)}; everything it said is in {log.name}")
    return output


def _first_error(output: str) -> str:
    """What a tool gives as the reason, on one line: the first error of a compiler, or else of CMake."""
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    for line in lines:
        if re.search(r"error *:|#error|\bfatal\b|undefined reference", line):
            return _shortened(line)
    for i, line in enumerate(lines):
        if line.startswith("CMake Error"):
            rest = itertools.takewhile(lambda text: not text.startswith(("--", "CMake", "Call Stack")), lines[i + 1 :])
            return _shortened(" ".join([line, *rest]))
    return _shortened(" ".join(lines[-3:])) or "it said nothing"


def _shortened(text: str) -> str:
    return text.rstrip(".") if len(text) <= 400 else text[:397] + "..."


def _publish(built: Path, target: Path) -> None:
    """Copies the library beside its final name and gives it that name."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(built, temporary)
            temporary.chmod(0o755)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from None
