"""One unit of a plan: its scenes restored into a store. Doing it twice gives the same, and costs what is missing.

Reads the source from the key picture before the unit. Where that gives other pictures than reading from the beginning
does (the plan knows), it reads from the beginning, and says so. Writes the store alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from itertools import islice

from mtu.core.errors import InvalidInputError
from mtu.core.window import Picture
from mtu.farm.plan import Plan, Scene
from mtu.runtime.scene_store import digest_of, digest_of_all
from mtu.runtime.stored_session import StoredSession
from mtu.runtime.video import Frame, Segment, open_reader


class _OtherPicturesError(Exception):
    """Decoding gave pictures that are not those of the plan."""


def restore_unit(plan: Plan, unit: int, session: StoredSession, look_ahead: int) -> list[str]:
    """Restores the scenes of a unit, those that the session's store does not have; returns what a user should know.
    `look_ahead` is that of the model.

    Raises InvalidInputError if the source is not the one that was planned or the model reads several streams, and what
    `Session.push` raises.
    """
    check_one_stream(session.streams)
    plan.check_source()
    plan.scenes_of(unit)
    for whole in (False, True):
        try:
            _restore(plan, unit, session, look_ahead, whole)
        except _OtherPicturesError:
            continue
        finally:
            session.close()  # what it has of a scene that is not whole goes
        return [f"unit {unit} was read from the beginning: the middle gives other pictures"] if whole else []
    raise InvalidInputError(f"{plan.source} decodes to other pictures than were planned: plan it again")


def check_one_stream(streams: Sequence[str]) -> None:
    """Raises InvalidInputError for a model that reads several."""
    if len(streams) > 1:
        raise InvalidInputError(
            f"the model reads {len(streams)} streams ({', '.join(streams)}), and a plan is for one source: restore it"
            " with mtu-run --stream"
        )


def _restore(plan: Plan, unit: int, session: StoredSession, look_ahead: int, whole: bool) -> None:
    numbers = range(*plan.units[unit])
    begin = plan.scenes[numbers[0]].first - plan.scenes[numbers[0]].warm_up
    kept = max(scene.warm_up for scene in plan.scenes_of(unit)) + look_ahead + 1
    with contextlib.closing(_frames(plan, begin, whole)) as frames:
        reel = _Reel(frames, begin, kept)
        for number in numbers:
            scene = plan.scenes[number]
            first, end = scene.first - scene.warm_up, min(scene.end + look_ahead + 1, plan.end_of_take(number))
            taken = _checked(scene, reel.take(first, end))
            session.restore(taken, first, scene.first, scene.end, continues=scene.continues)


class _Reel:
    """Frames of a source by their numbers, of which the last ones can be had again."""

    def __init__(self, frames: Iterator[Frame], first: int, kept: int) -> None:
        """`first` is the number of the first; `kept` says how many can be had again."""
        self._frames, self._next = frames, first
        self._held: deque[Picture] = deque(maxlen=kept + 1)

    def take(self, first: int, end: int) -> Iterator[Picture]:
        """Those from `first` to `end` - 1; fewer if the source ends. What is between these and the last ones that were
        taken is left out."""
        for number in range(first, end):
            while self._next <= number:
                frame = next(self._frames, None)
                if frame is None:
                    return
                self._held.append(frame.rgb)
                self._next += 1
            yield self._held[number - self._next]


def _checked(scene: Scene, frames: Iterator[Picture]) -> Iterator[Picture]:
    """`frames`, of which the first is that of the warm-up. Raises _OtherPicturesError."""
    digests: list[str] = []
    whole = scene.warm_up + scene.frames
    for frame in frames:
        if len(digests) < whole:
            digests.append(digest_of(frame))
            count = len(digests)
            if (
                (count == scene.warm_up and digest_of_all(digests) != scene.before)
                or (count == scene.warm_up + 1 and digests[-1] != scene.head)
                or (count == whole and digest_of_all(digests[scene.warm_up :]) != scene.digest)
            ):
                raise _OtherPicturesError
        yield frame
    if len(digests) != whole:
        raise _OtherPicturesError


def _frames(plan: Plan, first: int, whole: bool) -> Generator[Frame, None, None]:
    """The source's frames from number `first` on; `whole`: what is before is decoded too."""
    middle = dataclasses.replace(plan.options, segment=Segment(plan.seconds_to(first)))
    with open_reader(plan.source, plan.options if whole else middle) as reader:
        frames = (event for event in reader if isinstance(event, Frame))
        yield from islice(frames, first if whole else 0, None)
