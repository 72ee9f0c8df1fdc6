"""Frames too large for the memory or for an engine, restored tile by tile: where tiles lie, and the session over them.

Imports numpy. Backends know nothing of tiles: to them each tile is a stream of frames of its own.

Note [tiles]
    A frame is cut into tiles of one size, and every tile is a stream of its own: a `Session` with its own window and
    states, over one backend. Scene cuts are found on whole frames and end the scene of all tiles together. In the
    middle a tile gives what the whole frame would give. Towards its border it sees repeated pixels, and finds no
    motion that comes from outside. So neighbours overlap, and each gives what lies up to the middle of the overlap.
    In principle the network looks further than any overlap: two units see 160 pixels around, and each frame before as
    many again. In practice little is left of that after the 40 pixels of the motion search and 24 more.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Output, Size
from mtu.core.window import LARGE, Picture, cut
from mtu.runtime.backends import Backend, Model
from mtu.runtime.chain import Joint, interface_of, open_session
from mtu.runtime.engine import Engine, Sizes
from mtu.runtime.memory import MOST, available_memory, needed, size_in_words
from mtu.runtime.scenes import SCENE_THRESHOLD
from mtu.runtime.session import ROLES, Restored

Sides = tuple[int, int]
"""Height and width."""
TileChoice = Literal["auto", "off"] | Sides
"""What `--tile` says."""

OVERLAP = 128
"""Pixels that neighbouring tiles share at least, a multiple of 8: on either side the search's 40, and 24 more."""

SEAMS = (
    "near the seams the result differs from that of whole frames; docs/performance.md and docs/networks have figures"
)
"""What tiles do to the pictures, for the user: a network may look further than they overlap."""


@dataclass(frozen=True)
class Span:
    """What a tile takes and gives along one axis, in pixels of the padded frame; multiples of the tiling's."""

    start: int
    """Where the tile begins."""
    first: int
    last: int
    """The pixels that it gives: from `first` up to `last`, which is not among them."""

    def place(self, scale: Fraction) -> slice:
        """Where in the frame its pixels go, in an output with `scale` values for each of them."""
        return slice(int(self.first * scale), int(self.last * scale))

    def part(self, scale: Fraction) -> slice:
        """Which pixels of the tile they are."""
        return slice(int((self.first - self.start) * scale), int((self.last - self.start) * scale))


@dataclass(frozen=True)
class Tiling:
    """Frames of one size, cut into tiles of one size. See Note [tiles]."""

    frame: Sides
    """Of the frames; any."""
    tile: Sides
    """Multiples of `multiple`. Along an axis where the frame is smaller, its last pixels are repeated."""
    overlap: int = OVERLAP
    multiple: int = 4
    """That of the model's size rule."""

    def __post_init__(self) -> None:
        near = Size(self.multiple).padded(*(max(side, 1) for side in self.tile))
        for name, length, tile in zip(("high", "wide"), self.frame, self.tile, strict=True):
            if tile % self.multiple or tile < 1:
                raise InvalidInputError(
                    f"tiles of {in_words(self.tile)} (WIDTHxHEIGHT): both are multiples of {self.multiple}, for example"
                    f" {in_words(near)}"
                )
            if tile < length and tile < 2 * self.overlap:
                raise InvalidInputError(
                    f"tiles of {in_words(self.tile)} (WIDTHxHEIGHT) are too small: neighbours share {self.overlap}"
                    f" pixels, so they are at least {2 * self.overlap} {name}, or as {name} as the frame ({length})"
                )

    @cached_property
    def rows(self) -> list[Span]:
        """From top to bottom."""
        return self._spans(0)

    @cached_property
    def columns(self) -> list[Span]:
        """From left to right."""
        return self._spans(1)

    def _spans(self, axis: int) -> list[Span]:
        """The fewest tiles that cover an axis, equally far apart; each gives up to the middle of what two share."""
        tile, unit = self.tile[axis], self.multiple
        length = max(Size(unit).padded(*self.frame)[axis], tile)
        if tile >= length:
            return [Span(0, 0, length)]
        last = -(-(length - self.overlap) // (tile - self.overlap)) - 1
        starts = [(length - tile) // unit * number // last * unit for number in range(last + 1)]
        middles = [(before + tile + after) // 2 // unit * unit for before, after in itertools.pairwise(starts)]
        return [Span(*span) for span in zip(starts, [0, *middles], [*middles, length], strict=True)]

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)

    def as_json(self) -> dict[str, int]:
        """For reports."""
        return {"count": self.count, "width": self.tile[1], "height": self.tile[0], "overlap": self.overlap}

    def __str__(self) -> str:
        return f"{self.count} tiles of {in_words(self.tile)} that overlap by {self.overlap} pixels or more"


def in_words(size: Sides) -> str:
    """Always WIDTHxHEIGHT."""
    return f"{size[1]}x{size[0]}"


class TiledSession(Joint):
    """Restores one stream of frames tile by tile; used as `Session`, which see. See Note [tiles]."""

    def __init__(
        self, backend: Backend, tiling: Tiling, *, scene_threshold: float | None = SCENE_THRESHOLD, strict: bool = False
    ) -> None:
        """All frames are of the size `tiling.frame`. The caller closes the backend."""
        self._tiling = tiling
        self._outputs = {role: backend.interface.the(role) for role in ROLES}
        self._places = list(itertools.product(tiling.rows, tiling.columns))
        sessions = [open_session(backend, scene_threshold=None, strict=strict) for _ in self._places]
        super().__init__(sessions, backend.interface.streams, scene_threshold)

    def reset(self) -> None:
        """See `Stream.reset`. The frames to come are of the same size."""
        super().reset()
        self._size = self._tiling.frame

    def _push(self, frames: Mapping[str, Picture]) -> list[Restored]:
        padded = {name: self._pad(frame) for name, frame in frames.items()}
        height, width = self._tiling.tile
        return self._joined(
            session.push(
                {
                    # A copy, or each tile would hold the whole frame, and nobody could change it after `push`.
                    name: whole[row.start : row.start + height, column.start : column.start + width].copy()
                    for name, whole in padded.items()
                }
            )
            for (row, column), session in zip(self._places, self._sessions, strict=True)
        )

    def flush(self) -> list[Restored]:
        """See `Stream.flush`."""
        return self._joined(session.flush() for session in self._sessions)

    def _pad(self, frame: Picture) -> Picture:
        """Its last row and column repeated, up to where the last tiles end."""
        ends = self._tiling.rows[-1].last, self._tiling.columns[-1].last
        bottom, right = (end - size for end, size in zip(ends, frame.shape[:2], strict=True))
        return np.pad(frame, ((0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else frame

    def _joined(self, tiles: Iterable[list[Restored]]) -> list[Restored]:
        """Frames of the results of all tiles, which are at the same frame at any time."""
        return [self._join(parts) for parts in zip(*tiles, strict=True)]

    def _join(self, parts: Sequence[Restored]) -> Restored:
        found: dict[str, Any] = {role: self._stitch(role, output, parts) for role, output in self._outputs.items()}
        return Restored(parts[0].index, **found)

    def _stitch(self, role: str, output: Output | None, parts: Sequence[Restored]) -> NDArray[Any] | None:
        """An output of the whole frame."""
        if output is None:
            return None
        pieces = [getattr(part, role) for part in parts]
        rows, columns = self._tiling.rows, self._tiling.columns
        down, across = (Fraction(size, LARGE) for size in output.tensor.at(LARGE, LARGE)[1:3])
        height, width = int(rows[-1].last * down), int(columns[-1].last * across)
        whole = np.empty((height, width, *pieces[0].shape[2:]), pieces[0].dtype)
        for (row, column), piece in zip(self._places, pieces, strict=True):
            whole[row.place(down), column.place(across)] = piece[row.part(down), column.part(across)]
        return cut(whole[None], output.tensor, *self._tiling.frame)


def parse_tile(text: str) -> TileChoice:
    """ "auto", "off", or "1280x720", which is 1280 wide and 720 high. Raises InvalidInputError."""
    if text == "auto":
        return "auto"
    if text == "off":
        return "off"
    found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", text)
    if found is None:
        raise InvalidInputError(f"--tile '{text}': write auto, off, or WIDTHxHEIGHT, as in 1280x720")
    return int(found[2]), int(found[1])


def choose_tiling(choice: TileChoice, frame: Sides, model: Model) -> Tiling | None:
    """What can be said before the model is loaded: tiles of the size that was chosen, or of that of an engine that the
    frame does not fit. None: whole frames. Raises InvalidInputError for tiles that are too small."""
    if choice == "off":
        return None
    rule = interface_of(model).size
    whole = rule.padded(*frame)
    profile = model.manifest.profile if isinstance(model, Engine) else None
    if choice != "auto":
        wanted = choice
    elif profile is None or profile.holds(*whole):
        return None
    else:
        wanted = _sides(profile.max)
    # A tile is no larger than the frame, except where that is all that an engine takes.
    tile = _between(_sides(profile.min) if profile else (1, 1), whole, wanted)
    too_small = any(t < f and t < 2 * OVERLAP for t, f in zip(tile, frame, strict=True))
    # Where an engine's tiles are too small, or the frame is, its refusal says best what to do.
    if not _is_smaller(tile, frame) or (choice == "auto" and too_small):
        return None
    return Tiling(frame, tile, multiple=rule.multiple)


def fit_memory(choice: TileChoice, tiling: Tiling | None, frame: Sides, backend: Backend) -> tuple[Tiling | None, str]:
    """Tiles that the memory is enough for, and what is to be said of it ("" is nothing).

    "auto" cuts a frame that does not fit. Raises InvalidInputError where what was chosen does not fit, or nothing does.
    """
    free, rule = available_memory(), backend.interface.size
    whole = Tiling(frame, rule.padded(*frame), multiple=rule.multiple)
    need = _needed(backend, tiling or whole)
    if free is None or need is None or need <= MOST * free:
        return tiling, ""
    figures = f"{size_in_words(need)} of memory with {backend.name}, and {size_in_words(free)} are free"
    if choice == "auto" and tiling is None:
        tiling = next((t for t in _smaller(frame, rule) if (_needed(backend, t) or 0) <= MOST * free), None)
        if tiling is None:
            raise InvalidInputError(
                f"frames of {in_words(frame)} take some {figures}; the smallest tiles need too much as well: end other"
                " programs, raise the limit (ulimit -v, or a container's), or use a machine with more memory"
            )
        return tiling, f"whole frames of {in_words(frame)} take some {figures}"
    what = f"frames of {in_words(frame)}" + (f" in {tiling}" if tiling else "")
    if need > free:
        raise InvalidInputError(f"{what} take some {figures}: use --tile auto, or end other programs")
    return tiling, f"{what} take some {figures}: that is close; --tile auto takes less"


def _needed(backend: Backend, tiling: Tiling) -> int | None:
    return needed(backend, tiling.frame, tiling.tile, tiling.count)


def _smaller(frame: Sides, rule: Size) -> Iterator[Tiling]:
    """Ever more and smaller tiles, down to the smallest: the longer side of a tile is cut once more."""
    counts = [1, 1]
    tile = whole = rule.padded(*frame)
    while True:
        axis = 0 if tile[0] > tile[1] else 1
        counts[axis] += 1
        height, width = (
            -(-(length + (count - 1) * OVERLAP) // count) for length, count in zip(whole, counts, strict=True)
        )
        tile = rule.padded(height, width)
        if tile[axis] < 2 * OVERLAP:
            return
        yield Tiling(frame, tile, multiple=rule.multiple)


def _sides(sizes: Sizes) -> Sides:
    return sizes.height, sizes.width


def _between(least: Sides, most: Sides, wanted: Sides) -> Sides:
    """`wanted`, but no more than `most`, and no less than `least` in any case."""
    height, width = (max(low, min(high, side)) for low, high, side in zip(least, most, wanted, strict=True))
    return height, width


def _is_smaller(tile: Sides, frame: Sides) -> bool:
    return tile[0] < frame[0] or tile[1] < frame[1]
