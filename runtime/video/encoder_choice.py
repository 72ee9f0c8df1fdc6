"""Which encoder a container gets, and which pixel format the encoder: what was asked for, or the nearest to the source.

Opens containers in memory to try them; touches no files.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable

import av
from av.codec import Codec
from av.container import OutputContainer
from av.video.format import VideoFormat

from mtu.core.errors import InvalidInputError
from mtu.runtime.video.colour import is_rgb

DEFAULT_CODEC = "libx264"
# What people call a codec -> the encoder.
_ALIASES = {
    "x264": "libx264",
    "avc": "libx264",
    "h264": "libx264",
    "x265": "libx265",
    "h265": "libx265",
    "hevc": "libx265",
    "vp8": "libvpx",
    "vp9": "libvpx-vp9",
    "av1": "libsvtav1",
    "prores": "prores_ks",
    "theora": "libtheora",
}
_RGB_FORMATS = ("gbrp", "rgb24", "bgr24", "bgr0", "rgb0", "bgra", "rgba", "rgb8")


def choose_codec(container: OutputContainer, wanted: str | None) -> Codec:
    """The encoder that was asked for, else the container's usual one. Raises InvalidInputError."""
    allowed = container.supported_codecs
    ending = container.format.name
    if wanted is None:
        default = container.default_video_codec
        # A transport stream does not say what it holds.
        general = DEFAULT_CODEC in allowed or ending == "mpegts"
        name = DEFAULT_CODEC if general else _ALIASES.get(default, default)
    else:
        name = _ALIASES.get(wanted, wanted)
    try:
        codec = Codec(name, "w")
    except ValueError:
        codec = None
    if codec is None or codec.type != "video":
        if wanted is None:
            raise InvalidInputError(f"{ending} files hold no video that can be encoded here: choose .mp4, .mkv or .mov")
        encoders = _video_encoders()
        usable = [encoder for encoder in encoders if encoder in allowed]
        raise InvalidInputError(
            f"there is no video encoder '{wanted}'{did_you_mean(wanted, encoders)}; for {ending}: {', '.join(usable)}"
        )
    if codec.name not in allowed and not holds(ending, codec.name):
        usable = [encoder for encoder in _video_encoders() if encoder in allowed]
        raise InvalidInputError(
            f"{ending} cannot hold {codec.name}: choose one of {', '.join(usable)}, or another ending"
        )
    return codec


def _video_encoders() -> list[str]:
    names = []
    for name in sorted(av.codecs_available):
        try:
            codec = Codec(name, "w")
        except ValueError:
            continue
        if codec.type == "video" and codec.name == name:
            names.append(name)
    return names


def choose_format(source: str, formats: list[str]) -> str:
    """The source's pixel format in 8 bits without alpha, if the encoder has it, else the nearest usable one."""
    form = VideoFormat(source)
    if is_rgb(form):
        names = list(_RGB_FORMATS)
    elif source.startswith(("gray", "ya")) and not source.startswith("yuv"):
        names = ["gray"]
    else:
        # The chroma planes say which layout it is, whatever the name and the depth.
        width, height = form.chroma_width(16), form.chroma_height(16)
        layout = {(8, 8): "420", (8, 16): "422", (16, 16): "444", (16, 8): "440", (4, 16): "411", (4, 4): "410"}
        names = [f"yuv{layout.get((width, height), '420')}p"]
    names += ["yuv420p", "yuv422p", "yuv444p"]
    return next((name for name in names if name in formats or not formats), formats[0] if formats else "yuv420p")


def holds(container: str, codec: str) -> bool:
    """Whether a container takes a codec that it does not list."""
    with av.open(io.BytesIO(), "w", format=container) as probe:
        try:
            probe.add_stream(codec)
        except ValueError:
            return False
    return True


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)" with what is known and close to a word; empty if nothing is."""
    close = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
