"""A film put together of restored scenes: a run that finds all of them in its store, and opens no model for it.

So the machine that joins needs nothing that the workers have: no GPU, and no processor of their kind. Writes the
target, and beside it the record that `verify` reads.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mtu.core.errors import InvalidInputError, OutputError, some
from mtu.core.window import Picture
from mtu.farm.encoded import join_encoded
from mtu.farm.plan import Plan
from mtu.runtime.backends import open_model
from mtu.runtime.batch import record_done
from mtu.runtime.chain import interface_of
from mtu.runtime.job import Job, RunReport, run_job
from mtu.runtime.opened import Models, Opened
from mtu.runtime.scene_store import STORE, SceneStore, StoredScene, border_psnr, sidecar
from mtu.runtime.session import Restored, Stream
from mtu.runtime.stored_session import StoredSession, store_beside
from mtu.runtime.tiles import Sides


def join(
    job: Job,
    plan: Plan,
    made: str,
    *,
    header: str | None,
    progress: Callable[[], None],
    say: Callable[[str], None],
) -> RunReport:
    """Writes the target of a job whose scenes are all restored, with a record of them; then the store goes. `made` is
    what `made_by` said of the job before it began; `header` is that of its units, if they are encoded.

    Raises OutputError if a scene is missing or broken, which then is forgotten, and what `run_job` raises.
    """
    plan.check_source()
    store = store_beside(job.target)
    by, borders = made_of(store), border_psnr(store)

    def whole() -> None:
        record_done(job, made, plan=plan.as_json(), scenes_made_by=by, scenes=scenes, borders=_for_json(borders))

    try:
        scenes = {scene.first: digest_of_scene(store, scene.first) for scene in plan.scenes}
        if header is not None:
            report = join_encoded(job, plan, header, whole)
        else:
            report = run_job(job, models=_StoredModels(), progress=progress, say=say, whole=whole)
    except (OSError, InvalidInputError):
        if header is not None:
            raise
        broken = [str(first) for first in _forget_broken(store, plan)]
        if broken:
            raise OutputError(
                f"the restored scenes that begin with frame {some(broken)} are missing or broken in {store}"
            ) from None
        raise
    report.remarks += _split_remarks(borders)
    return report


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


def made_of(store: Path) -> dict[str, Any]:
    """What the scenes of a store were made by. Raises OutputError if it is gone or broken."""
    try:
        made: dict[str, Any] = json.loads((store / STORE).read_bytes())
    except (OSError, ValueError):
        raise OutputError(f"{store / STORE} is gone or broken") from None
    return made


def digest_of_scene(store: Path, first: int) -> str:
    """sha256 over those of the restored pictures of a scene, by its sidecar. Raises OSError, InvalidInputError."""
    try:
        pictures = json.loads(sidecar(store, first).read_bytes())["pictures"]
    except (ValueError, TypeError, KeyError):
        raise InvalidInputError(f"{sidecar(store, first)} is broken") from None
    return hashlib.sha256("".join(pictures).encode()).hexdigest()


def _forget_broken(store: Path, plan: Plan) -> list[int]:
    """First frames of the scenes that are missing or broken; their sidecars go, so that they are restored again."""
    try:
        scenes = SceneStore(store, made_of(store))
    except (OutputError, InvalidInputError):
        return []
    broken = [scene.first for scene in plan.scenes if scenes.find(scene.first) is None]
    for first in broken:
        sidecar(store, first).unlink(missing_ok=True)
    return broken


class _StoredModels(Models):
    """`Models` that opens none: its sessions have what is stored."""

    def open(self, job: Job, frame: Sides, say: Callable[[str], None]) -> Opened:
        """See `Models`."""
        model, made = open_model(job.model), made_of(store_beside(job.target))
        backend: Any = SimpleNamespace(  # what a report says of one
            interface=interface_of(model),
            name=made["backend"],
            device=made["device"],
            arithmetic=made["arithmetic"],
            remarks=[],
        )
        return _StoredOpened(model=model, backend=backend, tiling=None)


class _StoredOpened(Opened):
    def session(self, job: Job) -> Stream:
        """See `Opened`."""
        directory = store_beside(job.target)
        scenes = _Whole(directory, made_of(directory))
        return _Joining(_NoSession(self.backend.interface.streams, directory), scenes, job.scene_threshold)


class _Whole(SceneStore):
    """A store whose scenes are compared while they are read, not before."""

    def find(self, first: int) -> StoredScene | None:
        """See `SceneStore`."""
        return self.look_up(first)


class _Joining(StoredSession):
    @property
    def remarks(self) -> list[str]:
        """See `StoredSession`: that all was restored before goes without saying."""
        return []


class _NoSession(Stream):
    """Takes the place of the session that would restore what is missing."""

    def __init__(self, streams: Sequence[str], directory: Path) -> None:
        self._directory = directory
        super().__init__(streams, None)

    def _push(self, frames: Mapping[str, Picture]) -> list[Restored]:
        raise OutputError(f"a scene is missing in {self._directory}")

    def flush(self) -> list[Restored]:
        """See `Stream`."""
        return []

    @property
    def redone(self) -> list[int]:
        """See `Stream`."""
        return []

    @property
    def inference_seconds(self) -> float:
        """See `Stream`."""
        return 0.0
