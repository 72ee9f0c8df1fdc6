"""Restoring where another model's map says blur, and leaving the rest of a frame as it is. Imports numpy.

Note [the gate]
    A map says for each pixel how wide a Gaussian would blur it so: its sigma, in pixels. Up to the threshold S the
    frame stays as it is, bit for bit; from 1.5 S on it is what the model restored; between them the two are mixed,
    smoothly, so that no edge of the mask shows. The mask is not widened: the map is smooth, and sharp pixels are to
    stay. The default of one pixel is where blur begins to be seen: it leaves 29 % of the contrast of stripes four
    pixels apart.
    Both models get every frame. Each has a session of its own, with the window and the states that it would have
    alone; what they give for a frame is put together when both have given it, however far either looks ahead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import lcm

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, Tensor
from mtu.core.window import Picture, spread
from mtu.runtime.backends import Backend
from mtu.runtime.chain import Joint, StagedBackend, open_session
from mtu.runtime.maps import in_unit
from mtu.runtime.scenes import SCENE_THRESHOLD
from mtu.runtime.session import Restored

THRESHOLD = 1.0
"""Pixels of sigma. See Note [the gate]."""


@dataclass(frozen=True)
class Gate:
    """Which parts of a frame are restored, by a map of it. See Note [the gate]."""

    output: Output
    """The map."""
    threshold: float
    """Sigma in pixels, from 0."""

    def mask(self, values: NDArray[np.floating], height: int, width: int) -> NDArray[np.float32]:
        """float32 [height, width] for the map [h, w] of a frame: 0 where it stays as it is, 1 where it is restored."""
        over = (in_unit(values, self.output) - self.threshold) / max(self.threshold / 2, 1e-6)
        share = np.clip(over, 0, 1)
        return spread(share * share * (3 - 2 * share), self.output.tensor, height, width)

    def share(self, values: NDArray[np.floating]) -> float:
        """How much of a frame is restored, at least in part: 0 to 1."""
        return float((in_unit(values, self.output) > self.threshold).mean())

    def blend(self, frame: Picture, restored: Picture, values: NDArray[np.floating]) -> Picture:
        """What is shown of a frame, all uint8 [H, W, 3]."""
        mask = self.mask(values, *frame.shape[:2])
        # In one array, with all its values beside each other: twice as fast.
        blended: NDArray[np.float32] = np.repeat(mask[..., None], 3, axis=2)
        blended *= np.subtract(restored, frame, dtype=np.float32)
        blended += frame
        return np.rint(blended, out=blended).astype(np.uint8)


def gated(restoring: Interface, seeing: Interface, threshold: float) -> Interface:
    """What a model is like from outside that restores where the map of `seeing` says so. Raises InvalidInputError where
    the two cannot be used so, or the map never says more than `threshold`."""
    where, model = f"--where: the model {seeing.variant}", f"the model {restoring.variant}"
    found = seeing.the("map")
    if restoring.the("picture") is None:
        raise InvalidInputError(f"--where: {model} gives a map and no picture: give one that restores with --model")
    if restoring.scale != 1:
        raise InvalidInputError(
            f"--where: {model} gives pictures {restoring.scale} times as large as the frames, which cannot be put"
            " together with them: leave --where out"
        )
    if found is None:
        raise InvalidInputError(f"{where} gives no map: give one that says where a picture is blurred, such as dmenet")
    if found.unit is None or found.unit.name != "sigma":
        raise InvalidInputError(f"{where} gives a map that is not said to be of blur (its unit is not sigma)")
    if len(seeing.streams) > 1:
        raise InvalidInputError(f"{where} reads several streams ({', '.join(seeing.streams)}): give one that reads one")
    most = max(found.unit.offset, found.unit.factor + found.unit.offset)
    if not 0 <= threshold < most:
        raise InvalidInputError(
            f"--threshold {threshold:g}: give pixels of sigma, from 0 and below {most:g}, the most that the map of"
            f" {seeing.variant} says"
        )
    both = restoring, seeing
    multiple, least = lcm(*(each.size.multiple for each in both)), max(each.size.minimum for each in both)
    offsets = sorted({-max(each.look_back for each in both), 0, max(each.look_ahead for each in both)})
    frames = (
        Input(Tensor(f"{stream}{index}", "uint8", (1, "H", "W", 3)), Frame(stream, offset))
        for stream, (index, offset) in product(restoring.streams, enumerate(offsets))
    )
    others = (each for each in restoring.outputs if each.role not in ("state", "map"))
    outputs = (*others, replace(found, tensor=replace(found.tensor, name="map_where")))
    return replace(
        restoring,
        family="gate",
        variant=f"{restoring.variant} where {seeing.variant}",
        settings={},
        graphs=(Graph("gate", tuple(frames), outputs),),
        size=Size(multiple, least + -least % multiple, max(each.size.smallest for each in both)),
        ops={**restoring.ops, **seeing.ops},
        working_bytes=max(each.working_bytes for each in both),
        batched=False,
    )


class GatedBackend(StagedBackend):
    """Two models: `restoring`, and `seeing`, whose map says where. `open_session` runs it. See Note [the gate]."""

    def __init__(self, restoring: Backend, seeing: Backend, threshold: float = THRESHOLD) -> None:
        """Raises as `gated`. `close` closes both."""
        super().__init__((restoring, seeing), gated(restoring.interface, seeing.interface, threshold))
        output = seeing.interface.the("map")
        assert output is not None
        self.gate = Gate(output, threshold)

    def session(self, *, scene_threshold: float | None, strict: bool) -> Joint:
        """See `StagedBackend.session`."""
        return Gated(self, scene_threshold=scene_threshold, strict=strict)


class Gated(Joint):
    """A session of each model; used as a `Session`. What it gives has the map too."""

    def __init__(
        self, backend: GatedBackend, *, scene_threshold: float | None = SCENE_THRESHOLD, strict: bool = False
    ) -> None:
        """See `Session`."""
        self._restoring, self._seeing = sessions = [
            open_session(each, scene_threshold=None, strict=strict) for each in backend.stages
        ]
        self._gate = backend.gate
        super().__init__(sessions, backend.interface.streams, scene_threshold)

    @property
    def max_displacement(self) -> int:
        """See `Session.max_displacement`; that of the restoring model."""
        return self._restoring.max_displacement

    def reset(self) -> None:
        """See `Stream.reset`."""
        super().reset()
        self._frames: deque[Picture] = deque()
        self._restored: deque[Restored] = deque()
        self._seen: deque[Restored] = deque()

    def _push(self, frames: Mapping[str, Picture]) -> list[Restored]:
        frame = frames[self.streams[0]]
        self._frames.append(frame)
        return self._paired(self._restoring.push(frames), self._seeing.push(frame))

    def flush(self) -> list[Restored]:
        """See `Stream.flush`."""
        return self._paired(self._restoring.flush(), self._seeing.flush())

    def _paired(self, restored: list[Restored], seen: list[Restored]) -> list[Restored]:
        """With what these complete, the frames that both models are done with."""
        self._restored += restored
        self._seen += seen
        found = []
        while self._restored and self._seen:
            result, values, frame = self._restored.popleft(), self._seen.popleft().map, self._frames.popleft()
            assert values is not None
            found.append(replace(result, picture=self._gate.blend(frame, result.rgb, values), map=values))
        return found
