"""The quality of encoders with a fixed quantiser: what is written without asking, and what `-e q=` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.media import make_video, moving
from tests.video_run import frames_of, run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import EncodeOptions, open_reader


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five gray pictures with noise, which needs bits."""
    noise = np.random.default_rng(0).normal(0, 2, (5, 144, 176, 1))
    pictures = [
        np.repeat((picture[..., :1] + each).clip(0, 255), 3, 2).astype(np.uint8)
        for picture, each in zip(moving(5, 144, 176), noise, strict=True)
    ]
    return make_video(tmp_path_factory.mktemp("quality") / "in.mkv", pictures, codec="ffv1", pix_fmt="bgr0")


def written(source: Path, path: Path, codec: str, options: dict[str, str]) -> tuple[int, float]:
    """The size of the file, and the PSNR of its worst picture in dB."""
    run(source, path, options=EncodeOptions(codec=codec, options=options), overwrite=True)
    with open_reader(source) as before, open_reader(path) as after:
        pairs = zip(frames_of(before), frames_of(after), strict=True)
        errors = [np.square(old.rgb.astype(float) - new.rgb).mean() for old, new in pairs]
    return path.stat().st_size, float(10 * np.log10(255**2 / max(errors)))


@pytest.mark.parametrize(
    ("codec", "name"),
    [
        ("mpeg1video", "o.mpg"),
        ("mpeg2video", "o.mkv"),
        ("mpeg4", "o.mp4"),
        ("msmpeg4v2", "o.avi"),
        ("wmv2", "o.wmv"),
        ("flv", "o.flv"),
        ("h263", "o.3gp"),
        ("h263p", "o.avi"),
        ("mjpeg", "o.avi"),
        ("speedhq", "o.avi"),
        ("rv20", "o.rm"),
        ("h261", "o.h261"),
    ],
)
def test_a_fixed_quantiser(tmp_path: Path, noisy: Path, codec: str, name: str) -> None:
    usual = written(noisy, tmp_path / name, codec, {})
    fine, coarse = (written(noisy, tmp_path / name, codec, {"q": q}) for q in ("2", "20"))
    best = written(noisy, tmp_path / name, codec, {"qscale": "1"})
    assert usual == fine
    assert best[0] > fine[0] > 1.5 * coarse[0]
    assert best[1] > fine[1] > 38 > 34 > coarse[1]


def test_a_quantiser_under_other_names(tmp_path: Path, noisy: Path) -> None:
    sizes = [
        written(noisy, tmp_path / "o.mp4", "mpeg4", {name: "5"})[0]
        for name in ("q", "q:v", "qscale", "qscale:v", "qmin")
    ]
    assert len(set(sizes)) == 1 and sizes[0] < written(noisy, tmp_path / "o.mp4", "mpeg4", {})[0]


def test_a_bit_rate_fixes_no_quantiser(tmp_path: Path, noisy: Path) -> None:
    small = written(noisy, tmp_path / "o.mp4", "mpeg4", {"b": "100k"})
    assert small[0] < written(noisy, tmp_path / "o.mp4", "mpeg4", {})[0]


@pytest.mark.parametrize(
    ("codec", "options", "said"),
    [
        ("mpeg4", {"options": {"q": "0"}}, "mpeg4 refuses -e q=0: give a whole number from 1 to 31"),
        ("mpeg4", {"options": {"q:v": "32"}}, "mpeg4 refuses -e q:v=32: give a whole number from 1 to 31"),
        ("mjpeg", {"options": {"qscale": "2.5"}}, "mjpeg refuses -e qscale=2.5: give a whole number"),
        ("mpeg2video", {"options": {"global_quality": "5"}}, "takes no -e global_quality: its quality is -e q=1"),
        ("mpeg4", {"crf": 5}, r"mpeg4 takes no --crf: its quality is -e q=1 \(best\) to 31"),
        ("libx264", {"options": {"q": "5"}}, "libx264 has no option 'q'"),
    ],
)
def test_qualities_that_cannot_be(tmp_path: Path, noisy: Path, codec: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        run(noisy, tmp_path / "o.mkv", options=EncodeOptions(codec=codec, **options))
    assert not list(tmp_path.iterdir())
