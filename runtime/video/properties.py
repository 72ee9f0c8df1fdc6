"""What a stream says of its pictures besides size and colour: a hidden border, stereo 3D, 360 degrees, HDR, alpha.

Reads what PyAV has decoded or opened; touches no files.
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress

import av
from av.video.stream import VideoStream

from mtu.runtime.video import matroska
from mtu.runtime.video.images import side_data

# Side data of pictures that PyAV cannot hand to an encoder or a container.
_LOST = {
    "MASTERING_DISPLAY_METADATA": "HDR mastering metadata",
    "CONTENT_LIGHT_LEVEL": "HDR light levels",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "A53_CC": "closed captions inside the pictures",
    "SPHERICAL": "the projection of 360-degree pictures (players will show them flat)",
    "AFD": "the active format (AFD)",
}
# FFmpeg's numbers of stereo arrangements -> Matroska's names, as they are and with the views exchanged.
_STEREO = {
    1: ("left_right", "right_left"),
    2: ("top_bottom", "bottom_top"),
    3: ("block_lr", "block_rl"),
    4: ("checkerboard_lr", "checkerboard_rl"),
    6: ("row_interleaved_lr", "row_interleaved_rl"),
    7: ("col_interleaved_lr", "col_interleaved_rl"),
}
_IN_WEBM = {"left_right", "right_left", "top_bottom", "bottom_top"}


def hidden_border(stream: VideoStream) -> tuple[int, int, int, int]:
    """How many pixels at the top, bottom, left and right are not shown, as the container says (0 from most).

    PyAV does not tell, but FFmpeg's muxer writes it into a Matroska header.
    """
    header = io.BytesIO()
    with suppress(av.FFmpegError, ValueError), av.open(header, "w", format="matroska") as output:
        output.add_stream_from_template(stream, opaque=True)
        output.start_encoding()
    return matroska.crop(header, len(header.getvalue()))


def stereo_mode(picture: av.VideoFrame, stream: VideoStream) -> str | None:
    """How a picture holds two views, in Matroska's words, None if it holds one."""
    said = stream.metadata.get("stereo_mode")
    data = side_data(picture).get("STEREO3D", b"")
    if said is None and len(data) >= 8:
        kind, flags = struct.unpack("2i", data[:8])
        said = _STEREO[kind][flags & 1] if kind in _STEREO else None
    return None if said == "mono" else said


def keeps_stereo(container: str, mode: str) -> bool:
    """Whether a container can say so of a stream that is encoded here."""
    return container == "matroska" or (container == "webm" and mode in _IN_WEBM)


def property_notes(picture: av.VideoFrame, stream: VideoStream) -> list[str]:
    """What of a stream's properties no output will have."""
    notes = []
    if stream.metadata.get("alpha_mode") == "1" and not any(part.is_alpha for part in picture.format.components):
        notes.append("the source has an alpha channel beside its pictures: dropped")
    lost = [_LOST[name] for name in side_data(picture) if name in _LOST]
    if lost:
        notes.append(f"cannot be carried over by this PyAV: {', '.join(lost)}")
    return notes
