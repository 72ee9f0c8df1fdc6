"""The options of an encoder: constant quality, visually lossless unless the user asks for another. Touches no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mtu.core.errors import InvalidInputError


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
_QUANTISED = frozenset(
    (
        *("mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "msmpeg4v2", "wmv1", "wmv2"),
        *("mjpeg", "speedhq", "h261", "h263", "h263p", "flv", "rv10", "rv20"),
    )
)
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


def choose_options(codec: str, wanted: Mapping[str, str], crf: float | None) -> tuple[dict[str, str], bool]:
    """The options of an encoder, and whether its quantiser is fixed (at the option qmin). Raises InvalidInputError."""
    options = {**DEFAULTS.get(codec, {}), **{key: str(value) for key, value in wanted.items()}}
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
    elif codec in _QUANTISED:
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
