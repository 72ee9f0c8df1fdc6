"""Runs a source through reader and writer unchanged, as the pipeline does. Nothing here is a test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from mtu.runtime.video import Frame, Reader, ReadOptions, open_reader, open_writer


@dataclass
class Result:
    """What a run said and gave."""

    frames: int
    reader_notes: list[str]
    writer_notes: list[str]
    remarks: list[str]
    damage: str | None

    @property
    def text(self) -> str:
        """All of it in one."""
        return " | ".join([*self.reader_notes, *self.writer_notes, *self.remarks, self.damage or ""])


def run(source: str | Path, target: str | Path, *, read: ReadOptions | None = None, **options: Any) -> Result:
    """Copy a source to a target through decoding and encoding."""
    with open_reader(source, read) as reader, open_writer(target, reader.info, **options) as writer:
        frames = 0
        for event in reader:
            if isinstance(event, Frame):
                writer.write(event.rgb, event)
                frames += 1
            else:
                writer.copy(event)
        writer.commit()
        return Result(frames, reader.info.notes, writer.notes, reader.remarks + writer.remarks, reader.damage)


def frames_of(reader: Reader) -> list[Frame]:
    """All pictures of a reader."""
    return [event for event in reader if isinstance(event, Frame)]


def packets_of(reader: Reader) -> list[av.Packet[Any]]:
    """All packets of a reader."""
    return [event for event in reader if not isinstance(event, Frame)]
