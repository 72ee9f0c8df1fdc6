"""Photographs of a user's own as what made clips show: `mtu-train --data photos:DIR`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")

from tests.cli import run
from tests.tiny_training import make_tiny

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.runtime.video import write_png
from mtu.runtime.video.pictures.encoding import PictureEncoding
from mtu.training.data import photographs, textures
from mtu.training.data.clips import make_clip

pytestmark = pytest.mark.usefixtures("one_thread")


def plain(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (300, 300)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.full((*size, 3), colour, np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eleven pictures in two folders, and four files that are of no use."""
    root = tmp_path / "photos"
    for number in range(11):
        plain(root / ("holiday" if number % 2 else "home") / f"{number}.png", (200, number, 0))
    (root / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this was a photograph once")
    (root / "empty.png").touch()
    plain(root / "icon.png", (0, 0, 200), (32, 300))
    (root / "notes.txt").write_text("no picture")
    plain(root / ".hidden.png", (0, 0, 200))
    plain(root / ".thumbnails" / "0.png", (0, 0, 200))
    return root


def names(found: textures.Photographs) -> set[str]:
    return {path.name for path in found.paths}


def test_every_folder_is_looked_at_and_what_is_of_no_use_is_named(folder: Path) -> None:
    said: list[str] = []
    train = photographs.find_photographs(folder, "train", said.append)
    assert {text.partition(" ")[0] for text in said} == {"left"} and len(said) == 2
    assert "empty.png" in said[0] + said[1] and "icon.png is 300x32" in said[0] + said[1]
    validation = photographs.find_photographs(folder, "validation", said.append)
    assert "broken.jpg" in said[2]  # the first of all, and so one of the validation
    assert names(train) | names(validation) == {f"{number}.png" for number in range(11)}
    assert not names(train) & names(validation) and names(validation)


def test_damage_behind_a_sound_header_is_found_before_a_training(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    for name, kind in (("a.png", "png"), ("b.jpg", "jpg"), ("c.tif", "tiff")):
        whole = PictureEncoding(kind).encode(noise)
        (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    plain(tmp_path / "0.png", (9, 9, 9))  # the first, for validation
    plain(tmp_path / "whole.png", (9, 9, 9))
    said: list[str] = []
    assert names(photographs.find_photographs(tmp_path, "train", said.append)) == {"whole.png"}
    assert all("is not a picture that can be read" in text for text in said) and len(said) == 3


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_folders_of_all_sorts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe, links that go round, a link to nothing, a text, and folders that may not be read or not be entered."""
    for number in range(3):
        plain(tmp_path / f"{number}.png", (9, 9, 9))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "up").symlink_to(tmp_path)
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "text.jpg").write_text("no photograph " * 100)
    (tmp_path / "closed").mkdir()
    plain(tmp_path / "listed" / "3.png", (9, 9, 9))
    scan, look, opened = os.scandir, os.stat, Path.open

    def closed(folder: str) -> Any:
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    def unseen(path: Any, **how: Any) -> Any:
        if "listed" + os.sep in str(path):
            raise PermissionError(13, "Permission denied", path)
        return look(path, **how)

    def unopened(path: Path, mode: str = "r", **how: Any) -> Any:
        if "listed" + os.sep in str(path):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, mode, **how)

    monkeypatch.setattr(os, "scandir", closed)
    monkeypatch.setattr(os, "stat", unseen)
    monkeypatch.setattr(Path, "open", unopened)
    said: list[str] = []
    assert names(photographs.find_photographs(tmp_path, "train", said.append)) == {"1.png", "2.png"}
    assert [text.partition(": ")[2].partition(" ")[0] for text in said] == [
        str(tmp_path / name) for name in ("closed", "gone.jpg", "listed/3.png", "text.jpg")
    ]


def test_a_divided_folder_stays_divided(tmp_path: Path) -> None:
    for split, count in (("train", 2), ("validation", 3)):
        for number in range(count):
            plain(tmp_path / split / f"{split}{number}.png", (9, 9, 9))
    assert names(photographs.find_photographs(tmp_path, "train")) == {"train0.png", "train1.png"}
    assert len(photographs.find_photographs(tmp_path, "validation").paths) == 3


def test_folders_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        photographs.find_photographs(tmp_path / "nowhere", "train")
    plain(tmp_path / "one.png", (1, 2, 3))
    with pytest.raises(MissingFileError, match="is a file"):
        photographs.find_photographs(tmp_path / "one.png", "train")
    look = os.stat

    def unseen(path: Any, **how: Any) -> Any:
        if Path(path).name == "train":
            raise PermissionError(13, "Permission denied", path)
        return look(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", unseen)
        with pytest.raises(InvalidInputError, match="train cannot be read: Permission denied"):
            photographs.find_photographs(tmp_path, "train")
    with pytest.raises(InvalidInputError, match="at least two pictures"):
        photographs.find_photographs(tmp_path, "train")


def test_clips_show_the_photographs(tmp_path: Path) -> None:
    plain(tmp_path / "red.png", (255, 0, 0))
    found = textures.Photographs((tmp_path / "red.png",), share=1.0)
    clip = make_clip(3, 1, 24, 24, photographs=found)
    assert (clip.sharp[..., 0] > 80).all() and (clip.sharp[..., 1:] < 40).all()
    assert not np.array_equal(clip.sharp, make_clip(3, 1, 24, 24).sharp)


def test_large_photographs_are_reduced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textures, "LARGEST", 100)
    plain(tmp_path / "large.png", (10, 200, 30), (150, 301))
    reduced = textures.photograph(tmp_path / "large.png")
    assert reduced.shape == (50, 100, 3) and np.abs(reduced.astype(int) - (10, 200, 30)).max() <= 1


def test_mtu_train_on_a_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_tiny(monkeypatch)
    small = ("--crop=16", "--frames=3", "--batch=1", "--device=cpu", "--workers=0", "--max-steps=3", "--preset=mtu2")
    ended = run(capsys, "mtu-train", "-o", str(tmp_path / "run"), f"--data=photos:{folder}", *small)
    assert ended.code == 0, ended.err
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    assert "left out:" in ended.err and "broken.jpg" in ended.err and "optical flow" not in ended.err


def test_the_place_with_most_texture_is_taken(tmp_path: Path) -> None:
    # Half of it is sky: one place in two would show that alone, of three places one in eight.
    picture = np.full((600, 600, 3), 200, np.uint8)
    picture[:, 300:] = np.random.default_rng(0).integers(0, 255, (600, 300, 3))
    write_png(tmp_path / "shore.png", picture)
    shore = textures.Photographs((tmp_path / "shore.png",), 1.0)
    plain = sum(
        float(textures._photograph_part(np.random.default_rng(seed), 60, 60, shore).std()) < 0.02 for seed in range(80)
    )
    assert plain < 20, plain
