"""Broken files that a demuxer reads without a word: they are called damaged, and whole files of all kinds are not."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from tests.media import make_video, moving
from tests.video_run import frames_of

from mtu.runtime.video import ReadOptions, Segment, open_reader
from mtu.runtime.video.damage import find_faults

SHORT = {"crf": "20", "g": "5", "preset": "ultrafast"}
WEBM = {"codec": "libvpx-vp9", "audio_codec": "libopus", "options": {"cpu-used": "8", "deadline": "realtime", "g": "5"}}
CLUSTERS = {"cluster_time_limit": "200"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "mkv": ("mkv", {"container_options": CLUSTERS, "subtitles": True}),
    "no-sums": ("mkv", {"container_options": {**CLUSTERS, "write_crc32": "0"}, "subtitles": True}),
    "webm": ("webm", {**WEBM, "container_options": CLUSTERS}),
    "live-webm": ("webm", {**WEBM, "container_options": {**CLUSTERS, "live": "1"}}),
    "fragments": ("mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
    "dash": ("mp4", {"container_options": {"movflags": "frag_keyframe+default_base_moof+delay_moov"}}),
    "ts": ("ts", {}),
    "m2ts": ("ts", {"container_options": {"mpegts_m2ts_mode": "1"}}),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    pictures = moving(30, 64, 96)
    made = {}
    for name, (ending, special) in KINDS.items():
        made[name] = make_video(folder / f"{name}.{ending}", pictures, audio=True, **{"options": SHORT, **special})
    return made


def damage_of(path: Path, segment: str | None = None) -> str | None:
    with open_reader(path, ReadOptions(segment=Segment.parse(segment) if segment else None)) as reader:
        frames_of(reader)
        return reader.damage


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_whole(clips: dict[str, Path], kind: str) -> None:
    assert damage_of(clips[kind]) is None
    with av.open(str(clips[kind])) as source:
        assert not find_faults(clips[kind], source.format.name)


def noise(data: bytearray, share: float, length: int = 400) -> bytes:
    at = int(len(data) * share)
    data[at : at + length] = random.Random(int(share * 100)).randbytes(length)
    return bytes(data)


def fragments(data: bytes) -> list[int]:
    return [at for at in range(len(data)) if data[at + 4 : at + 8] == b"moof"]


def without_packets(data: bytes, pid: int, wanted: slice, stride: int = 188) -> bytes:
    """A transport stream without some of the packets of one stream."""
    head = stride - 188
    packets = [data[at : at + stride] for at in range(0, len(data), stride)]
    mine = [i for i, p in enumerate(packets) if (p[head + 1] & 0x1F) << 8 | p[head + 2] == pid]
    lost = set(mine[wanted])
    return b"".join(packet for index, packet in enumerate(packets) if index not in lost)


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "noise-early": ("mkv", lambda d: noise(bytearray(d), 0.45), "structure is broken"),
    "noise-late": ("mkv", lambda d: noise(bytearray(d), 0.75), "structure is broken"),
    "noise-without-sums": ("no-sums", lambda d: noise(bytearray(d), 0.6), "structure is broken"),
    "a-byte-of-sound": ("mkv", lambda d: noise(bytearray(d), 0.55, 1), "structure is broken"),
    "bytes-missing": ("no-sums", lambda d: d[: len(d) // 2] + d[len(d) // 2 + 700 :], "structure is broken"),
    "bytes-added": ("webm", lambda d: d[: len(d) // 2] + bytes(300) + d[len(d) // 2 :], "structure is broken"),
    "webm-noise": ("webm", lambda d: noise(bytearray(d), 0.6), "structure is broken"),
    "webm-cut": ("webm", lambda d: d[: len(d) * 6 // 10], "cut off"),
    "live-webm-cut": ("live-webm", lambda d: d[: len(d) * 6 // 10], "cut off"),
    "live-webm-noise": ("live-webm", lambda d: noise(bytearray(d), 0.5, 3000), "structure is broken"),
    "fragment-cut": ("fragments", lambda d: d[: fragments(d)[3] + 900], "cut off"),
    "fragment-missing": ("fragments", lambda d: d[: fragments(d)[2]] + d[fragments(d)[3] :], "1 fragments are missing"),
    "fragment-overwritten": ("dash", lambda d: d[: fragments(d)[2]] + bytes(9) + d[fragments(d)[2] + 9 :], "broken"),
    "dash-cut": ("dash", lambda d: d[: len(d) - 500], "cut off"),
    "ts-one-packet": ("ts", lambda d: without_packets(d, 0x100, slice(40, 41)), "packets are missing"),
    "ts-many-packets": ("ts", lambda d: without_packets(d, 0x100, slice(40, 61)), "packets are missing"),
    "ts-sound": ("ts", lambda d: without_packets(d, 0x101, slice(2, 3)), "packets are missing"),
    "m2ts-one-packet": ("m2ts", lambda d: without_packets(d, 0x1011, slice(40, 41), 192), "packets are missing"),
    "ts-out-of-step": ("ts", lambda d: d[:20000] + d[20050:], "out of step"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_broken_files_are_called_damaged(tmp_path: Path, clips: dict[str, Path], name: str) -> None:
    kind, change, words = DAMAGES[name]
    source = tmp_path / f"bad{clips[kind].suffix}"
    source.write_bytes(change(clips[kind].read_bytes()))
    found = damage_of(source)
    assert found is not None and words in found


def test_only_damage_in_the_segment_counts(tmp_path: Path, clips: dict[str, Path]) -> None:
    source = tmp_path / "bad.mkv"
    source.write_bytes(noise(bytearray(clips["mkv"].read_bytes()), 0.2))
    assert damage_of(source) is not None and damage_of(source, "0:0.6") is not None
    with open_reader(source, ReadOptions(segment=Segment(1.08))) as reader:
        frames_of(reader)
        # The demuxer finds its way by the index, far behind the broken place.
        assert reader.damage is None or "broken" not in reader.damage


def joined(folder: Path, ending: str, parts: int) -> Path:
    """Files of other lengths behind each other, as `cat` does it."""
    data = b""
    for part in range(parts):
        one = make_video(
            folder / f"{part}.{ending}",
            7 + 5 * part,
            pts=[20 * part * (part + 1) + i for i in range(7 + 5 * part)],
            audio=True,
            audio_start=0.8 * part * (part + 1),
        )
        data += one.read_bytes()
    (folder / f"joined.{ending}").write_bytes(data)
    return folder / f"joined.{ending}"


def test_joined_transport_streams_are_whole(tmp_path: Path) -> None:
    assert not find_faults(joined(tmp_path, "ts", 5), "mpegts")


def test_joined_matroska_and_what_stands_behind_it(tmp_path: Path, clips: dict[str, Path]) -> None:
    assert not find_faults(joined(tmp_path, "mkv", 2), "matroska,webm")
    (tmp_path / "tail.mkv").write_bytes(clips["mkv"].read_bytes() + b"something else" * 9)
    assert damage_of(tmp_path / "tail.mkv") is None


def repeated(data: bytes) -> bytes:
    return b"".join(data[at : at + 188] * (1 + (at // 188 % 7 == 0)) for at in range(0, len(data), 188))


def test_packets_sent_twice_are_whole(tmp_path: Path, clips: dict[str, Path]) -> None:
    (tmp_path / "twice.ts").write_bytes(repeated(clips["ts"].read_bytes()))
    assert not find_faults(tmp_path / "twice.ts", "mpegts")


@pytest.mark.parametrize(
    ("ending", "special"),
    [
        ("mkv", {"pts": [0, 1, 2, 10, 11, 30, 31, 32, 33, 60]}),
        ("mp4", {"pts": [0, 1, 2, 10, 11, 30, 31, 32, 33, 60], "container_options": {"movflags": "frag_keyframe"}}),
        ("mkv", {"audio": True, "audio_start": 3.0}),
        ("ts", {"audio": True, "audio_start": 2.0}),
        ("mkv", {"frames": 4, "subtitles": ["subrip", "subrip"]}),
        ("webm", {**WEBM, "frames": 4, "subtitles": "webvtt"}),
        ("mp4", {"frames": 4, "subtitles": "mov_text"}),
        ("mp4", {"pts": [-3, -2, -1, 0, 1, 2, 3, 4, 5, 6], "audio": True}),
        ("mkv", {"time_base": Fraction(1, 1000), "pts": [0, 41, 83, 125, 166, 208, 250, 291, 333, 1375]}),
    ],
)
def test_strange_times_are_no_damage(tmp_path: Path, ending: str, special: dict[str, Any]) -> None:
    options = {"frames": 10, **special}
    assert damage_of(make_video(tmp_path / f"in.{ending}", options.pop("frames"), **options)) is None


def test_what_is_no_file_is_not_looked_at() -> None:
    assert find_faults(Path("/dev/null"), "mpegts") == [] == find_faults(Path(__file__), "avi")
