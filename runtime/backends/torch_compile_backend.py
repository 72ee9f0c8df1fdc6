"""The torch backend with both graphs compiled, for comparison. Imports torch (extra [export])."""

from __future__ import annotations

from mtu.runtime.backends import torch_backend
from mtu.runtime.bundle import Bundle


def open_backend(bundle: Bundle, device: str) -> torch_backend.TorchBackend:
    """As `torch_backend.open_backend`."""
    backend = torch_backend.open_backend(bundle, device, "torch-compile")
    backend.compile()
    return backend
