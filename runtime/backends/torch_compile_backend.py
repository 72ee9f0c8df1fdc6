"""The torch backend with both graphs compiled, for comparison. Imports torch (extra [export])."""

from __future__ import annotations

from mtu.runtime.backends import Request, torch_backend


def open_backend(request: Request) -> torch_backend.TorchBackend:
    """As `torch_backend.open_backend`."""
    backend = torch_backend.open_backend(request)
    backend.compile()
    return backend
