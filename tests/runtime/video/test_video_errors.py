"""What cannot work says so before any work is done, in one message, and leaves nothing on disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.conftest import ROOT
from tests.media import make_video, moving
from tests.processes import LIMIT
from tests.video_run import run

from mtu.core.errors import InvalidInputError, MissingFileError, MtuError, OutputError
from mtu.runtime.video import EncodeOptions, Frame, open_reader, open_writer, video_writer, write_png


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 8, audio=True)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nothing\.mp4 does not exist: give a video") as caught:
        open_reader(tmp_path / "nothing.mp4")
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.mp4", b"", "is empty"),
        ("text.txt", b"hello world\n" * 200, "reads as text"),
        ("text.mp4", b"hello world\n" * 200, "not a video"),
        ("noise.mkv", np.random.default_rng(0).bytes(50000), "not a video"),
        ("noise.png", np.random.default_rng(0).bytes(5000), "not a picture"),
    ],
)
def test_not_a_video(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InvalidInputError, match=words) as caught:
        open_reader(tmp_path / name)
    assert name in str(caught.value)


def test_a_file_that_may_not_be_read(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise av.error.PermissionError(errno.EACCES, "Permission denied", str(clip))

    monkeypatch.setattr(av, "open", refuse)  # root may read everything
    with pytest.raises(InvalidInputError, match=r"cannot be read \(Permission denied\): you may not read it"):
        open_reader(clip)


def test_sound_only(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.m4a"), "w") as out:
        stream: Any = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(InvalidInputError, match=r"no video stream that can be decoded \(it has: audio\)"):
        open_reader(tmp_path / "sound.m4a")


def test_mp4_without_its_index(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:2000])
    with pytest.raises(InvalidInputError, match=r"before its index \(moov\) was written"):
        open_reader(tmp_path / "cut.mp4")


def refused(target: Path | str, source: Path, match: str, error: type[MtuError] = OutputError, **options: Any) -> None:
    """Opening must fail with these words and leave the directory as it was."""
    parent = Path(target).parent
    before = sorted(parent.iterdir()) if parent.is_dir() and parent != Path("/proc") else None
    with open_reader(source) as reader, pytest.raises(error, match=match):
        open_writer(target, reader.info, **options)
    assert before is None or sorted(parent.iterdir()) == before


def test_output_is_the_input(tmp_path: Path, clip: Path) -> None:
    source = tmp_path / "clip.mp4"
    source.write_bytes(clip.read_bytes())
    (tmp_path / "soft.mp4").symlink_to(source)
    os.link(source, tmp_path / "hard.mp4")
    for name in ("clip.mp4", "soft.mp4", "hard.mp4", "../" + tmp_path.name + "/clip.mp4"):
        refused(tmp_path / name, source, "is the source itself", overwrite=True)
    assert source.read_bytes() == clip.read_bytes()


def test_output_exists(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "out.mp4").write_text("precious")
    refused(tmp_path / "out.mp4", clip, "exists: choose another name, or replace it with --overwrite")
    assert (tmp_path / "out.mp4").read_text() == "precious"
    run(clip, tmp_path / "out.mp4", overwrite=True)
    assert (tmp_path / "out.mp4").stat().st_size > 1000


def test_output_that_cannot_be_written(tmp_path: Path, clip: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(tmp_path / "no" / "out.mp4", clip, "no does not exist: create it first")
    refused(tmp_path / "file" / "out.mp4", clip, "file does not exist: create it first")
    if Path("/proc/self").is_dir():
        refused("/proc/out.mp4", clip, "cannot write")
        refused("/proc/out", clip, "cannot write")
    (tmp_path / "shut").mkdir(mode=0o500)
    if os.geteuid() != 0:
        refused(tmp_path / "shut" / "out.mp4", clip, "Permission denied")


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("o.mp4", {"codec": "libx246"}, r"no video encoder 'libx246' \(did you mean libx26[45]"),
        ("o.mp4", {"codec": "aac"}, "no video encoder 'aac'"),
        ("o.webm", {"codec": "libx264"}, "webm cannot hold libx264: choose one of .*libvpx-vp9"),
        ("o.apng", {"pix_fmt": "pal8"}, "apng has one palette for all pictures"),
        ("o.mp4", {"pix_fmt": "yuv421p"}, r"cannot encode the pixel format 'yuv421p' \(did you mean .*yuv42"),
        ("o.mp4", {"options": {"presett": "slow"}}, r"no option 'presett'"),
        ("o.mp4", {"options": {"preset": "slowish"}}, "libx264 refuses -e preset=slowish"),
        ("o.mkv", {"codec": "ffv1", "crf": 10}, "ffv1 has no --crf"),
        ("o.mkv", {"codec": "libvpx-vp9", "crf": 900}, "libvpx-vp9 refuses --crf 900"),
        ("o.mp4", {"crf": 999}, "libx264 refuses --crf 999: give 0 to 51, of which lower is better"),
        ("o.mp4", {"crf": -1}, "libx264 refuses --crf -1: give 0 to 51"),
        ("o.mp4", {"crf": float("nan")}, "libx264 refuses --crf nan: give 0 to 51"),
        ("o.mp4", {"options": {"crf": "51.5"}}, r"libx264 refuses -e crf=51\.5: give 0 to 51"),
        ("o.mp4", {"codec": "libx265", "crf": 52}, "libx265 refuses --crf 52: give 0 to 51"),
        ("o.mkv", {"codec": "libx264rgb", "crf": float("inf")}, "libx264rgb refuses --crf inf: give 0 to 51"),
        ("o.webm", {"codec": "libsvtav1", "crf": 64}, "libsvtav1 refuses --crf 64: give a whole number from 1 to 63"),
        ("o.webm", {"codec": "libsvtav1", "crf": 0}, "libsvtav1 refuses --crf 0: give a whole number from 1"),
        ("o.webm", {"codec": "vp9", "crf": 20.5}, r"libvpx-vp9 refuses --crf 20\.5: give a whole number"),
        ("o.mp4", {"options": {"qp": "99"}}, "libx264 refuses -e qp=99: give 0 to 51"),
        (
            "o.webm",
            {"codec": "vp8", "options": {"crf": "best"}},
            "libvpx refuses -e crf=best: give a whole number from 0 to 63",
        ),
        ("o.xyz", {}, r"no video format has the ending '\.xyz': name the output \.mp4"),
        ("o.bmp", {}, r"pictures are written as \.png, \.jpg, \.tif: name the output .*o\.png"),
        ("o.jpg", {}, "is one picture, but the source is a video: .*--picture-format jpg"),
        ("o.tif", {"picture_format": "jpg"}, r"--picture-format jpg, but .*o\.tif is named \.tif"),
        (
            "o.mp4",
            {"picture_format": "jpg"},
            r"is for a directory of pictures, and .*o\.mp4 is none",
        ),
        ("frames", {"picture_format": "jpg", "crf": 3}, "jpg pictures take no --crf: .* -e q=1"),
        (
            "frames",
            {"picture_format": "jpg", "options": {"q": "99"}},
            "-e q=99: the quality of jpg",
        ),
        ("frames", {"picture_format": "jpg", "options": {"qmin": "3"}}, "-e qmin: jpg pictures take -e q= alone"),
        ("frames", {"picture_format": "tiff", "options": {"compression_algo": "zip"}}, "choose one of deflate, lzw"),
        ("frames", {"options": {"q": "3"}}, "-e q: png pictures take no options"),
        ("o.png", {}, "is one picture, but the source is a video"),
        ("frames", {"codec": "libx264", "crf": 3}, "png pictures take no --codec, --crf"),
        ("-", {"picture_format": "jpg"}, "yuv4mpeg takes no --picture-format"),
        ("-", {"crf": 3}, "yuv4mpeg takes no --crf"),
        ("-", {"pix_fmt": "rgb24"}, "yuv4mpeg cannot hold the pixel format 'rgb24': choose one of yuv420p"),
    ],
)
def test_options_that_cannot_work(tmp_path: Path, clip: Path, target: str, options: dict[str, Any], words: str) -> None:
    name = target if target == "-" else tmp_path / target
    refused(name, clip, words, InvalidInputError, options=EncodeOptions(**options))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(av.CodecContext, "supported_options"), reason="PyAV before 18 cannot list options")
def test_mistyped_option_is_corrected(tmp_path: Path, clip: Path) -> None:
    options = EncodeOptions(options={"presett": "slow"})
    refused(
        tmp_path / "o.mp4",
        clip,
        r"did you mean preset.*its own options: preset, tune",
        InvalidInputError,
        options=options,
    )


@pytest.mark.parametrize(
    ("name", "codec", "crf"),
    [("o.mp4", None, 0), ("o.mp4", "libx265", 51), ("o.webm", "libvpx", 63), ("o.mkv", None, 51)],
)
def test_ends_of_the_quality_scale(tmp_path: Path, clip: Path, name: str, codec: str | None, crf: float) -> None:
    assert run(clip, tmp_path / name, options=EncodeOptions(codec=codec, crf=crf)).frames == 8


def test_good_options_are_used(tmp_path: Path, clip: Path) -> None:
    run(clip, tmp_path / "fine.mp4", options=EncodeOptions(crf=5, options={"preset": "ultrafast"}))
    run(clip, tmp_path / "coarse.mp4", options=EncodeOptions(codec="h264", crf=45, pix_fmt="yuv444p"))
    assert (tmp_path / "coarse.mp4").stat().st_size < (tmp_path / "fine.mp4").stat().st_size
    with open_reader(tmp_path / "coarse.mp4") as reader:
        assert reader.info.pix_fmt == "yuv444p"


@pytest.mark.parametrize("target", ["out.mp4", "out.mkv", "frames"])
def test_nothing_is_left_without_commit(tmp_path: Path, clip: Path, target: str) -> None:
    class CrashError(Exception):
        pass

    with pytest.raises(CrashError), open_reader(clip) as reader, open_writer(tmp_path / target, reader.info) as output:
        for number, event in enumerate(reader):
            if isinstance(event, Frame):
                output.write(event.rgb, event)
            if number == 6:
                (part,) = tmp_path.iterdir()
                assert (
                    part.name.startswith(".") and ".part" in part.name and part.suffix in (Path(target).suffix, ".part")
                )
                raise CrashError
    assert not list(tmp_path.iterdir())


def test_wrong_picture_shape_is_a_bug_of_the_caller(tmp_path: Path, clip: Path) -> None:
    with open_reader(clip) as reader, open_writer(tmp_path / "o.mp4", reader.info) as output:
        frame = next(event for event in reader if isinstance(event, Frame))
        for wrong in (frame.rgb[:-1], frame.rgb.astype(np.float32), frame.rgb[..., 0]):
            with pytest.raises(ValueError, match=r"uint8 \[48, 64, 3\]"):
                output.write(wrong, frame)


def test_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path, clip: Path) -> None:
    with open_reader(clip) as reader, open_writer(tmp_path / "o.mp4", reader.info) as output:
        for event in reader:
            if isinstance(event, Frame):
                output.write(event.rgb, event)
        (tmp_path / "o.mp4").write_text("mine")
        with pytest.raises(OutputError, match="has appeared meanwhile"):
            output.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["o.mp4"] and (tmp_path / "o.mp4").read_text() == "mine"


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, sys.argv[4])
from pathlib import Path
from mtu.core.errors import OutputError
from mtu.runtime.video import Frame, open_reader, open_writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    with open_reader(sys.argv[1]) as reader, open_writer(sys.argv[2], reader.info) as writer:
        for event in reader:
            if isinstance(event, Frame):
                writer.write(event.rgb, event)
            else:
                writer.copy(event)
        writer.commit()
except OutputError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
@pytest.mark.parametrize("name", ["out.mkv", "out.mp4", "frames"])
def test_file_that_cannot_grow(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 96, 128, 3), dtype=np.uint8)
    source = make_video(tmp_path / "in.mkv", list(noise), codec="ffv1", pix_fmt="bgr0", audio=True)
    arguments = [str(source), str(tmp_path / name), "20000", str(ROOT / ".links")]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 7, done.stderr
    assert "nothing was kept" in done.stdout and name in done.stdout
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("name", ["out.mp4", "frames", "out.png"])
def test_full_disk(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source = clip
    if name == "out.png":
        source = tmp_path / "in.png"
        write_png(source, moving(1)[0])

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        pytest.raises(OutputError, match=r"disk full while writing .*free some space"),
        open_reader(source) as reader,
        open_writer(tmp_path / name, reader.info) as output,
    ):
        monkeypatch.setattr(Path, "write_bytes", full)
        if isinstance(output, video_writer.VideoWriter):
            monkeypatch.setattr(output, "_container", Muxer(output._container, full))
        for event in reader:
            if isinstance(event, Frame):
                output.write(event.rgb, event)
        output.commit()
    assert not [path for path in tmp_path.iterdir() if path != source]


class Muxer:
    """A container whose disk is full."""

    def __init__(self, container: Any, full: Any) -> None:
        self.mux, self.close = full, container.close
