"""The timing cache of mtu-build-engine on disk."""

from __future__ import annotations

import pytest

from mtu.core.errors import InvalidInputError
from mtu.export.timing_cache import check_timing_cache, read_timing_cache, write_timing_cache


@pytest.mark.parametrize("position", range(0, 200, 7))
def test_no_flipped_bit_of_a_timing_cache_reaches_tensorrt(tmp_path, position):
    path = tmp_path / "cache"
    write_timing_cache(path, "x", bytes(range(100)))
    content = bytearray(path.read_bytes())
    assert read_timing_cache(path, "x", pytest.fail) == bytes(range(100))
    content[position % len(content)] ^= 4
    path.write_bytes(content)
    said = []
    try:
        check_timing_cache(path)
    except InvalidInputError as error:
        assert "is no timing cache of mtu-build-engine and is not replaced" in str(error)
    else:
        assert read_timing_cache(path, "x", said.append) == b"" and len(said) == 1
