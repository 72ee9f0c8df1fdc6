"""Many streams over one backend, for a server: a session for each, told apart by the number that a client gives it.

It knows no server: `triton_model` is what Triton calls. Imports numpy.

Note [streams of a server]
    A request has a frame of one stream, and its answer has the frames of that stream which are now restored: none,
    one, or at a scene cut several. The first request says START and the last one END, with a frame or without.
    Requests of several streams that come together are computed together.
    A stream that has met an error is dropped: its client may have sent more frames already, and to go on with those
    would leave one out and say nothing.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mtu.core.errors import InvalidInputError, MtuError
from mtu.core.window import Moment, Picture
from mtu.runtime.backends import Backend
from mtu.runtime.chain import open_session
from mtu.runtime.scenes import SCENE_THRESHOLD
from mtu.runtime.session import Restored, Stream
from mtu.runtime.stacked import push_together, stacked


@dataclass(frozen=True)
class Asked:
    """A request."""

    stream: int | str
    frames: Mapping[str, Picture] | None
    """A frame of each stream that the model reads, uint8 [H, W, 3]; None: there is none."""
    start: bool = False
    end: bool = False
    scene_threshold: float | None = SCENE_THRESHOLD
    """What `Session` takes, as `strict`; heeded with `start`."""
    strict: bool = False


@dataclass
class Answer:
    """What a request is answered with."""

    restored: list[Restored] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    """Numbers of frames that were found to begin a scene."""
    redone: list[int] = field(default_factory=list)
    """Numbers of frames that were restored without memory; see `Stream.redone`."""


@dataclass
class Figures:
    """What was done so far, by all streams."""

    frames: int = 0
    """Restored."""
    seconds: float = 0.0
    """Of all these frames: from a frame's request to the answer that has it, with the wait for the frames after it."""
    computing: float = 0.0
    """Seconds spent on requests."""
    batches: int = 0
    """How often requests came, alone or several together."""
    cuts: int = 0
    redone: int = 0
    errors: int = 0
    """Streams that an error ended."""
    dropped: int = 0
    """Streams that were idle for too long."""


@dataclass
class _Open:
    """A stream."""

    session: Stream
    used: float
    """When it was last asked for."""
    came: deque[float] = field(default_factory=deque)
    """When the frames came that are not restored yet."""
    cuts: int = 0
    redone: int = 0
    """How many were told."""


class Streams:
    """See Note [streams of a server]. Several threads can share it."""

    def __init__(
        self,
        backend: Backend,
        *,
        max_batch: int = 8,
        idle: float = 30.0,
        frame_size: tuple[int, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Up to `max_batch` streams are computed in one batch. One that is not asked for in `idle` seconds is dropped.
        `frame_size` is height and width, padded, of the only frames that the backend takes, None where it takes any.
        The caller closes the backend."""
        self._backend, self._idle, self._size, self._clock = stacked(backend, max_batch), idle, frame_size, clock
        self._open: dict[int | str, _Open] = {}
        self._lock = threading.Lock()
        self.figures = Figures()

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def drop_idle(self) -> None:
        """Frees the streams that were idle for too long."""
        with self._lock:
            self._drop_idle(self._clock())

    def _drop_idle(self, now: float) -> None:
        for name in [name for name, stream in self._open.items() if now - stream.used > self._idle]:
            del self._open[name]
            self.figures.dropped += 1

    def answer(self, asked: Sequence[Asked]) -> list[Answer | MtuError]:
        """Of requests of different streams, in their order: what each is answered with, or why it cannot be.

        Raises nothing: what fails ends the stream of the request. An exception that is no MtuError is a bug, and is
        written to stderr; where several frames were computed together it ends all their streams.
        """
        with self._lock:
            began = self._clock()
            found = self._answered(asked, began)
            now = self._clock()
            for request, answer in zip(asked, found, strict=True):
                stream = self._open.get(request.stream)
                if isinstance(answer, MtuError):
                    self._open.pop(request.stream, None)
                    self.figures.errors += 1
                elif stream is not None:
                    self._count(stream, answer, now)
                    if request.end:
                        del self._open[request.stream]
            self.figures.computing += now - began
            self.figures.batches += 1
            self._drop_idle(now)
        return found

    def _answered(self, asked: Sequence[Asked], now: float) -> list[Answer | MtuError]:
        found: dict[int, Answer | MtuError] = {}
        pushed: dict[int, tuple[Stream, Moment]] = {}
        for number, request in enumerate(asked):
            try:
                stream = self._stream(request, now)
                if request.frames is not None:
                    self._check_size(request.frames)
                    stream.came.append(now)
                    pushed[number] = stream.session, request.frames
                elif not request.end:
                    raise InvalidInputError("the request has no frame: only the last one, with END, may do without")
                else:
                    found[number] = Answer()
            except MtuError as error:
                found[number] = error
        try:
            together = push_together(list(pushed.values()))
        except Exception as error:
            together = [_bug(error)] * len(pushed)
        for number, restored in zip(pushed, together, strict=True):
            found[number] = restored if isinstance(restored, MtuError) else Answer(restored)
        for number, request in enumerate(asked):
            answer = found[number]
            if request.end and isinstance(answer, Answer):
                try:
                    answer.restored += self._open[request.stream].session.flush()
                except MtuError as error:
                    found[number] = error
                except Exception as error:
                    found[number] = _bug(error)
        return [found[number] for number in range(len(asked))]

    def _stream(self, request: Asked, now: float) -> _Open:
        """That of a request, opened where it starts."""
        if request.start:
            how = {"scene_threshold": request.scene_threshold, "strict": request.strict}
            self._open[request.stream] = _Open(open_session(self._backend, **how), now)  # type: ignore[arg-type]
        stream = self._open.get(request.stream)
        if stream is None:
            raise InvalidInputError(
                f"stream {request.stream} is not open: its first request says START; one that met an error, or sent"
                f" nothing for {self._idle:g} s, has to start again"
            )
        return stream

    def _check_size(self, frames: Mapping[str, Picture]) -> None:
        if self._size is None:
            return
        for frame in frames.values():
            if frame.ndim == 3 and self._backend.interface.size.padded(*frame.shape[:2]) != self._size:
                raise InvalidInputError(
                    f"frames of {frame.shape[1]}x{frame.shape[0]}: the engine that is served takes"
                    f" {self._size[1]}x{self._size[0]} only; serve one that was built for these"
                )

    def _count(self, stream: _Open, answer: Answer, now: float) -> None:
        """Adds what an answer has to the figures, and to the answer what is new of the stream."""
        stream.used = now
        answer.cuts = stream.session.cuts[stream.cuts :]
        answer.redone = stream.session.redone[stream.redone :]
        stream.cuts += len(answer.cuts)
        stream.redone += len(answer.redone)
        figures = self.figures
        figures.frames += len(answer.restored)
        figures.seconds += sum(now - stream.came.popleft() for _ in answer.restored)
        figures.cuts += len(answer.cuts)
        figures.redone += len(answer.redone)


def _bug(error: Exception) -> MtuError:
    """Called while it is handled."""
    traceback.print_exc()
    return MtuError(f"a bug, the log of the server has more: {type(error).__name__}: {error}")
