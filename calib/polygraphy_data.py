"""Feeds a graph of a bundle with real frames and states under Polygraphy: a script for its --data-loader-script.

polygraphy run model/step.onnx --onnxrt --data-loader-script calib/polygraphy_data.py:step

What stands after the colon is the name of the graph. Polygraphy hands a script no arguments, so what to feed is in the
environment:

    MTU_CLIP    a video or a directory of images
    MTU_FRAMES  how many frames to feed, 8 unless set
    MTU_MODEL   the bundle of the graph, which also makes the states, mtu2 unless set

Imports numpy; onnxruntime runs the model for a graph with states, Polygraphy's logger is imported where something is to
be said.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator

from mtu.calib.rollout import Array, feed, feeds, windows
from mtu.core.errors import InvalidInputError, MtuError
from mtu.runtime import open_backend, open_bundle, read_frames
from mtu.runtime.bundle import BUNDLED


def __getattr__(name: str) -> Callable[[], Iterator[dict[str, Array]]]:
    """The function of a graph, by its name: `inputs_of` that graph."""
    if name.startswith("_"):
        raise AttributeError(name)
    return functools.partial(inputs_of, name)


def inputs_of(name: str) -> Iterator[dict[str, Array]]:
    """What a graph takes, by input name, for frames of the clip.

    A graph without states gets each of the first frames, as if a sequence began there; one with states the frames after
    the first, with the states that the model made of those before, on the CPU.
    """
    with errors_said():
        clip = _clip()
        model = open_bundle(os.environ.get("MTU_MODEL", BUNDLED))
        graph = model.interface.graph(name)
        if not graph.states:
            yield from _counted(feed(graph, window, {}) for _, _, window in windows(model.interface, read_frames(clip)))
            return
        with contextlib.closing(open_backend("onnxruntime", model, "cpu")) as backend:
            yield from _counted(inputs for used, inputs in feeds(backend, read_frames(clip)) if used == name)


@contextlib.contextmanager
def errors_said() -> Iterator[None]:
    """What the user can put right is one line of Polygraphy's log and ends its run with exit code 1, no traceback."""
    try:
        yield
    except MtuError as error:
        from polygraphy.logger import G_LOGGER

        G_LOGGER.critical(str(error))


def _clip() -> str:
    clip = os.environ.get("MTU_CLIP")
    if not clip:
        raise InvalidInputError("MTU_CLIP is not set: it names the video or the directory of images to take frames of")
    return clip


def _counted(inputs: Iterator[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """As many of `inputs` as are asked for; raises InvalidInputError if there are fewer.

    Polygraphy calls a run passed that had nothing to compare.
    """
    text = os.environ.get("MTU_FRAMES", "8")
    if not text.isdecimal() or int(text) < 1:
        raise InvalidInputError(f"MTU_FRAMES is '{text}': it must be a whole number from 1")
    given = 0
    for found in itertools.islice(inputs, int(text)):
        given += 1
        yield found
    if given < int(text):
        raise InvalidInputError(
            f"{_clip()} has frames for {given} runs of the graph, and MTU_FRAMES asks for {text}: ask for fewer or give"
            " a longer clip"
        )
