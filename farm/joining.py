"""A film put together of what workers have left in its store: no model is opened for it.

So the machine that joins needs nothing that the workers have: no GPU, and no processor of their kind. Writes the
target, and beside it the record that `verify` reads.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mtu.core.errors import InvalidInputError, OutputError, some
from mtu.core.interface import Interface
from mtu.core.window import Picture
from mtu.farm.encoded import join_encoded
from mtu.farm.plan import Plan
from mtu.runtime.backends import open_model
from mtu.runtime.batch import record_done
from mtu.runtime.chain import interface_of
from mtu.runtime.hold import Hold
from mtu.runtime.job import Job, Pipeline, RunReport, redone_remark
from mtu.runtime.outputs import Outputs
from mtu.runtime.scene_store import (
    SceneStore,
    StoredScene,
    border_psnr,
    digest_of,
    digest_of_all,
    made_of,
    sidecar,
    stored_scene,
)
from mtu.runtime.session import Restored, Stream
from mtu.runtime.stored_session import store_beside
from mtu.runtime.video import Reader, Writer, open_reader


def join(job: Job, plan: Plan, made: str, hold: Hold, *, header: str | None, progress: Callable[[], None]) -> RunReport:
    """Writes the target of a job whose scenes are all restored, with a record of them; then the store goes. `made` is
    what `made_by` said of the job before it began, `hold` is on its store; `header` is that of its units, if they are
    encoded; `progress` is called after each frame that is not.

    Raises OutputError if a scene is missing or broken, which then is forgotten, InvalidInputError if the source is not
    what was planned, and as `open_writer`.
    """
    plan.check_source()
    began, store, interface = time.perf_counter(), store_beside(job.target), interface_of(open_model(job.model))
    by, borders = made_of(store), border_psnr(store)
    found = {scene.first: stored_scene(store, scene.first) for scene in plan.scenes}
    scenes = [scene for scene in found.values() if scene is not None]
    if len(scenes) < len(found):
        raise _broken([first for first, scene in found.items() if scene is None], store)
    if header is None:
        reader, writer = _encode(job, plan, interface, scenes, hold, progress)
    else:
        reader, writer = join_encoded(job, plan, header, hold)
    digests = {scene.first: digest_of_all(scene.pictures) for scene in scenes}
    record_done(job, made, plan=plan.as_json(), scenes_made_by=by, scenes=digests, borders=_for_json(borders))
    shutil.rmtree(store, ignore_errors=True)
    redone = sorted(number for scene in scenes for number in scene.redone)
    return RunReport(
        source=job.source,
        target=job.target,
        model=interface.variant,
        checkpoint=interface.weights,
        precision=by["arithmetic"],
        backend=by["backend"],
        device=by["device"],
        width=reader.info.width,
        height=reader.info.height,
        frames=plan.frames,
        scene_cuts=[scene.first for scene in plan.scenes[1:] if not scene.continues],
        tiles=by["tiles"],
        redone=redone,
        resumed=plan.frames,
        seconds=time.perf_counter() - began,
        notes=[*reader.info.notes, *writer.notes],
        remarks=[*reader.remarks, *writer.remarks, *redone_remark(redone), *_split_remarks(borders)],
        damage=plan.damage,
    )


def _encode(
    job: Job,
    plan: Plan,
    interface: Interface,
    scenes: Sequence[StoredScene],
    hold: Hold,
    progress: Callable[[], None],
) -> tuple[Reader, Writer]:
    """As `run_job` encodes what it restores; gives what was read and written by, which are closed."""
    reader = open_reader(job.source, job.read)
    with Pipeline(reader, into_pipe=False) as pipeline, Outputs(job, reader.info, interface, None) as outputs:
        hold.remember(outputs.writer.temporary)
        try:
            pipeline.run(_Stored(interface.streams, scenes), outputs.write, progress)
        except OutputError:
            if broken := _forget_broken(store_beside(job.target), plan):
                raise _broken(broken, store_beside(job.target)) from None
            raise
        outputs.commit()
    return reader, outputs.writer


class _Stored(Stream):
    """Gives what is stored of a film, frame by frame."""

    def __init__(self, streams: Sequence[str], scenes: Sequence[StoredScene]) -> None:
        """`scenes` are all of the film."""
        self._scenes = scenes
        self._restored = (pair for scene in scenes for pair in zip(scene.source, scene.read(), strict=True))
        super().__init__(streams, None)

    def _push(self, frames: Mapping[str, Picture]) -> list[Restored]:
        source, picture = next(self._restored, (None, None))
        if source != digest_of(*frames.values()):
            raise self._other_frames()
        return [Restored(self._pushed - 1, picture)]

    def flush(self) -> list[Restored]:
        """See `Stream`."""
        if next(self._restored, None) is not None:
            raise self._other_frames()
        return []

    def _other_frames(self) -> InvalidInputError:
        return InvalidInputError(
            f"the source has other frames than were restored, from frame {self._pushed - 1} on: delete"
            f" {self._scenes[0].path.parent} to restore all again"
        )

    @property
    def redone(self) -> list[int]:
        """See `Stream`."""
        return [number for scene in self._scenes for number in scene.redone]

    @property
    def inference_seconds(self) -> float:
        """See `Stream`."""
        return 0.0


def _forget_broken(store: Path, plan: Plan) -> list[int]:
    """First frames of the scenes that are missing or broken; their sidecars go, so that they are restored again."""
    scenes = SceneStore(store, made_of(store))
    broken = [scene.first for scene in plan.scenes if scenes.find(scene.first) is None]
    for first in broken:
        sidecar(store, first).unlink(missing_ok=True)
    return broken


def _broken(scenes: Sequence[int], store: Path) -> OutputError:
    numbers = some([str(first) for first in scenes])
    return OutputError(f"the restored scenes that begin with frame {numbers} are missing or broken in {store}")


def _for_json(borders: Mapping[int, float]) -> dict[int, float | None]:
    return {number: value if math.isfinite(value) else None for number, value in borders.items()}


def _split_remarks(borders: Mapping[int, float]) -> list[str]:
    """What splitting has changed, measured."""
    if not borders:
        return []
    worst, number = min((value, number) for number, value in borders.items())
    return [
        f"the first pictures of parts of long scenes have a PSNR of {worst:.1f} dB or more to what the part before"
        f" gives for them (the worst: frame {number})"
    ]
