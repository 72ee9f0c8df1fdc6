"""Colour of pictures: what a source is tagged with, what is used, and the conversions YUV <-> 8-bit RGB.

Imports PyAV and numpy, opens no files. Both conversions go through swscale with the matrix and the range spelt out and
its most accurate flags; flat patches agree with the ITU formulas within 2 levels (see test_video_colour.py).

Rule for untagged pictures: BT.601 up to 576 lines, BT.709 above; limited range, but full for gray and yuvj formats.
Chroma siting: swscale follows the siting that decoders tag (left for H.264, HEVC, VP9, MPEG-4), and takes untagged
pictures as centred. PyAV can neither read nor set the tag, and encoders write none, which means left; so results are
sited left, with a tag borrowed from a tiny decoded picture, except where the source was untagged: there the result is
centred too, so that the chroma planes stay where they were.
PQ and HLG are tags like any other: the code values are processed as they are, nothing is tone-mapped.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.format import VideoFormat
from av.video.plane import VideoPlane
from av.video.reformatter import VideoReformatter

Pixels = npt.NDArray[np.uint8]
"""One picture: uint8 [H, W, 3], RGB, full range."""

UNSPECIFIED = 2
"""H.273 code for an untagged matrix, primaries or transfer."""
RGB = 0
"""H.273 matrix code of RGB."""
LIMITED, FULL = 1, 2
"""FFmpeg's codes of the two ranges; 0 is untagged."""

# Untagged pictures with at most this many lines are BT.601.
_SD_LINES = 576
MATRICES = {0: "RGB", 1: "BT.709", 4: "FCC", 5: "BT.601", 6: "BT.601", 7: "SMPTE 240M", 9: "BT.2020"}
"""H.273 codes of the matrices that swscale knows, and their names."""
_UNSUPPORTED = {8: "YCgCo", 10: "BT.2020 constant luminance", 14: "ICtCp"}
_HDR = {16: "PQ", 18: "HLG"}
_PRIMARIES = {1: "BT.709", 5: "BT.601 (625)", 6: "BT.601 (525)", 7: "BT.601 (525)", 9: "BT.2020", 12: "P3"}
# Chromaticities of red, green and blue; the white of all is D65.
_CHROMATICITIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_WHITE = (0.3127, 0.3290)
_GAMMA = 2.4
# SWS_BICUBIC | SWS_FULL_CHR_H_INT | SWS_FULL_CHR_H_INP | SWS_ACCURATE_RND | SWS_BITEXACT
_FLAGS: Any = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000


@dataclass(frozen=True)
class Colour:
    """Colour description of a source, in H.273 codes: the matrix and range that are used, the rest as tagged."""

    matrix: int
    """0 for RGB sources, else one that swscale knows."""
    range: int
    """1 limited, 2 full."""
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    centred: bool = False
    """Whether the chroma of results lies in the middle of its pixels, not at their left."""

    @property
    def name(self) -> str:
        """Words for messages, such as "BT.709, limited range"."""
        return f"{MATRICES[self.matrix]}, {'full' if self.range == FULL else 'limited'} range"

    @property
    def light(self) -> str:
        """Words for the primaries and an HDR transfer, such as "BT.2020 primaries, PQ"; "" if they are not tagged."""
        known = _PRIMARIES.get(self.primaries)
        return ", ".join(filter(None, [known and f"{known} primaries", _HDR.get(self.transfer)]))

    @property
    def is_hdr(self) -> bool:
        """Whether the transfer is PQ or HLG."""
        return self.transfer in _HDR

    def encoded(self, height: int) -> Colour:
        """The colour in which pictures of `height` lines are encoded; RGB gets matrix and range of untagged ones."""
        return replace(self, matrix=_usual_matrix(height), range=LIMITED) if self.matrix == RGB else self


def _usual_matrix(height: int) -> int:
    """Of untagged pictures."""
    return 6 if height <= _SD_LINES else 1


def is_rgb(pix_fmt: VideoFormat) -> bool:
    """Whether a pixel format holds RGB, by palette or directly."""
    return pix_fmt.is_rgb or pix_fmt.has_palette or pix_fmt.is_bayer


def colour_of(picture: av.VideoFrame) -> tuple[Colour, list[str]]:
    """The colour of a decoded picture, and what the user should know about it."""
    tagged, used_range = int(picture.colorspace), int(picture.color_range)
    primaries, transfer = int(picture.color_primaries) or UNSPECIFIED, int(picture.color_trc) or UNSPECIFIED
    if is_rgb(picture.format):
        return Colour(RGB, FULL, primaries, transfer), []
    notes, name = [], picture.format.name
    gray = name.startswith(("gray", "ya"))
    if used_range not in (LIMITED, FULL):
        used_range = FULL if gray or name.startswith("yuvj") else LIMITED
    matrix = tagged
    if tagged == RGB or tagged not in MATRICES:
        matrix = 9 if tagged == 10 else _usual_matrix(picture.height)
        if tagged in (UNSPECIFIED, RGB, 3) and not gray:
            notes.append(f"colours are not tagged: {MATRICES[matrix]} is assumed ({picture.height} lines)")
        elif not gray:
            tag = _UNSUPPORTED.get(tagged, f"number {tagged}")
            notes.append(f"the colour matrix {tag} cannot be converted exactly: {MATRICES[matrix]} is used")
    if transfer in _HDR:
        notes.append(f"HDR ({_HDR[transfer]}): processed as it is and tagged the same, not tone-mapped")
    # yuvj formats without a left tag are JPEG: tagged as centred, read right, and written left like everything.
    centred = _is_centred(picture, matrix) and not name.startswith("yuvj")
    return Colour(matrix, used_range, primaries, transfer, centred), notes


def picture_of(rgb: Pixels) -> av.VideoFrame:
    """An rgb24 picture over the memory of `rgb`, which must not change while it is used."""
    rgb = np.ascontiguousarray(rgb)
    # PyAV takes the strides of a dimension of size 1, which mean nothing, for padding.
    share = rgb.strides == (rgb.shape[1] * 3, 3, 1)
    return av.VideoFrame.from_numpy_buffer(rgb, "rgb24") if share else av.VideoFrame.from_ndarray(rgb, "rgb24")


def pixels_of(plane: VideoPlane, channels: int = 1) -> Pixels:
    """The memory of a plane, uint8 [H, W * channels], without what pads its rows, which is not initialised."""
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width * channels]


class ToRGB:
    """Converts decoded pictures of one colour to RGB. Not for two threads at once."""

    def __init__(self, colour: Colour) -> None:
        self.colour = colour
        self._reformatter = VideoReformatter()

    def __call__(self, picture: av.VideoFrame, size: tuple[int, int] | None = None) -> Pixels:
        """uint8 [H, W, 3], RGB, full range, C-contiguous; scaled if another `size` (width, height) is given."""
        width, height = size or (picture.width, picture.height)
        if is_rgb(picture.format):
            rgb = self._reformatter.reformat(picture, width, height, format="rgb24", interpolation=_FLAGS)
        else:
            picture.colorspace, picture.color_range = self.colour.matrix or 6, self.colour.range
            rgb = self._reformatter.reformat(
                picture, width, height, format="rgb24", dst_color_range=FULL, interpolation=_FLAGS
            )
        return np.ascontiguousarray(rgb.to_ndarray())


class PrimariesChange:
    """Shows RGB of one set of primaries in another, for pictures that are not HDR. Grays stay as they are."""

    def __init__(self, source: int, target: int) -> None:
        """H.273 codes of primaries. Raises KeyError if one is unknown here."""
        matrix = np.linalg.inv(_to_xyz(_CHROMATICITIES[target])) @ _to_xyz(_CHROMATICITIES[source])
        self._matrix = matrix.T.astype(np.float32)
        self._linear = ((np.arange(256) / 255) ** _GAMMA).astype(np.float32)

    def __call__(self, rgb: Pixels) -> Pixels:
        """uint8 [H, W, 3]."""
        light = (self._linear[rgb] @ self._matrix).clip(0, 1)
        return (light ** np.float32(1 / _GAMMA) * 255 + 0.5).astype(np.uint8)


def primaries_change(source: Colour, target: Colour) -> PrimariesChange | None:
    """What shows pictures of `source` in the primaries of `target`, None where nothing has to be or can be done."""
    one, other = (_CHROMATICITIES.get(colour.primaries) for colour in (source, target))
    if one is None or other is None or one == other or source.is_hdr or target.is_hdr:
        return None
    return PrimariesChange(source.primaries, target.primaries)


def _to_xyz(chromaticities: tuple[tuple[float, float], ...]) -> npt.NDArray[np.float64]:
    """The matrix from linear RGB to XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in (*chromaticities, _WHITE)]).T
    return columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])


class FromRGB:
    """Converts RGB to pictures of one pixel format and colour. Not for two threads at once."""

    def __init__(self, pix_fmt: str, colour: Colour) -> None:
        self._pix_fmt, self._colour = pix_fmt, colour
        self._left = not colour.centred and _is_subsampled(VideoFormat(pix_fmt))
        self._carrier: av.VideoFrame | None = None
        self._rgb = is_rgb(VideoFormat(pix_fmt))
        self._reformatter = VideoReformatter()

    def __call__(self, rgb: Pixels) -> av.VideoFrame:
        """A new picture; `rgb` may be reused as soon as this returns."""
        picture = self._carry(rgb) if self._left else picture_of(rgb)
        if self._rgb:
            converted = self._reformatter.reformat(picture, format=self._pix_fmt, interpolation=_FLAGS)
            # Without a conversion the picture would still be the caller's memory.
            return av.VideoFrame.from_ndarray(rgb, "rgb24") if converted is picture else converted
        matrix, color_range = self._colour.matrix, self._colour.range
        picture.colorspace, picture.color_range = matrix, FULL
        converted = self._reformatter.reformat(
            picture, format=self._pix_fmt, dst_color_range=color_range, interpolation=_FLAGS
        )
        converted.colorspace, converted.color_range = matrix, color_range
        converted.pict_type = 0
        return converted

    def _carry(self, rgb: Pixels) -> av.VideoFrame:
        """An rgb24 picture with a copy of `rgb`, whose conversion is sited left; valid until the next call."""
        height, width = rgb.shape[:2]
        if self._carrier is None or (self._carrier.width, self._carrier.height) != (width, height):
            self._carrier = _left_picture().reformat(width=width, height=height, format="rgb24")
        pixels_of(self._carrier.planes[0], 3).reshape(rgb.shape)[:] = rgb
        return self._carrier


def _is_subsampled(form: VideoFormat) -> bool:
    return not is_rgb(form) and len(form.components) >= 3 and form.chroma_width(16) < 16


def _left_picture() -> av.VideoFrame:
    """A 16 x 16 picture that is tagged as sited left, which only a decoder can do: MPEG-4's always does."""
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 16, 16, "yuv420p", Fraction(1, 25)
    decoder = av.CodecContext.create("mpeg4", "r")
    # One thread each: others would give the picture later.
    encoder.thread_count = decoder.thread_count = 1
    packets = encoder.encode(av.VideoFrame(16, 16, "yuv420p")) + encoder.encode(None)
    return next(picture for packet in [*packets, None] for picture in decoder.decode(packet))


def _is_centred(picture: av.VideoFrame, matrix: int) -> bool:
    """Whether swscale takes the chroma of a picture as centred: converting with its tags is as without any."""
    if not _is_subsampled(picture.format):
        return False
    edges = np.zeros((16, 16, 3), np.uint8)
    edges[5:, 5:, 0] = 255
    own = picture.colorspace
    picture.colorspace = matrix
    tagged = picture.reformat(width=16, height=16, format="rgb24")
    picture.colorspace = own
    pixels_of(tagged.planes[0], 3)[:] = edges.reshape(16, 48)

    def chroma(source: av.VideoFrame) -> bytes:
        source.colorspace, source.color_range = 1, FULL
        converted = VideoReformatter().reformat(source, format="yuv420p", dst_color_range=FULL, interpolation=_FLAGS)
        return pixels_of(converted.planes[2]).tobytes()

    return chroma(tagged) == chroma(picture_of(edges))


def upright(picture: npt.NDArray[Any], matrix: tuple[int, ...]) -> npt.NDArray[Any]:
    """The picture, [H, W] or [H, W, 3], as a display matrix (see `quarter_turn`) shows it, without a copy."""
    a, b, _, c, d = matrix[:5]
    if a:
        return picture[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return picture.swapaxes(0, 1)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]


def quarter_turn(matrix: tuple[int, ...]) -> bool:
    """Whether a display matrix (9 integers, FFmpeg's layout) is one of the eight exact turns and flips."""
    a, b, _, c, d = (value if index == 2 else round(value / 65536, 3) for index, value in enumerate(matrix[:5]))
    return sorted(map(abs, (a, d))) + sorted(map(abs, (b, c))) in ([1, 1, 0, 0], [0, 0, 1, 1])


def swaps_sides(matrix: tuple[int, ...]) -> bool:
    """Whether a display matrix exchanges width and height."""
    return abs(matrix[0]) < abs(matrix[1])
