"""What FFmpeg and its encoders print themselves never reaches the user: neither of damage nor of refused options."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.media import make_video, moving
from tests.video_run import run

from mtu.core.errors import InvalidInputError
from mtu.runtime.video import EncodeOptions


@pytest.mark.parametrize(
    ("codec", "ending"), [("libx264", "mp4"), ("mpeg4", "avi"), ("libx264", "ts"), ("ffv1", "mkv")]
)
def test_damage_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str], codec: str, ending: str) -> None:
    source = make_video(tmp_path / f"in.{ending}", moving(20), codec=codec, options={"g": "5"}, audio=True)
    data = bytearray(source.read_bytes())
    half = len(data) // 2
    data[half : half + 900] = bytes(range(180)) * 5
    source.write_bytes(bytes(data))
    capfd.readouterr()
    assert run(source, tmp_path / "out.mkv").damage is not None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("codec", ["libx265", "libsvtav1", "libvpx-vp9", "prores"])
def test_encoders_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str], codec: str) -> None:
    source = make_video(tmp_path / "in.mp4", 3)
    capfd.readouterr()
    run(source, tmp_path / "out.mkv", options=EncodeOptions(codec=codec))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("codec", "option"),
    [
        ("libx265", {"x265-params": "bframes=99"}),
        ("libx265", {"preset": "bogus"}),
        ("libsvtav1", {"svtav1-params": "keyint=-99:tile-rows=99"}),
        ("libx264", {"preset": "bogus"}),
    ],
)
def test_refused_options_print_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], codec: str, option: dict[str, str]
) -> None:
    source = make_video(tmp_path / "in.mp4", 3)
    capfd.readouterr()
    ((key, value),) = option.items()
    with pytest.raises(InvalidInputError, match=f"refuses -e {key}={value}:"):
        run(source, tmp_path / "out.mkv", options=EncodeOptions(codec=codec, options=option))
    assert capfd.readouterr() == ("", "")
