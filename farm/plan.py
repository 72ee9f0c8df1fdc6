"""What there is to do for one source, as data: its scenes, and the units that workers take.

A plan is made by decoding the source once. Each scene says where it begins and what its decoded frames are, so that a
worker that reads from the middle of the file can prove that it has the right ones. Reads the source, writes the plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mtu.core.errors import InvalidInputError, MissingFileError, OutputError
from mtu.core.files import fingerprint, write_whole
from mtu.farm import UNIT_FRAMES
from mtu.runtime.scene_store import digest_of, digest_of_all
from mtu.runtime.scenes import SceneDetector, Split
from mtu.runtime.video import Fields, Frame, ReadOptions, open_reader

VERSION = 2


class Time(NamedTuple):
    """When a frame is shown."""

    pts: int
    """In the plan's `time_base`."""
    duration: int
    fields: Fields


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Frames between two cuts, or a part of them."""

    first: int
    """Number of its first frame, counted from 0."""
    frames: int
    head: str
    """`digest_of` its first frame."""
    digest: str
    """sha256 over `digest_of` all of its frames, hexadecimal."""
    warm_up: int
    """Frames before it that are restored to remember them, and dropped."""
    before: str
    """As `digest`, of the frames of `warm_up`."""
    continues: bool
    """Whether it is a part that goes on from the one before."""

    @property
    def end(self) -> int:
        """Number of the frame after its last."""
        return self.first + self.frames


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A source with its scenes, which cover it without a gap, and its units."""

    version: int = VERSION
    source: str
    fingerprint: str
    """What `fingerprint` says of the source."""
    read: dict[str, Any]
    """`ReadOptions` that differ from the defaults, as JSON."""
    scene_threshold: float | None
    split: Split | None
    """How long scenes were split; None: they were not."""
    width: int
    height: int
    frames: int
    damage: str | None
    """What could not be decoded; None: nothing."""
    time_base: Fraction
    """Seconds."""
    times: tuple[Time, ...]
    """Of all frames."""
    scenes: tuple[Scene, ...]
    units: tuple[tuple[int, int], ...]
    """Of each unit its first scene, and the one after its last."""

    @property
    def options(self) -> ReadOptions:
        """How the source is read."""
        rate = self.read.get("rate")
        return ReadOptions(**{**self.read, "rate": rate and Fraction(rate)})

    def seconds_to(self, number: int) -> float:
        """From the first frame of the source to between the frame of this number and the one before."""
        before = self.times[max(0, number - 1)].pts
        return float((before + self.times[number].pts - 2 * self.times[0].pts) * self.time_base / 2)

    def end_of_take(self, number: int) -> int:
        """Number of the frame after the last of the scene that scene `number` is, or is a part of."""
        while number + 1 < len(self.scenes) and self.scenes[number + 1].continues:
            number += 1
        return self.scenes[number].end

    def notes(self) -> list[str]:
        """What a user should know before the work."""
        parts = sum(scene.continues for scene in self.scenes)
        if self.split is None or not parts:
            return []
        split = sum(b.continues and not a.continues for a, b in pairwise(self.scenes))
        return [
            f"{split} scene{'s' if split != 1 else ''} longer than {self.split.seconds:g} s"
            f" {'are' if split != 1 else 'is'} restored in {parts + split} parts, with {self.split.warm_up} frames of"
            " warm-up: pictures differ a little where a part begins (docs/scale.md)",
        ]

    def scenes_of(self, unit: int) -> tuple[Scene, ...]:
        """Raises InvalidInputError for a unit that there is not."""
        if not 0 <= unit < len(self.units):
            raise InvalidInputError(f"unit {unit}: the plan has {len(self.units)}, counted from 0")
        return self.scenes[slice(*self.units[unit])]

    def as_json(self) -> dict[str, Any]:
        """What `load` reads."""
        return {
            **vars(self),
            "split": self.split and vars(self.split),
            "time_base": str(self.time_base),
            "scenes": [vars(scene) for scene in self.scenes],
        }

    def write(self, path: Path) -> None:
        """As JSON. Raises OutputError."""
        try:
            write_whole(path, (json.dumps(self.as_json()) + "\n").encode())
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror})") from None

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Raises MissingFileError, or InvalidInputError for what is no plan of this version."""
        try:
            fields = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise MissingFileError(f"{path} does not exist: make it with mtu-farm plan") from None
        except OSError as error:
            raise InvalidInputError(f"{path} cannot be read ({error.strerror})") from None
        except ValueError:
            raise _no_plan(path) from None
        return cls.of_json(fields, path)

    @classmethod
    def of_json(cls, fields: Any, path: Path) -> Plan:
        """From what `as_json` gave; `path` is where that was, for messages. Raises InvalidInputError."""
        try:
            if fields["version"] != VERSION:
                raise InvalidInputError(f"{path} is of version {fields['version']}, this is {VERSION}: plan again")
            given: dict[str, Any] = {
                **fields,
                "scenes": tuple(Scene(**scene) for scene in fields["scenes"]),
                "split": fields["split"] and Split(**fields["split"]),
                "time_base": Fraction(fields["time_base"]),
                "times": tuple(Time(*time) for time in fields["times"]),
                "units": tuple((int(first), int(end)) for first, end in fields["units"]),
            }
            plan = cls(**given)
        except InvalidInputError:
            raise
        except (ValueError, TypeError, KeyError):
            raise _no_plan(path) from None
        if not plan._is_whole():
            raise InvalidInputError(f"{path} is broken (scenes or units are missing): make it again with mtu-farm plan")
        return plan

    def _is_whole(self) -> bool:
        next_frame = next_scene = 0
        for scene in self.scenes:
            if scene.first != next_frame or scene.frames < 1:
                return False
            next_frame = scene.end
        for first, end in self.units:
            if first != next_scene or end <= first:
                return False
            next_scene = end
        return next_frame == self.frames == len(self.times) and next_scene == len(self.scenes)

    def check_source(self) -> None:
        """Raises InvalidInputError unless the source is still what was planned."""
        if fingerprint(self.source) != self.fingerprint:
            raise InvalidInputError(f"{self.source} is not the file that was planned, or has changed: plan it again")


def _no_plan(path: Path) -> InvalidInputError:
    return InvalidInputError(f"{path} is no plan, or is broken: make it again with mtu-farm plan")


def kept_plan(
    path: Path, source: str, read: ReadOptions, scene_threshold: float | None, split: Split | None
) -> Plan | None:
    """The plan at `path`, if there is one and `make_plan` would give the same scenes."""
    try:
        plan = Plan.load(path)
    except (MissingFileError, InvalidInputError):
        return None
    asked = source, read, scene_threshold, split, fingerprint(source)
    return plan if (plan.source, plan.options, plan.scene_threshold, plan.split, plan.fingerprint) == asked else None


def make_plan(
    source: str,
    read: ReadOptions,
    scene_threshold: float | None,
    unit_frames: int = UNIT_FRAMES,
    *,
    split: Split | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Plan:
    """Decodes `source` once; `progress` is called after each frame. Cuts are those that a session would find; with
    `split` long scenes become several.

    Raises InvalidInputError for a source that cannot be read, or read twice (stdin, an address), and for a segment.
    """
    if read.segment is not None:
        raise InvalidInputError(f"--segment {read.segment}: a plan is for a whole source; cut the segment out first")
    if source == "-" or "://" in source:
        raise InvalidInputError(f"{source}: a plan is for files, which can be read again; write it to a file first")
    before = fingerprint(source)
    detector, cuts = SceneDetector(scene_threshold), [0]
    digests: list[str] = []
    times: list[Time] = []
    with open_reader(source, read) as reader:
        for frame in (event for event in reader if isinstance(event, Frame)):
            if detector.is_cut(frame.rgb):
                cuts.append(len(times))
            digests.append(digest_of(frame.rgb))
            times.append(Time(frame.pts, frame.duration, frame.fields))
            progress()
        info, damage = reader.info, reader.damage
    if not times:
        raise InvalidInputError(f"{source}: no frame could be decoded" + (f": {damage}" if damage else ""))
    if fingerprint(source) != before:
        raise InvalidInputError(f"{source} has changed while it was read: plan it when it is whole")
    scenes = []
    for begin, end in pairwise([*cuts, len(times)]):
        lasts = (times[end - 1].pts + times[end - 1].duration - times[begin].pts) * info.time_base
        count = 1 if split is None else min(end - begin, math.ceil(lasts / Fraction(str(split.seconds))))
        borders = [begin + k * (end - begin) // count for k in range(count + 1)]
        for first, stop in pairwise(borders):
            warm_up = min(first - begin, split.warm_up) if split is not None else 0
            scenes.append(_scene(first, digests[first:stop], digests[first - warm_up : first], first != begin))
    given = {name: value for name, value in vars(read).items() if value != getattr(ReadOptions(), name)}
    if read.rate is not None:
        given["rate"] = str(read.rate)
    return Plan(
        source=source,
        fingerprint=before,
        read=given,
        scene_threshold=scene_threshold,
        split=split,
        width=info.width,
        height=info.height,
        frames=len(times),
        damage=damage,
        time_base=info.time_base,
        times=tuple(times),
        scenes=tuple(scenes),
        units=tuple(packed([scene.frames for scene in scenes], unit_frames)),
    )


def _scene(first: int, digests: Sequence[str], before: Sequence[str], continues: bool) -> Scene:
    return Scene(
        first=first,
        frames=len(digests),
        head=digests[0],
        digest=digest_of_all(digests),
        warm_up=len(before),
        before=digest_of_all(before),
        continues=continues,
    )


def packed(frames: list[int], least: int) -> Iterator[tuple[int, int]]:
    """Neighbouring scenes of so many `frames` put together until they have at least `least`; the last may have less."""
    begin = held = 0
    for index, count in enumerate(frames, 1):
        held += count
        if held >= least or index == len(frames):
            yield begin, index
            begin, held = index, 0
