"""Models in a row: the pictures of each stage are the frames of the next. And the session for any model. Imports numpy.

Scene cuts are found in the source alone and end the scene of all stages, so a chain gives what its models give one
after the other, each over the pictures of the one before.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Frame, Graph, Input, Interface, Size, Tensor
from mtu.core.window import Moment, Picture
from mtu.runtime.backends import Backend, Model, Stages, open_backend
from mtu.runtime.scenes import SCENE_THRESHOLD
from mtu.runtime.session import Restored, Session, Stream


class StagedBackend:
    """Several backends that make one, such as those of a chain. It says what a `Backend` says of itself; `open_session`
    runs it."""

    stacks = False

    def __init__(self, stages: Sequence[Backend], interface: Interface | None = None) -> None:
        """At least two. `interface` is that of the whole, None for a chain: each but the last gives pictures."""
        self.stages = tuple(stages)
        self.interface = interface or combined([stage.interface for stage in stages])
        self.name = " + ".join(dict.fromkeys(stage.name for stage in stages))
        self.device = " + ".join(dict.fromkeys(stage.device for stage in stages))
        self.arithmetic = " + ".join(dict.fromkeys(stage.arithmetic for stage in stages))
        self.in_flight = sum(stage.in_flight for stage in stages)

    @property
    def remarks(self) -> list[str]:
        """Those of all stages."""
        return [remark for stage in self.stages for remark in stage.remarks]

    def submit(self, *_: Any) -> Any:
        """A chain has no graphs of its own."""
        raise InvalidInputError("several models are run by a session of each: use mtu.runtime.open_session")

    read_states = write_states = submit

    def session(self, *, scene_threshold: float | None, strict: bool) -> Joint:
        """What runs one stream. The arguments are those of `Session`."""
        return Chain(self, scene_threshold=scene_threshold, strict=strict)

    def close(self) -> None:
        """Closes all stages."""
        for stage in self.stages:
            stage.close()


def check_stages(interfaces: Sequence[Interface]) -> None:
    """Raises InvalidInputError unless each stage but the last gives pictures, and each takes one stream."""
    for number, interface in enumerate(interfaces, 1):
        if len(interface.streams) > 1:
            raise InvalidInputError(
                f"stage {number} ({interface.variant}) reads {len(interface.streams)} streams"
                f" ({', '.join(interface.streams)}), and a chain has one: use it alone"
            )
        if number < len(interfaces) and interface.the("picture") is None:
            raise InvalidInputError(
                f"stage {number} ({interface.variant}) gives a map and no picture: it can only be the last of a chain"
            )


def combined(interfaces: Sequence[Interface]) -> Interface:
    """What a chain is like from outside: frames that no stage has to pad, the window and the scale of all, and the
    outputs of the last stage but for its states."""
    check_stages(interfaces)
    *others, last = interfaces
    before = math.prod(interface.scale for interface in others)
    multiple = math.lcm(*(interface.size.multiple for interface in interfaces))
    least = max(interface.size.minimum for interface in interfaces)
    enlarged = accumulate((interface.scale for interface in others), operator.mul, initial=1)
    smallest = max(-(-each.size.smallest // times) for each, times in zip(interfaces, enlarged, strict=True))
    stream = interfaces[0].streams[0]
    window = sorted({-sum(each.look_back for each in interfaces), 0, sum(each.look_ahead for each in interfaces)})
    frames = (
        Input(Tensor(f"frame{index}", "uint8", (1, "H", "W", 3)), Frame(stream, offset))
        for index, offset in enumerate(window)
    )
    outputs = (replace(each, tensor=each.tensor.enlarged(before)) for each in last.outputs if each.role != "state")
    return Interface(
        family="chain",
        variant=" + ".join(interface.variant for interface in interfaces),
        settings={},
        graphs=(Graph("chain", tuple(frames), tuple(outputs)),),
        size=Size(multiple, least + -least % multiple, smallest),
        scale=before * last.scale,
        streams=(stream,),
        weights=hashlib.sha256("".join(interface.weights for interface in interfaces).encode()).hexdigest(),
        precision="fp16" if all(interface.precision == "fp16" for interface in interfaces) else "fp32",
        int8_layers=tuple(layer for interface in interfaces for layer in interface.int8_layers),
        ops={name: op for interface in interfaces for name, op in interface.ops.items()},
        working_bytes=max(interface.working_bytes for interface in interfaces),
    )


def interface_of(model: Model) -> Interface:
    """What any model is like from outside, before it is loaded."""
    return combined([stage.interface for stage in model.models]) if isinstance(model, Stages) else model.interface


def open_stages(name: str, model: Stages, device: str, size: tuple[int, int] | None, **options: Any) -> Backend:
    """The backends of a chain; the arguments are those of `open_backend`, `size` that of the source."""
    opened: list[Backend] = []
    with contextlib.ExitStack() as stack:
        for stage in model.models:
            backend = open_backend(name, stage, device, size=size, **options)
            stack.callback(backend.close)
            opened.append(backend)
            size = size and (size[0] * stage.interface.scale, size[1] * stage.interface.scale)
        staged = StagedBackend(opened)
        stack.pop_all()
    return staged


class Joint(Stream):
    """Sessions that make one. They find no cuts themselves: those of the whole end the scene of all."""

    def __init__(
        self, sessions: Sequence[Session | Joint], streams: Sequence[str], scene_threshold: float | None
    ) -> None:
        self._sessions = sessions
        super().__init__(streams, scene_threshold)

    @property
    def max_displacement(self) -> int:
        """See `Session.max_displacement`; that of the last session, whose displacements the results have."""
        return self._sessions[-1].max_displacement

    @property
    def redone(self) -> list[int]:
        """Numbers of the frames that any session has restored as a first frame. See `Stream.redone`."""
        return sorted({number for session in self._sessions for number in session.redone})

    @property
    def inference_seconds(self) -> float:
        """See `Stream.inference_seconds`."""
        return sum(session.inference_seconds for session in self._sessions)

    def reset(self) -> None:
        """See `Stream.reset`."""
        super().reset()
        for session in self._sessions:
            session.begin_at(self._pushed)


class Chain(Joint):
    """A session for each stage; used as a `Session`."""

    def __init__(
        self, backend: StagedBackend, *, scene_threshold: float | None = SCENE_THRESHOLD, strict: bool = False
    ) -> None:
        """See `Session`."""
        sessions = [Session(stage, scene_threshold=None, strict=strict) for stage in backend.stages]
        super().__init__(sessions, backend.interface.streams, scene_threshold)

    def _push(self, frames: Mapping[str, Picture]) -> list[Restored]:
        return self._through(self._sessions[0].push(frames), 1)

    def flush(self) -> list[Restored]:
        """See `Stream.flush`."""
        restored = []
        for number, session in enumerate(self._sessions, 1):
            restored += self._through(session.flush(), number)
        return restored

    def _through(self, results: list[Restored], stage: int) -> list[Restored]:
        """What becomes of the results of the stage before in all that follow."""
        for session in self._sessions[stage:]:
            results = [after for before in results for after in session.push(before.rgb)]
        return results


def open_session(
    backend: Backend, *, scene_threshold: float | None = SCENE_THRESHOLD, strict: bool = False
) -> Session | Joint:
    """The session for one stream over `backend`, whatever it is. The arguments are those of `Session`."""
    if isinstance(backend, StagedBackend):
        return backend.session(scene_threshold=scene_threshold, strict=strict)
    return Session(backend, scene_threshold=scene_threshold, strict=strict)


def restore(
    frames: Iterable[Moment], backend: Backend, *, scene_threshold: float | None = SCENE_THRESHOLD
) -> Iterator[Restored]:
    """Restores a whole stream: one result a frame, in order. The caller closes the backend."""
    session = open_session(backend, scene_threshold=scene_threshold)
    for frame in frames:
        yield from session.push(frame)
    yield from session.flush()
