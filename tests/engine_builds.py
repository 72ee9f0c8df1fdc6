"""What tests of the engine builder share: options, sizes, a GPU that is not here. Nothing here is a test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mtu.export.bundle_files import load_graphs, save_bundle
from mtu.export.precision import in_fp16, to_fp16
from mtu.runtime.bundle import open_bundle
from mtu.runtime.engine import Profile, Sizes
from mtu.runtime.gpu import Gpu

PROGRAM = "mtu-build-engine"
SMALL = Profile.fixed(32, 48)
RANGE = Profile(Sizes(16, 16), Sizes(32, 48), Sizes(64, 96))
SIZE = ("--size", "48x32")
GPU = Gpu(0, "NVIDIA GeForce RTX 3090", "8.6", 24 << 30)
KEPT = ("HGs.0.enc1.0", "HGs.1.enc1.0", "out")
"""Layers to keep in fp32: in the first frame the op moves a map that lies between the first two."""
GRAPHS = ("first", "step")
"""Of MTU."""
rtx = pytest.mark.needs_library("tensorrt_rtx")


def left_over(directory):
    """What is in a directory."""
    return sorted(path.name for path in directory.iterdir())


def of_one_stream(interface):
    """An engine takes one stream at a time, whatever its bundle takes."""
    return replace(interface, batched=False)


def half_bundle(bundle, directory, keep=()):
    """The bundle in fp16, but for the layers `keep`."""
    models = load_graphs(bundle)
    for model in models.values():
        to_fp16(model, keep)
    directory.mkdir()
    save_bundle(directory, in_fp16(bundle.interface), models)
    return open_bundle(directory)
