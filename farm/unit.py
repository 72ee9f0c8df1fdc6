"""One unit of a plan: its scenes restored into a store. Doing it twice gives the same, and costs what is missing.

Reads the source from the key picture before the unit. Where that gives other pictures than reading from the beginning
does (the plan knows), it reads from the beginning, and says so. Writes the store alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Generator, Sequence
from itertools import islice

from mtu.core.errors import InvalidInputError
from mtu.farm.plan import Plan, Scene
from mtu.runtime.scene_store import digest_of
from mtu.runtime.stored_session import StoredSession
from mtu.runtime.video import Frame, Segment, open_reader


class _OtherPicturesError(Exception):
    """Decoding gave pictures that are not those of the plan."""


def restore_unit(plan: Plan, unit: int, session: StoredSession) -> list[str]:
    """Restores the scenes of a unit, those that the session's store does not have; returns what a user should know.

    Raises InvalidInputError if the source is not the one that was planned or the model reads several streams, and what
    `Session.push` raises.
    """
    check_one_stream(session.streams)
    plan.check_source()
    scenes = plan.scenes_of(unit)
    for whole in (False, True):
        try:
            _restore(plan, scenes, session, whole)
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


def _restore(plan: Plan, scenes: tuple[Scene, ...], session: StoredSession, whole: bool) -> None:
    session.begin_at(scenes[0].first)
    with contextlib.closing(_frames(plan, scenes[0], whole)) as frames:
        for scene in scenes:
            hashes, count = hashlib.sha256(), 0
            for count, frame in enumerate(islice(frames, scene.frames), 1):
                digest = digest_of(frame.rgb)
                if count == 1 and digest != scene.head:
                    raise _OtherPicturesError
                hashes.update(digest.encode())
                session.push(frame.rgb)
            if count != scene.frames or hashes.hexdigest() != scene.digest:
                raise _OtherPicturesError
            session.flush()


def _frames(plan: Plan, scene: Scene, whole: bool) -> Generator[Frame, None, None]:
    """The source's frames from the first of `scene` on; `whole`: what is before is decoded too."""
    middle = dataclasses.replace(plan.options, segment=Segment(plan.seconds_to(scene.first)))
    options = plan.options if whole else middle
    with open_reader(plan.source, options) as reader:
        frames = (event for event in reader if isinstance(event, Frame))
        yield from islice(frames, scene.first if whole else 0, None)
