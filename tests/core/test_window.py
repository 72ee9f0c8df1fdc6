"""The window over a sequence, against the plain rule: the frame at t + offset or at the end; padded, cut back."""

from __future__ import annotations

import numpy as np
import pytest

from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, Tensor
from mtu.core.window import Window, cut, pad, spread


def interface(offsets, size=Size(4, 4)) -> Interface:  # noqa: B008
    inputs = [
        Input(Tensor(f"at{index}", "uint8", (1, "H", "W", 3)), Frame("image", offset))
        for index, offset in enumerate(offsets)
    ]
    output = Output(Tensor("out", "uint8", (1, "H", "W", 3)), "picture")
    return Interface(family="x", variant="x", settings={}, graphs=(Graph("only", tuple(inputs), (output,)),), size=size)


@pytest.mark.parametrize("length", [1, 2, 3, 8])
@pytest.mark.parametrize("first", [0, 7])
@pytest.mark.parametrize("offsets", [(0,), (-1, 0), (0, 1), (-2, -1, 0, 1, 2), (3,), (-3,), (-4, 0, 1), (5, -5)])
def test_frames_are_clamped_to_the_sequence(offsets, first, length):
    frames = [np.full((4, 8, 3), number, np.uint8) for number in range(length)]
    window = Window(interface(offsets), first)
    taken = []
    for frame in frames:
        window.push(frame)
        if window.is_ready:
            taken.append(window.take())
    assert len(taken) == max(0, length - max(0, *offsets))  # as early as they can be
    while window.next < window.end:
        taken.append(window.take())
    for number, found in enumerate(taken):
        expected = [min(max(number + offset, 0), length - 1) for offset in offsets]
        assert [int(frame[0, 0, 0, 0]) for frame in found.values()] == expected
        assert all(frame.shape == (1, 4, 8, 3) for frame in found.values())
    assert len(taken) == length


def test_a_frame_is_the_same_array_each_time_and_goes_when_it_is_past():
    window = Window(interface((-1, 0, 1)))
    for number in range(4):
        window.push(np.full((4, 4, 3), number, np.uint8))
    first, second = window.take(), window.take()
    assert first["at2"] is second["at1"] and first["at1"] is second["at0"] and first["at0"] is first["at1"]
    window.take()
    assert min(window._held) == 2


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (3, 16), (17, 4)])
@pytest.mark.parametrize("rule", [Size(), Size(4, 4), Size(4, 12), Size(6, 6)])
def test_padding_repeats_the_last_row_and_column_and_is_cut_back(size, rule):
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    padded = pad(frame, rule)
    for y in range(padded.shape[0]):
        for x in range(padded.shape[1]):
            assert np.array_equal(padded[y, x], frame[min(y, size[0] - 1), min(x, size[1] - 1)])
    assert padded.shape[:2] == rule.padded(*size) and padded.flags.c_contiguous
    assert np.array_equal(cut(padded[None], Tensor("out", "uint8", (1, "H", "W", 3)), *size), frame)


@pytest.mark.parametrize(
    ("shape", "height", "expected"),
    [
        (("H",), 5, [0, 1, 2, 3, 4]),
        (("H/4",), 9, [0, 0, 0, 0, 1, 1, 1, 1, 2]),
        (("2*H",), 4, [0, 2, 4, 6]),
        (("3*H/2",), 4, [0, 1, 3, 4]),
        ((3,), 7, [0, 0, 0, 1, 1, 2, 2]),
    ],
)
def test_every_pixel_gets_the_value_at_its_place(shape, height, expected):
    tensor = Tensor("map", "float32", (1, *shape, "W"))
    rows = tensor.at(height, 2)[1]
    values = np.stack([np.arange(rows), np.full(rows, 50)], 1)
    found = spread(values, tensor, height, 2)
    assert found[:, 0].tolist() == expected and (found[:, 1] == 50).all() and found.shape == (height, 2)
    assert np.array_equal(spread(np.dstack([values] * 3), tensor, height, 2), np.dstack([found] * 3))
