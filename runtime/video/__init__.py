"""Video in and out for `mtu-run`: everything goes through PyAV, no ffmpeg program is needed.

`open_reader` gives pictures as RGB with their own timestamps and the packets of all other streams; `open_writer` takes
both and writes a video, yuv4mpeg, or pictures. Maps (float32 [H, W] in [0, 1]) go the same ways, and exactly into a
directory of .npy files. The files, lowest first; each imports only from those above it (tests/test_layers.py):

Pictures, times and names
    containers/signatures     how files begin
    containers/table          what each container can hold, and what its demuxer tells
    colour                    the colours of pictures, YUV <-> RGB, quarter turns
    filters                   FFmpeg's filters on single pictures
    fields                    interlacing: which field comes first, marking it, deinterlacing
    timing                    segments, rates, timestamps that rise, timecodes
    tags                      names, languages and other words that containers keep of streams

What PyAV does not show of files
    containers/matroska       elements: crop, and where a file is broken
    containers/quicktime      boxes of MP4 and MOV: place of the index, and where a file is broken
    containers/mpegts         packets: where some are missing
    properties                orientation, crop, stereo 3D, HDR, alpha of a picture and its stream
    pictures/header           size, pages and animation of a picture file, without decoding it
    pictures/files            decoding a picture file; listing those of a directory

Reading
    source                    what the user asks of a source, what is known of it at once, its pictures
    damage                    what could not be read, in words
    normalise                 pictures that change inside a stream, as RGB of one size and colour
    subtitles                 text converted for a container; what is showing where a segment begins
    decoder                   a container, or yuv4mpeg from stdin: its packets, the pictures of one stream
    video_reader              what a video is, and its pictures and packets, of a segment
    pictures/reader           pictures of a directory, or a single one
    pictures/animated_webp    animated WebP, which FFmpeg does not decode
    streams                   further streams of pictures, in step with a source

Writing
    writer                    the interface of all targets, what the user asks of them, temporary files
    encoders                  encoder, pixel format, options of the encoder
    encoding                  all settings of the encoder, tried
    containers/muxer_options  options of the container
    trial                     what a container refuses, found out in memory
    track                     packets of one copied stream: times, ends, hidden parts
    copying                   all streams that are not processed
    video_writer              a container
    parts                     a container whose pictures several processes have encoded
    yuv4mpeg                  yuv4mpeg to stdout or a file
    pictures/encoding         PNG, JPEG and TIFF
    pictures/writer           a directory of pictures, or a single one

Both
    opening                   which of these a source or a target gets: `open_reader`, `open_writer`
"""

from mtu.runtime.video.colour import Colour
from mtu.runtime.video.containers.muxer_options import parse_muxer_options
from mtu.runtime.video.fields import Fields
from mtu.runtime.video.opening import open_reader, open_streams, open_writer
from mtu.runtime.video.pictures.encoding import write_png
from mtu.runtime.video.pictures.files import read_picture
from mtu.runtime.video.source import Frame, Reader, ReadOptions, SourceInfo
from mtu.runtime.video.streams import parse_streams
from mtu.runtime.video.timing import Segment, parse_rate
from mtu.runtime.video.writer import EncodeOptions, Writer

__all__ = [
    "Colour",
    "EncodeOptions",
    "Fields",
    "Frame",
    "ReadOptions",
    "Reader",
    "Segment",
    "SourceInfo",
    "Writer",
    "open_reader",
    "open_streams",
    "open_writer",
    "parse_muxer_options",
    "parse_rate",
    "parse_streams",
    "read_picture",
    "write_png",
]
