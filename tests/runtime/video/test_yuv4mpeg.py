"""yuv4mpeg through pipes and into files, and what is no yuv4mpeg."""

from __future__ import annotations

import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.conftest import ROOT
from tests.media import BT709, make_video, moving
from tests.processes import LIMIT
from tests.video_run import frames_of, run

from mtu.core.errors import InvalidInputError, OutputError
from mtu.runtime.video import Frame, open_reader, open_writer

PIPE = """
import sys
sys.path.insert(0, sys.argv[1])
from mtu.runtime.video import Frame, open_reader, open_writer
with open_reader(sys.argv[2]) as reader, open_writer(sys.argv[3], reader.info) as writer:
    for event in reader:
        if isinstance(event, Frame):
            writer.write(event.rgb, event)
    writer.commit()
"""


@pytest.mark.parametrize(
    ("pix_fmt", "size"), [("yuv420p", (48, 64)), ("yuv420p", (33, 17)), ("yuv444p", (48, 64)), ("gray", (48, 64))]
)
def test_yuv4mpeg_in_and_out_of_a_pipe(tmp_path: Path, pix_fmt: str, size: tuple[int, int]) -> None:
    source = make_video(
        tmp_path / "in.mkv",
        moving(5, *size),
        codec="ffv1" if size[0] % 2 else "libx264",
        pix_fmt=pix_fmt,
        rate=Fraction(30000, 1001),
        time_base=Fraction(1001, 30000),
        sar=None if size[0] % 2 else Fraction(4, 3),
    )
    links = str(ROOT / ".links")
    first = subprocess.run(
        [sys.executable, "-c", PIPE, links, str(source), "-"], capture_output=True, timeout=LIMIT, check=True
    )
    assert first.stdout.startswith(b"YUV4MPEG2 W%d H%d F30000:1001 Ip A" % (size[1], size[0]))
    assert not first.stderr
    second = subprocess.run(
        [sys.executable, "-c", PIPE, links, "-", str(tmp_path / "out.mkv")],
        input=first.stdout,
        timeout=LIMIT,
        check=True,
    )
    assert second.returncode == 0
    with open_reader(source) as before, open_reader(tmp_path / "out.mkv") as after:
        assert after.info.average_rate == Fraction(30000, 1001)
        assert (
            after.info.sample_aspect_ratio
            == before.info.sample_aspect_ratio
            == (None if size[0] % 2 else Fraction(4, 3))
        )
        pairs = list(zip(frames_of(before), frames_of(after), strict=True))
    assert len(pairs) == 5
    # Two more conversions through 4:2:0 blur the colours of single pixels.
    assert max(np.abs(a.rgb.astype(int) - b.rgb).mean() for a, b in pairs) < 8


def test_yuv4mpeg_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(b"not yuv4mpeg" * 100)

    monkeypatch.setattr(sys, "stdin", Stdin)
    with pytest.raises(InvalidInputError, match=r"stdin is not yuv4mpeg .*pipe in the output of ffmpeg"):
        open_reader("-")


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("in.mp4", "MP4 or MOV"),
        ("in.mkv", "Matroska or WebM"),
        ("in.avi", "AVI"),
        ("in.ts", "MPEG-TS"),
        ("in.gif", "GIF"),
    ],
)
def test_stdin_of_other_formats_gives_the_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, looks: str
) -> None:
    source = make_video(tmp_path / "a.mp4", moving(2, 128, 128))
    run(source, tmp_path / name)

    class Stdin:
        buffer = io.BufferedReader(io.BytesIO((tmp_path / name).read_bytes()))  # type: ignore[arg-type]

        @staticmethod
        def isatty() -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", Stdin)
    with pytest.raises(InvalidInputError, match=rf"looks like {looks}: .* \| mtu-run - -o OUTPUT"):
        open_reader("-")


@pytest.mark.parametrize(("content", "tty", "said"), [(b"", False, "stdin is empty"), (b"x", True, "is a terminal")])
def test_stdin_with_nothing(monkeypatch: pytest.MonkeyPatch, content: bytes, tty: bool, said: str) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]

        @staticmethod
        def isatty() -> bool:
            return tty

    monkeypatch.setattr(sys, "stdin", Stdin)
    with pytest.raises(InvalidInputError, match=said):
        open_reader("-")


def test_pictures_are_not_written_to_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    terminal = SimpleNamespace(buffer=shown, isatty=lambda: True)
    source = make_video(tmp_path / "in.mp4", 2)
    monkeypatch.setattr(sys, "stdout", terminal)
    with (
        open_reader(source) as reader,
        pytest.raises(InvalidInputError, match=r"stdout is a terminal, .* -o - . ffplay"),
    ):
        open_writer("-", reader.info)
    assert shown.getvalue() == b""


def test_closed_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.BytesIO):
        def write(self, _: Any) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    class Stdout:
        buffer = Closed()

        @staticmethod
        def isatty() -> bool:
            return False

    source = make_video(tmp_path / "in.mp4", 2, matrix=BT709)
    monkeypatch.setattr(sys, "stdout", Stdout)
    with open_reader(source) as reader, open_writer("-", reader.info) as writer:
        assert "no colour matrix (it is BT.709)" in writer.notes[-1]
        frame = next(event for event in reader if isinstance(event, Frame))
        with pytest.raises(OutputError, match="stdout was closed"):
            writer.write(frame.rgb, frame)
