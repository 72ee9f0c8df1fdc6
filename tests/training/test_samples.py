"""The pictures that clips are made of, and clips as files to look at. Writes only under tmp_path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("skimage")

from tests.media import make_video  # noqa: E402

from mtu.core.errors import InvalidInputError, OutputError  # noqa: E402
from mtu.runtime.video import read_picture, write_png  # noqa: E402
from mtu.training.data import clips, clips_cli, samples, textures  # noqa: E402
from mtu.training.data.footage import find_footage, footage_clip  # noqa: E402
from mtu.training.data.photographs import find_photographs  # noqa: E402

TRAIN = textures.sample_photographs("train")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("size", [(1, 1), (9, 70), (61, 33)])
def test_textures_and_masks_have_their_size_and_range(size: tuple[int, int]) -> None:
    for seed in range(25):
        rng = np.random.default_rng(seed)
        picture, mask = textures.random_texture(rng, *size, TRAIN), textures.random_mask(rng, *size)
        assert picture.shape == (*size, 3) and picture.dtype == np.float32
        assert picture.min() >= 0 and picture.max() <= 1
        assert mask.shape == size and set(np.unique(mask)) <= {0, 1}


def test_sample_clips(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    arguments = ["samples", "-o", str(out), "--clips=2", "--seed=7", "--size=32", "--frames=3", "--split=validation"]
    result = CliRunner().invoke(clips_cli.app, arguments)
    assert result.exit_code == 0, result.output
    names = {f"{seed}-{kind}.mp4" for seed in (7, 8) for kind in ("blurred", "sharp")} | {"clips.png"}
    assert {path.name for path in out.iterdir()} == names
    sheet = read_picture(out / "clips.png")
    assert sheet.shape == (64, 96, 3)
    assert np.array_equal(sheet[:32, 32:64], clips.make_clip(7, 3, 32, 32, split="validation").sharp[1])


def test_sample_clips_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    both = ["x", "--size", "32", "--photos", "p", "--videos", "v"]
    for arguments, error in (
        (["x", "--size", "33"], InvalidInputError),
        (both, InvalidInputError),
        (["file/x"], OutputError),
    ):
        arguments = ["samples", "-o", str(tmp_path / arguments[0]), *arguments[1:]]
        result = CliRunner().invoke(clips_cli.app, arguments)
        assert isinstance(result.exception, error)


def test_motion_colours() -> None:
    motion = np.array([[(0, 0), (0, 40), (0, 10), (0, -10), (np.nan, np.nan), (10, 0)]], np.float16)
    white, full, half, left, hidden, down = samples.coloured(motion)[0].tolist()
    assert white == [255, 255, 255] and full == [255, 0, 0] and half == [255, 128, 128] and hidden == [0, 0, 0]
    assert left == [128, 255, 255] and down != left


@pytest.mark.parametrize("kind", ["photos", "videos"])
def test_sample_clips_of_own_material(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("cv2")
    scene = np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8).repeat(3, 0).repeat(3, 1)
    own = tmp_path / kind / "train"
    own.mkdir(parents=True)
    (own.parent / "validation").mkdir()
    if kind == "photos":
        write_png(own / "noise.png", scene)
        expected = clips.make_clip(3, 2, 32, 32, photographs=find_photographs(own.parent, "train"))
    else:
        make_video(own / "pan.mp4", [scene[:96, t : t + 128].copy() for t in range(20)])
        expected = footage_clip(3, 2, 32, 32, find_footage(own.parent, "train", 2, 32))
    (own / "broken.mp4").touch()
    (own / "broken.png").touch()
    options = ["--clips=1", "--seed=3", "--size=32", "--frames=2", f"--{kind}={own.parent}"]
    ended = CliRunner().invoke(clips_cli.app, ["samples", "-o", str(tmp_path / "out"), *options])
    assert ended.exit_code == 0 and "broken" in ended.stderr
    assert np.array_equal(read_picture(tmp_path / "out" / "clips.png")[:, :32], expected.blurred[1])
