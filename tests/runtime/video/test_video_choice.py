"""Which of several video streams is processed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import pytest
from tests.media import moving
from tests.video_run import run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import ReadOptions, open_reader, write_png

SIZES = [(32, 32), (48, 32), (64, 32)]


def three(path: Path, *, default: set[int], cover: bool = False) -> Path:
    """A video with three video streams of different sizes, some marked default; with a cover before them or not."""
    with av.open(str(path), "w") as out:
        streams = [out.add_stream("mpeg4", rate=25, width=w, height=h) for w, h in SIZES]
        image = out.add_stream("png", width=16, height=16, pix_fmt="rgb24") if cover else None
        for number, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if number in default else av.stream.Disposition(0)
        if image is not None:
            image.disposition = av.stream.Disposition.attached_pic
            out.mux(image.encode(av.VideoFrame.from_ndarray(moving(1, 16, 16)[0], "rgb24")))
        for index in range(3):
            for stream, (w, h) in zip(streams, SIZES, strict=True):
                picture = av.VideoFrame.from_ndarray(moving(1, h, w, seed=index)[0], "rgb24")
                picture.pts, picture.time_base = index, Fraction(1, 25)
                out.mux(stream.encode(picture.reformat(format="yuv420p")))
        for stream in [*streams, *([image] if image is not None else [])]:
            out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("ending", ["mkv", "mp4", "mov"])
@pytest.mark.parametrize(("default", "chosen"), [({1}, 1), ({2}, 2), ({1, 2}, 1), ({0, 1, 2}, 0)])
def test_stream_marked_default_is_taken(tmp_path: Path, ending: str, default: set[int], chosen: int) -> None:
    source = three(tmp_path / f"in.{ending}", default=default)
    result = run(source, tmp_path / f"out.{ending}")
    assert f"3 video streams: number {chosen}, the first marked default, is processed" in result.text
    with av.open(str(tmp_path / f"out.{ending}")) as out:
        assert next((s.width, s.height) for s in out.streams.video) == SIZES[chosen]
        assert sorted((s.width, s.height) for s in out.streams.video) == SIZES


@pytest.mark.parametrize("number", [0, 1, 2])
def test_video_stream_is_chosen(tmp_path: Path, number: int) -> None:
    # A cover is a video stream to FFmpeg, but none that is counted here.
    source = three(tmp_path / "in.mp4", default={1}, cover=True)
    with open_reader(source, ReadOptions(video_stream=number)) as reader:
        assert (reader.info.width, reader.info.height) == SIZES[number]
        assert any(f"number {number} is processed, the others are copied" in note for note in reader.info.notes)


def test_none_is_marked(tmp_path: Path) -> None:
    source = three(tmp_path / "in.mkv", default=set())
    with open_reader(source) as reader:
        assert (reader.info.width, reader.info.height) == SIZES[0]
        assert any("number 0, the first, is processed" in note for note in reader.info.notes)


@pytest.mark.parametrize("number", [3, -1, 99])
def test_stream_that_is_not_there(tmp_path: Path, number: int) -> None:
    source = three(tmp_path / "in.mp4", default={0}, cover=True)
    with pytest.raises(InvalidInputError, match=rf"no video stream {number}: choose one of 0 \(mpeg4\), .*2 \(mpeg4\)"):
        open_reader(source, ReadOptions(video_stream=number))


def test_pictures_have_no_streams(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", moving(1)[0])
    with pytest.raises(InvalidInputError, match="leave out --video-stream"):
        open_reader(tmp_path, ReadOptions(video_stream=1))
