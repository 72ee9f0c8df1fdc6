"""The elements of Matroska and WebM files: where their chain is broken, and what a header says of a track's picture.

Reads open files only. FFmpeg's demuxer goes on silently behind a broken place, and PyAV does not show the crop.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_EBML, _SEGMENT, _CLUSTER, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B
_VOID, _CRC, _SIGNATURE = 0xEC, 0xBF, 0x1B538667
# SeekHead, Info, Cues, Attachments, Chapters, Tags and those above.
_TOP = {0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, _TRACKS, _CLUSTER, _EBML, _SEGMENT}
_SIMPLE_BLOCK, _BLOCK_GROUP, _BLOCK = 0xA3, 0xA0, 0xA1
# Timestamp, SilentTracks, Position, PrevSize, EncryptedBlock and the blocks.
_IN_CLUSTER = {0xE7, 0x5854, 0xA7, 0xAB, 0xAF, _SIMPLE_BLOCK, _BLOCK_GROUP, _VOID, _CRC}
_TRACK, _TRACK_NUMBER, _VIDEO = 0xAE, 0xD7, 0xE0
# PixelCropTop, Bottom, Left, Right.
_CROP = (0x54BB, 0x54AA, 0x54CC, 0x54DD)
_STEP = 1 << 20


class _Element(NamedTuple):
    id: int
    content: int
    """Place in the file."""
    size: int | None
    """Of the content, None if it is not known: then it goes on until its parent ends."""

    def end(self, limit: int) -> int:
        return limit if self.size is None else self.content + self.size


def faults(file: BinaryIO, end: int) -> Iterator[tuple[int, str]]:
    """Places in a file of `end` bytes where its chain of elements is broken, and what is wrong there."""
    offset, limit, tracks = 0, end, set[int]()
    while offset < end:
        element = _element(file, offset)
        if offset >= limit:
            if element is None or element.id != _EBML:
                return  # what stands behind the segment is not read by anybody
            limit = end
        if element is not None and element.id == _SEGMENT:
            limit = element.end(end)
            if limit > end:
                yield end, f"it is cut off: {limit - end} bytes are missing"
                limit = end
            offset = element.content
            continue
        if element is None or element.id not in _TOP | {_VOID, _CRC, _SIGNATURE}:
            yield offset, "its structure is broken"
            offset = _next_top(file, offset + 1, limit)
            continue
        after = element.end(limit)
        if after > limit:
            yield offset, "it is cut off" if limit == end else "its structure is broken"
            offset = _next_top(file, offset + 1, limit)
            continue
        if element.id == _TRACKS:
            tracks = {_number(file, item) for item in _below(file, element, _TRACK, _TRACK_NUMBER)}
        if element.id == _CLUSTER:
            broken, after = _cluster(file, element, limit, tracks)
            if broken is not None:
                yield broken, "its structure is broken"
                following = _element(file, after) if after < limit else None
                if after < limit and (following is None or following.id not in _TOP | {_VOID}):
                    after = _next_top(file, broken + 1, limit)
        offset = after


def crop(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    """What the first video track of a file hides of its pictures: pixels at the top, bottom, left and right."""
    videos = _below(file, _Element(_EBML, 0, end), _SEGMENT, _TRACKS, _TRACK, _VIDEO)
    found = {item.id: _number(file, item) for video in videos[:1] for item in _children(file, video)}
    top, bottom, left, right = (found.get(kind, 0) for kind in _CROP)
    return top, bottom, left, right


def _vint(data: bytes, longest: int) -> int:
    """Length of the number that begins with `data`, 0 if none does."""
    length = 9 - data[0].bit_length() if data and data[0] else 0
    return length if length <= min(longest, len(data)) else 0


def _element(file: BinaryIO, offset: int) -> _Element | None:
    """The element at a place, None if there is none."""
    file.seek(offset)
    data = file.read(12)
    name = _vint(data, 4)
    length = _vint(data[name:], 8)
    if not name or not length:
        return None
    size = int.from_bytes(data[name : name + length], "big") & ((1 << 7 * length) - 1)
    unknown = size == (1 << 7 * length) - 1
    return _Element(int.from_bytes(data[:name], "big"), offset + name + length, None if unknown else size)


def _children(file: BinaryIO, parent: _Element) -> Iterator[_Element]:
    """The elements in one, as far as they can be read."""
    offset, end = parent.content, parent.end(1 << 62)
    while offset < end and (child := _element(file, offset)) is not None:
        yield child
        offset = child.end(end)


def _below(file: BinaryIO, parent: _Element, *path: int) -> list[_Element]:
    """The elements below one at the end of a path of kinds."""
    found = [parent]
    for kind in path:
        found = [child for each in found for child in _children(file, each) if child.id == kind]
    return found


def _number(file: BinaryIO, element: _Element) -> int:
    file.seek(element.content)
    return int.from_bytes(file.read(min(element.size or 0, 8)), "big")


def _cluster(file: BinaryIO, cluster: _Element, limit: int, tracks: set[int]) -> tuple[int | None, int]:
    """Where a cluster is broken, None if nowhere, and the place after it."""
    offset, end = cluster.content, cluster.end(limit)
    while offset < end:
        element = _element(file, offset)
        if cluster.size is None and element is not None and element.id in _TOP:
            return None, offset
        if element is None or element.id not in _IN_CLUSTER or element.size is None or element.end(end) > end:
            return offset, end
        if element.id == _CRC and offset == cluster.content and cluster.size is not None:
            return (None if _sum_is_right(file, element, end) else offset), end
        if not _is_whole(file, element, tracks):
            return offset, end
        offset = element.end(end)
    return None, end


def _is_whole(file: BinaryIO, element: _Element, tracks: set[int]) -> bool:
    """Whether a block belongs to a track, and a group of blocks is exactly filled by its parts."""
    if element.id == _BLOCK_GROUP:
        parts = list(_children(file, element))
        filled = parts[-1].end(1 << 62) if parts else element.content
        return filled == element.end(0) and all(_is_whole(file, part, tracks) for part in parts if part.id == _BLOCK)
    if element.id not in (_SIMPLE_BLOCK, _BLOCK) or not tracks:
        return True
    file.seek(element.content)
    data = file.read(8)
    length = _vint(data, 8)
    return length > 0 and int.from_bytes(data[:length], "big") & ((1 << 7 * length) - 1) in tracks


def _sum_is_right(file: BinaryIO, checksum: _Element, end: int) -> bool:
    """Whether what stands behind a checksum, up to `end`, has it."""
    file.seek(checksum.content)
    wanted = int.from_bytes(file.read(4), "little")
    offset, found = checksum.content + (checksum.size or 0), 0
    file.seek(offset)
    while offset < end:
        data = file.read(min(_STEP, end - offset))
        if not data:
            return False
        found, offset = zlib.crc32(data, found), offset + len(data)
    return found == wanted


def _next_top(file: BinaryIO, offset: int, limit: int) -> int:
    """The next place at which a cluster or another part of the segment begins."""
    names = re.compile(b"|".join(re.escape(kind.to_bytes(4, "big")) for kind in _TOP))
    while offset < limit:
        file.seek(offset)
        data = file.read(min(_STEP, limit - offset))
        for name in names.finditer(data):
            element = _element(file, offset + name.start())
            if element is not None and element.end(limit) <= limit:
                return offset + name.start()
        if len(data) < _STEP:
            break
        offset += _STEP - 3  # a name may lie across the end
    return limit
