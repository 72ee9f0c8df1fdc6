"""Restored scenes kept in a directory: what lets a run go on that was ended, and what several processes fill together.

A scene is two files, named by the number of its first frame: `00000120.mkv` holds its pictures (FFV1, without loss),
`00000120.json` says what they were made of and gets its name last. `store.json` says what all of them depend on.
Writes only its directory. Imports av inside the functions that need it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mtu.core.errors import InvalidInputError, OutputError
from mtu.core.files import write_whole
from mtu.core.window import Picture

if TYPE_CHECKING:
    from av.container import OutputContainer

STORE = "store.json"
_RATE = 25


def digest_of(*pictures: Picture) -> str:
    """sha256 of the sizes and values of pictures, uint8 [H, W, 3], hexadecimal."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(b"%d %d " % picture.shape[:2])
        digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()


def digest_of_all(digests: Iterable[str]) -> str:
    """sha256 over `digest_of` several pictures, hexadecimal."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def sidecar(store: Path, first: int) -> Path:
    """What says of the scene that begins with frame `first` what it was made of; its pictures are beside it."""
    return store / f"{first:08d}.json"


def border_psnr(store: Path) -> dict[int, float]:
    """PSNR in dB of the two pictures of each frame of which `keep_border` has kept both, by its number; infinite where
    they are the same."""
    found = {}
    for begin in sorted(store.glob("border-*-begin")):
        end = begin.with_name(begin.name.replace("begin", "end"))
        if end.exists():
            a, b = (np.frombuffer(path.read_bytes(), np.uint8).astype(np.float32) for path in (begin, end))
            error = float(np.mean(np.square(a - b)))
            found[int(begin.name.split("-")[1])] = 10 * math.log10(255**2 / error) if error else math.inf
    return found


def holds_scenes(store: Path) -> bool:
    """Whether a whole scene is in it."""
    return any(store.glob("[0-9]*.json"))


def pictures_of(store: Path, first: int) -> Path:
    """Of the scene that begins with frame `first`."""
    return sidecar(store, first).with_suffix(".mkv")


class OtherScenesError(InvalidInputError):
    """A store holds scenes that were made of something else."""

    def __init__(self, directory: Path, name: str, was: Any, now: Any) -> None:
        """`name` is what differs."""
        self.directory, self.name, self.was, self.now = directory, name, was, now
        super().__init__(
            f"{directory} holds scenes of another run: {name} was {was}, and is {now}: run it as before, or delete the"
            " directory to restore all again"
        )

    def __reduce__(self) -> tuple[type[OtherScenesError], tuple[Path, str, Any, Any]]:
        return type(self), (self.directory, self.name, self.was, self.now)


@dataclass(frozen=True)
class StoredScene:
    """A scene of a store, as its sidecar tells of it."""

    first: int
    """Number of its first frame."""
    source: tuple[str, ...]
    """`digest_of` each frame that it was made of, of all streams."""
    pictures: tuple[str, ...]
    """`digest_of` each restored picture; as many."""
    redone: tuple[int, ...]
    """Numbers of the frames that were restored without memory; see `Session.redone`."""
    bytes: int
    """Of the file of its pictures."""
    path: Path
    """That file; it is not there once they are encoded elsewhere."""

    @property
    def is_whole(self) -> bool:
        """Whether that file is there, by its size."""
        try:
            return self.path.stat().st_size == self.bytes
        except OSError:
            return False

    def read(self) -> Iterator[Picture]:
        """Its pictures, uint8 [H, W, 3]. Raises OutputError if they are not those that were written."""
        import av

        try:
            with av.open(str(self.path.absolute())) as container:
                count = 0
                for count, frame in enumerate(container.decode(video=0), 1):
                    picture: Any = frame.to_ndarray(format="rgb24")
                    if count > len(self.pictures) or digest_of(picture) != self.pictures[count - 1]:
                        raise OutputError(f"{self.path} has changed since it was written: delete it")
                    yield picture
        except av.FFmpegError as error:
            raise OutputError(f"{self.path} cannot be read ({error.strerror}): delete it") from None
        if count != len(self.pictures):
            raise OutputError(f"{self.path} has changed since it was written: delete it")


def stored_scene(store: Path, first: int) -> StoredScene | None:
    """The scene that begins with frame `first`, by its sidecar alone; None if that is not there, or broken."""
    path = sidecar(store, first)
    try:
        fields = json.loads(path.read_bytes())
        scene = StoredScene(
            first=first,
            source=tuple(fields["source"]),
            pictures=tuple(fields["pictures"]),
            redone=tuple(fields["redone"]),
            bytes=int(fields["bytes"]),
            path=pictures_of(store, first),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return scene if len(scene.source) == len(scene.pictures) else None


def made_of(store: Path) -> dict[str, Any]:
    """What the scenes of a store were made by. Raises OutputError if it is gone or broken."""
    try:
        made: dict[str, Any] = json.loads((store / STORE).read_bytes())
    except (OSError, ValueError):
        raise OutputError(f"{store / STORE} is gone or broken") from None
    return made


class SceneStore:
    """A directory of scenes that were restored in one and the same way."""

    def __init__(self, directory: Path, made_by: Mapping[str, Any], limit: int | None = None) -> None:
        """Makes the directory unless it is there. `made_by` is everything that the pictures depend on, as JSON; `limit`
        is how many bytes scenes may take in all, None for any. Raises InvalidInputError if the store that is there
        depends on something else, OutputError if it cannot be written."""
        self.directory, self._limit = directory, limit
        self.left_out = 0
        """Scenes that were not kept, as the limit was reached."""
        self._check(directory / STORE, json.loads(json.dumps(made_by)))
        self._bytes = sum(path.stat().st_size for path in directory.glob("*.mkv"))

    def _check(self, path: Path, made_by: dict[str, Any]) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_whole(path, json.dumps(made_by, indent=2).encode())
            found = json.loads(path.read_bytes())
        except OSError as error:
            raise OutputError(f"{self.directory} cannot be written ({error.strerror})") from None
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InvalidInputError(f"{path} is broken: delete {self.directory}, and all is restored again")
        for name in (*made_by, *found):
            if found.get(name) != made_by.get(name):
                raise OtherScenesError(self.directory, name, found.get(name), made_by.get(name))

    def find(self, first: int) -> StoredScene | None:
        """The scene that begins with frame `first`; None if there is none, or a picture is not as it was written."""
        scene = stored_scene(self.directory, first)
        if scene is None or not scene.is_whole:
            return None
        try:
            for _ in scene.read():
                pass
        except OutputError:
            return None
        return scene

    def writer(self, first: int) -> SceneWriter:
        """For the scene that begins with frame `first`."""
        return SceneWriter(self, first)

    def has_room(self, more: int) -> bool:
        """Whether `more` bytes are within the limit."""
        return self._limit is None or self._bytes + more <= self._limit

    def count(self, written: int) -> None:
        """A scene of so many bytes was kept."""
        self._bytes += written

    def keep_border(self, number: int, side: Literal["end", "begin"], picture: Picture) -> None:
        """Of the frame that a part of a scene begins with: the picture of that part ("begin"), or as the part before
        has it, which is restored one frame further for this ("end"). Raises OutputError."""
        try:
            write_whole(self.directory / f"border-{number:08d}-{side}", picture.tobytes())
        except OSError as error:
            raise OutputError(f"{self.directory} cannot be written ({error.strerror})") from None

    def is_kept(self) -> bool:
        """Whether it holds a scene; if not, it is deleted."""
        if holds_scenes(self.directory):
            return True
        self.remove()
        return False

    def remove(self) -> None:
        """Deletes the store: its result is whole."""
        shutil.rmtree(self.directory, ignore_errors=True)


class SceneWriter:
    """Writes one scene into a store; without `commit` nothing of it stays. Close it."""

    def __init__(self, store: SceneStore, first: int) -> None:
        self._store, self._first = store, first
        self._path = store.directory / f"{first:08d}.{secrets.token_hex(4)}.part"
        self._container: OutputContainer | None = None
        self._source: list[str] = []
        self._pictures: list[str] = []
        self._given_up = False

    def add_source(self, digest: str) -> None:
        """`digest_of` the next frame that the scene is made of."""
        self._source.append(digest)

    def write(self, picture: Picture) -> None:
        """The next restored picture, uint8 [H, W, 3]. Raises OutputError. Beyond the store's limit it keeps nothing of
        the scene."""
        import av

        if self._given_up:
            return
        try:
            if self._container is None:
                self._container = av.open(str(self._path.absolute()), "w", format="matroska")
                stream = self._container.add_stream("ffv1", rate=_RATE)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "bgr0"
                stream.time_base = Fraction(1, _RATE)
                self._stream: Any = stream
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="bgr0")
            frame.pts, frame.time_base = len(self._pictures), Fraction(1, _RATE)
            self._container.mux(self._stream.encode(frame))
            self._pictures.append(digest_of(picture))
            self._check_room()
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{self._store.directory} cannot be written ({error.strerror})") from None

    def _check_room(self) -> int:
        """Bytes written so far; gives the scene up if they are too many."""
        size = self._path.stat().st_size
        if not self._store.has_room(size):
            self._given_up = True
            self._store.left_out += 1
            self.close()
        return size

    def commit(self, redone: list[int]) -> None:
        """Gives the scene its name, when it lies on the disk; `redone` is as `StoredScene` has it. Raises
        OutputError."""
        import av

        if self._given_up or self._container is None:
            return
        fields = {"source": self._source, "pictures": self._pictures, "redone": redone}
        said = sidecar(self._store.directory, self._first)
        try:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
            size = self._check_room()
            if self._given_up:
                return
            self._path.replace(said.with_suffix(".mkv"))
            write_whole(said, json.dumps({**fields, "bytes": size}).encode())
        except (av.FFmpegError, OSError) as error:
            raise OutputError(f"{self._store.directory} cannot be written ({error.strerror})") from None
        self._store.count(size)

    def close(self) -> None:
        """Removes what was not committed. May be called twice."""
        if self._container is not None:
            with contextlib.suppress(Exception):
                self._container.close()
            self._container = None
        self._path.unlink(missing_ok=True)
