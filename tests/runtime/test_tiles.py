"""Tiles: where they lie, the session over them, how they are chosen; over a stand-in and a tiny network."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests.frames import moving_frames

from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.models.mtu import PRESETS, describe
from mtu.runtime import Session, open_backend
from mtu.runtime.backends import Finished
from mtu.runtime.tiles import TiledSession, Tiling, parse_tile


class Echo:
    """The picture is the frame, plus 1 with every frame that the states remember; the displacement, its red channel.

    A frame with a pixel of 255 makes states that are not finite, except as a first frame.
    """

    name, device = "echo", "none"

    def __init__(self, preset="mtu2", in_flight=0):
        self.interface = describe(PRESETS[preset])
        self.in_flight = in_flight
        self.shapes = set()
        self.firsts = 0

    def submit(self, graph, frames, states):
        frame = frames["frame"]
        self.shapes.add(frame.shape[1:3])
        assert all(each.flags.c_contiguous for each in frames.values())
        age = next((state + 1 for state in states.values()), 0)
        self.firsts += age == 0
        outputs = {"output": frame + np.uint8(age)}
        if self.interface.the("displacement"):
            outputs["displacement"] = frame[:, ::4, ::4, 0].astype(np.int32)
        bad = ["motion"] if age and frame.max() == 255 else []
        return Finished(dict.fromkeys(self.interface.states, age), outputs, bad)


def random_frames(count, height, width, seed=0):
    return list(np.random.default_rng(seed).integers(0, 200, (count, height, width, 3), np.uint8))


def collect(session, frames):
    return [r for frame in frames for r in session.push(frame)] + session.flush()


def assert_same(got, expected):
    assert [r.index for r in got] == [r.index for r in expected]
    for ours, theirs in zip(got, expected, strict=True):
        assert np.array_equal(ours.rgb, theirs.rgb), ours.index
        assert (ours.displacement is None) == (theirs.displacement is None)
        assert ours.displacement is None or np.array_equal(ours.displacement, theirs.displacement), ours.index


@pytest.mark.parametrize("length", [4, 8, 40, 44, 100, 360, 1080, 2160, 3840, 4096])
@pytest.mark.parametrize(
    ("tile", "overlap"), [(16, 8), (20, 8), (32, 0), (64, 24), (256, 128), (720, 128), (5000, 128)]
)
def test_tiles_cover_each_pixel_once_and_keep_their_distance(length, tile, overlap):
    tiling = Tiling((length, 4), (tile, 4), overlap)
    spans = tiling.rows
    whole = max(length, tile)
    assert list(itertools.chain(*(range(s.first, s.last) for s in spans))) == list(range(whole))
    assert spans[0].start == 0 and spans[-1].start + tile == whole
    for span in spans:
        assert span.start % 4 == span.first % 4 == span.last % 4 == 0
        assert span.first == 0 or span.first - span.start >= overlap // 2
        assert span.last == whole or span.start + tile - span.last >= overlap // 2
    assert tile >= length or (len(spans) - 1) * (tile - overlap) < length - overlap  # one fewer would not do


@pytest.mark.parametrize("in_flight", [0, 1])
@pytest.mark.parametrize("preset", ["mtu1", "mtu2"])
@pytest.mark.parametrize(
    ("size", "tile"),
    [
        ((48, 64), (48, 36)),  # 1x2
        ((64, 48), (36, 48)),  # 2x1
        ((47, 63), (24, 32)),  # odd
        ((1, 70), (4, 32)),  # a row of one pixel
        ((70, 1), (32, 4)),
        ((33, 31), (16, 40)),  # a tile wider than the frame
        ((48, 64), (48, 64)),
        ((20, 20), (64, 64)),
        ((101, 67), (20, 28)),
    ],
)
def test_tiles_give_what_the_whole_frame_gives(size, tile, preset, in_flight):
    frames = random_frames(6, *size)
    backend = Echo(preset, in_flight)
    tiled = TiledSession(backend, Tiling(size, tile, 8), scene_threshold=None)
    assert_same(collect(tiled, frames), collect(Session(Echo(preset, in_flight), scene_threshold=None), frames))
    assert backend.shapes == {tile}  # one engine is enough
    assert tiled.max_displacement == (0 if preset == "mtu1" else 10)


@pytest.mark.parametrize("in_flight", [0, 1])
def test_results_come_as_late_as_those_of_a_session(in_flight):
    frames = random_frames(6, 32, 48)
    tiled = TiledSession(Echo(in_flight=in_flight), Tiling((32, 48), (32, 28), 8), scene_threshold=None)
    whole = Session(Echo(in_flight=in_flight), scene_threshold=None)
    for frame in frames:
        assert [r.index for r in tiled.push(frame)] == [r.index for r in whole.push(frame)]
    assert [r.index for r in tiled.flush()] == [r.index for r in whole.flush()]
    assert tiled.flush() == []
    assert tiled.inference_seconds > 0


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_cut_is_found_on_the_whole_frame_and_ends_the_scene_of_every_tile(in_flight):
    """Only the right third changes: of whole frames that is a cut, of the left tile alone it is none."""
    frames = [np.full((32, 96, 3), 20, np.uint8) for _ in range(9)]
    for frame in frames[5:]:
        frame[:, 40:] = 180
    backend = Echo(in_flight=in_flight)
    tiled = TiledSession(backend, Tiling((32, 96), (32, 40), 8))
    whole = Session(Echo(in_flight=in_flight))
    assert_same(collect(tiled, frames), collect(whole, frames))
    assert tiled.cuts == whole.cuts == [5]
    assert backend.firsts == 2 * 3


def test_what_is_not_finite_is_redone_in_its_tile_alone():
    frames = random_frames(7, 32, 96)
    frames[3][0, 0] = 255  # in the first tile, and in no other
    frames[5][0, 95] = 255  # in the last
    tiled = TiledSession(Echo(), Tiling((32, 96), (32, 40), 8), scene_threshold=None)
    got = collect(tiled, frames)
    assert tiled.redone == [3, 5]
    assert [int(r.rgb[31, 0, 1]) - int(f[31, 0, 1]) for r, f in zip(got, frames, strict=True)] == [0, 1, 2, 0, 1, 2, 3]
    assert [int(r.rgb[31, 50, 1]) - int(f[31, 50, 1]) for r, f in zip(got, frames, strict=True)] == [*range(7)]
    strict = TiledSession(Echo(), Tiling((32, 96), (32, 40), 8), scene_threshold=None, strict=True)
    with pytest.raises(NonFiniteError, match="at frame 3"):
        collect(strict, frames)


def test_reset_forgets_the_stream_in_every_tile():
    frames = random_frames(4, 32, 48)
    backend = Echo()
    tiled = TiledSession(backend, Tiling((32, 48), (32, 28), 8), scene_threshold=None)
    for frame in frames:
        tiled.push(frame)
    tiled.reset()
    assert [r.index for r in collect(tiled, frames[:1])] == [4]
    assert backend.firsts == 4


def test_frames_may_be_changed_after_push():
    frames = random_frames(5, 48, 32)
    tiled = TiledSession(Echo(), Tiling((48, 32), (28, 32), 8), scene_threshold=None)
    expected = collect(Session(Echo(), scene_threshold=None), frames)
    got = []
    for frame in frames:
        again = frame.copy()
        got += tiled.push(again)
        again[:] = 7
    assert_same(got + tiled.flush(), expected)


@pytest.mark.parametrize(
    ("size", "tile"), [((5, 6), (8, 8)), ((30, 9), (16, 12)), ((9, 30), (20, 16)), ((1, 1), (4, 4))]
)
def test_the_last_pixels_are_repeated_where_tiles_reach_further(size, tile):
    given = []

    class Watched(Echo):
        def submit(self, graph, frames, states):
            given.append(frames["frame"][0])
            return super().submit(graph, frames, states)

    (frame,) = random_frames(1, *size)
    tiling = Tiling(size, tile, 8)
    collect(TiledSession(Watched(), tiling), [frame])
    large = np.pad(frame, ((0, 40), (0, 40), (0, 0)), mode="edge")
    places = itertools.product(tiling.rows, tiling.columns)
    expected = [large[row.start : row.start + tile[0], column.start : column.start + tile[1]] for row, column in places]
    assert np.array_equal(given, expected)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (np.zeros((32, 52, 3), np.uint8), "frame 1 is 52x32, the frames before are 48x32"),
        (np.zeros((32, 48, 3), np.float32), r"frame 1 is float32 \[32, 48, 3\]"),
        (np.zeros((32, 48), np.uint8), r"frames are uint8 \[H, W, 3\]"),
        ("frame", "frame 1 is a str"),
    ],
)
def test_wrong_frames(frame, message):
    tiled = TiledSession(Echo(), Tiling((32, 48), (32, 28), 8))
    tiled.push(np.zeros((32, 48, 3), np.uint8))
    with pytest.raises(InvalidInputError, match=message):
        tiled.push(frame)


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (
            (252, 1280),
            r"tiles of 1280x252 \(WIDTHxHEIGHT\) are too small: .* share 128 .* at least 256 high, or as high",
        ),
        ((720, 128), "128x720 .* at least 256 wide, or as wide as the frame"),  # swallowed by the overlap
        ((718, 1280), r"1280x718 .*: both are multiples of 4, for example 1280x720"),
        ((0, 1280), "multiples of 4"),
        ((4, 4), "too small"),
    ],
)
def test_tiles_that_cannot_be(tile, message):
    with pytest.raises(InvalidInputError, match=message):
        Tiling((2160, 3840), tile)


@pytest.mark.parametrize(
    ("text", "choice"),
    [("auto", "auto"), ("off", "off"), ("1280x720", (720, 1280)), ("4x4", (4, 4)), ("640x2160", (2160, 640))],
)
def test_sizes_are_written_width_first(text, choice):
    assert parse_tile(text) == choice


@pytest.mark.parametrize("text", ["", "on", "1280", "1280*720", "0x720", "-4x720", "1280x720x3", "1280 x 720", "AUTO"])
def test_other_sizes_are_refused(text):
    with pytest.raises(InvalidInputError, match=r"--tile '.*': write auto, off, or WIDTHxHEIGHT, as in 1280x720"):
        parse_tile(text)


def test_a_network_sees_no_tiles_far_from_their_borders(small, one_thread):
    """Of frames that stand still, tiles and whole frames are equal but near the seam, and nearly equal there."""
    frames = [moving_frames(1, 40, 400)[0]] * 3
    backend = open_backend("onnxruntime", small, "cpu")
    tiling = Tiling((40, 400), (40, 264))
    tiled = collect(TiledSession(backend, tiling), frames)
    whole = collect(Session(backend), frames)
    backend.close()
    (seam,) = {span.last for span in tiling.columns} - {400}
    for ours, theirs in zip(tiled, whole, strict=True):
        away = np.abs(ours.rgb.astype(int) - theirs.rgb).max((0, 2))
        assert away.max() <= 2
        assert away[: seam - 64].max() == away[seam + 64 :].max() == 0
        assert np.array_equal(ours.displacement, theirs.displacement)
