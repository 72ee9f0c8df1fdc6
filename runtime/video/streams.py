"""Several streams of pictures in step: a source, and beside it those that a model reads with it, matched by order.

Each stream has a decoder; all of them are used in the thread that reads the source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import av

from mtu.core.errors import InvalidInputError
from mtu.runtime.video.source import Frame, Reader, SourceInfo


class StreamsReader(Reader):
    """A source whose frames bring those of further streams with them (`Frame.views`)."""

    def __init__(self, source: Reader, views: Mapping[str, Reader]) -> None:
        """`views` are the further streams by name. Raises InvalidInputError for one that does not fit the source."""
        self._source, self._views = source, views
        self.remarks = []
        notes = list(source.info.notes)
        for name, view in views.items():
            notes += [
                f"--stream {name}: {note}" for note in (*view.info.notes, *_compared(name, view.info, source.info))
            ]
        names = tuple(view.info.name for view in views.values())
        self.info = replace(source.info, notes=tuple(notes), beside=names)

    def __iter__(self) -> Iterator[Frame | av.Packet[Any]]:
        """Raises InvalidInputError where a stream ends before the others, or one of its pictures is missing."""
        waiting = {name: _frames(view) for name, view in self._views.items()}
        count = 0
        for item in self._source:
            if isinstance(item, Frame):
                item = replace(item, views={name: self._view(name, waiting[name], item, count) for name in waiting})
                count += 1
            yield item
        for name, frames in waiting.items():
            if next(frames, None) is not None:
                view = self._views[name].info
                raise InvalidInputError(
                    f"--stream {name}={view.name} goes on after frame {count - 1}, the last one of"
                    f" {self.info.name}{_because(self._source)}: all streams have the same number of frames"
                )
        of_views = [f"--stream {name}: {each}" for name, view in self._views.items() for each in view.remarks]
        self.remarks = [*self._source.remarks, *of_views]
        damages = [each.damage for each in (self._source, *self._views.values()) if each.damage]
        self.damage = "; ".join(damages) or None

    def _view(self, name: str, frames: Iterator[Frame], source: Frame, number: int) -> Any:
        """The pixels of a further stream for frame `number` of the source."""
        view = self._views[name]
        found, option = next(frames, None), f"--stream {name}={view.info.name}"
        if found is None:
            raise InvalidInputError(
                f"{option} ends before frame {number} of {self.info.name}{_because(view)}: all streams have the same"
                " number of frames"
            )
        if _are_stills(view.info, self.info) and found.pts != source.pts:
            raise InvalidInputError(
                f"{option}: picture {min(found.pts, source.pts)} of it or of {self.info.name}, counted from 0, cannot"
                " be decoded, and those after it would not belong together: replace it"
            )
        return found.rgb

    def close(self) -> None:
        """See `Reader.close`; of all streams."""
        for reader in (self._source, *self._views.values()):
            reader.close()


def parse_streams(texts: Sequence[str]) -> dict[str, str]:
    """What --stream says, NAME=PATH each: paths by name. Raises InvalidInputError."""
    found: dict[str, str] = {}
    for text in texts:
        name, is_there, path = text.partition("=")
        if not (name and is_there and path):
            raise InvalidInputError(f"--stream {text}: write it as NAME=PATH, such as right=DIRECTORY")
        if name in found:
            raise InvalidInputError(f"--stream {name} is given twice: {found[name]} and {path}; leave one out")
        if path == "-":
            raise InvalidInputError(f"--stream {text}: only the input itself can come from stdin; give a path")
        found[name] = path
    return found


def _compared(name: str, view: SourceInfo, source: SourceInfo) -> Iterator[str]:
    """What is to be said of a further stream. Raises InvalidInputError if it cannot go with the source."""
    option = f"--stream {name}={view.name}"
    if (view.width, view.height) != (source.width, source.height):
        raise InvalidInputError(
            f"{option} is {view.width}x{view.height}, and {source.name} is {source.width}x{source.height}: all streams"
            " have frames of one size; scale or crop one of them"
        )
    if view.display_matrix != source.display_matrix:
        raise InvalidInputError(
            f"{option} and {source.name} are not turned alike when they are shown, so their pixels do not lie on each"
            " other: turn one of them"
        )
    if view.frame_count is not None and source.frame_count is not None and view.frame_count != source.frame_count:
        counts = f"{view.frame_count} frames, and {source.name} {source.frame_count}"
        if _are_stills(view, source):
            raise InvalidInputError(f"{option} has {counts}: all streams have the same number of frames")
        yield f"{view.name} has about {counts}; if that is so, the run ends with an error at the end of the shorter one"
    if view.container is not None and len(view.container.streams) > 1:
        yield f"{view.name} gives its pictures alone; sound, subtitles and all else are those of {source.name}"


def _are_stills(*infos: SourceInfo) -> bool:
    """Whether all are made of picture files, of which the number is known."""
    return all(info.stems is not None for info in infos)


def _frames(reader: Reader) -> Iterator[Frame]:
    return (item for item in reader if isinstance(item, Frame))


def _because(reader: Reader) -> str:
    return f" ({reader.damage})" if reader.damage else ""
