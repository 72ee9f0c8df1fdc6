"""Frames as a model's graphs get them: windows of padded frames, and with the states that a model makes. Imports numpy.

What compares, calibrates and feeds other tools goes over clips by this module. Scene cuts are not looked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Graph, Interface
from mtu.core.window import Moment, Picture, Window, by_stream
from mtu.runtime.backends import Backend
from mtu.runtime.chain import open_session
from mtu.runtime.session import Restored

if TYPE_CHECKING:
    from mtu.runtime.video import Frame

Array = NDArray[Any]


def windows(
    interface: Interface, frames: Iterable[Moment]
) -> Iterator[tuple[int, tuple[int, int], dict[str, Picture]]]:
    """For each frame its number, its height and width, and what `Window.take` gives for it.

    `frames` are uint8 [H, W, 3] of one size, or one of each stream; InvalidInputError if they are not.
    """
    window, size = Window(interface), (0, 0)
    for number, moment in enumerate(frames):
        frame = by_stream(moment, interface.streams)[interface.streams[0]]
        if number and frame.shape[:2] != size:
            raise InvalidInputError(
                f"frame {number} is {frame.shape[1]}x{frame.shape[0]}, the frames before are {size[1]}x{size[0]}: a"
                " clip has frames of one size"
            )
        size = (frame.shape[0], frame.shape[1])
        window.push(moment)
        if window.is_ready:
            yield window.next, size, window.take()
    while window.next < window.end:
        yield window.next, size, window.take()


def feed(graph: Graph, frames: Mapping[str, Array], states: Mapping[str, Array]) -> dict[str, Array]:
    """Everything that `graph` takes, by input name: of a window, and of states by the names of the outputs."""
    taken = {name: states[given] for name, given in graph.states.items()}
    return {**{name: frames[name] for name in graph.frames}, **taken}


def feeds(backend: Backend, frames: Iterable[Picture]) -> Iterator[tuple[str, dict[str, Array]]]:
    """For each frame the name of the graph that restores it and everything that graph takes, by input name.

    `backend` runs the model over the frames, uint8 [H, W, 3]: the states are those that it made of the frame before.
    The arrays stay valid. Raises InvalidInputError for frames of different sizes, NonFiniteError with the frame's
    number if the model overflows.
    """
    states: Mapping[str, Any] = {}
    for index, _, window in windows(backend.interface, frames):
        graph = backend.interface.graph_for(states)
        yield graph.name, feed(graph, window, backend.read_states(states))
        pending = backend.submit(graph.name, window, states)
        try:
            pending.result()
        except NonFiniteError as error:
            raise NonFiniteError(error.states, index) from None
        states = pending.states


def restored(backend: Backend, frames: Iterable[Moment]) -> Iterator[Restored]:
    """A clip restored as one sequence; raises NonFiniteError if the model overflows, instead of starting again."""
    session = open_session(backend, scene_threshold=None, strict=True)
    for frame in frames:
        yield from session.push(frame)
    yield from session.flush()


def first_frames(source: Path | str, count: int | None) -> Iterator[Picture]:
    """The first `count` frames of a video or directory of images; None takes all. Raises as `read_first`."""
    return (frame.rgb for frame in read_first(source, count, {}))


def read_first(source: Path | str, count: int | None, streams: Mapping[str, str]) -> Iterator[Frame]:
    """The first `count` frames of a video or directory of images, with those of further streams, sources by name; None
    takes all.

    Raises InvalidInputError at the end of a clip that has fewer, or none, or was found to be damaged, and for streams
    that do not go together.
    """
    from mtu.runtime.video import Frame, ReadOptions, open_streams

    taken = 0
    with open_streams(str(source), streams, ReadOptions()) as reader:
        for frame in itertools.islice((item for item in reader if isinstance(item, Frame)), count):
            taken += 1
            yield frame
        if reader.damage is not None:
            raise InvalidInputError(
                f"{source} is damaged ({reader.damage}), and {taken} frames of it can be read: ask for no more than the"
                " first of them, or give a whole clip"
            )
    if taken == 0 or (count is not None and taken < count):
        raise InvalidInputError(
            f"{source} has {taken} frames, fewer than the {count or 1} asked for: ask for fewer or give a longer clip"
        )
