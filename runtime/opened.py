"""What runs share: a model opened for frames of one size, and the sessions over it. Imports numpy."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Interface
from mtu.core.window import check_streams
from mtu.runtime.backends import Backend, Model, Runner, open_backend, open_model
from mtu.runtime.chain import interface_of, open_session
from mtu.runtime.gate import THRESHOLD, Gate, GatedBackend, gated
from mtu.runtime.scene_store import SceneStore
from mtu.runtime.session import Stream
from mtu.runtime.stored_session import StoredSession, made_by, store_beside
from mtu.runtime.tiles import SEAMS, Sides, TiledSession, Tiling, choose_tiling, fit_memory

if TYPE_CHECKING:
    from mtu.runtime.job import Job


@dataclass(frozen=True, kw_only=True)
class Opened(abc.ABC):
    """A model that is ready for frames of one size."""

    backend: Runner
    tiling: Tiling | None = None
    """How frames are cut; None: they are not."""
    gate: Gate | None = None
    notes: list[str] = field(default_factory=list)

    @abc.abstractmethod
    def session(self, job: Job) -> Stream:
        """For one stream, of whole frames or tiles, with a store of scenes or without; close a `StoredSession`.

        Raises InvalidInputError for what a store does not hold, or holds of another run.
        """


@dataclass(frozen=True, kw_only=True)
class _OpenedHere(Opened):
    """On this machine."""

    model: Model
    backend: Backend

    def session(self, job: Job) -> Stream:
        """See `Opened`."""
        how: dict[str, Any] = {"scene_threshold": None if job.resume else job.scene_threshold, "strict": job.strict}
        session: Stream = (
            open_session(self.backend, **how) if self.tiling is None else TiledSession(self.backend, self.tiling, **how)
        )
        if not job.resume:
            return session
        check_resume(job, self.backend.interface)
        tiles = None if self.tiling is None else self.tiling.as_json()
        made = made_by(
            self.model,
            self.backend,
            tiles=tiles,
            strict=job.strict,
            scene_threshold=job.scene_threshold,
            split=job.split and vars(job.split),
        )
        return StoredSession(session, SceneStore(store_beside(job.target), made, job.resume_bytes), job.scene_threshold)


class Models:
    """Opens the model of runs that differ in their sources and targets alone, again where the size of frames changes.

    A context manager, which closes it.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._opened: dict[Sides, Opened] = {}

    def open(self, job: Job, frame: Sides, say: Callable[[str], None]) -> Opened:
        """For frames of height x width. Raises InvalidInputError and what `open_backend` raises."""
        opened = self._opened.get(frame)
        if opened is not None:
            check_streams(job.streams, opened.backend.interface)
            return opened
        model = open_model(job.model)
        check_streams(job.streams, interface_of(model))
        self.close()
        opened = self._opened[frame] = self._open(job, model, frame, say)
        return opened

    def made_by(self, job: Job) -> list[str]:
        """What says which models a job is done with; the same for another name of the same. Raises as `open_model`."""
        models = [job.model] if job.where is None else [job.model, job.where]
        return [interface_of(open_model(model)).digest for model in models]

    def _open(self, job: Job, model: Model, frame: Sides, say: Callable[[str], None]) -> Opened:
        tiling = choose_tiling(job.tile, frame, model)
        options: dict[str, Any] = {
            "size": tiling.tile if tiling else frame,
            "precision": job.precision,
            "streams": tiling.count if tiling else 1,
            "cuda_graph": job.cuda_graph,
            "plugin_library": job.plugin_library,
            "build": job.build,
            "say": say,
        }
        threshold = THRESHOLD if job.threshold is None else job.threshold
        seeing = _where(job, interface_of(model), threshold)
        backend = self._stack.enter_context(contextlib.closing(open_backend(job.backend, model, job.device, **options)))
        gate = None
        if seeing is not None:
            other = self._stack.enter_context(
                contextlib.closing(open_backend(job.backend, seeing, job.device, **options))
            )
            backend = whole = GatedBackend(backend, other, threshold)
            gate = whole.gate
        tiling, why = fit_memory(job.tile, tiling, frame, backend)
        notes = [] if tiling is None else [f"each frame is restored in {tiling}; {SEAMS}"]
        notes += [why] if why else []
        return _OpenedHere(model=model, backend=backend, tiling=tiling, gate=gate, notes=notes)

    def close(self) -> None:
        """Closes what is open."""
        self._opened.clear()
        self._stack.close()

    def __enter__(self) -> Models:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_resume(job: Job, interface: Interface) -> None:
    """Raises InvalidInputError for what a store of scenes does not hold."""
    if job.target == "-":
        raise InvalidInputError("--resume is for a file or a directory, and the output is stdout: leave it out")
    if interface.the("map") is not None or job.save_motion is not None:
        what = "the motion (--save-motion)" if job.save_motion is not None else f"the maps of {interface.variant}"
        raise InvalidInputError(f"--resume keeps pictures, and not {what}: leave it out")


def _where(job: Job, restoring: Interface, threshold: float) -> Model | None:
    """The model that says where frames are restored. Raises InvalidInputError as `gated`."""
    if job.where is None:
        if job.threshold is not None:
            raise InvalidInputError(f"--threshold {job.threshold:g} is for --where, which is not given: leave it out")
        return None
    if job.heat:
        raise InvalidInputError("--heat shows a map and --where uses one: leave one out (--save-maps keeps the map)")
    seeing = open_model(job.where)
    gated(restoring, interface_of(seeing), threshold)
    return seeing
