"""The optimiser Muon for networks of convolutions: torch's own takes matrices alone. Imports torch.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the rate of Liu et al.,
"Muon is scalable for LLM training" (2025), which lets it be Adam's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

SMALLEST = 16
"""Kernels with fewer outputs (or inputs, of a transposed convolution) are Adam's: their directions are few."""


class Muon(torch.optim.Optimizer):
    """Kernels take steps whose directions are all as long, each kernel a matrix [first dimension, the others]; biases
    and kernels of fewer than `SMALLEST` rows take Adam's. Its groups are one, with the rate `lr` of both."""

    def __init__(self, parameters: Iterable[nn.Parameter], rate: float) -> None:
        trained = list(parameters)
        super().__init__(trained, {"lr": rate})
        self._kernels = [each for each in trained if each.ndim == 4 and each.shape[0] >= SMALLEST]
        self._matrices = [kernel.detach().flatten(1).clone() for kernel in self._kernels]
        ours = {id(kernel) for kernel in self._kernels}
        self._adam = torch.optim.Adam([each for each in trained if id(each) not in ours], rate, fused=True)
        self._muon = torch.optim.Muon(self._matrices, rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Changes the parameters by their gradients; a kernel without one stays as it is. There is no closure."""
        assert closure is None
        for inner in (self._adam, self._muon):
            inner.param_groups[0]["lr"] = self.param_groups[0]["lr"]
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.copy_(kernel.flatten(1))
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        self._adam.step()
        self._muon.step()  # type: ignore[no-untyped-call]
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            kernel.copy_(matrix.view_as(kernel))

    def state_dict(self) -> dict[str, Any]:
        """Those of both."""
        return {"state": {"adam": self._adam.state_dict(), "muon": self._muon.state_dict()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self._adam.load_state_dict(state_dict["state"]["adam"])
        self._muon.load_state_dict(state_dict["state"]["muon"])
