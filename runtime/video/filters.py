"""FFmpeg's filters on single pictures, for what PyAV shows or does nowhere else. Opens no files."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
from av.filter import Graph


class Filter:
    """One filter with any number of outputs, set up anew for each size and format of pictures."""

    def __init__(self, name: str, arguments: str, outputs: int = 1) -> None:
        self._name, self._arguments, self._outputs = name, arguments, outputs
        self._key: tuple[Any, ...] = ()

    def fits(self, picture: av.VideoFrame) -> bool:
        """Whether the filter that is set up takes a picture."""
        return self._key == (picture.width, picture.height, picture.format.name)

    def push(self, picture: av.VideoFrame | None) -> None:
        """Give it a picture, or the end."""
        if picture is not None and not self.fits(picture):
            self._key = picture.width, picture.height, picture.format.name
            # The graph has to be kept: its parts do not keep it.
            self._graph = Graph()
            # The clock does not matter: times are carried past the filter.
            self._source = self._graph.add_buffer(
                width=picture.width,
                height=picture.height,
                format=picture.format,
                time_base=picture.time_base or Fraction(1),
            )
            work = self._graph.add(self._name, self._arguments)
            self._sinks = [self._graph.add("buffersink", name=f"out{index}") for index in range(self._outputs)]
            self._source.link_to(work)
            for index, sink in enumerate(self._sinks):
                work.link_to(sink, index)
            self._graph.configure()
        self._source.push(picture)

    def pull(self) -> tuple[int, av.VideoFrame] | None:
        """The next picture and the number of its output, None where the filter has to get more first."""
        for index, sink in enumerate(self._sinks):
            try:
                picture = sink.pull()
            except (av.BlockingIOError, av.EOFError):
                continue
            assert isinstance(picture, av.VideoFrame)
            return index, picture
        return None
