"""Pictures of one stream as RGB of one size: each by its own tags, though they change on the way.

The first picture sets the size and the colours of the result. Opens no files.
"""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np

from mtu.core.errors import InvalidInputError
from mtu.runtime.video.colour import Pixels, PrimariesChange, ToRGB, colour_of, primaries_change

_SIZE, _ASPECT, _COLOURS = "the size changes", "the pixel aspect changes", "the colours change"
_PRIMARIES, _DYNAMIC = "the primaries change", "the dynamic range changes"
# Shapes that differ by less are made equal, without black bars.
_SAME_SHAPE = 0.02
_Look = tuple[tuple[int, int], tuple[int | str, ...]]
"""What can change from picture to picture: its size, and its colours and format."""


class Normaliser:
    """Converts the pictures of a stream, in their order, and counts what changes. Not for two threads at once."""

    def __init__(self, source: str, first: av.VideoFrame, border: tuple[int, int, int, int], *, stop: bool) -> None:
        """`source` is its name, `border` what is not shown at the top, bottom, left and right; `stop` refuses another
        size."""
        self._look, self._source, self._stop = _look_of(first), source, stop
        self._coded = self._look[0]
        self.colour, self.notes = colour_of(first)
        self._to_rgb = ToRGB(self.colour)
        self._primaries: PrimariesChange | None = None
        top, bottom, left, right = border
        if top + bottom >= first.height or left + right >= first.width:
            top = bottom = left = right = 0
        self._shown = slice(top, first.height - bottom), slice(left, first.width - right)
        self.height, self.width = first.height - top - bottom, first.width - left - right
        if (self.width, self.height) != (first.width, first.height):
            self.notes.append(
                f"the container hides a border of the {first.width}x{first.height} pictures (crop): {self.width}x"
                f"{self.height} are processed and written"
            )
        self._aspect: Fraction | None = None
        self._first_aspect: Fraction | None = None
        self._count = 0
        self._changes: dict[str, list[str]] = {}

    def __call__(self, picture: av.VideoFrame, aspect: Fraction | None) -> Pixels:
        """uint8 [height, width, 3] of the next picture, whose pixels have `aspect` (None: as the container says).

        Raises InvalidInputError where the size changes and that is refused.
        """
        look = _look_of(picture)
        if self._count == 0:
            self._aspect = self._first_aspect = aspect
        if look != self._look:
            self._change(picture, look)
        if aspect != self._aspect:
            self._count_change(_ASPECT, f"from {self._aspect or 1} to {aspect or 1}")
            self._aspect = aspect
        self._count += 1
        rgb = self._to_rgb(picture)[self._shown] if look[0] == self._coded else self._fit(picture, aspect)
        if self._primaries is not None:
            rgb = self._primaries(rgb)
        return np.ascontiguousarray(rgb)

    def _change(self, picture: av.VideoFrame, look: _Look) -> None:
        before, after, self._look = self._look[0], look[0], look
        if after != before:
            sizes = f"from {before[0]}x{before[1]} to {after[0]}x{after[1]}"
            if self._stop:
                raise InvalidInputError(
                    f"{self._source} changes its size {sizes} after {self._count} pictures: split it there first, or"
                    " have them scaled with --on-size-change scale"
                )
            self._count_change(_SIZE, sizes)
        old = self._to_rgb.colour
        colour, _ = colour_of(picture)
        self._to_rgb = ToRGB(colour)
        if colour.name != old.name:
            self._count_change(_COLOURS, f"from {old.name} to {colour.name}")
        self._primaries = primaries_change(colour, self.colour)
        if old.light and colour.light and colour.light != old.light:
            hdr = colour.is_hdr != self.colour.is_hdr
            self._count_change(_DYNAMIC if hdr else _PRIMARIES, f"from {old.light} to {colour.light}")

    def _count_change(self, what: str, how: str) -> None:
        self._changes.setdefault(what, []).append(f"at picture {self._count} {how}")

    def _fit(self, picture: av.VideoFrame, aspect: Fraction | None) -> Pixels:
        """A picture of another size in the first one's, with black bars where its shape is another."""
        first = self._first_aspect or 1
        shape = picture.width * (aspect or 1) / picture.height / (Fraction(self.width, self.height) * first)
        width, height = self.width, self.height
        if shape > 1 + _SAME_SHAPE:
            height = max(1, round(self.height / shape))
        elif shape < 1 - _SAME_SHAPE:
            width = max(1, round(self.width * shape))
        rgb = np.zeros((self.height, self.width, 3), np.uint8)
        top, left = (self.height - height) // 2, (self.width - width) // 2
        rgb[top : top + height, left : left + width] = self._to_rgb(picture, (width, height))
        return rgb

    def remarks(self) -> list[str]:
        """What changed, in words."""
        done = {
            _SIZE: f"scaled to {self.width}x{self.height} (--on-size-change stop refuses it)",
            _ASPECT: "the output says the first for all, so other pictures are stretched there",
            _COLOURS: f"each picture is converted by its own, the output is {self.colour.name}",
            _PRIMARIES: f"each picture is converted to {self.colour.light}",
            _DYNAMIC: f"the values are kept, so other pictures than those with {self.colour.light} look wrong",
        }
        return [
            f"{what} {changes[0]}{f' and {len(changes) - 1} times more' if len(changes) > 1 else ''}: {done[what]}"
            for what, changes in self._changes.items()
        ]


def _look_of(picture: av.VideoFrame) -> _Look:
    tags = picture.colorspace, picture.color_range, picture.color_primaries, picture.color_trc
    return (picture.width, picture.height), (*map(int, tags), picture.format.name)
