"""Reads a checkpoint into a network: the released formats, plain state dicts, safetensors, npz. Imports torch.

Nothing in the file is executed: pickles load with `weights_only=True`, which refuses everything but tensors and plain
containers; an npz is read without pickle.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.interface import Interface
from mtu.core.kinds import kind_of, meant
from mtu.models.families import find_family, in_words, recognise, variant
from mtu.models.npz import is_npz, read_npz

LISTED = 12
"""Problems listed one by one in a message before the rest is only counted."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights of an inference network, and what they are of."""

    family: str
    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    """fp32, keyed as the network's `state_dict()`."""
    dropped: tuple[str, ...] = ()
    """Keys of the file that only training uses."""
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    """What the weights were made of: the arrays of the file, fp32. Training goes on with these."""
    from_digest: str = ""
    """The digest, where it is known; weights that come out of a bundle lack what inference does not use."""

    @property
    def digest(self) -> str:
        """sha256 over names, shapes and fp32 values in key order, hexadecimal."""
        if self.from_digest:
            return self.from_digest
        digest = hashlib.sha256()
        for key in sorted(self.weights):
            value = self.weights[key].contiguous()
            digest.update(f"{key}{list(value.shape)}".encode())
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()

    def network(self) -> Any:
        """The network with these weights, in evaluation mode, fp32 on the CPU."""
        network = find_family(self.family).network(self.settings)
        network.load_state_dict(self.weights)
        return network.eval()

    def describe(self) -> Interface:
        """The fp32 description of the network with these weights."""
        interface = find_family(self.family).describe(self.settings)
        name = variant(self.family, self.settings)
        return replace(interface, family=self.family, variant=name, weights=self.digest)


def random_checkpoint(family: str, settings: Mapping[str, Any], seed: int = 0) -> Checkpoint:
    """A checkpoint with torch's initial weights, the same for the same seed; for tests and timings only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Checkpoint(family, settings, find_family(family).network(settings).state_dict())


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads `path` and works out which network it is of.

    Accepted: `torch.save`d state dicts (alone or under the key `state_dict` or `model`; keys may have the prefix
    `module.`, `Network.` or both), safetensors and .npz; recognised by content, not by name. What the family says only
    training uses is dropped and named in the result. Where released files hold other arrays than the network
    (TensorFlow's, for one), the family makes its weights of them.

    Raises MissingFileError, or InvalidInputError if the file is no checkpoint, holds anything but tensors, is of
    another network (one message lists every missing, unexpected and mis-shaped tensor) or has non-finite values.
    """
    found = _strip_prefixes(_read(path), path)
    name, settings = recognise(found, f"checkpoint {path}")
    family = find_family(name)
    unused = getattr(family, "TRAINING_ONLY", None)
    dropped = tuple(sorted(key for key in found if unused is not None and unused.fullmatch(key)))
    found = {key: value for key, value in found.items() if key not in dropped}
    with torch.device("meta"):
        fitting = {
            key: (tuple(value.shape), value.dtype) for key, value in family.network(settings).state_dict().items()
        }
    released = getattr(family, "released", None)
    if released is not None:
        fitting = {key: (shape, torch.float32) for key, shape in released(settings).items()}
    problems = [f"missing {key} {list(shape)}" for key, (shape, _) in fitting.items() if key not in found]
    problems += [f"unexpected {key} {list(value.shape)}" for key, value in found.items() if key not in fitting]
    problems += [
        f"{key} is {list(value.shape)}, should be {list(fitting[key][0])}"
        for key, value in found.items()
        if key in fitting and tuple(value.shape) != fitting[key][0]
    ]
    problems += [
        f"{key} has type {value.dtype}, should be floating-point"
        for key, value in found.items()
        if not value.is_floating_point() and (key not in fitting or fitting[key][1].is_floating_point)
    ]
    _refuse(
        path,
        f"does not fit a network of {in_words(settings)}",
        problems,
    )
    arrays = weights = {key: found[key].detach().float().contiguous() for key in fitting}
    if released is not None:
        _refuse_non_finite(path, arrays)
        weights = dict(family.from_released(arrays))  # type: ignore[attr-defined]
    _refuse_non_finite(path, weights)
    return Checkpoint(name, settings, weights, dropped, arrays)


def _refuse_non_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    _refuse(path, "has non-finite values", [key for key, value in weights.items() if not torch.isfinite(value).all()])


def _refuse(path: Path, what: str, problems: list[str]) -> None:
    if problems:
        rest = len(problems) - LISTED
        lines = "\n  ".join([*problems[:LISTED], *([f"and {rest} more"] if rest > 0 else [])])
        raise InvalidInputError(f"checkpoint {path} {what}:\n  {lines}")


def _read(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        what = meant(path) or "is not a file"
        raise MissingFileError(f"checkpoint {path} {what if path.exists() else 'does not exist'}")
    kind = kind_of(path)
    if kind in ("graph", "engine"):
        raise InvalidInputError(
            f"checkpoint {path} is made from one: give the .pytorch, .pth, .npz or .safetensors file itself"
        )
    if kind in ("empty", "video"):
        raise InvalidInputError(f"checkpoint {path} {meant(path)}")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise InvalidInputError(f"checkpoint {path} cannot be read: {error.strerror}") from None
    if len(head) == 9 and head[8:9] == b"{":
        return _read_safetensors(path)
    if is_npz(path):
        return {name: torch.from_numpy(array) for name, array in read_npz(path).items()}
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, KeyError, IndexError, UnicodeDecodeError) as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise InvalidInputError(
                f"checkpoint {path} holds more than tensors; running code from a file is refused."
                " Save the state dict alone: torch.save(network.state_dict(), path)"
            ) from None
        raise InvalidInputError(f"checkpoint {path} is neither a torch file nor safetensors nor .npz") from None
    except (
        RuntimeError,
        EOFError,
        ValueError,
        AttributeError,
        TypeError,
        OSError,
    ) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidInputError(f"checkpoint {path} cannot be read: {reason[0][:200]}") from None
    if isinstance(loaded, Mapping) and {"network", "average", "optimiser"} <= loaded.keys():
        weights = path.with_name("weights.safetensors")
        raise InvalidInputError(f"checkpoint {path} is what a run of mtu-train goes on from: give {weights}")
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise InvalidInputError(f"checkpoint {path} holds a {type(loaded).__name__}, not a state dict")
    return loaded


def _read_safetensors(path: Path) -> Mapping[str, object]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise InvalidInputError(f"checkpoint {path} cannot be read as safetensors: {error}") from None


def _strip_prefixes(loaded: Mapping[str, object], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    others = [str(key) for key, value in loaded.items() if not isinstance(value, Tensor)]
    _refuse(path, "holds entries that are not tensors", others)
    for key, value in loaded.items():
        assert isinstance(value, Tensor)
        name = str(key).removeprefix("module.").removeprefix("Network.")
        if name in tensors:
            raise InvalidInputError(f"checkpoint {path} holds {name} twice, with and without a prefix: remove one")
        tensors[name] = value
    unusable = [f"{name} is {tensor.layout}" for name, tensor in tensors.items() if tensor.layout != torch.strided]
    unusable += [f"{name} is on the meta device" for name, tensor in tensors.items() if tensor.is_meta]
    _refuse(path, "holds tensors without plain values", unusable)
    return tensors
