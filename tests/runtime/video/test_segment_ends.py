"""A segment that asks for more than there is: said, whatever the source is."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests import cli
from tests.media import make_video, moving

from mtu.runtime.video import ReadOptions, open_reader, write_png
from mtu.runtime.video.timing import Segment

COUNT, RATE = 10, 25


def source(folder: Path, kind: str) -> Path:
    """Ten pictures, 25 a second: 0.4 s."""
    path = folder / f"clip.{kind}"
    if kind == "pictures":
        path.mkdir()
        for number, picture in enumerate(moving(COUNT, 16, 24)):
            write_png(path / f"{number:02}.png", picture)
    elif kind in ("webp", "gif"):
        image = pytest.importorskip("PIL.Image")
        first, *rest = map(image.fromarray, moving(COUNT, 16, 24))
        first.save(path, save_all=True, append_images=rest, duration=1000 // RATE)
    else:
        make_video(path, moving(COUNT, 16, 24))
    return path


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi", "gif", "webp", "pictures"])
@pytest.mark.parametrize(
    ("segment", "late"),
    [("0:99999", True), ("0.2-1:00", True), (":0.5", True), ("0:0.4", False), ("0.1:0.41", False), ("0.1:", False)],
)
def test_an_end_behind_the_source_is_said(tmp_path: Path, kind: str, segment: str, late: bool) -> None:
    options = ReadOptions(segment=Segment.parse(segment), rate=RATE if kind == "pictures" else None)
    with open_reader(source(tmp_path, kind), options) as reader:
        assert len([event for event in reader if hasattr(event, "rgb")]) > 0
        said = [note for note in (*reader.info.notes, *reader.remarks) if "ends after the source" in note]
    wanted = f"the segment {Segment.parse(segment)} ends after the source, which has pictures until 0.4 s"
    assert said == ([wanted] if late else [])


def test_mtu_run_says_it(tmp_path, small, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    clip = source(tmp_path, "mp4")
    ended = cli.run(capsys, "mtu-run", clip, "-o", "out.mp4", "--model", small.directory, "--segment", "0:99999")
    assert ended.code == 0 and ended.err.count("the segment 0:99999 ends after the source") == 1, ended.err
