"""Builds the engines of a bundle or a chain with TensorRT or TensorRT-RTX, proves them and writes them.

Imports onnx inside `Build`. The library works in a thread of its own: a signal's exception must not be raised inside
one of its callbacks, where it would end the process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtu.core.errors import InvalidInputError
from mtu.core.files import check_target, publish, temporary_beside, write_through
from mtu.core.interface import Graph
from mtu.core.release import VERSION
from mtu.export.build_thread import Progress, Say, new_monitor, run_in_thread
from mtu.export.chain_files import LOG, check_chain_target, stage_names
from mtu.export.engine_options import BuildOptions, Target, find_target
from mtu.export.timing_cache import read_timing_cache, write_timing_cache
from mtu.plugins.op import revisions
from mtu.plugins.register import register_plugins
from mtu.runtime.backends import Stages
from mtu.runtime.bundle import BUNDLE, Bundle, chain_json
from mtu.runtime.chain import interface_of
from mtu.runtime.engine import MANIFEST, Engine, EngineManifest, Profile, Sizes, file_digest, open_engine
from mtu.runtime.tensorrt_library import check_plugin_import

if TYPE_CHECKING:
    from mtu.export.engine_graph import BuiltGraph, Messages, PreparedGraph


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
    """Writes the engine of a bundle to `directory`, which gets its name when all files and the manifest are whole.

    `say` is called with one line for each finding; with `verbose`, with every message of the library too, and all of
    them are in build.log. Raises MissingExtraError, MissingFileError, InvalidInputError or OutputError for whatever is
    in the way: no library or GPU, a broken bundle, a build that fails, an output that exists or cannot be written.
    Two processes may build the same engine; the second to finish gets an OutputError, unless with `overwrite`.
    """
    directory = directory.resolve()
    files = {MANIFEST, LOG, *(path.name for path in directory.glob("*.engine"))}
    check_target(directory, "an engine", files, overwrite)
    options.check_sizes(bundle.interface.size)
    build = Build(bundle, options, find_target(options, say), say)
    with temporary_beside(directory) as temporary:
        build.write(temporary, directory, progress, verbose=verbose)
        publish(temporary, directory, overwrite)
    return open_engine(directory)


def build_chain(
    chain: Stages,
    directory: Path,
    options: BuildOptions,
    *,
    overwrite: bool = False,
    verbose: bool = False,
    say: Say = lambda text: None,
    progress: Progress = lambda text, done: None,
) -> Stages:
    """Writes a chain of engines, one of each stage, to `directory`; sizes in `options` are those of the source.

    Otherwise as `build_engine`.
    """
    directory = directory.resolve()
    check_chain_target(directory, chain.models, overwrite)
    if options.keep_fp32 is not None:
        raise InvalidInputError(
            "--keep-fp32 names the layers of one network, and this is a chain: build an engine of each stage, and put"
            " them in a row with mtu-export chain"
        )
    options.check_sizes(interface_of(chain).size)
    stages = [stage for stage in chain.models if isinstance(stage, Bundle)]
    if len(stages) < len(chain.models):
        raise InvalidInputError(f"a stage of {chain.directory} is an engine already: give a chain of bundles")
    target = find_target(options, say)
    builds, scale = {}, 1
    for name, stage in zip(stage_names(stages), stages, strict=True):
        profile, rule = options.profile, stage.interface.size
        sizes = [
            Sizes(*rule.padded(each.height * scale, each.width * scale))
            for each in (profile.min, profile.opt, profile.max)
        ]
        of_stage = replace(options, profile=Profile(*sizes))
        builds[name] = Build(stage, of_stage, target, _of_stage(name, say))
        scale *= stage.interface.scale
    with temporary_beside(directory) as temporary:
        for name, build in builds.items():
            (temporary / name).mkdir()
            build.write(temporary / name, directory / name, progress, verbose=verbose)
        write_through(temporary / BUNDLE, chain_json([*builds]))
        publish(temporary, directory, overwrite)
    return Stages(directory, tuple(open_engine(directory / name) for name in builds))


def _of_stage(name: str, say: Say) -> Say:
    return lambda text: say(f"{name}: {text}")


class Build:
    """A bundle on its way to an engine: what is decided before the library begins, then its work."""

    def __init__(self, bundle: Bundle, options: BuildOptions, target: Target, say: Say) -> None:
        """Reads the bundle, prepares its graphs and registers the plugins.

        Raises MissingFileError or InvalidInputError for a bundle or a file of layers that is broken, and for what the
        GPU or a plugin's kernel cannot do.
        """
        from mtu.export.bundle_files import load_graphs
        from mtu.export.precision import in_fp16
        from mtu.export.quantise import for_tensorrt

        self._bundle, self._options, self._target, self._say = bundle, options, target, say
        interface, models = bundle.interface, load_graphs(bundle)
        for model in models.values():
            for_tensorrt(model)
        if interface.precision == "fp16" and not options.fp16:
            say("the bundle is fp16 already, and so is the engine")
        self._kept = self._kept_layers(models)
        is_cast = options.fp16 and interface.precision == "fp32"
        self._interface = replace(in_fp16(interface) if is_cast else interface, batched=False)
        self._plugins = revisions(interface.ops) if options.plugin else {}
        self._graphs = [self._prepare(graph, models[graph.name], is_cast) for graph in self._interface.graphs]
        if self._plugins:
            check_plugin_import(target.library)
            register_plugins(target.library, list(self._plugins), options.plugin_library)

    def _kept_layers(self, models: Mapping[str, Any]) -> frozenset[str]:
        """The layers that stay fp32: those of the file, or those that an fp16 bundle keeps."""
        from mtu.export.graph_view import GraphView
        from mtu.export.precision import check_layers, fp32_layers, read_layers

        options, interface = self._options, self._bundle.interface
        is_half = interface.precision == "fp16"
        if options.keep_fp32 is None:
            return frozenset[str]().union(*(fp32_layers(model) for model in models.values() if is_half))
        if is_half:
            raise InvalidInputError(
                "--keep-fp32 needs the fp32 bundle, this one is fp16 already: build from that, or make an fp16 bundle"
                " with mtu-export onnx --precision fp16 --keep-fp32"
            )
        if not options.fp16:
            raise InvalidInputError(
                "--keep-fp32 is for --fp16: without it every layer is fp32; add --fp16 or leave it out"
            )
        keep = read_layers(options.keep_fp32)
        check_layers(keep, dict.fromkeys(layer for model in models.values() for layer in GraphView(model).layers))
        if both := sorted(keep.intersection(interface.int8_layers)):
            raise InvalidInputError(
                f"--keep-fp32 names {both[0]}, which is int8 in this bundle: leave it out, or build from the fp32"
                " bundle"
            )
        return keep

    def _prepare(self, graph: Graph, model: Any, is_cast: bool) -> PreparedGraph:
        from mtu.export.engine_graph import PreparedGraph, prepare
        from mtu.export.precision import fp32_nodes, to_fp16
        from mtu.plugins.nodes import check_nodes

        kept_nodes, profile = fp32_nodes(model, self._kept), self._options.profile
        if is_cast and self._target.is_strongly_typed:  # TensorRT 8.6 makes the fp32 graph half by itself
            to_fp16(model, self._kept)
        self._check_memory(model, graph)
        for sizes in (profile.min, profile.max) if self._plugins else ():
            check_nodes(model, {each.tensor.name: each.tensor.at(sizes.height, sizes.width) for each in graph.inputs})
        return PreparedGraph(
            graph=graph,
            model=prepare(model, self._plugins),
            is_half=self._interface.precision == "fp16",
            has_int8=bool(self._interface.int8_layers),
            kept_nodes=kept_nodes,
        )

    def _check_memory(self, model: Any, graph: Graph) -> None:
        from mtu.export.working_memory import working_memory

        gpu, sizes = self._target.gpu, self._options.profile.max
        if gpu is not None and (needed := sum(working_memory(model, graph, sizes.height, sizes.width))) > gpu.memory:
            raise InvalidInputError(
                f"frames of {sizes} need about {needed / 2**30:.1f} GiB of device memory,"
                f" {gpu.name} has {gpu.memory / 2**30:.1f} GiB: use smaller frames or --fp16"
            )

    def write(self, temporary: Path, directory: Path, progress: Progress, *, verbose: bool) -> None:
        """Builds all graphs into `temporary`, which is to become `directory`. Raises InvalidInputError, OutputError."""
        from mtu.export.engine_graph import Messages

        options, library, gpu, messages = self._options, self._target.library, self._target.gpu, Messages()
        with library.logger.to(messages.take):
            plans, memory = self._build(messages, progress, verbose)
        for name, plan in plans.items():
            write_through(temporary / f"{name}.engine", plan)
        manifest = EngineManifest(
            interface=self._interface,
            library=library.name,
            library_version=library.version,
            plugins=self._plugins,
            gpu=gpu.name if gpu else "",
            compute_capabilities=self._target.capabilities,
            hardware_compatibility=options.hardware_compatibility_level,
            version_compatible=options.version_compatible,
            profile=options.profile,
            onnx={name: file_digest(self._bundle.graph(name)) for name in plans},
            engines={name: hashlib.sha256(plan).hexdigest() for name, plan in plans.items()},
            device_memory=memory,
            command=replace(options, runtime=library.name).command(self._bundle.directory, directory),
            release=VERSION,
            fp32_layers=tuple(sorted(self._kept)),
        )
        log = "".join(f"{s} {t}\n" for s, t in messages.all if verbose or s != "VERBOSE")
        write_through(temporary / LOG, log.encode())
        write_through(temporary / MANIFEST, manifest.to_json().encode())

    def _build(self, messages: Messages, progress: Progress, verbose: bool) -> tuple[dict[str, bytes], dict[str, int]]:
        """The serialised engine of each graph, and its bytes of device memory (0: unknown)."""
        from mtu.export.engine_graph import build_graph

        target, path, cache = self._target, self._options.timing_cache, None
        if path is not None and target.library.is_rtx:
            self._say("note: tensorrt-rtx times nothing while it builds; the timing cache is neither read nor written")
        elif path is not None:
            cache = read_timing_cache(path, target.made_by, self._say)
        plans, memory = {}, {}
        for each in self._graphs:
            monitor = new_monitor(target.library.module)

            def work(each: PreparedGraph = each, monitor: Any = monitor, cache: bytes | None = cache) -> BuiltGraph:
                return build_graph(each, target, self._options, messages, monitor, cache)

            name = each.graph.name
            done = run_in_thread(work, name, monitor, messages, self._say if verbose else None, progress)
            plans[name], memory[name] = done.plan, self._prove(each, done)
            cache = done.timing_cache if cache is not None else None
        if cache is not None and path is not None:
            write_timing_cache(path, target.made_by, cache)
        return plans, memory

    def _prove(self, prepared: PreparedGraph, done: BuiltGraph) -> int:
        """Looks at what was built, in the engine where it runs here, and says it; the bytes that it needs to run."""
        from mtu.export.engine_graph import inspect

        library, name = self._target.library, prepared.graph.name
        share, memory, source = done.half, 0, "network"
        if self._target.runs_here:
            share, memory = inspect(library, done.plan, name)
            source = "engine"
        if prepared.is_half and share == 0:
            raise InvalidInputError(
                f"{library.name} {library.version} built {name}.engine without a single fp16 layer: this GPU may have"
                " no fast fp16; leave out --fp16"
            )
        self._say(
            f"{name}.engine: {share:.0%} of the {source}'s floating-point layers are fp16,"
            f" {done.plugins or 'no'} plugin layer{'s' if done.plugins > 1 else ''},"
            f" {len(done.plan) / 2**20:.1f} MiB" + (f", {memory / 2**20:.0f} MiB to run" if memory else "")
        )
        return memory
