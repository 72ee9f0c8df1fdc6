"""Small generated test media: a video with any of sound, subtitles, chapters, attachments, tags and odd timing.

Writes only the paths it is given. Nothing here is a test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
FONT = b"\x00\x01\x00\x00 not a real font"
CHAPTERS = [
    {"id": 1, "start": 0, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "first"}},
    {"id": 2, "start": 200, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "second"}},
]
ASS_HEADER = b"""[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, OutlineColour, BackColour, Bold, Italic, Underline, \
StrikeOut, ScaleX, ScaleY, Spacing, Angle, BorderStyle, Outline, Shadow, Alignment, MarginL, MarginR, MarginV, Encoding
Style: Default,Arial,16,&Hffffff,&Hffffff,&H0,&H0,0,0,0,0,100,100,0,0,1,1,0,2,10,10,10,1

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
"""
# H.273 codes, for the colour arguments of make_video.
BT709, BT601, BT2020 = 1, 6, 9
PQ, HLG = 16, 18
LIMITED, FULL = 1, 2


def moving(count: int, height: int = 48, width: int = 64, seed: int = 0) -> list[Pixels]:
    """Smooth random pictures that move: a list of uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(30, 226, (height // 8 + 3, width // 8 + 3, 3))
    base = np.kron(coarse, np.ones((8, 8, 1))).astype(np.uint8)
    return [np.ascontiguousarray(base[i % 8 : i % 8 + height, i % 8 : i % 8 + width]) for i in range(count)]


def make_video(
    path: str | Path,
    frames: Sequence[Pixels] | int = 12,
    *,
    pts: Sequence[int | None] | None = None,
    time_base: Fraction = Fraction(1, 25),
    rate: Fraction | int = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    audio: bool | int = False,
    audio_codec: str = "aac",
    audio_start: float = 0.0,
    subtitles: str | Sequence[str] | bool = False,
    chapters: bool = False,
    attachment: bool = False,
    cover: bool = False,
    metadata: Mapping[str, str] | None = None,
    matrix: int = 2,
    color_range: int = 0,
    primaries: int = 2,
    transfer: int = 2,
    sar: Fraction | None = None,
    display_matrix: Sequence[int] | None = None,
    container_options: Mapping[str, str] | None = None,
    format: str | None = None,
) -> Path:
    """Write a video and return its path.

    `frames` is a list of uint8 [H, W, 3] or the number of generated ones; they are converted with the tagged matrix and
    range (BT.709 limited without tags). `pts` are in `time_base` units. `audio` is the number of audio streams, each of
    the video's length, in English, German, ...; `subtitles` names codecs (subrip, ass, mov_text, webvtt; True picks
    what the container holds), each with two lines of text. `audio_start` is in seconds.
    """
    path = Path(path)
    pictures = moving(frames) if isinstance(frames, int) else list(frames)
    height, width = pictures[0].shape[:2]
    stamps = list(pts) if pts is not None else list(range(len(pictures)))
    with av.open(str(path), "w", format=format, container_options=dict(container_options or {})) as out:
        video = out.add_stream(codec, rate=rate, options=dict(options or _lossless(codec)))
        video.width, video.height, video.pix_fmt = width, height, pix_fmt
        video.codec_context.time_base = video.time_base = time_base
        context = video.codec_context
        context.colorspace, context.color_range = matrix, color_range
        context.color_primaries, context.color_trc = primaries, transfer
        if sar is not None:
            context.sample_aspect_ratio = sar
        if display_matrix is not None:
            video.set_display_matrix(list(display_matrix))
        video.metadata["language"] = "eng"
        sounds = [_add_audio(out, audio_codec, index) for index in range(int(audio))]
        texts = [_add_subtitles(out, name) for name in _subtitle_codecs(subtitles, out.format.name)]
        in_header = cover and out.format.name == "matroska"
        image = out.add_stream("png", width=32, height=32, pix_fmt="rgb24") if cover and not in_header else None
        if image is not None:
            image.disposition = 1 << 10
        if in_header:
            out.add_attachment("cover.png", "image/png", _cover_png())
        if attachment:
            out.add_attachment("font.ttf", "application/x-truetype-font", FONT)
        if chapters:
            out.set_chapters(CHAPTERS)
        out.metadata.update(metadata or {})
        out.start_encoding()
        if image is not None:
            out.mux(image.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")))
        for number, stream in enumerate(texts):
            for line in range(2):
                out.mux(_text_packet(stream, f"text {number} {line}", 40 + 200 * line, 150))
        known = [stamp for stamp in stamps if stamp is not None] or [0]
        # Sound begins at 0, whatever the pictures do; on a clock that is far on it lasts as long as they do.
        zero = min(known) if min(known) * time_base > 60 else 0
        seconds = float((max(known) + 1 - zero) * time_base)
        for stream in sounds:
            _encode_audio(out, stream, audio_start, seconds)
        for picture, stamp in zip(pictures, stamps, strict=True):
            frame = yuv_frame(picture, pix_fmt, matrix if matrix in (1, 5, 6, 9) else BT709, color_range or LIMITED)
            frame.pts, frame.time_base = stamp, time_base
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        for stream in [*sounds, *([image] if image is not None else [])]:
            out.mux(stream.encode(None))
    return path


def yuv_frame(rgb: Pixels, pix_fmt: str, matrix: int, color_range: int) -> av.VideoFrame:
    """A picture of `pix_fmt` from RGB, with an H.273 matrix (1, 5, 6, 9) and range (1, 2)."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), "rgb24")
    if av.VideoFormat(pix_fmt).is_rgb:
        return frame.reformat(format=pix_fmt)
    flags: Any = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000
    frame.colorspace, frame.color_range = matrix, FULL
    converted = frame.reformat(format=pix_fmt, dst_color_range=color_range, interpolation=flags)
    converted.colorspace = matrix
    return converted


def packets(path: str | Path, kind: str, number: int = 0) -> list[tuple[int | None, bytes]]:
    """Timestamp and data of every packet of a stream ("audio", "subtitle", ...), in file order."""
    with av.open(str(path)) as source:
        streams = [stream for stream in source.streams if stream.type == kind]
        return [(packet.pts, bytes(packet)) for packet in source.demux(streams[number]) if packet.size]


def times(path: str | Path) -> list[Fraction]:
    """Presentation times of all pictures, in seconds."""
    with av.open(str(path)) as source:
        return [frame.pts * frame.time_base for frame in source.decode(video=0)]


def _cover_png() -> bytes:
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 32, 32, "rgb24", Fraction(1, 25)
    picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
    return b"".join(bytes(packet) for packet in encoder.encode(picture) + encoder.encode(None))


def _lossless(codec: str) -> dict[str, str]:
    return {
        "libx264": {"crf": "1", "preset": "ultrafast"},
        "libvpx-vp9": {"lossless": "1", "cpu-used": "8", "deadline": "realtime"},
    }.get(codec, {})


def _add_audio(out: Any, codec: str, index: int) -> Any:
    stream = out.add_stream(codec, rate=48000 if codec == "libopus" else 16000, layout="mono")
    stream.metadata["language"] = ["eng", "deu", "fra"][index % 3]
    return stream


def _encode_audio(out: Any, stream: Any, start: float, seconds: float) -> None:
    context = stream.codec_context
    context.open(strict=False)
    size = context.frame_size or 1024
    form = context.format.name
    samples = (np.sin(np.arange(size) / 20) * 0.2).astype(np.float32)
    data = samples if form.startswith("flt") else (samples * 32767).astype(np.int16)
    for first in range(0, int(seconds * context.sample_rate), size):
        frame = av.AudioFrame.from_ndarray(data[None], format=form, layout="mono")
        frame.sample_rate = context.sample_rate
        frame.pts, frame.time_base = first + round(start * context.sample_rate), Fraction(1, context.sample_rate)
        out.mux(stream.encode(frame))


def _subtitle_codecs(wanted: str | Sequence[str] | bool, container: str) -> list[str]:
    if wanted is True:
        return {"mp4": ["mov_text"], "mov": ["mov_text"], "webm": ["webvtt"]}.get(container, ["subrip"])
    return [] if not wanted else [wanted] if isinstance(wanted, str) else list(wanted)


def _add_subtitles(out: Any, codec: str) -> Any:
    stream = out.add_stream(codec)
    stream.codec_context.subtitle_header = ASS_HEADER
    stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
    stream.metadata["language"] = "ger"
    stream.metadata["title"] = f"{codec} text"
    return stream


def _text_packet(stream: Any, text: str, start: int, duration: int) -> av.Packet[Any]:
    """A subtitle packet; times in milliseconds."""
    body = text.encode()
    if stream.codec_context.name == "mov_text":
        body = len(body).to_bytes(2, "big") + body
    elif stream.codec_context.name in ("ass", "ssa"):
        body = f"0,0,Default,,0,0,0,,{text}".encode()
    packet = av.Packet(body)
    packet.pts = packet.dts = start
    packet.duration, packet.time_base = duration, Fraction(1, 1000)
    packet.stream = stream
    return packet
