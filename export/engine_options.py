"""What an engine is built from, with and for: the options, the library, the GPUs. Loads the library; needs no onnx."""

from __future__ import annotations

import dataclasses
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mtu.core.errors import InvalidInputError, MissingExtraError
from mtu.core.extras import require
from mtu.core.interface import Size
from mtu.export.build_thread import Say
from mtu.export.timing_cache import check_timing_cache
from mtu.runtime.engine import HardwareCompatibility, Profile
from mtu.runtime.gpu import Gpu, find_gpu
from mtu.runtime.tensorrt_library import EXTRAS, Library, LibraryName, is_installed, load_library, package_of

PROGRAM = "mtu-build-engine"
USUAL_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""What TensorRT-RTX builds for where nobody says and no GPU is here: one file runs on all of them. 7.5 would make it
four times as large."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build. The names are those of the options of mtu-build-engine, but for `profile`."""

    profile: Profile
    fp16: bool = False
    keep_fp32: Path | None = None
    """Names the layers that stay in fp32; of mtu-calibrate ranges."""
    runtime: LibraryName | Literal["auto"] = "auto"
    plugin: bool = True
    plugin_library: Path | None = None
    """The C++ plugin; None takes the one in Python."""
    timing_cache: Path | None = None
    builder_optimization_level: int | None = None
    workspace: int | None = None
    """MiB."""
    hardware_compatibility_level: HardwareCompatibility = "none"
    version_compatible: bool = False
    compute_capability: tuple[str, ...] = ()
    """TensorRT-RTX only: ("8.6", "12.0"); empty for the GPU that is here, or the usual ones without."""

    def check_sizes(self, rule: Size) -> None:
        """Raises InvalidInputError unless the model takes frames of these sizes without padding."""
        for sizes in (self.profile.min, self.profile.opt, self.profile.max):
            sizes.check(rule)

    def command(self, source: Path, directory: Path) -> str:
        """The command line that builds the engine of the bundle `source` in `directory` again."""
        words = [PROGRAM, str(source.resolve()), "-o", str(directory)]
        for field in dataclasses.fields(self):
            option, value = "--" + field.name.replace("_", "-"), getattr(self, field.name)
            if isinstance(value, Profile):
                for name in ("opt",) if value.is_fixed else ("min", "opt", "max"):
                    words += ["--size" if value.is_fixed else f"--{name}-size", str(getattr(value, name))]
            elif value != field.default and isinstance(value, bool):
                words.append(option if value else option.replace("--", "--no-"))
            elif value != field.default:
                words += [option, _in_words(value)]
        return shlex.join([*words, "--overwrite"])


def _in_words(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value.resolve() if isinstance(value, Path) else value)


@dataclass(frozen=True)
class Target:
    """What builds, and for which GPUs."""

    library: Library
    gpu: Gpu | None
    """The one that is here."""
    capabilities: tuple[str, ...]
    """Compute capabilities, without doubles, in order."""

    @property
    def made_by(self) -> str:
        """What a timing cache must have been made with."""
        return f"{self.library.name} {self.library.version} on {self.gpu.name if self.gpu else 'no GPU'}"

    @property
    def runs_here(self) -> bool:
        """Whether the engine can be loaded on the GPU that is here."""
        return self.gpu is not None and self.gpu.compute_capability in self.capabilities

    @property
    def is_strongly_typed(self) -> bool:
        """Whether the types in the graph are what is built; TensorRT 8.6 has flags instead."""
        return hasattr(self.library.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def find_target(options: BuildOptions, say: Say) -> Target:
    """The library and GPUs to build with and for; the GPUs that nobody named are told to `say`.

    Raises MissingExtraError or InvalidInputError if there is no library, or it cannot do what the options ask for.
    """
    gpu = find_gpu()
    library = _choose_library(options, gpu)
    require(EXTRAS[library.name], PROGRAM, "onnx")
    _check_options(library, options, gpu)
    return Target(library, gpu, _capabilities(library, options, gpu, say))


def _choose_library(options: BuildOptions, gpu: Gpu | None) -> Library:
    name = options.runtime
    if name == "auto":
        if gpu is not None and is_installed("tensorrt"):
            name = "tensorrt"
        elif is_installed("tensorrt-rtx") or gpu is None:
            name = "tensorrt-rtx"
        else:
            name = "tensorrt"
    if name == "tensorrt" and gpu is None:
        if not is_installed(name):
            raise MissingExtraError(package_of(name), EXTRAS[name], "--runtime tensorrt")
        raise InvalidInputError(
            "tensorrt builds on the GPU that will run the engine, and no NVIDIA GPU answers here: build it there, or"
            " use --runtime tensorrt-rtx, which builds without one"
        )
    return load_library(name)


def _check_options(library: Library, options: BuildOptions, gpu: Gpu | None) -> None:
    trt = library.module
    level = options.builder_optimization_level
    if level is not None and not 0 <= level <= 5:
        raise InvalidInputError(f"--builder-optimization-level {level}: choose 0 (quick build) to 5 (quick engine)")
    if options.workspace is not None and options.workspace < 1:
        raise InvalidInputError(f"--workspace {options.workspace}: at least 1 MiB")
    if options.plugin_library is not None and not options.plugin:
        raise InvalidInputError("--plugin-library and --no-plugin contradict each other: give one of them")
    if options.timing_cache is not None:
        check_timing_cache(options.timing_cache)
    wanted = options.hardware_compatibility_level
    if wanted == "none":
        return
    if library.is_rtx:
        raise InvalidInputError(
            f"--hardware-compatibility-level {wanted} is not for tensorrt-rtx: name the GPUs with"
            " --compute-capability 8.6,8.9"
        )
    levels = getattr(trt, "HardwareCompatibilityLevel", None)
    if not hasattr(levels, wanted.replace("-", "_").upper()):
        raise InvalidInputError(
            f"tensorrt {library.version} has no hardware compatibility level {wanted}:"
            " use ampere-plus, or a newer tensorrt"
        )
    if wanted == "ampere-plus" and gpu is not None and int(gpu.compute_capability.split(".")[0]) < 8:
        raise InvalidInputError(
            f"--hardware-compatibility-level ampere-plus needs compute capability 8.0 or higher, {gpu.name} has"
            f" {gpu.compute_capability}: use none"
        )


def _capabilities(library: Library, options: BuildOptions, gpu: Gpu | None, say: Say) -> tuple[str, ...]:
    """The compute capabilities to build for, without doubles, in order."""
    asked = options.compute_capability
    if not library.is_rtx:
        assert gpu is not None
        if asked:
            raise InvalidInputError(
                f"tensorrt builds for the GPU at hand ({gpu.name}, {gpu.compute_capability}) alone: leave out"
                " --compute-capability, or use --runtime tensorrt-rtx"
            )
        return (gpu.compute_capability,)
    members = (re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(library.module.ComputeCapability))
    known = sorted((f"{m[1]}.{m[2]}" for m in members if m), key=lambda c: tuple(map(int, c.split("."))))
    if not asked and gpu is None:
        say(f"no NVIDIA GPU here: building for compute capability {', '.join(USUAL_CAPABILITIES)}")
        return USUAL_CAPABILITIES
    if not asked and gpu is not None:
        if gpu.compute_capability in known:
            return (gpu.compute_capability,)
        raise InvalidInputError(
            f"tensorrt-rtx {library.version} does not support {gpu.name} (compute capability {gpu.compute_capability}):"
            f" use --runtime tensorrt, or build for other GPUs with --compute-capability {','.join(known)}"
        )
    unknown = [capability for capability in asked if capability not in known]
    if unknown:
        raise InvalidInputError(
            f"--compute-capability {','.join(asked)}: tensorrt-rtx {library.version} does not know"
            f" {', '.join(unknown)}, it knows {', '.join(known)}"
        )
    return tuple(capability for capability in known if capability in asked)
