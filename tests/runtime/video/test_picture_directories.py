"""Directories of pictures: what is checked before the first is restored, damage, rates, and kinds of files."""

from __future__ import annotations

import os
import shutil
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.media import Pixels, make_video, moving, times
from tests.video_run import frames_of, run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import Frame, ReadOptions, open_reader, parse_rate, read_picture, write_png
from mtu.runtime.video.pictures import reader as picture_reader_module

Image: Any = pytest.importorskip("PIL.Image", reason="writes the kinds of files (Pillow comes with scikit-image)")


def save(path: Path, rgb: Pixels, mode: str = "RGB", **options: Any) -> Path:
    Image.fromarray(rgb).convert(mode).save(path, **options)
    return path


def folder(path: Path, count: int = 4, height: int = 48, width: int = 64, ending: str = "png", **options: Any) -> Path:
    path.mkdir()
    for index, picture in enumerate(moving(count, height, width)):
        save(path / f"{index}.{ending}", picture, **options)
    return path


def exif(orientation: int) -> Any:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


@pytest.fixture
def never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object, **__: object) -> None:
        raise AssertionError("a picture was decoded before the headers were checked")

    monkeypatch.setattr(picture_reader_module, "decode_picture", decode)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("2.png", b"", r"2\.png is empty"),
        ("2.png", b"\x89PNG\r\n\x1a\n\0\0", r"2\.png .*header is damaged or cut off"),
        ("2.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0", r"2\.jpg .*header is damaged or cut off"),
        ("2.tif", b"II*\0\x08\0\0\0", r"2\.tif .*header is damaged or cut off"),
        ("2.webp", b"RIFF\x10\0\0\0WEBPVP8X", r"2\.webp .*header is damaged or cut off"),
        ("2.bmp", b"no picture at all", r"2\.bmp is not a picture"),
    ],
)
@pytest.mark.usefixtures("never_decoded")
def test_a_broken_header_is_named_before_anything_is_decoded(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    source = folder(tmp_path / "in", 2)
    (source / name).write_bytes(content)
    with pytest.raises(InvalidInputError, match=f"1 of 3 pictures cannot be read: .*{said}.*; remove or replace"):
        open_reader(source)


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp", "bmp", "ppm", "tga"])
@pytest.mark.usefixtures("never_decoded")
def test_another_size_is_named_before_anything_is_decoded(tmp_path: Path, ending: str) -> None:
    source = folder(tmp_path / "in", 3, ending=ending)
    for index in range(3, 9):
        save(source / f"{index}.{ending}", moving(1, 40, 80)[0])
    with pytest.raises(
        InvalidInputError, match=rf"3\.{ending} is 80x40, .*6\.{ending} is 80x40 and 2 more, but 0\.{ending} is 64x48"
    ):
        open_reader(source)


def test_each_picture_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, decoded = folder(tmp_path / "in"), []
    decode = picture_reader_module.decode_picture

    def counting(path: Path, **options: Any) -> Any:
        decoded.append(path.name)
        return decode(path, **options)

    monkeypatch.setattr(picture_reader_module, "decode_picture", counting)
    with open_reader(source) as reader:
        assert len(frames_of(reader)) == 4
    assert decoded == ["0.png", "1.png", "2.png", "3.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_orientations_count_for_the_size(tmp_path: Path, orientation: int, ending: str) -> None:
    picture = moving(1)[0]
    (tmp_path / "in").mkdir()
    smooth = {"quality": 95, "subsampling": 0} if ending == "jpg" else {}
    turned = save(tmp_path / "in" / f"a.{ending}", picture, exif=exif(orientation), **smooth)
    shown = picture
    shown = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.swapaxes(0, 1),
        6: np.rot90(shown, -1),
        7: shown[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(shown),
    }[orientation]
    assert np.abs(read_picture(turned).astype(int) - shown).max() <= (16 if ending == "jpg" else 0)
    # The upright one of the same size as shown fits, the other does not.
    save(tmp_path / "in" / "b.png", np.ascontiguousarray(shown))
    with open_reader(tmp_path / "in") as reader:
        assert len(frames_of(reader)) == 2
    save(tmp_path / "in" / "b.png", np.ascontiguousarray(shown.swapaxes(0, 1)))
    with pytest.raises(InvalidInputError, match=r"b\.png is"):
        open_reader(tmp_path / "in")


def test_an_orientation_behind_the_pixels_counts(tmp_path: Path) -> None:
    picture = moving(1)[0]
    path = save(tmp_path / "a.png", picture, exif=exif(6))
    data = path.read_bytes()
    at = data.index(b"eXIf") - 4
    size = 12 + int.from_bytes(data[at : at + 4], "big")
    end = data.index(b"IEND") - 4
    path.write_bytes(data[:at] + data[at + size : end] + data[at : at + size] + data[end:])
    assert np.array_equal(read_picture(path), np.rot90(picture, -1))
    with open_reader(path) as reader:
        assert (reader.info.width, reader.info.height) == (48, 64)


def broken(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "cut":
        data = data[: len(data) * 2 // 3]
    else:
        data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("ending", "how", "kept"),
    [
        ("png", "cut", False),
        ("png", "zeros", False),
        ("jpg", "cut", True),
        ("webp", "cut", False),
        ("tif", "cut", False),
    ],
)
@pytest.mark.parametrize("which", [0, 2])
def test_broken_data_is_damage(tmp_path: Path, ending: str, how: str, kept: bool, which: int) -> None:
    source = folder(tmp_path / "in", ending=ending)
    broken(source / f"{which}.{ending}", how)
    result = run(source, tmp_path / "out")
    assert result.damage is not None and f"{which}.{ending}" in result.damage
    assert ("kept as far as they go" in result.damage) == kept
    # The others keep their names.
    left = [f"{index}.png" for index in range(4) if kept or index != which]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == left
    for name in left:
        if name != f"{which}.png":
            want = read_picture(source / f"{Path(name).stem}.{ending}")
            assert np.array_equal(read_picture(tmp_path / "out" / name), want)


def test_a_picture_left_out_leaves_a_gap_in_the_video(tmp_path: Path) -> None:
    source = folder(tmp_path / "in")
    broken(source / "1.png", "cut")
    assert "1 of 4 pictures are left out" in run(source, tmp_path / "out.mkv", read=ReadOptions(rate=Fraction(10))).text
    assert times(tmp_path / "out.mkv") == [0, Fraction(2, 10), Fraction(3, 10)]


def test_not_one_picture_can_be_decoded(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 2)
    for path in source.iterdir():
        broken(path, "cut")
    with pytest.raises(InvalidInputError, match="not one picture could be decoded"):
        open_reader(source)


def test_a_broken_picture_is_no_calibration_picture(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", moving(1, 240, 320)[0])
    broken(path, "cut")
    with pytest.raises(InvalidInputError, match="not a picture that can be read"):
        read_picture(path)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("24", 24),
        ("30000/1001", Fraction(30000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("12.5", Fraction(25, 2)),
        ("1/2", Fraction(1, 2)),
    ],
)
def test_rate_of_a_directory(tmp_path: Path, text: str, rate: Fraction) -> None:
    source = folder(tmp_path / "in", 3)
    result = run(source, tmp_path / "out.mov", read=ReadOptions(rate=parse_rate(text)))
    assert "no timing" not in result.text
    assert times(tmp_path / "out.mov") == [0, Fraction(1) / rate, Fraction(2) / rate]


@pytest.mark.parametrize("text", ["0", "-5", "1/0", "fast", "1001", "nan", ""])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(InvalidInputError, match="give pictures per second above 0"):
        parse_rate(text)


@pytest.mark.parametrize("name", ["in.mp4", "in.gif"])
def test_a_video_takes_no_rate(tmp_path: Path, name: str) -> None:
    source = make_video(tmp_path / "in.mp4", 3)
    if name == "in.gif":
        run(source, tmp_path / name)
    with pytest.raises(InvalidInputError, match="--rate is for pictures, which have no times"):
        open_reader(tmp_path / name, ReadOptions(rate=Fraction(30)))


@pytest.mark.parametrize(
    ("name", "mode", "options", "said"),
    [
        ("a.jpg", "CMYK", {}, "CMYK"),
        ("a.png", "LA", {}, "alpha"),
        ("a.png", "RGBA", {}, "alpha"),
        ("a.jpg", "L", {}, ""),
        ("a.png", "1", {}, ""),
        ("a.jpg", "RGB", {"progressive": True}, ""),
    ],
)
def test_kinds_of_pixels(tmp_path: Path, name: str, mode: str, options: dict[str, Any], said: str) -> None:
    picture = moving(1)[0]
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / name, picture, mode, **options)
    want = np.asarray(Image.open(tmp_path / "in" / name).convert("RGB")).astype(int)
    with open_reader(tmp_path / "in") as reader:
        assert np.abs(frames_of(reader)[0].rgb - want).mean() <= 8
        assert said in " ".join(reader.info.notes)
        assert said == "alpha" or "alpha" not in " ".join(reader.info.notes)


def test_what_is_new_in_a_later_picture_is_said(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 2)
    save(source / "2.png", moving(1)[0], "RGBA")
    assert "2.png: the source has an alpha channel" in run(source, tmp_path / "out").text


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.tif", {}), ("a.tif", {"compression": "tiff_lzw"}), ("a.jpg", {"format": "MPO", "subsampling": 0})],
)
def test_further_pages_are_said(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    pictures = [Image.fromarray(picture) for picture in moving(3)]
    pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], **options)
    want = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
    with open_reader(tmp_path / name) as reader:
        assert any(f"only the first is read: {name} (3)" in note for note in reader.info.notes)
        assert np.abs(frames_of(reader)[0].rgb - want).mean() < 4


def test_names_of_all_sorts(tmp_path: Path) -> None:
    source, picture = tmp_path / "a 100% %03d", moving(1)[0]
    source.mkdir()
    names = ["2%d.PNG", "10.Jpg", "ü ñ.TIFF", "1234567890123456789012345.png", "a:b.png", "#1?.bmp"]
    for name in names:
        save(source / name, picture)
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "x.png", picture)
    (source / "link.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (source / ".hidden.png").write_bytes(b"")
    (source / "Thumbs.db").write_bytes(b"")
    run(source, tmp_path / "out")
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == sorted(
        [*(Path(name).stem for name in names), "link"]
    )


@pytest.mark.parametrize("target", ["gone.png", "9.png"])
def test_a_link_to_nothing_is_named(tmp_path: Path, target: str) -> None:
    source = folder(tmp_path / "in", 2)
    (source / "9.png").symlink_to(target)
    with pytest.raises(InvalidInputError, match=r"1 of 3 pictures cannot be read: .*9\.png .*remove or replace"):
        open_reader(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_directories_are_no_pictures(tmp_path: Path) -> None:
    source = folder(tmp_path / "in", 2)
    os.mkfifo(source / "8.png")
    (source / "9.png").mkdir()
    with open_reader(source) as reader:
        assert reader.info.frame_count == 2


@pytest.mark.parametrize("after", ["gone", "empty", "directory"])
def test_a_picture_that_goes_meanwhile_is_left_out(tmp_path: Path, after: str) -> None:
    source = folder(tmp_path / "in")
    with open_reader(source) as reader:
        (source / "2.png").unlink()
        if after != "gone":
            (source / "2.png").mkdir() if after == "directory" else (source / "2.png").touch()
        assert [item.pts for item in reader if isinstance(item, Frame)] == [0, 1, 3]
        assert reader.damage is not None and "1 of 4 pictures are left out" in reader.damage


def test_formats_may_be_mixed_and_misnamed(tmp_path: Path) -> None:
    source, pictures = tmp_path / "in", moving(4)
    source.mkdir()
    for name, picture in zip(["0.png", "1.bmp", "2.tif", "3.webp"], pictures, strict=True):
        save(source / name, picture, **({"lossless": True} if name == "3.webp" else {}))
    shutil.move(source / "0.png", source / "0.jpg")
    with open_reader(source) as reader:
        assert all(
            np.array_equal(frame.rgb, picture) for frame, picture in zip(frames_of(reader), pictures, strict=True)
        )


def test_a_png_with_something_behind_it_is_whole(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", moving(1)[0])
    with (tmp_path / "a.png").open("ab") as file:
        file.write(b"something else" + struct.pack(">I", 7))
    assert np.array_equal(read_picture(tmp_path / "a.png"), moving(1)[0])
