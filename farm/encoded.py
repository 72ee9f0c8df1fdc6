"""`--join fast`: each unit is encoded where it is restored, and the film is put together from what the encoders gave.

An encoded unit is a part (`mtu.runtime.video.parts`) in the store of the film, made of the restored scenes there. One
that was encoded in another way is encoded again. Writes the stores, and the targets.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from mtu.core.errors import InvalidInputError, OutputError
from mtu.core.release import VERSION
from mtu.farm.plan import Plan
from mtu.runtime.backends import open_model
from mtu.runtime.chain import interface_of
from mtu.runtime.hold import Hold
from mtu.runtime.job import Job
from mtu.runtime.outputs import shown_size
from mtu.runtime.scene_store import SceneStore, pictures_of, stored_scene
from mtu.runtime.stored_session import store_beside
from mtu.runtime.video import Frame, Reader, SourceInfo, Writer, open_reader
from mtu.runtime.video.colour import Pixels
from mtu.runtime.video.parts import JoinedWriter, Part, PartWriter, find_part
from mtu.runtime.video.writer import Target


def is_encoded(job: Job, plan: Plan, header: str, unit: int) -> bool:
    """Whether a unit has been encoded as `job` says, with the `header` of all units, and what is said of its scenes is
    there."""
    store = store_beside(job.target)
    said = all(stored_scene(store, scene.first) is not None for scene in plan.scenes_of(unit))
    return said and _part(job, plan, header, unit) is not None


def _part(job: Job, plan: Plan, header: str, unit: int) -> Part | None:
    return find_part(_path(job, plan, unit), _made_by(job, plan, header, unit))


def _path(job: Job, plan: Plan, unit: int) -> Path:
    return store_beside(job.target) / f"unit-{plan.scenes_of(unit)[0].first:08d}"


def _made_by(job: Job, plan: Plan, header: str, unit: int) -> dict[str, Any]:
    """What the packets of a unit depend on beside the scenes in the store."""
    scenes = plan.scenes_of(unit)
    return {
        "mtu": VERSION,
        "av": av.__version__,
        "libraries": av.library_versions,
        "container": Path(job.target).suffix,
        "encode": dataclasses.asdict(job.encode),
        "header": header,
        "frames": [scenes[0].first, scenes[-1].end],
    }


def check_encoder(job: Job, plan: Plan, header: str) -> None:
    """Raises what `encode_unit` would, after a unit is restored: InvalidInputError if the encoder has another header
    here, and as `open_writer`."""
    with _encoder(job, plan, header, 0):
        pass


def encode_unit(job: Job, plan: Plan, header: str, unit: int, store: SceneStore) -> None:
    """Encodes the restored scenes of a unit, all of which the store has; then their pictures go, and what is said of
    them stays. Raises OutputError for a scene that is broken, and as `check_encoder`."""
    with _encoder(job, plan, header, unit) as writer:
        for scene in plan.scenes_of(unit):
            stored = stored_scene(store.directory, scene.first)
            if stored is None:
                raise OutputError(f"{store.directory} lacks the scene of frame {scene.first}")
            for frame, picture in zip(_frames(plan, scene.first, scene.end), stored.read(), strict=True):
                writer.write(picture, frame)
        writer.commit()
    for scene in plan.scenes_of(unit):
        pictures_of(store.directory, scene.first).unlink(missing_ok=True)


@contextlib.contextmanager
def _encoder(job: Job, plan: Plan, header: str, unit: int) -> Iterator[PartWriter]:
    there = store_beside(job.target) / f"encoding{Path(job.target).suffix}"
    with open_reader(job.source, job.read) as reader:
        target = dataclasses.replace(_target(job, reader.info), path=there, overwrite=True, copy_streams=False)
        writer = PartWriter(target, _path(job, plan, unit), header, _made_by(job, plan, header, unit))
        with writer:
            yield writer


def _target(job: Job, source: SourceInfo) -> Target:
    height, width = shown_size(interface_of(open_model(job.model)).the("picture"), source)
    return Target(
        path=Path(job.target), source=source, width=width, height=height, options=job.encode, overwrite=job.overwrite
    )


def _frames(plan: Plan, first: int, end: int) -> Iterator[Frame]:
    """When frames are shown; without their pictures."""
    nothing: Pixels = np.empty((0, 0, 3), np.uint8)
    for time_ in plan.times[first:end]:
        yield Frame(nothing, time_.pts, plan.time_base, time_.duration, time_.fields)


def join_encoded(job: Job, plan: Plan, header: str, hold: Hold) -> tuple[Reader, Writer]:
    """Puts a film together whose units are all encoded; gives what it was read and written by, which are closed.

    Raises InvalidInputError if they are not, and as `open_writer`.
    """
    parts = []
    for unit in range(len(plan.units)):
        part = _part(job, plan, header, unit)
        if part is None:
            raise InvalidInputError(f"unit {unit} was encoded with other versions of libraries than there are here")
        parts.append(part)
    with open_reader(job.source, job.read) as reader:
        writer = JoinedWriter(_target(job, reader.info), parts)
        with writer:
            hold.remember(writer.temporary)
            writer.join(_frames(plan, 0, plan.frames), reader.others())
            writer.commit()
    return reader, writer
