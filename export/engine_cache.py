"""Engines built on the way, when a TensorRT backend is given a bundle. Plain Python; the builder needs onnx.

An engine is good for one model, one size, one GPU, one version of the library and one revision of the plugins; all of
these are in the name of its directory, so a cache can be shared and nothing in it ever changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from mtu.core.cache import cache_directory
from mtu.core.errors import InvalidInputError, MissingFileError, OutputError
from mtu.export.engine_options import BuildOptions
from mtu.plugins.op import revisions
from mtu.runtime.bundle import Bundle
from mtu.runtime.engine import Engine, Profile, Sizes, check_files, file_digest, open_engine
from mtu.runtime.gpu import Gpu, find_gpu
from mtu.runtime.tensorrt_library import Library


def cached_engine(
    bundle: Bundle,
    library: Library,
    gpu: Gpu,
    size: tuple[int, int],
    plugin_library: Path | None,
    say: Callable[[str], None],
) -> Engine:
    """The engine of `bundle` for frames of `size` (height, width, padded), in the precision of the bundle.

    Built where it is not in the cache yet or is damaged there, and `say` is told. Raises OutputError if the cache
    cannot be written, and what `mtu.export.engine.build_engine` raises. Two processes may ask for the same engine: each
    builds in a directory of its own, and both take what has the name first.
    """
    from mtu.export.engine import build_engine

    default = find_gpu()
    if default is not None and (default.name, default.compute_capability) != (gpu.name, gpu.compute_capability):
        raise InvalidInputError(
            f"an engine is built on the first GPU ({default.name}), and cuda:{gpu.index} is another ({gpu.name}):"
            f" set CUDA_VISIBLE_DEVICES={gpu.index} and leave out --device"
        )
    profile = Profile.fixed(*size)
    wanted = profile.opt
    directory = cache_directory() / "engines" / _name(bundle, library, gpu, wanted)
    found = _usable(directory, say)
    if found is not None:
        return found
    _check_writable(directory.parent)
    say(
        f"building an engine for {wanted} with {library.name} {library.version}, once; it is kept in"
        f" {directory} (mtu-build-engine builds others, in fp16 and for ranges of sizes)"
    )
    options = BuildOptions(profile, runtime=library.name, plugin_library=plugin_library)
    try:
        return build_engine(bundle, directory, options, say=say)
    except OutputError:
        # Another process was quicker.
        found = _usable(directory, say)
        if found is None:
            raise
        return found


def _name(bundle: Bundle, library: Library, gpu: Gpu, size: Sizes) -> str:
    key = {
        "graphs": [file_digest(path) for path in bundle.files],
        "library": [library.name, library.version],
        "gpu": {"name": gpu.name, "compute_capability": gpu.compute_capability},
        "plugins": revisions(bundle.interface.ops),
        "size": str(size),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return f"{library.name}-{size}-{digest[:16]}"


def _usable(directory: Path, say: Callable[[str], None]) -> Engine | None:
    """The engine in `directory`, if there is one; a damaged one is removed."""
    if not directory.exists():
        return None
    try:
        engine = open_engine(directory)
        check_files(engine)
    except (InvalidInputError, MissingFileError) as error:
        say(f"note: the cached engine is removed: {error}")
        with contextlib.suppress(OSError):
            shutil.rmtree(directory)
        return None
    return engine


def _check_writable(directory: Path) -> None:
    """Before minutes of building. Raises OutputError."""
    reason = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            reason = "no permission"
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise OutputError(
            f"the engine cache {directory} cannot be written ({reason}): set MTU_CACHE_DIR to a directory that can, or"
            " build an engine with mtu-build-engine and give it as the model"
        )
