"""What a picture and its stream carry besides pixels: orientation, a hidden border, stereo 3D, 360 degrees, HDR, alpha.

Reads what PyAV has decoded or opened; touches no files.
"""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Carried:
    """What a decoded picture carries."""

    matrix: tuple[int, ...] | None
    """The display matrix (9 integers, FFmpeg's layout), None if there is none or it does nothing."""
    stereo: str | None
    """How it holds two views, in Matroska's words, None if it holds one."""
    profile: bool
    """Whether there is a colour profile (ICC)."""
    lost: list[str]
    """What no output will have, in words."""


def carried_by(picture: av.VideoFrame, stream: VideoStream | None = None) -> Carried:
    """What a picture carries besides its pixels; the tags of its stream count first."""
    # PyAV (18.1) frees the text beside a colour profile twice, which ends the process: it must not see one.
    profile = _sieved(picture, "select") is not None
    if profile:
        picture = _sieved(picture, "delete") or picture
    found: dict[str, bytes] = {}
    with suppress(ValueError):  # PyAV 18 fails on kinds that are newer than its list, such as EXIF
        container: Any = picture.side_data
        for data in container:
            name = data.type.name
            found[name] = bytes(data) if name in ("DISPLAYMATRIX", "STEREO3D") else b""
    if "DISPLAYMATRIX" in found:
        matrix = struct.unpack("9i", found["DISPLAYMATRIX"][:36])
    else:
        # Degrees counterclockwise; all that is left where the side data cannot be read.
        turn = round(picture.rotation / 90) % 4
        a, b = [(65536, 0), (0, -65536), (-65536, 0), (0, 65536)][turn]
        matrix = (a, b, 0, -b, a, 0, 0, 0, 1 << 30)
    stereo = None if stream is None else stream.metadata.get("stereo_mode")
    if stereo is None and len(found.get("STEREO3D", b"")) >= 8:
        kind, flags = struct.unpack("2i", found["STEREO3D"][:8])
        stereo = _STEREO[kind][flags & 1] if kind in _STEREO else None
    return Carried(
        None if matrix[:2] + matrix[3:5] == (65536, 0, 0, 65536) else matrix,
        None if stereo == "mono" else stereo,
        profile,
        [_LOST[name] for name in found if name in _LOST],
    )


def _sieved(picture: av.VideoFrame, mode: str) -> av.VideoFrame | None:
    """The picture if it has a colour profile (mode "select"), or without it ("delete"); its pixels are shared."""
    sieve = Filter("sidedata", f"mode={mode}:type=ICC_PROFILE")
    sieve.push(picture)
    found = sieve.pull()
    return None if found is None else found[1]


def picture_notes(
    picture: av.VideoFrame, colour_notes: list[str], carried: Carried, *, alpha: bool = True
) -> list[str]:
    """What to say about a source with such a picture; `alpha` False: its alpha channel hides nothing."""
    notes = list(colour_notes)
    depth = max((component.bits for component in picture.format.components), default=8)
    if depth > 8:
        notes.append(f"the source has {depth} bits per component: processed in 8 bits")
    if alpha and has_alpha(picture):
        notes.append("the source has an alpha channel: dropped")
    if carried.profile:
        notes.append("the source has a colour profile (ICC): dropped, the pixel values are kept as they are")
    return notes


def stream_notes(picture: av.VideoFrame, stream: VideoStream, carried: Carried) -> list[str]:
    """What of a video no output will have."""
    notes = []
    if stream.metadata.get("alpha_mode") == "1" and not has_alpha(picture):
        notes.append("the source has an alpha channel beside its pictures: dropped")
    if carried.lost:
        notes.append(f"cannot be carried over by this PyAV: {', '.join(carried.lost)}")
    return notes


def has_alpha(picture: av.VideoFrame) -> bool:
    """Whether one of its components is an alpha channel."""
    return any(component.is_alpha for component in picture.format.components)


def hidden_border(stream: VideoStream) -> tuple[int, int, int, int]:
    """How many pixels at the top, bottom, left and right are not shown, as the container says (0 from most).

    PyAV does not tell, but FFmpeg's muxer writes it into a Matroska header.
    """
    header = io.BytesIO()
    with suppress(av.FFmpegError, ValueError), av.open(header, "w", format="matroska") as output:
        output.add_stream_from_template(stream, opaque=True)
        output.start_encoding()
    return matroska.crop(header, len(header.getvalue()))
