"""Time: parts of a video to process, and timestamps that always rise.

Plain Python, exact fractions, no files.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from mtu.core.errors import InvalidInputError

JUMP = Fraction(1)
"""Timestamps that fall back by more than this many seconds start a new clock (joined files); less is a disorder."""

TOLERANCE = Fraction(1, 500)
"""Seconds; times that are rounded by less are as good as kept."""

MOST_PICTURES = 1000
"""Largest rate that can be asked for, in pictures per second."""
_NTSC = {"23.976": 24, "23.98": 24, "29.97": 30, "47.95": 48, "59.94": 60, "119.88": 120}


def parse_rate(text: str) -> Fraction:
    """Pictures per second from "24", "12.5" or "30000/1001"; 29.97 and its like are such fractions too.

    Raises InvalidInputError.
    """
    try:
        rate = Fraction(_NTSC[text] * 1000, 1001) if text in _NTSC else Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= MOST_PICTURES:
        raise InvalidInputError(
            f"--rate {text}: give pictures per second above 0 and up to {MOST_PICTURES}, such as 24, 12.5 or 30000/1001"
        )
    return rate


_TIME = r"\d+(?::[0-5]\d){0,2}(?:\.\d*)?"
_CLOCK_SEGMENT = re.compile(f"({_TIME})?-({_TIME})?")


def _seconds(time: str) -> float:
    """Seconds of HH:MM:SS, MM:SS or SS."""
    return float(sum(Fraction(part) * 60**place for place, part in enumerate(reversed(time.split(":")))))


@dataclass(frozen=True)
class Segment:
    """A part of a video: pictures with start <= time < end, in seconds after the first picture. None leaves it open."""

    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        for value in (self.start, self.end):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InvalidInputError(f"segment {self}: times are seconds, 0 or more")
        if self.end is not None and self.end <= (self.start or 0):
            raise InvalidInputError(f"segment {self}: its end must lie after its start")

    @classmethod
    def parse(cls, text: str) -> Segment:
        """A segment from START:END in seconds, or START-END in seconds or clock times; either side may be left out.

        Clock times are HH:MM:SS or MM:SS, with or without a fraction. Raises InvalidInputError.
        """
        clock = _CLOCK_SEGMENT.fullmatch(text.replace(" ", ""))
        if clock and text.strip() != "-":
            return cls(*(_seconds(side) if side else None for side in clock.groups()))
        try:
            start, end = (float(side) if side.strip() else None for side in text.split(":"))
        except ValueError:
            raise InvalidInputError(
                f"'{text}' is not a segment: give START:END in seconds, such as 10:12.5, 90: or :30, or START-END in"
                " clock times, such as 00:01:00-00:02:30, 1:30- or -0:45"
            ) from None
        return cls(start, end)

    def __str__(self) -> str:
        return f"{'' if self.start is None else f'{self.start:g}'}:{'' if self.end is None else f'{self.end:g}'}"

    @property
    def begin(self) -> Fraction:
        """Start in seconds, 0 where it is left out."""
        return Fraction(str(self.start or 0))

    @property
    def until(self) -> Fraction | None:
        """End in seconds, None where it is left out. 2.6 is 13/5, not the nearest binary number."""
        return None if self.end is None else Fraction(str(self.end))

    def holds(self, time: Fraction) -> bool:
        """Whether a picture at `time` seconds after the first one belongs to it."""
        return time >= self.begin and not self.past(time)

    def past(self, time: Fraction) -> bool:
        """Whether `time` is at or after the end."""
        return self.until is not None and time >= self.until

    def notes(self, last: Fraction, length: Fraction) -> list[str]:
        """What to say if it ends after the source, whose last picture is shown from `last` on, for `length` seconds.

        As much again passes: not every container says exactly how long a picture is shown.
        """
        if self.until is None or self.until <= last + 2 * length:
            return []
        return [f"the segment {self} ends after the source, which has pictures until {float(last + length):.4g} s"]


class Clock:
    """Gives every picture (or packet) of a stream a timestamp above the one before, and counts what it changed.

    A missing timestamp follows the one before by one step. One that does not rise is moved up by one tick; one that
    falls back by more than `JUMP` starts a new clock, which goes on where the old one stopped.
    """

    def __init__(self, time_base: Fraction, rate: Fraction | None) -> None:
        self.step = max(1, round(1 / (rate * time_base))) if rate else 1
        """Ticks from one to the next, where nothing else is known."""
        self._jump = JUMP / time_base
        self._last: int | None = None
        self._last_step = self.step
        self.offset = 0
        """Ticks that are added since the clock fell back."""
        self._missing = self._disordered = self._jumps = 0
        self._all = self._regular = self._gaps = 0

    def stamp(self, pts: int | None, duration: int | None) -> tuple[int, int]:
        """The timestamp and the duration (at least 1) to use, in ticks."""
        step = duration if duration and duration > 0 else self.step
        if pts is None:
            self._missing += 1
            stamp = 0 if self._last is None else self._last + self._last_step
        else:
            stamp = pts + self.offset
            if self._last is not None and stamp <= self._last:
                if self._last - stamp > self._jump:
                    self._jumps += 1
                    stamp = self._last + self._last_step
                    self.offset = stamp - pts
                else:
                    self._disordered += 1
                    stamp = self._last + 1
        if self._last is not None:
            self._all += 1
            self._regular += abs(stamp - self._last - self.step) * 10 <= self.step
            self._gaps += stamp - self._last > 3 * self.step
        self._last, self._last_step = stamp, step
        return stamp, step

    def remarks(self, what: str) -> list[str]:
        """What was changed or is strange, in words; `what` is the plural of what was stamped."""
        # Gaps are strange only in what is regular otherwise.
        strange = self._gaps if self._regular * 10 > self._all * 8 else 0
        texts = [
            (self._missing, f"{what} without a timestamp: placed after the one before"),
            (self._disordered, f"{what} with a timestamp that does not rise: moved up by the smallest step"),
            (self._jumps, f"{what} where the clock falls back (joined files?): placed after the one before"),
            (strange, f"gaps of more than 3 {what} (lost data?): kept"),
        ]
        return [f"{count} {text}" for count, text in texts if count]


class Drift:
    """How far the times in an output are from the source's, where its container holds no times or rounds them."""

    def __init__(self) -> None:
        self.worst = Fraction(0)
        """Seconds, counted from the first picture."""
        self._first: Fraction | None = None

    def see(self, wanted: Fraction, written: Fraction) -> None:
        """Take one picture's times, in seconds."""
        if self._first is None:
            self._first = written - wanted
        self.worst = max(self.worst, abs(written - wanted - self._first))

    def remarks(self, container: str) -> list[str]:
        """What to say at the end; a rounding to milliseconds is none."""
        if self.worst <= TOLERANCE:
            return []
        return [
            f"{container} does not hold the times of these pictures: they are shown up to {float(self.worst):.3g} s "
            "earlier or later than in the source; .mp4 and .mkv keep them"
        ]


def later_timecode(timecode: str, pictures: int, rate: Fraction) -> str | None:
    """The timecode of so many pictures later, None where this is none. ";" is drop-frame: 30000/1001 or 60000/1001."""
    parts = re.fullmatch(r"(\d\d):(\d\d):(\d\d)([:;.])(\d\d)", timecode)
    whole = round(rate)
    if parts is None or whole < 1:
        return None
    hours, minutes, seconds, colon, frames = *map(int, parts.group(1, 2, 3)), parts[4], int(parts[5])
    # Each minute but every tenth leaves out its first two numbers, or four.
    skipped = 0 if colon == ":" else whole // 15
    minutes += 60 * hours
    number = (60 * minutes + seconds) * whole + frames - skipped * (minutes - minutes // 10) + pictures
    ten = 600 * whole - 9 * skipped
    tens, rest = divmod(number % (144 * ten), ten)
    if rest >= 60 * whole:
        rest += skipped * (1 + (rest - 60 * whole) // (60 * whole - skipped))
    seconds, frames = divmod(600 * whole * tens + rest, whole)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{colon}{frames:02}"
