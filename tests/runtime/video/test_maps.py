"""Maps (float32 [H, W] in [0, 1]) as 16-bit gray pictures, gray videos and .npy files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.media import make_video, moving
from tests.video_run import frames_of

from mtu.core.errors import InvalidInputError, OutputError
from mtu.runtime.video import (
    EncodeOptions,
    Frame,
    SourceInfo,
    Writer,
    open_reader,
    open_writer,
    write_png,
)

HEIGHT, WIDTH = 48, 64
MAP = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
LEVELS = np.rint(MAP.astype(np.float64) * 65535).astype(np.uint16)


def stills(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        write_png(folder / name, moving(1)[0])
    return folder


def open_npy(folder: Path, info: SourceInfo, **options: Any) -> Writer:
    return open_writer(f"{folder}/", info, options=EncodeOptions(picture_format="npy"), maps=True, **options)


def write(writer: Writer, frames: list[Frame], values: np.ndarray[Any, Any] = MAP) -> list[str]:
    with writer:
        for frame in frames:
            writer.write(values, frame)
        writer.commit()
        return writer.notes


def gray(path: Path) -> np.ndarray[Any, Any]:
    """The values of a picture of 16 bits."""
    with av.open(str(path)) as file:
        picture = next(file.decode(video=0))
    assert picture.format.name in ("gray16be", "gray16le")
    return picture.to_ndarray().astype(np.uint16)


@pytest.mark.parametrize(("kind", "ending"), [("png", "png"), ("tiff", "tif"), (None, "png")])
def test_a_directory_holds_16_bits(tmp_path: Path, kind: Any, ending: str) -> None:
    with open_reader(stills(tmp_path / "in", "b2.png", "b10.png")) as reader:
        options = EncodeOptions(picture_format=kind)
        notes = write(open_writer(tmp_path / "out", reader.info, options=options, maps=True), frames_of(reader))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"b10.{ending}", f"b2.{ending}"]
    assert np.array_equal(gray(tmp_path / "out" / f"b10.{ending}"), LEVELS)
    assert not notes


@pytest.mark.parametrize(("ending", "options"), [("png", {}), ("tiff", {}), ("tif", {"compression_algo": "lzw"})])
def test_a_single_picture_holds_16_bits(tmp_path: Path, ending: str, options: dict[str, str]) -> None:
    with open_reader(stills(tmp_path / "in", "a.png") / "a.png") as reader:
        target = tmp_path / f"out.{ending}"
        write(open_writer(target, reader.info, options=EncodeOptions(options=options), maps=True), frames_of(reader))
    assert np.array_equal(gray(target), LEVELS)


def test_what_lies_outside_is_clipped_and_rounding_is_to_the_nearest(tmp_path: Path) -> None:
    values = np.zeros((HEIGHT, WIDTH), np.float32)
    values[0, :8] = [-1, 2, np.nan, np.inf, -np.inf, 0.5, 0.4 / 65535, 0.6 / 65535]
    with open_reader(stills(tmp_path / "in", "a.png")) as reader:
        write(open_writer(tmp_path / "out", reader.info, maps=True), frames_of(reader), values)
    assert gray(tmp_path / "out" / "a.png")[0, :8].tolist() == [0, 65535, 0, 65535, 0, 32768, 0, 1]


@pytest.mark.parametrize(("ending", "tolerance"), [("mp4", 4), ("mkv", 4), ("gif", 2), ("y4m", 2), ("apng", 1)])
def test_a_video_is_gray_and_says_what_is_lost(tmp_path: Path, ending: str, tolerance: int) -> None:
    target = tmp_path / f"out.{ending}"
    with open_reader(make_video(tmp_path / "in.mp4", moving(2))) as reader:
        notes = write(open_writer(target, reader.info, maps=True), frames_of(reader))
    assert sum("maps are written in gray with 8 bits" in note for note in notes) == 1
    with open_reader(target) as back:
        for frame in frames_of(back):
            assert np.abs(frame.rgb - 255.0 * MAP[..., None]).max() <= tolerance


def test_npy_is_exact(tmp_path: Path) -> None:
    values = MAP * 3 - 1
    with open_reader(make_video(tmp_path / "in.mp4", moving(2))) as reader:
        assert not write(open_npy(tmp_path / "out", reader.info), frames_of(reader), values)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.npy", "000001.npy"]
    back = np.load(tmp_path / "out" / "000001.npy", allow_pickle=False)
    assert back.dtype == np.float32
    assert np.array_equal(back, values)


@pytest.mark.parametrize("npy", [True, False])
def test_maps_are_turned_as_pictures_are(tmp_path: Path, npy: bool) -> None:
    quarter = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    with open_reader(stills(tmp_path / "in", "a.png")) as reader:
        info = replace(reader.info, display_matrix=quarter)
        out = tmp_path / "out"
        writer = open_npy(out, info) if npy else open_writer(out, info, maps=True)
        assert "turned upright" in " ".join(write(writer, frames_of(reader)))
    found = np.load(out / "a.npy") if npy else gray(out / "a.png")
    assert np.array_equal(found, np.rot90(MAP if npy else LEVELS, -1))


def test_a_directory_of_npy_files_is_replaced_as_one_of_pictures_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_reader(stills(tmp_path / "in", "a.png")) as reader:
        info, frames = reader.info, frames_of(reader)
    write(open_npy(out, info), frames)
    with pytest.raises(OutputError, match="exists and is not empty"):
        open_npy(out, info)
    write(open_npy(out, info, overwrite=True), frames, MAP / 2)
    assert np.array_equal(np.load(out / "a.npy"), MAP / 2)
    (out / "mine.txt").write_text("")
    with pytest.raises(OutputError, match=r"holds more than npy files \(mine.txt\)"):
        open_npy(out, info, overwrite=True)
    with pytest.raises(OutputError, match="holds the source"):
        open_npy(tmp_path, info)
    with open_npy(tmp_path / "left", info) as writer:
        writer.write(MAP, frames[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("name", ["out", "out.jpg"])
def test_jpg_is_refused(tmp_path: Path, name: str) -> None:
    options = EncodeOptions(picture_format="jpg")
    with (
        open_reader(stills(tmp_path / "in", "a.png")) as reader,
        pytest.raises(InvalidInputError, match="jpg pictures hold 8 bits"),
    ):
        open_writer(tmp_path / name, reader.info, options=options, maps=True)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(("maps", "said"), [(True, r"a map .* float32 \[48, 64\]"), (False, r"a picture .* uint8")])
def test_a_picture_is_no_map(tmp_path: Path, maps: bool, said: str) -> None:
    with open_reader(stills(tmp_path / "in", "a.png")) as reader:
        info: SourceInfo = reader.info
        (frame,) = frames_of(reader)
        with open_writer(tmp_path / "out", info, maps=maps) as writer, pytest.raises(ValueError, match=said):
            writer.write(frame.rgb if maps else MAP, frame)


def test_npy_is_for_maps(tmp_path: Path) -> None:
    options = EncodeOptions(picture_format="npy")
    with (
        open_reader(stills(tmp_path / "in", "a.png")) as reader,
        pytest.raises(InvalidInputError, match="npy files are for maps"),
    ):
        open_writer(tmp_path / "out", reader.info, options=options)
