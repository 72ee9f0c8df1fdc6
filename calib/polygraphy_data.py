"""Feeds a graph of a bundle with real frames and states under Polygraphy: a script for its --data-loader-script.

polygraphy run model/step.onnx --onnxrt --data-loader-script calib/polygraphy_data.py:step

The function after the colon is the name of the graph. Polygraphy hands a script no arguments, so what to feed is in the
environment:

    MTU_CLIP    a video or a directory of images
    MTU_FRAMES  how many frames to feed, 8 unless set
    MTU_MODEL   the bundle that makes the states for `step`, mtu2 unless set

Imports numpy; onnxruntime runs the model inside `step`, Polygraphy's logger is imported where something is to be said.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator

from mtu.calib.rollout import Array, feeds, windows
from mtu.core.errors import InvalidInputError, MtuError
from mtu.runtime import open_backend, open_model, read_frames
from mtu.runtime.bundle import BUNDLED

FRAMES = 8
"""How many frames are fed unless MTU_FRAMES says otherwise."""


def first() -> Iterator[dict[str, Array]]:
    """What `first` takes, by input name, for each of the first frames of the clip: as if a sequence began there."""
    with errors_said():
        inputs = (inputs for _, _, inputs in windows(read_frames(_clip())))
        yield from _counted(inputs, 0)


def step() -> Iterator[dict[str, Array]]:
    """What `step` takes, by input name, for the frames of the clip after the first one.

    The states are those that the model made of the frames before, on the CPU; float16 if the model's are.
    """
    with errors_said():
        clip = _clip()
        model = open_model(os.environ.get("MTU_MODEL", BUNDLED))
        with contextlib.closing(open_backend("onnxruntime", model, "cpu")) as backend:
            yield from _counted((inputs for _, inputs in feeds(backend, read_frames(clip))), 1)


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


def _counted(inputs: Iterator[dict[str, Array]], skipped: int) -> Iterator[dict[str, Array]]:
    """As many of `inputs` as are asked for, without the first `skipped`; raises InvalidInputError if there are fewer.

    Polygraphy calls a run passed that had nothing to compare.
    """
    text = os.environ.get("MTU_FRAMES", str(FRAMES))
    if not text.isdecimal() or int(text) < 1:
        raise InvalidInputError(f"MTU_FRAMES is '{text}': it must be a whole number from 1")
    given = 0
    for found in itertools.islice(inputs, skipped, int(text) + skipped):
        given += 1
        yield found
    if given < int(text):
        raise InvalidInputError(
            f"{_clip()} has frames for {given} runs of the graph, and MTU_FRAMES asks for {text}: ask for fewer or give"
            " a longer clip"
        )
