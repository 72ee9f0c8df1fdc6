"""Tests of mtu.calib.datasets. Writes only under tmp_path."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mtu.calib import datasets
from mtu.calib.datasets import LAYOUTS, TREES, Layout, Split, VideoPair, find_pairs, read_clip
from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.runtime.video import write_png

HEIGHT, WIDTH = 6, 8


def picture(number: int, *, sharp: bool, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """A picture that says which frame it is, in which of the two kinds, and where its left and its top are."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[...] = number, 200 if sharp else 100, 0
    frame[..., 2] = 16 * np.arange(height)[:, None] + np.arange(width)
    return frame


def write_frames(folder: Path, numbers: Iterable[int], *, sharp: bool, name: str = "{:05d}.png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        write_png(folder / name.format(number), picture(number, sharp=sharp))


def write_video(blurred: Path, sharp: Path, count: int = 3, name: str = "{:05d}.png") -> None:
    write_frames(blurred, range(count), sharp=False, name=name)
    write_frames(sharp, range(count), sharp=True, name=name)


def make_dvd(root: Path) -> Path:
    for video in ("IMG_0003", "720p_240fps_2", "720p_240fps_1", "IMG_0200", "IMG_0049"):
        folder = root / "DeepVideoDeblurring_Dataset" / "quantitative_datasets" / video
        write_video(folder / "input", folder / "GT")
    (root / "DeepVideoDeblurring_Dataset" / "qualitative_datasets" / "bicycle" / "input").mkdir(parents=True)
    return root / "DeepVideoDeblurring_Dataset"


def make_gopro(root: Path) -> Path:
    for part, video in (("train", "GOPR0372_07_00"), ("train", "GOPR0374_11_01"), ("test", "GOPR0384_11_00")):
        folder = root / "GOPRO_Large" / part / video
        write_video(folder / "blur_gamma", folder / "sharp", name="{:06d}.png")
        write_frames(folder / "blur", range(3), sharp=False, name="{:06d}.png")
    return root / "GOPRO_Large"


def make_reds(root: Path) -> Path:
    for part, video in (("train", "000"), ("train", "239"), ("val", "000")):
        folder = root / "REDS" / part
        write_video(folder / f"{part}_blur" / video, folder / f"{part}_sharp" / video, name="{:08d}.png")
    return root / "REDS"


MAKERS: dict[Layout, Callable[[Path], Path]] = {"dvd": make_dvd, "gopro": make_gopro, "reds": make_reds}
FOUND: dict[tuple[Layout, Split], list[str]] = {
    ("dvd", "train"): ["720p_240fps_1", "IMG_0200"],
    ("dvd", "test"): ["720p_240fps_2", "IMG_0003", "IMG_0049"],
    ("gopro", "train"): ["GOPR0372_07_00", "GOPR0374_11_01"],
    ("gopro", "test"): ["GOPR0384_11_00"],
    ("reds", "train"): ["000", "239"],
    ("reds", "test"): ["000"],
}


def names(pairs: list[VideoPair]) -> list[str]:
    return [pair.name for pair in pairs]


# --- what is found


@pytest.mark.parametrize(("layout", "split"), FOUND)
@pytest.mark.parametrize("above", [False, True])
def test_the_archives_as_they_are_unpacked(tmp_path: Path, layout: Layout, split: Split, above: bool) -> None:
    root = MAKERS[layout](tmp_path)
    pairs = find_pairs(layout, str(tmp_path) if above else root, split)
    assert names(pairs) == FOUND[layout, split]
    for pair in pairs:
        blurred, sharp = read_clip(pair, 0, 3)
        assert blurred.shape == sharp.shape == (3, HEIGHT, WIDTH, 3) and blurred.dtype == sharp.dtype == np.uint8
        assert (blurred[:, 0, 0, :2] == [(0, 100), (1, 100), (2, 100)]).all()
        assert (sharp[:, 0, 0, :2] == [(0, 200), (1, 200), (2, 200)]).all()


def test_each_layout_is_found_beside_the_others(tmp_path: Path) -> None:
    for maker in MAKERS.values():
        maker(tmp_path)
    for (layout, split), expected in FOUND.items():
        assert names(find_pairs(layout, tmp_path, split)) == expected


def test_gopro_takes_the_blur_with_gamma(tmp_path: Path) -> None:
    pair = find_pairs("gopro", make_gopro(tmp_path), "test")[0]
    assert {path.parent.name for path in pair.blurred} == {"blur_gamma"}
    assert {path.parent.name for path in pair.sharp} == {"sharp"}


def test_dvd_may_be_given_by_its_inner_folder(tmp_path: Path) -> None:
    inner = make_dvd(tmp_path) / "quantitative_datasets"
    assert names(find_pairs("dvd", inner, "train")) == FOUND["dvd", "train"]


@pytest.mark.parametrize("ending", ["", "_DVD"])
def test_dvd_divided_already(tmp_path: Path, ending: str) -> None:
    for part, video in (("train", "a"), ("test", "b")):
        write_video(tmp_path / f"{part}{ending}" / video / "input", tmp_path / f"{part}{ending}" / video / "GT")
    assert names(find_pairs("dvd", tmp_path, "train")) == ["a"] and names(find_pairs("dvd", tmp_path, "test")) == ["b"]


def test_gopro_of_the_papers_authors(tmp_path: Path) -> None:
    for part, video in (("train", "a"), ("test", "b")):
        folder = tmp_path / f"{part}_nah" / video
        write_video(folder / "blur_gamma", folder / "sharp")
    assert names(find_pairs("gopro", tmp_path, "train")) == ["a"]
    assert names(find_pairs("gopro", tmp_path, "test")) == ["b"]


@pytest.mark.parametrize("place", ["{0}_{1}", "{0}_{1}/{0}/{0}_{1}"])
def test_reds_unpacked_side_by_side_or_each_in_its_folder(tmp_path: Path, place: str) -> None:
    for part in ("train", "val"):
        blurred, sharp = (tmp_path / place.format(part, kind) / "007" for kind in ("blur", "sharp"))
        write_video(blurred, sharp)
        (tmp_path / place.format(part, "blur_comp") / "007").mkdir(parents=True)
    for split in ("train", "test"):
        pairs = find_pairs("reds", tmp_path, split)
        assert names(pairs) == ["007"] and len(pairs[0].sharp) == 3


def test_videos_and_frames_are_in_natural_order(tmp_path: Path) -> None:
    for video in ("v10", "v9"):
        write_video(tmp_path / "train" / video / "input", tmp_path / "train" / video / "GT", 11, name="{}.png")
    pairs = find_pairs("dvd", tmp_path, "train")
    assert names(pairs) == ["v9", "v10"]
    for paths in (pairs[0].blurred, pairs[0].sharp):
        assert [path.name for path in paths] == [f"{number}.png" for number in range(11)]


def test_other_files_and_folders_are_ignored(tmp_path: Path) -> None:
    root = make_gopro(tmp_path)
    folder = root / "test" / "GOPR0384_11_00"
    for name in ("sharp/Thumbs.db", "sharp/.DS_Store", "blur_gamma/._000001.png", "sharp/readme.txt"):
        (folder / name).write_bytes(b"x")
    for name in (".git/test/GOPR1/sharp", "test/.cache/sharp", "test/notes"):
        (root / name).mkdir(parents=True)
    pairs = find_pairs("gopro", root, "test")
    assert names(pairs) == ["GOPR0384_11_00"] and len(pairs[0].blurred) == 3


def test_blurred_and_sharp_may_have_different_endings(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "v"
    for kind, ending in (("input", "jpg"), ("GT", "PNG")):
        (folder / kind).mkdir(parents=True)
        for number in range(2):
            (folder / kind / f"{number:05d}.{ending}").write_bytes(b"not opened")
    pair = find_pairs("dvd", tmp_path, "train")[0]
    assert [path.name for path in pair.blurred + pair.sharp] == ["00000.jpg", "00001.jpg", "00000.PNG", "00001.PNG"]


def test_ten_videos_of_dvd_are_for_testing() -> None:
    assert len(datasets.DVD_TEST) == 10


# --- bad input


def test_a_folder_that_is_not_there_or_no_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="nowhere does not exist: give the folder"):
        find_pairs("dvd", tmp_path / "nowhere", "train")
    (tmp_path / "DVD.zip").write_bytes(b"x")
    with pytest.raises(InvalidInputError, match=r"DVD\.zip is a file: give the folder"):
        find_pairs("dvd", tmp_path / "DVD.zip", "train")


@pytest.mark.parametrize(("layout", "real"), list(itertools.permutations(LAYOUTS, 2)))
def test_a_folder_of_another_layout(tmp_path: Path, layout: Layout, real: Layout) -> None:
    root = MAKERS[real](tmp_path)
    with pytest.raises(InvalidInputError) as caught:
        find_pairs(layout, root, "train")
    assert f"does not hold the data set {layout}. It looks like {real}: say {real}:{root}" in str(caught.value)
    assert TREES[layout] in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_without_videos(tmp_path: Path, layout: Layout) -> None:
    (tmp_path / "holiday").mkdir()
    with pytest.raises(InvalidInputError) as caught:
        find_pairs(layout, tmp_path, "test")
    assert "Give another folder" in str(caught.value) and TREES[layout] in str(caught.value)


@pytest.mark.parametrize(("layout", "gone"), [("gopro", "test"), ("reds", "val")])
def test_a_split_that_was_not_unpacked(tmp_path: Path, layout: Layout, gone: str) -> None:
    root = MAKERS[layout](tmp_path)
    (root / gone).rename(tmp_path / ".away")
    with pytest.raises(InvalidInputError, match=f"has {layout} videos of the train split, but none of the test split"):
        find_pairs(layout, root, "test")


def test_several_sets_in_a_folder(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_gopro(tmp_path).rename(tmp_path / name)
    with pytest.raises(InvalidInputError, match=r"several folders with gopro videos: first, second\. Give one"):
        find_pairs("gopro", tmp_path, "train")


def test_frames_without_a_counterpart(tmp_path: Path) -> None:
    root = make_gopro(tmp_path)
    train = root / "train"
    (train / "GOPR0372_07_00" / "sharp" / "000001.png").unlink()
    write_frames(train / "GOPR0374_11_01" / "sharp", range(10, 14), sharp=True)
    with pytest.raises(InvalidInputError) as caught:
        find_pairs("gopro", root, "train")
    said = str(caught.value)
    assert "5 frames have no counterpart" in said and "and 1 more. Unpack" in said
    assert str(train / "GOPR0372_07_00" / "blur_gamma" / "000001.png") in said
    assert str(train / "GOPR0374_11_01" / "sharp" / "00010.png") in said
    assert names(find_pairs("gopro", root, "test")) == ["GOPR0384_11_00"], "the other split is whole"


def test_gopro_without_gamma_names_the_missing_folder(tmp_path: Path) -> None:
    root = make_gopro(tmp_path)
    video = root / "test" / "GOPR0384_11_00"
    (video / "blur_gamma").rename(tmp_path / "away")
    with pytest.raises(InvalidInputError) as caught:
        find_pairs("gopro", root, "test")
    assert f"these folders are not there: {video / 'blur_gamma'}." in str(caught.value)


def test_reds_with_only_the_sharp_archive(tmp_path: Path) -> None:
    root = make_reds(tmp_path)
    (root / "train" / "train_blur").rename(tmp_path / "away")
    with pytest.raises(InvalidInputError) as caught:
        find_pairs("reds", root, "train")
    said = str(caught.value)
    assert "6 frames have no counterpart" in said and str(root / "train" / "train_blur" / "239") in said


def test_a_frame_that_is_there_twice(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "v"
    write_video(folder / "input", folder / "GT")
    (folder / "GT" / "00001.jpg").write_bytes(b"x")
    with pytest.raises(InvalidInputError, match="GT holds frames twice"):
        find_pairs("dvd", tmp_path, "train")


def test_short_videos_are_named(tmp_path: Path) -> None:
    for video, count in (("long", 5), ("short", 3), ("none", 0)):
        write_video(tmp_path / "train" / video / "input", tmp_path / "train" / video / "GT", count)
    with pytest.raises(InvalidInputError, match=r"1 of 3 videos have fewer than 1 frames.*: none \(0\)\."):
        find_pairs("dvd", tmp_path, "train")
    with pytest.raises(InvalidInputError, match=r"2 of 3 .* fewer than 5 frames.*: none \(0\), short \(3\)\. Ask"):
        find_pairs("dvd", tmp_path, "train", shortest=5)


# --- reading


@pytest.fixture
def pair(tmp_path: Path) -> VideoPair:
    write_video(tmp_path / "train" / "v" / "input", tmp_path / "train" / "v" / "GT", 5)
    return find_pairs("dvd", tmp_path, "train", shortest=5)[0]


def test_a_part_of_a_clip(pair: VideoPair) -> None:
    blurred, sharp = read_clip(pair, 2, 3, crop=(1, 3, 4, 5))
    for clip, is_sharp in ((blurred, False), (sharp, True)):
        whole = np.stack([picture(number, sharp=is_sharp) for number in (2, 3, 4)])
        assert np.array_equal(clip, whole[:, 1:5, 3:8]) and clip.flags.c_contiguous


@pytest.mark.parametrize(("start", "frames"), [(3, 3), (-1, 2), (0, 6), (5, 1), (0, 0)])
def test_frames_that_are_not_there(pair: VideoPair, start: int, frames: int) -> None:
    with pytest.raises(InvalidInputError, match=f"v has frames 0 to 4, asked for {frames} from frame {start} on"):
        read_clip(pair, start, frames)


@pytest.mark.parametrize("crop", [(3, 0, 4, 4), (0, 5, 4, 4), (-1, 0, 4, 4), (0, 0, 0, 4)])
def test_a_crop_that_is_not_inside(pair: VideoPair, crop: datasets.Crop) -> None:
    with pytest.raises(InvalidInputError, match="is 8x6: it has no part of"):
        read_clip(pair, 0, 1, crop=crop)


@pytest.mark.parametrize("kind", ["blurred", "sharp"])
def test_pictures_of_different_sizes(pair: VideoPair, kind: str) -> None:
    path: Path = getattr(pair, kind)[1]
    write_png(path, picture(1, sharp=True, width=10))
    with pytest.raises(InvalidInputError) as caught:
        read_clip(pair, 0, 2, crop=(0, 0, 4, 4))
    assert f"{path} is 10x6, but {pair.blurred[0]} is 8x6" in str(caught.value)


def test_a_picture_that_cannot_be_read(pair: VideoPair) -> None:
    pair.sharp[2].write_bytes(b"no picture")
    with pytest.raises(InvalidInputError, match=r"00002\.png is not a picture that can be read"):
        read_clip(pair, 0, 5)
    pair.sharp[2].unlink()
    with pytest.raises(MissingFileError, match=r"00002\.png does not exist"):
        read_clip(pair, 0, 5)
