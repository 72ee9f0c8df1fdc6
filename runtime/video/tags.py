"""What a container says of its streams in words: names, tags of formats, the kinds of pictures attached.

Plain data between containers; touches no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from av.stream import Disposition, Stream

from mtu.runtime.video.containers.signatures import signature_of
from mtu.runtime.video.containers.table import container_of

# Written by the muxer itself, or true of the source only.
_STALE = {"encoder", "duration", "major_brand", "minor_version", "compatible_brands", "vendor_id"}
# True of pictures that are copied; the writer says anew how encoded ones hold two views, and they have no alpha.
_OF_PICTURES = {"alpha_mode", "stereo_mode"}
_STATISTICS = ("bps", "number_of_frames", "number_of_bytes", "_statistics_")
# What software writes as the name of a track where nobody gave one: "SoundHandler", "Core Media Video", "vide".
_NO_NAME = re.compile(r"handle|^core media|produced by|^\W*$|^(vide|soun|sbtl|subt|text|tmcd|video|sound|audio)$", re.I)
# Of the two codes that ISO 639-2 has for a language, FFmpeg's MOV knows one, now the one, now the other.
_OTHER_CODES = (
    "sqi=alb hye=arm eus=baq mya=bur zho=chi nld=dut kat=geo deu=ger ell=gre isl=ice mkd=mac msa=may fas=per bod=tib"
    " cym=wel cze=ces fre=fra rum=ron slo=slk"
)
_MOV_LANGUAGES = dict(pair.split("=") for pair in _OTHER_CODES.split())
# What a player goes by when it chooses a stream, beside the default one.
_MARKS = "forced hearing_impaired visual_impaired comment dub original lyrics karaoke captions descriptions"


def kept_metadata(metadata: Mapping[str, str], *, encoded: bool = False) -> dict[str, str]:
    """Metadata to carry over into another file; of an encoded stream without the statistics of the source."""
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in _STALE
        and not (encoded and (key.lower() in _OF_PICTURES or key.lower().startswith(_STATISTICS)))
    }


def stream_metadata(metadata: Mapping[str, str], container: str, *, encoded: bool = False) -> dict[str, str]:
    """Metadata of a stream, with its name where `container` has names of tracks.

    MP4 and MOV have two, `name` (written as `title`) and the handler's name; all others have `title`. What
    software writes as the handler's name is none.
    """
    kept = kept_metadata(metadata, encoded=encoded)
    named = {key.lower(): kept.pop(key) for key in [*kept] if key.lower() in ("title", "name", "handler_name")}
    handler = named.get("handler_name", "")
    if _NO_NAME.search(handler):
        handler = ""
    name = named.get("title") or named.get("name") or handler
    if name:
        kept["title"] = name
    if container_of(container).quicktime and (handler or name):
        kept["handler_name"] = handler or name
    if container == "mov" and "language" in kept:
        kept["language"] = _MOV_LANGUAGES.get(kept["language"], kept["language"])
    return kept


def lost_tags(wanted: Mapping[str, str], back: Iterable[tuple[str, str]]) -> list[str]:
    """Tags that a container does not give back under any name, in lower case."""
    values = {value.strip() for _, value in back}
    return [key.lower() for key, value in wanted.items() if value.strip() not in values]


def lost_of_stream(wanted: Mapping[str, str], back: Iterable[tuple[str, str]]) -> str | None:
    """What a user misses of a stream's tags: "its name", "its language", both, or None."""
    lost = lost_tags({key: value for key, value in wanted.items() if (key, value) != ("language", "und")}, back)
    words = {"title": "its name", "handler_name": "its name", "language": "its language"}
    return " and ".join(dict.fromkeys(words[key] for key in lost if key in words)) or None


def lost_marks(wanted: Disposition, back: Disposition) -> str | None:
    """What a player no longer knows of a stream's use, such as "its mark forced"; None if nothing is lost."""
    names = [mark for mark in _MARKS.split() if Disposition[mark] & wanted & ~back]
    return f"its mark{'s' if len(names) > 1 else ''} {', '.join(names)}" if names else None


def set_tag(stream: Stream, container: str, source: Stream | None = None) -> None:
    """Tag HEVC as `hvc1` in MP4 and MOV, which is what QuickTime, Photos and Safari play.

    A copied stream that is tagged `hev1` has parameter sets between its pictures, and keeps that tag.
    """
    context = stream.codec_context
    if not container_of(container).quicktime or context is None or context.codec.canonical_name != "hevc":
        return
    kept = source is not None and source.codec_context.codec_tag == "hev1"
    context.codec_tag = "hev1" if kept else "hvc1"


def attachment_of(stream: Stream, data: bytes) -> tuple[str, str]:
    """File name and type of an attached picture, as Matroska writes them; `data` counts more than the tag."""
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    found = signature_of(data[:16])
    if found is not None and found.kind:
        return tags.get("filename") or f"cover.{found.suffix}", f"image/{found.kind}"
    return tags.get("filename") or "cover.bin", tags.get("mimetype", "application/octet-stream")
