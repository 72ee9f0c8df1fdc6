"""The packets of one copied stream on their way into a container: decoding times it lacks, ends, and hidden parts.

Hidden is what a player does not show: packets that an edit list marks, and those before time 0 of the output. Plain
arithmetic on packets; touches no files.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av

from mtu.runtime.video.timing import Clock

_HELD = 600
"""Packets of a stream that are held back at most; a group of pictures is shorter."""
_LONGEST = 24 * 3600
"""Seconds; a longer duration is none."""


class Track:
    """Takes the packets of one stream in the source's order, and gives those to write, with times of the output."""

    def __init__(self, kind: str, time_base: Fraction, origin: Fraction, *, edit_lists: bool) -> None:
        """`kind` is the stream's type, "cover" for a still picture; `origin` is the source's time that is 0.

        `edit_lists` says that the container hides what lies before 0, and shows nothing without a duration.
        """
        self._kind, self._edit_lists = kind, edit_lists
        self._shift = round(origin / time_base)
        self._time_base = time_base
        self._clock = Clock(time_base, None)
        self._held: list[av.Packet[Any]] = []
        self._last: int | None = None
        self._begun = False
        self._undecodable = 0

    def ready(self, packet: av.Packet[Any]) -> list[av.Packet[Any]]:
        """What can be written now that the next packet has come."""
        if self._kind == "cover":
            packet.pts = packet.dts = 0
            return [packet]
        if self._kind == "video":
            return self._of_video(packet)
        if self._kind == "subtitle":
            return self._of_subtitles(packet)
        return [] if self._is_hidden(packet) else [self._stamped(packet)]

    def rest(self, end: Fraction) -> list[av.Packet[Any]]:
        """What is left when the stream has ended; `end` is that of the pictures, in seconds of the output."""
        held, self._held = self._held, []
        if self._kind == "subtitle":
            for packet in held:
                packet.duration = max(1, round(end / self._time_base) - self._start(packet))
            return [self._stamped(packet) for packet in held]
        while held and held[-1].is_discard:
            held.pop()  # nothing that is shown needs them
        return self._in_order(held)

    def remarks(self) -> list[str]:
        """What had to be changed or left out."""
        texts = self._clock.remarks("packets")
        if self._undecodable:
            texts.append(
                f"{self._undecodable} packets that need a part which was cut off were left out; .mp4 would keep them"
            )
        return texts

    def _start(self, packet: av.Packet[Any]) -> int:
        """Time in the output, in ticks."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        return 0 if stamp is None else stamp + self._clock.offset - self._shift

    def _is_hidden(self, packet: av.Packet[Any]) -> bool:
        """Whether a packet that needs no other one is not shown and would be in the output."""
        ends_before = self._start(packet) < 0 and self._start(packet) + (packet.duration or 0) <= 0
        if self._kind == "audio" and ends_before:
            # What a decoder needs before the first sample stays hidden: by an edit list, or by its codec delay.
            return packet.is_discard and not self._edit_lists
        return ends_before or packet.is_discard

    def _of_subtitles(self, packet: av.Packet[Any]) -> list[av.Packet[Any]]:
        begin, duration = self._start(packet), packet.duration or 0
        if not duration * self._time_base < _LONGEST:
            duration = 0
        ready, self._held = self._held, []
        for before in ready:
            before.duration = max(1, begin - self._start(before))
        packet.duration = duration
        if packet.pts is not None and begin < 0 < begin + duration and not packet.is_discard:
            # It is shown at time 0 already.
            packet.pts, packet.duration = packet.pts - begin, duration + begin
            packet.dts = packet.pts
        if not self._is_hidden(packet):
            (self._held if self._edit_lists and not duration else ready).append(packet)
        return [self._stamped(each) for each in ready]

    def _of_video(self, packet: av.Packet[Any]) -> list[av.Packet[Any]]:
        hidden = packet.is_discard or self._start(packet) < 0
        if hidden and packet.is_keyframe and not self._begun:
            self._held.clear()  # what is shown begins to be decoded here
        self._held.append(packet)
        if (hidden or packet.dts is None) and len(self._held) <= _HELD:
            return []
        if hidden:
            self._held.pop(0)
            return []
        held, self._held = self._held, []
        return self._in_order(held)

    def _in_order(self, packets: list[av.Packet[Any]]) -> list[av.Packet[Any]]:
        _fill_in(packets)
        ready = []
        for packet in packets:
            if self._start(packet) < 0 and not self._edit_lists:
                continue
            # A player begins with a key picture, and where nothing hides them with one that is shown.
            shown = not packet.is_discard and self._start(packet) >= 0
            if not self._begun and not (packet.is_keyframe and (shown or self._edit_lists)):
                self._undecodable += shown
                continue
            self._begun = True
            ready.append(self._stamped(packet))
        return ready

    def _stamped(self, packet: av.Packet[Any]) -> av.Packet[Any]:
        dts = packet.dts if packet.dts is not None else packet.pts
        stamp, _ = self._clock.stamp(dts, packet.duration)
        # A clock that fell back moves both times; a decoding time that was in disorder moves none but itself.
        pts = stamp if packet.pts is None else packet.pts + self._clock.offset
        packet.pts, packet.dts = max(stamp, pts) - self._shift, stamp - self._shift
        if self._edit_lists and not packet.duration and self._last is not None:
            packet.duration = stamp - self._last  # without one the last packet would be hidden
        self._last = stamp
        return packet


def _fill_in(packets: list[av.Packet[Any]]) -> None:
    """Give pictures the decoding times that a container lacks before the first that it has."""
    known = next((index for index, packet in enumerate(packets) if packet.dts is not None), None)
    if known is not None:
        for packet, later in zip(reversed(packets[:known]), reversed(packets[1 : known + 1]), strict=True):
            assert later.dts is not None
            dts = later.dts - max(1, packet.duration or 0)
            packet.dts = dts if packet.pts is None else min(dts, packet.pts)
        return
    stamps = [packet.pts for packet in packets if packet.pts is not None]
    if len(stamps) == len(packets):
        rising = sorted(stamps)
        delay = max((rise - stamp for rise, stamp in zip(rising, stamps, strict=True)), default=0)
        for packet, rise in zip(packets, rising, strict=True):
            packet.dts = rise - delay
