"""Which encoder a container gets, its pixel format and its options: what was asked for, or what fits the source.

Quality is constant, visually lossless unless the user asks for another. Opens containers in memory to try them; touches
no files.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterable, Mapping
from typing import NamedTuple

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


class _Scale(NamedTuple):
    """A constant-quality scale, on which lower is better."""

    usual: int
    """Visually lossless."""
    first: int
    last: int
    whole: bool
    """Whether fractions would be rounded."""


# NVENC's is called cq. For libsvtav1 0 is none at all.
_CRF = {
    "libx264": _Scale(16, 0, 51, whole=False),
    "libx264rgb": _Scale(16, 0, 51, whole=False),
    "libx265": _Scale(18, 0, 51, whole=False),
    "libvpx": _Scale(6, 0, 63, whole=True),
    "libvpx-vp9": _Scale(20, 0, 63, whole=True),
    "libsvtav1": _Scale(20, 1, 63, whole=True),
    "libaom-av1": _Scale(20, 0, 63, whole=True),
}
_NVENC_CQ = _Scale(19, 0, 51, whole=False)
# MPEG-like encoders take a fixed quantiser instead.
_QUANTISER = _Scale(2, 1, 31, whole=True)
_QUANTISED = "mpeg1video mpeg2video mpeg4 msmpeg4 msmpeg4v2 wmv1 wmv2 mjpeg speedhq h261 h263 h263p flv rv10 rv20"
_QUANTISER_NAMES = frozenset(("q", "q:v", "qscale", "qscale:v"))
# Options that choose the quality themselves.
_QUALITY = _QUANTISER_NAMES | {"crf", "qp", "cq", "b", "b:v", "global_quality", "rc", "lossless"}
DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "libvpx-vp9": {"deadline": "good", "cpu-used": "4", "row-mt": "1"},
    "libvpx": {"deadline": "good", "cpu-used": "4"},
    "libwebp": {"quality": "90"},
    "libwebp_anim": {"quality": "90"},
    # It prints its own log to stderr otherwise.
    "libx265": {"x265-params": "log-level=none"},
}
"""Options by encoder, besides those of the quality."""


def choose_codec(container: OutputContainer, wanted: str | None) -> Codec:
    """The encoder that was asked for, else the container's usual one. Raises InvalidInputError."""
    allowed, ending, name = container.supported_codecs, container.format.name, wanted
    if name is None:
        # A transport stream does not say what it holds.
        general = DEFAULT_CODEC in allowed or ending == "mpegts"
        name = DEFAULT_CODEC if general else container.default_video_codec
    codec = _video_encoder(_ALIASES.get(name, name))
    if codec is None and wanted is None:
        raise InvalidInputError(f"{ending} files hold no video that can be encoded here: choose .mp4, .mkv or .mov")
    if codec is not None and (codec.name in allowed or holds(ending, codec.name)):
        return codec
    encoders = [each for each in sorted(av.codecs_available) if (found := _video_encoder(each)) and found.name == each]
    usable = ", ".join(encoder for encoder in encoders if encoder in allowed)
    if codec is None:
        raise InvalidInputError(
            f"there is no video encoder '{name}'{did_you_mean(name, encoders)}; for {ending}: {usable}"
        )
    raise InvalidInputError(f"{ending} cannot hold {codec.name}: choose one of {usable}, or another ending")


def _video_encoder(name: str) -> Codec | None:
    try:
        codec = Codec(name, "w")
    except ValueError:
        return None
    return codec if codec.type == "video" else None


def choose_format(source: str, formats: list[str]) -> str:
    """The source's pixel format in 8 bits without alpha, if the encoder has it, else the nearest usable one."""
    form = VideoFormat(source)
    if is_rgb(form):
        names = list(_RGB_FORMATS)
    elif source.startswith(("gray", "ya")):
        names = ["gray"]
    else:
        # The chroma planes say which layout it is, whatever the name and the depth.
        layout = {(8, 16): "422", (16, 16): "444", (16, 8): "440", (4, 16): "411", (4, 4): "410"}
        names = [f"yuv{layout.get((form.chroma_width(16), form.chroma_height(16)), '420')}p"]
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


def choose_options(codec: str, wanted: Mapping[str, str], crf: float | None) -> tuple[dict[str, str], bool]:
    """The options of an encoder, and whether its quantiser is fixed (at the option qmin). Raises InvalidInputError."""
    options = {**DEFAULTS.get(codec, {}), **wanted}
    if codec == "libx265" and "x265-params" in wanted:
        options["x265-params"] = f"{DEFAULTS[codec]['x265-params']}:{options['x265-params']}"
    chosen = _QUALITY & wanted.keys()
    if codec in _CRF or codec.endswith("_nvenc"):
        scale = _CRF.get(codec, _NVENC_CQ)
        key = "crf" if codec in _CRF else "cq"
        if crf is not None or not chosen:
            options[key] = f"{scale.usual if crf is None else crf:g}"
            if key == "cq":
                options["rc"] = "vbr"
        for name in {key, "qp"} & options.keys():
            flag = "--crf " if name == key and crf is not None else f"-e {name}="
            _check(codec, f"{flag}{options[name]}", options[name], scale)
    elif codec in _QUANTISED.split():
        if crf is not None or "global_quality" in chosen:
            given = "--crf" if crf is not None else "-e global_quality"
            raise InvalidInputError(f"{codec} takes no {given}: its quality is -e q=1 (best) to 31")
        if chosen <= _QUANTISER_NAMES:
            for name in chosen:
                options["qmin"] = options.pop(name)
                _check(codec, f"-e {name}={options['qmin']}", options["qmin"], _QUANTISER)
            return {"qmin": str(_QUANTISER.usual), **options}, True
    elif crf is not None:
        known = ", ".join(_CRF)
        raise InvalidInputError(f"{codec} has no --crf (these have: {known}, *_nvenc): use -e with its own options")
    return options, False


def _check(codec: str, given: str, value: str, scale: _Scale) -> None:
    # libx264 and libx265 take anything, and write the worst picture for it.
    try:
        number = float(value)
    except ValueError:
        number = -1
    if not scale.first <= number <= scale.last or (scale.whole and number % 1):
        what = "a whole number from " if scale.whole else ""
        raise InvalidInputError(
            f"{codec} refuses {given}: give {what}{scale.first} to {scale.last}, of which lower is better"
        )
