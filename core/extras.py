"""Which optional packages a command needs, and the extra of this package that brings them. Standard library only."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from importlib import metadata

from mtu.core.errors import MissingExtraError

NEEDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    # command: (the extra, the packages); a backend's are in mtu.runtime.backends
    "mtu-export": ("export", ("torch", "onnx", "onnxscript", "onnxruntime")),
    "mtu-train": ("train", ("torch", "lightning_fabric", "tensorboard", "skimage", "cv2", "safetensors")),
    "mtu-compare": ("compare", ("polygraphy", "skimage")),
    "mtu-farm": ("farm", ("ray", "pyarrow")),
    "mtu-run --server": ("triton", ("tritonclient", "grpc")),
    "mtu-eval": ("compare", ("skimage", "scipy")),
}


def missing(extra: str, purpose: str, packages: tuple[str, ...]) -> list[MissingExtraError]:
    """An error for each of `packages` that is not installed; `extra` is the one that brings them."""
    return [MissingExtraError(each, extra, purpose) for each in packages if importlib.util.find_spec(each) is None]


def require(extra: str, purpose: str, *packages: str) -> None:
    """Raises MissingExtraError for the first of `packages` that is not installed."""
    for error in missing(extra, purpose, packages):
        raise error


def require_for(command: str) -> None:
    """Raises MissingExtraError for the first package that `command` needs and that is not installed."""
    extra, packages = NEEDS[command]
    require(extra, command, *packages)


def is_installed(distribution: str) -> bool:
    """Whether pip knows a package of this name."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
