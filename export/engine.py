"""Builds a bundle's two engines with TensorRT or TensorRT-RTX, proves them and writes them with their manifest.

Imports onnx inside `build_engine`. The library works in a thread of its own: a signal's exception must not be raised
inside one of its callbacks, where it would end the process.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtu.core.errors import InvalidInputError, MissingExtraError
from mtu.core.extras import require
from mtu.core.files import check_target, publish, temporary_beside, write_through
from mtu.core.interface import GRAPHS, SIZE_MULTIPLE, GraphName, Interface
from mtu.core.release import VERSION
from mtu.export.build_thread import Progress, Say, new_monitor, run_in_thread
from mtu.export.timing_cache import check_timing_cache, read_timing_cache, write_timing_cache
from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.register import register_plugins
from mtu.runtime.bundle import Bundle
from mtu.runtime.engine import (
    MANIFEST,
    Engine,
    EngineManifest,
    HardwareCompatibility,
    Profile,
    file_digest,
    open_engine,
)
from mtu.runtime.gpu import Gpu, find_gpu
from mtu.runtime.tensorrt_library import (
    EXTRAS,
    Library,
    LibraryName,
    check_plugin_import,
    is_installed,
    load_library,
    package_of,
)

if TYPE_CHECKING:
    from mtu.export.engine_graph import BuiltGraph, Messages

LOG = "build.log"
FILES = {MANIFEST, LOG, *(f"{graph}.engine" for graph in GRAPHS)}
"""Everything in the directory of an engine."""
USUAL_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
"""What TensorRT-RTX builds for where nobody says and no GPU is here: one file runs on all of them. 7.5 would make it
four times as large."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build. The names are those of mtu-build-engine."""

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
    hardware_compatibility: HardwareCompatibility = "none"
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    """TensorRT-RTX only: ("8.6", "12.0"); empty for the GPU that is here, or the usual ones without."""


def build_engine(
    bundle: Bundle,
    directory: Path,
    options: BuildOptions,
    *,
    overwrite: bool = False,
    verbose: bool = False,
    say: Say = lambda text: None,
    progress: Progress = lambda text, done: None,
) -> Engine:
    """Writes the engine of a bundle to `directory`, which gets its name when both files and the manifest are whole.

    `say` is called with one line for each finding; with `verbose`, with every message of the library too, and all of
    them are in build.log. Raises MissingExtraError, MissingFileError, InvalidInputError or OutputError for whatever is
    in the way: no library or GPU, a broken bundle, a build that fails, an output that exists or cannot be written.
    Two processes may build the same engine; the second to finish gets an OutputError, unless with `overwrite`.
    """
    directory = directory.resolve()
    check_target(directory, "an engine", FILES, overwrite)
    gpu = find_gpu()
    library = _choose_library(options, gpu)
    require(EXTRAS[library.name], "mtu-build-engine", "onnx")
    from mtu.export.engine_graph import Messages, estimate_memory, load_graphs, prepare
    from mtu.export.precision import fp32_nodes, to_fp16
    from mtu.export.quantise import for_tensorrt

    _check_options(library, options, gpu)
    capabilities = _capabilities(library, options, gpu, say)
    interface, models = load_graphs(bundle)
    for model in models.values():
        for_tensorrt(model)
    plugin = options.plugin and interface.has_motion
    cast = options.fp16 and interface.state_dtype == "float32"
    if interface.state_dtype == "float16" and not options.fp16:
        say("the bundle is fp16 already, and so is the engine")
    keep = _kept_layers(options, interface, models)
    if cast:
        interface = replace(interface, state_dtype="float16")
    kept_nodes = {graph: fp32_nodes(models[graph], keep) for graph in GRAPHS}
    for graph in GRAPHS:
        if cast and _has_strong_types(library):  # TensorRT 8.6 makes the fp32 graph half by itself
            to_fp16(models[graph], keep)
        if gpu is not None:
            _check_memory(estimate_memory(models[graph], interface, graph, options.profile.max), gpu, options)
        models[graph] = prepare(models[graph], plugin=plugin)
    if plugin:
        _register_plugin(library, options, interface)
    made_by = f"{library.name} {library.version} on {gpu.name if gpu else 'no GPU'}"
    with temporary_beside(directory) as temporary:
        messages = Messages()
        with library.logger.to(messages.take):
            built = _build_both(
                library,
                models,
                kept_nodes,
                interface,
                options,
                capabilities,
                messages,
                made_by,
                gpu,
                say,
                progress,
                verbose,
            )
        manifest = EngineManifest(
            interface=interface,
            library=library.name,
            library_version=library.version,
            precision="fp16" if interface.state_dtype == "float16" else "fp32",
            plugin=plugin,
            plugin_revision=OP.revision if plugin else 0,
            gpu=gpu.name if gpu else "",
            compute_capabilities=capabilities,
            hardware_compatibility=options.hardware_compatibility,
            version_compatible=options.version_compatible,
            profile=options.profile,
            onnx={graph: file_digest(bundle.graph(graph)) for graph in GRAPHS},
            engines={graph: hashlib.sha256(plan).hexdigest() for graph, (plan, _) in built.items()},
            device_memory={graph: memory for graph, (_, memory) in built.items()},
            command=rebuild_command(bundle, directory, options, library.name),
            release=VERSION,
            fp32_layers=tuple(sorted(keep)),
        )
        for graph, (plan, _) in built.items():
            write_through(temporary / f"{graph}.engine", plan)
        log = "".join(f"{s} {t}\n" for s, t in messages.all if verbose or s != "VERBOSE")
        write_through(temporary / LOG, log.encode())
        write_through(temporary / MANIFEST, manifest.to_json().encode())
        publish(temporary, directory, overwrite)
    return open_engine(directory)


def _kept_layers(options: BuildOptions, interface: Interface, models: dict[GraphName, Any]) -> frozenset[str]:
    """The layers that stay fp32: those of the file, or those that an fp16 bundle keeps."""
    from mtu.export.precision import check_layers, fp32_layers, layers, read_layers

    is_half = interface.state_dtype == "float16"
    if options.keep_fp32 is None:
        return frozenset[str]().union(*(fp32_layers(model) for model in models.values() if is_half))
    if is_half:
        raise InvalidInputError(
            "--keep-fp32 needs the fp32 bundle, this one is fp16 already: build from that, or make an fp16 bundle with"
            " mtu-export onnx --precision fp16 --keep-fp32"
        )
    if not options.fp16:
        raise InvalidInputError("--keep-fp32 is for --fp16: without it every layer is fp32; add --fp16 or leave it out")
    keep = read_layers(options.keep_fp32)
    check_layers(keep, dict.fromkeys(layer for model in models.values() for layer in layers(model)))
    if both := sorted(keep.intersection(interface.int8_layers)):
        raise InvalidInputError(
            f"--keep-fp32 names {both[0]}, which is int8 in this bundle: leave it out, or build from the fp32 bundle"
        )
    return keep


def rebuild_command(bundle: Bundle, directory: Path, options: BuildOptions, library: LibraryName) -> str:
    """The command line that builds this engine again."""
    profile = options.profile
    words = ["mtu-build-engine", str(bundle.directory.resolve()), "-o", str(directory), "--runtime", library]
    if profile.is_fixed:
        words += ["--size", str(profile.opt)]
    else:
        for name, sizes in (("min", profile.min), ("opt", profile.opt), ("max", profile.max)):
            words += [f"--{name}-size", str(sizes)]
    flags = {"--fp16": options.fp16, "--no-plugin": not options.plugin}
    flags["--version-compatible"] = options.version_compatible
    words += [name for name, given in flags.items() if given]
    values: dict[str, Any] = {
        "--keep-fp32": options.keep_fp32 and options.keep_fp32.resolve(),
        "--plugin-library": options.plugin_library and options.plugin_library.resolve(),
        "--timing-cache": options.timing_cache and options.timing_cache.resolve(),
        "--builder-optimization-level": options.builder_optimization_level,
        "--workspace": options.workspace,
        "--compute-capability": ",".join(options.compute_capabilities) or None,
    }
    if options.hardware_compatibility != "none":
        values["--hardware-compatibility-level"] = options.hardware_compatibility
    for name, value in values.items():
        words += [name, str(value)] if value is not None else []
    return shlex.join([*words, "--overwrite"])


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
    if options.hardware_compatibility != "none":
        wanted = options.hardware_compatibility
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
    asked = options.compute_capabilities
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


def _has_strong_types(library: Library) -> bool:
    return hasattr(library.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def _check_memory(needed: int, gpu: Gpu, options: BuildOptions) -> None:
    if needed > gpu.memory:
        raise InvalidInputError(
            f"frames of {options.profile.max} need about {needed / 2**30:.1f} GiB of device memory,"
            f" {gpu.name} has {gpu.memory / 2**30:.1f} GiB: use smaller frames or --fp16"
        )


def _register_plugin(library: Library, options: BuildOptions, interface: Interface) -> None:
    """Makes the plugin known to the library, after making sure that the kernel can do what it will be asked."""
    check_plugin_import(library)
    profile, config = options.profile, interface.config
    from mtu.plugins.correlation_argmax_warp.cuda_op import Problem

    for sizes in (profile.min, profile.max):
        Problem(
            batch=1,
            motion_channels=2 * config.channels,
            height=sizes.height // SIZE_MULTIPLE,
            width=sizes.width // SIZE_MULTIPLE,
            detail_channels=config.channels,
            max_displacement=interface.max_displacement,
            pool_size=interface.pool_size,
            motion_type=interface.state_dtype,
            detail_type=interface.state_dtype,
        )
    register_plugins(library, [OP.name], options.plugin_library)


def _build_both(
    library: Library,
    models: dict[GraphName, Any],
    kept_nodes: dict[GraphName, frozenset[str]],
    interface: Interface,
    options: BuildOptions,
    capabilities: tuple[str, ...],
    messages: Messages,
    made_by: str,
    gpu: Gpu | None,
    say: Say,
    progress: Progress,
    verbose: bool,
) -> dict[GraphName, tuple[bytes, int]]:
    """Serialised engine and bytes of device memory (0: unknown) of each graph."""
    from mtu.export.engine_graph import build_graph, inspect

    cache: bytes | None = None
    if options.timing_cache is not None:
        if library.is_rtx:
            say("note: tensorrt-rtx times nothing while it builds; the timing cache is neither read nor written")
        else:
            cache = read_timing_cache(options.timing_cache, made_by, say)
    built: dict[GraphName, tuple[bytes, int]] = {}
    for graph in GRAPHS:
        monitor = new_monitor(library.module)

        def work(graph: GraphName = graph, monitor: Any = monitor, cache: bytes | None = cache) -> BuiltGraph:
            return build_graph(
                library,
                models[graph],
                interface,
                graph,
                options,
                kept_nodes=kept_nodes[graph],
                capabilities=capabilities,
                timing_cache=cache,
                monitor=monitor,
                messages=messages,
            )

        done = run_in_thread(work, graph, monitor, messages, say if verbose else None, progress)
        share, memory, source = done.half, 0, "network"
        runs_here = gpu is not None and gpu.compute_capability in capabilities
        if runs_here:
            share, memory = inspect(library, done.plan, graph)
            source = "engine"
        if interface.state_dtype == "float16" and share == 0:
            raise InvalidInputError(
                f"{library.name} {library.version} built {graph}.engine without a single fp16 layer: this GPU may have"
                " no fast fp16; leave out --fp16"
            )
        cache = done.timing_cache if cache is not None else None
        say(
            f"{graph}.engine: {share:.0%} of the {source}'s floating-point layers are fp16,"
            f" {done.plugins or 'no'} plugin layer{'s' if done.plugins > 1 else ''},"
            f" {len(done.plan) / 2**20:.1f} MiB" + (f", {memory / 2**20:.0f} MiB to run" if memory else "")
        )
        built[graph] = done.plan, memory
    if cache is not None and options.timing_cache is not None:
        write_timing_cache(options.timing_cache, made_by, cache)
    return built
