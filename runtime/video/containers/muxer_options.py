"""Options of containers: those that keep what the source has, and the user's, refused where the muxer takes none such.

Reads the beginning of the source's file; tries muxers in memory, and writes nothing.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import av
from av.container import OutputContainer
from av.stream import Stream

from mtu.core.errors import InvalidInputError
from mtu.runtime.video.containers.quicktime import index_is_first
from mtu.runtime.video.containers.table import container_of
from mtu.runtime.video.encoders import did_you_mean
from mtu.runtime.video.source import SourceInfo


def parse_muxer_options(items: Iterable[str]) -> dict[str, str]:
    """Options of a container from KEY=VALUE; a bare word is one of MP4's `movflags`, such as faststart."""
    options: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            key, value = "movflags", f"+{item}"
        joined = key == "movflags" and value[:1] in ("+", "-")
        options[key] = options.get(key, "") + value if joined else value
    return options


def kept_options(form: str, source: SourceInfo) -> dict[str, str]:
    """What `form` (FFmpeg's name of a container) needs to keep what the source has."""
    flags = []
    if container_of(form).quicktime and source.container is not None:
        # Apple's tags are lost unless they are asked for.
        if any(key.startswith("com.") for key in source.container.metadata):
            flags.append("use_metadata_tags")
        if "mp4" in source.container.format.name.split(",") and index_is_first(Path(source.name)):
            flags.append("faststart")
    options = {"movflags": "".join(f"+{flag}" for flag in flags)} if flags else {}
    option = container_of(form).loops
    if option is not None:
        # What is no animation yet plays for ever, as those who make one expect.
        plays = source.loops or 0
        if form == "gif":
            plays = {0: 0, 1: -1}.get(plays, plays - 1)  # its number is that of the repetitions; -1 is none
        options[option] = str(min(plays, 65535))
    return options


def add_options(
    container: OutputContainer, wanted: Mapping[str, str], add: Callable[[OutputContainer], Stream]
) -> None:
    """Add the user's options to those of a container, whose streams `add` is one of.

    Raises InvalidInputError for those that its muxer does not know, or does not take.
    """
    form, options = container.format.name, container.container_options
    row = container_of(form)
    for key, value in wanted.items():
        if not _is_known(form, key, value, add):
            own = f"; its own options: {', '.join(row.options.split())}" if row.options else ""
            hint = "; it is one of .mp4 and .mov" if key == "movflags" else did_you_mean(key, row.known_options)
            raise InvalidInputError(f"-m {key}: {form} has no such option{hint}{own}")
        flags = options.get(key, "") if key == "movflags" else ""
        options[key] = f"{flags}+{value}" if flags and value[:1] not in ("+", "-") else f"{flags}{value}"


def _is_known(form: str, key: str, value: str, add: Callable[[OutputContainer], Stream]) -> bool:
    """Whether the muxer knows an option; PyAV says so to a log only. Raises InvalidInputError for its value."""
    said: list[logging.LogRecord] = []

    def listen(record: logging.LogRecord) -> bool:
        said.append(record)
        return False

    log = logging.getLogger("av.container.output")
    log.addFilter(listen)
    trial = av.open(io.BytesIO(), "w", format=form, options={key: value})
    try:
        stream = add(trial)
        trial.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(
            f"-m {key}={value}: {form} does not take this value ({reason}); give one that FFmpeg's documentation of "
            f"the {form} muxer names"
        ) from None
    finally:
        log.removeFilter(listen)
    discard(trial, stream)
    return not said


def discard(container: OutputContainer, stream: Stream) -> None:
    """Close a container that has begun, and that nobody will read. `stream` is one of it.

    FFmpeg's muxer of fragmented MP4 ends the process where it is closed without a packet, so it gets one.
    """
    with suppress(av.FFmpegError, ValueError):
        if container_of(container.format.name).quicktime:
            packet = av.Packet(bytes(16))
            packet.stream, packet.pts, packet.dts = stream, 0, 0
            container.mux(packet)
    with suppress(av.FFmpegError, ValueError):
        container.close()
