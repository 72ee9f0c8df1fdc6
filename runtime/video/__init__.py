"""Video in and out for `mtu-run`: everything goes through PyAV, no ffmpeg program is needed.

`open_reader` gives pictures as RGB with their own timestamps and the packets of all other streams; `open_writer` takes
both and writes a video, yuv4mpeg to stdout, or pictures.
"""

from mtu.runtime.video.colour import Colour
from mtu.runtime.video.images import read_image
from mtu.runtime.video.muxer_options import parse_muxer_options
from mtu.runtime.video.picture_encoding import write_png
from mtu.runtime.video.reader import Frame, Reader, ReadOptions
from mtu.runtime.video.sources import open_reader
from mtu.runtime.video.targets import open_writer
from mtu.runtime.video.timing import Segment, parse_rate
from mtu.runtime.video.writer import EncodeOptions, Writer

__all__ = [
    "Colour",
    "EncodeOptions",
    "Frame",
    "ReadOptions",
    "Reader",
    "Segment",
    "Writer",
    "open_reader",
    "open_writer",
    "parse_muxer_options",
    "parse_rate",
    "read_image",
    "write_png",
]
