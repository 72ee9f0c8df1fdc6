"""A session that keeps its whole scenes in a store, and takes from there those that were restored before.

At a scene cut a session restores the frames that wait and drops its window and its states, so what it gives of a scene
depends on the frames of that scene alone; a stored scene made of the same frames is what restoring again would give.
Imports numpy.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mtu.core.errors import InvalidInputError
from mtu.core.files import hidden_beside
from mtu.core.processor import processor_flags
from mtu.core.release import VERSION
from mtu.core.window import Picture
from mtu.runtime.backends import Backend, Model, Stages
from mtu.runtime.engine import Engine
from mtu.runtime.scene_store import SceneStore, SceneWriter, StoredScene, digest_of
from mtu.runtime.session import Restored, Stream

STORE_BYTES = 20 << 30
"""How much the scenes kept for `--resume` may take."""
_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "openvino", "torch", "tensorrt", "tensorrt-rtx")
_UNITS = ("asimd", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
"""Of a processor, what libraries choose their arithmetic by."""


def store_beside(target: str) -> Path:
    """Where the scenes of a run are kept until its target is whole: a hidden directory beside it."""
    return hidden_beside(Path(target), "resume")


def made_by(model: Model, backend: Backend, **options: Any) -> dict[str, Any]:
    """Everything that restored pictures depend on beside the frames, as JSON: two runs of which this says the same give
    the same pictures. `options` are those of the session."""
    models = model.models if isinstance(model, Stages) else [model]
    return {
        "mtu": VERSION,
        "model": backend.interface.digest,
        "weights": backend.interface.weights,
        "engines": [dict(each.manifest.engines) for each in models if isinstance(each, Engine)],
        "backend": backend.name,
        "device": backend.device,
        "arithmetic": backend.arithmetic,
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
        "processor": processor_units(),
        **options,
    }


def processor_units() -> list[str]:
    """What of this processor may change the last bit of a picture."""
    flags = processor_flags()
    return [unit for unit in _UNITS if unit in flags]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class StoredSession(Stream):
    """Used as the session that it is made of. Close it."""

    def __init__(self, session: Stream, store: SceneStore, scene_threshold: float | None) -> None:
        """`session` finds no cuts itself."""
        self._session, self.store = session, store
        self._scene: StoredScene | None = None
        self._pictures: Iterator[Picture] = iter(())
        self._writer: SceneWriter | None = None
        self._begin = 0
        self._redone: list[int] = []
        self.taken = 0
        """Frames taken from the store."""
        super().__init__(session.streams, scene_threshold)

    @property
    def redone(self) -> list[int]:
        """See `Stream.redone`; those of stored scenes among them."""
        return sorted({*self._redone, *self._session.redone})

    @property
    def inference_seconds(self) -> float:
        """See `Stream.inference_seconds`."""
        return self._session.inference_seconds

    @property
    def remarks(self) -> list[str]:
        """What was taken from the store, and what it had no room for."""
        found = []
        if self.taken:
            found.append(f"{self.taken} frames were restored by an earlier run")
        if self.store.left_out:
            found.append(f"{self.store.left_out} scenes were too large to be kept for --resume")
        return found

    def reset(self) -> None:
        """See `Stream.reset`."""
        super().reset()
        self._session.begin_at(self._pushed)
        self.close()

    def restore(self, frames: Iterable[Picture], begin: int, first: int, end: int, *, continues: bool) -> None:
        """Restores the frames `first` to `end` - 1, a scene or a part of one, into the store, unless they are there.

        `frames` are those from `begin` on, up to a frame more than the model looks ahead to after `end`, if the scene
        goes on there; those before `first` are restored to remember them, and dropped. `continues` says that the scene
        has begun before `first`. Raises what `push` raises, and what the iteration of `frames` does.
        """
        self.close()
        if self.store.find(first) is not None:
            self.taken += end - first
            return
        self._session.begin_at(begin)
        self._writer = self.store.writer(first)
        for number, frame in enumerate(frames, begin):
            if first <= number < end:
                self._writer.add_source(digest_of(frame))
            self._keep_part(self._session.push(frame), first, end, continues)
        self._keep_part(self._session.flush(), first, end, continues)
        redone = [number for number in self._session.redone if first <= number < end]
        self._writer.commit(redone)
        self.close()

    def _keep_part(self, restored: list[Restored], first: int, end: int, continues: bool) -> None:
        for each in restored:
            if first <= each.index < end:
                self._keep([each])
            if each.index == end or (continues and each.index == first):
                self.store.keep_border(each.index, "end" if each.index == end else "begin", each.rgb)

    def _push(self, frames: Mapping[str, Picture]) -> list[Restored]:
        number, digest = self._pushed - 1, digest_of(*frames.values())
        if self._scene is None and self._writer is None:
            self._begin = number
            self._scene = self.store.find(number)
            if self._scene is None:
                self._writer = self.store.writer(number)
            else:
                self._pictures = self._scene.read()
        if self._scene is not None:
            return [Restored(number, self._stored(self._scene, number, digest))]
        assert self._writer is not None
        self._writer.add_source(digest)
        return self._keep(self._session.push(frames))

    def _stored(self, scene: StoredScene, number: int, digest: str) -> Picture:
        place = number - scene.first
        if place >= len(scene.source) or digest != scene.source[place]:
            raise InvalidInputError(
                f"{scene.path} was made of other frames than the source has now, from frame {number} on: delete"
                f" {self.store.directory} to restore all again"
            )
        self.taken += 1
        return next(self._pictures)

    def _keep(self, restored: list[Restored]) -> list[Restored]:
        assert self._writer is not None
        for each in restored:
            self._writer.write(each.rgb)
        return restored

    def flush(self) -> list[Restored]:
        """See `Stream.flush`."""
        restored: list[Restored] = []
        if self._scene is not None:
            scene, frames = self._scene, self._pushed - self._begin
            if frames != len(scene.source):
                raise InvalidInputError(
                    f"{scene.path} has {len(scene.source)} frames, and the source has {frames} there now: delete"
                    f" {self.store.directory} to restore all again"
                )
            self._session.begin_at(self._pushed)
            self._redone += scene.redone
        elif self._writer is not None:
            restored = self._keep(self._session.flush())
            self._writer.commit([number for number in self._session.redone if self._begin <= number < self._pushed])
        self.close()
        return restored

    def close(self) -> None:
        """Removes what is kept of a scene that is not whole. May be called twice."""
        if self._writer is not None:
            self._writer.close()
        self._scene = self._writer = None
        self._pictures = iter(())
