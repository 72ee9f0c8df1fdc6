"""Pictures of 256 colours, as GIF has them: each gets a palette of its own, by FFmpeg's palettegen and paletteuse.

A palette for the whole video would need all of it in memory, and is no nearer to the pictures: 33.9 dB on the demo
clip, where a palette each has 34.5 dB and the fixed colours of rgb8 have 21.3 dB. Touches no files.
"""

from __future__ import annotations

from fractions import Fraction

import av
import av.filter

from mtu.runtime.video.colour import Pixels


class FromRGBToPalette:
    """Converts RGB to pictures of the format pal8, dithered. Not for two threads at once."""

    def __init__(self) -> None:
        self._graph: av.filter.Graph | None = None
        self._count = 0

    def __call__(self, rgb: Pixels) -> av.VideoFrame:
        """A new picture; `rgb` may be reused as soon as this returns."""
        if self._graph is None:
            self._graph = _graph(rgb.shape[1], rgb.shape[0])
        picture = av.VideoFrame.from_ndarray(rgb, "rgb24")
        picture.pts, picture.time_base = self._count, Fraction(1, 25)
        self._count += 1
        self._graph.push(picture)
        converted = self._graph.pull()
        assert isinstance(converted, av.VideoFrame)
        return converted


def _graph(width: int, height: int) -> av.filter.Graph:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 25))
    split, use = graph.add("split"), graph.add("paletteuse", "new=1")
    generate = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(generate, 1, 0)
    generate.link_to(use, 0, 1)
    use.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
