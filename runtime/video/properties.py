"""What a picture and its stream carry besides pixels: orientation, a hidden border, stereo 3D, 360 degrees, HDR, alpha.

Reads what PyAV has decoded or opened; touches no files.
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from typing import Any

import av
from av.video.stream import VideoStream

from mtu.runtime.video.containers import matroska
from mtu.runtime.video.filters import Filter

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


def side_data(picture: av.VideoFrame) -> dict[str, bytes]:
    """What a picture carries besides its pixels, by FFmpeg's names; few with their content."""
    found: dict[str, bytes] = {}
    # PyAV (18.1) frees the text beside a colour profile twice, which ends the process: it must not see one.
    if _sieved(picture, "select") is not None:
        picture = _sieved(picture, "delete") or picture
        found["ICC_PROFILE"] = b""
    container: Any
    try:
        container = picture.side_data
    except ValueError:
        return found  # PyAV 18 fails on kinds that are newer than its list, such as EXIF
    kept = ("DISPLAYMATRIX", "STEREO3D")
    return found | {data.type.name: bytes(data) if data.type.name in kept else b"" for data in container}


def _sieved(picture: av.VideoFrame, mode: str) -> av.VideoFrame | None:
    """The picture if it has a colour profile (mode "select"), or without it ("delete"); its pixels are shared."""
    sieve = Filter("sidedata", f"mode={mode}:type=ICC_PROFILE")
    sieve.push(picture)
    found = sieve.pull()
    return None if found is None else found[1]


def display_matrix(picture: av.VideoFrame) -> tuple[int, ...] | None:
    """The display matrix of a decoded picture (9 integers, FFmpeg's layout), None if it has none or it does nothing."""
    data = side_data(picture).get("DISPLAYMATRIX")
    if data is not None:
        matrix = struct.unpack("9i", data[:36])
    else:
        # Degrees counterclockwise; all that is left where the side data cannot be read.
        turn = round(picture.rotation / 90) % 4
        a, b = [(65536, 0), (0, -65536), (-65536, 0), (0, 65536)][turn]
        matrix = (a, b, 0, -b, a, 0, 0, 0, 1 << 30)
    return None if matrix[:2] + matrix[3:5] == (65536, 0, 0, 65536) else matrix


def picture_notes(picture: av.VideoFrame, colour_notes: list[str], *, alpha: bool = True) -> list[str]:
    """What to say about a source with such a picture; `alpha` False: its alpha channel hides nothing."""
    notes = list(colour_notes)
    components = picture.format.components
    depth = max((component.bits for component in components), default=8)
    if depth > 8:
        notes.append(f"the source has {depth} bits per component: processed in 8 bits")
    if alpha and any(component.is_alpha for component in components):
        notes.append("the source has an alpha channel: dropped")
    if "ICC_PROFILE" in side_data(picture):
        notes.append("the source has a colour profile (ICC): dropped, the pixel values are kept as they are")
    return notes


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
    mode = stream.metadata.get("stereo_mode")
    data = side_data(picture).get("STEREO3D", b"")
    if mode is None and len(data) >= 8:
        kind, flags = struct.unpack("2i", data[:8])
        mode = _STEREO[kind][flags & 1] if kind in _STEREO else None
    return None if mode == "mono" else mode


def property_notes(picture: av.VideoFrame, stream: VideoStream) -> list[str]:
    """What of a stream's properties no output will have."""
    notes = []
    if stream.metadata.get("alpha_mode") == "1" and not any(part.is_alpha for part in picture.format.components):
        notes.append("the source has an alpha channel beside its pictures: dropped")
    lost = [_LOST[name] for name in side_data(picture) if name in _LOST]
    if lost:
        notes.append(f"cannot be carried over by this PyAV: {', '.join(lost)}")
    return notes
