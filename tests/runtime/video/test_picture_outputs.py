"""Pictures as the output: PNG, JPEG and TIFF, single and in directories, and what may be replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.media import Pixels, make_video, moving
from tests.video_run import run

from mtu.core.errors import InvalidInputError, OutputError
from mtu.runtime.video import EncodeOptions, open_reader, open_writer, read_picture, write_png
from mtu.runtime.video.pictures.encoding import PictureEncoding


def chart() -> Pixels:
    """Flat patches of strong colours, whose code values are known."""
    colours = [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
        (0, 0, 0),
        (200, 120, 40),
        (128, 128, 128),
        (255, 255, 0),
    ]
    return np.kron(np.array(colours, np.uint8).reshape(2, 4, 3), np.ones((16, 16, 1), np.uint8))


def decoded(path: Path) -> av.VideoFrame:
    with av.open(str(path)) as source:
        return next(source.decode(video=0))


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "JPG", "tif", "tiff", "png"])
def test_a_single_picture_is_written_by_its_ending(tmp_path: Path, ending: str) -> None:
    write_png(tmp_path / "in.png", chart())
    out = tmp_path / f"out.{ending}"
    run(tmp_path / "in.png", out)
    kind = {"jpg": "mjpeg", "jpeg": "mjpeg", "png": "png"}.get(ending.lower(), "tiff")
    with av.open(str(out)) as source:
        assert source.streams.video[0].codec_context.name == kind
    assert np.abs(read_picture(out).astype(int) - chart()).max() <= (4 if kind == "mjpeg" else 0)


def test_jpeg_is_jfif_of_full_range_and_full_chroma(tmp_path: Path) -> None:
    data = PictureEncoding("jpg").encode(chart())
    (tmp_path / "a.jpg").write_bytes(data)
    assert data[6:11] == b"JFIF\0" and b"Lavc" not in data
    picture = decoded(tmp_path / "a.jpg")
    assert picture.format.name == "yuvj444p"
    # JFIF: luma and chroma of BT.601, 0 to 255.
    y, cb, cr = (np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[8, 8] for plane in picture.planes)
    assert (y, cb, cr) == pytest.approx((76, 85, 255), abs=2)


def test_other_programs_see_the_same_colours() -> None:
    image = pytest.importorskip("PIL.Image")
    import io

    for kind, tolerance in (("jpg", 4), ("tiff", 0), ("png", 0)):
        seen = np.asarray(image.open(io.BytesIO(PictureEncoding(kind).encode(chart()))).convert("RGB"))
        assert np.abs(seen.astype(int) - chart()).max() <= tolerance


def test_quality_of_jpeg() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    sizes = [len(PictureEncoding("jpg", {"q": q}).encode(picture)) for q in ("1", "2", "8", "31")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    assert len(PictureEncoding("jpg").encode(picture)) == sizes[0]


@pytest.mark.parametrize("compression", ["deflate", "lzw", "packbits", "raw"])
def test_compressions_of_tiff_are_lossless(tmp_path: Path, compression: str) -> None:
    (tmp_path / "a.tif").write_bytes(PictureEncoding("tiff", {"compression_algo": compression}).encode(moving(1)[0]))
    assert np.array_equal(read_picture(tmp_path / "a.tif"), moving(1)[0])


@pytest.mark.parametrize(("kind", "suffix"), [("png", "png"), ("jpg", "jpg"), ("tiff", "tif")])
@pytest.mark.parametrize("size", [(48, 64), (1, 1), (33, 17)])
def test_a_directory_of_any_kind(tmp_path: Path, kind: Any, suffix: str, size: tuple[int, int]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for index, picture in enumerate(moving(3, *size)):
        write_png(source / f"frame {index}.png", picture)
    run(source, tmp_path / "out", options=EncodeOptions(picture_format=kind))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"frame {i}.{suffix}" for i in range(3)]
    for index, picture in enumerate(moving(3, *size)):
        written = read_picture(tmp_path / "out" / f"frame {index}.{suffix}")
        assert np.abs(written.astype(int) - picture).mean() <= (3 if kind == "jpg" else 0)


def test_a_video_as_jpegs(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", 2)
    run(source, tmp_path / "out", options=EncodeOptions(picture_format="jpg"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000000.jpg", "000001.jpg"]


@pytest.mark.parametrize(
    ("there", "kind", "replaced"),
    [
        (["a.jpg", "b.JPEG"], "jpg", True),
        (["a.tif", "b.tiff"], "tiff", True),
        (["a.png"], "png", True),
        (["a.jpg"], "png", False),
        (["a.png"], "jpg", False),
        (["a.jpg", "notes.txt"], "jpg", False),
    ],
)
def test_only_pictures_of_the_same_kind_are_replaced(
    tmp_path: Path, there: list[str], kind: Any, replaced: bool
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in there:
        (out / name).write_text("precious")
    source, options = make_video(tmp_path / "in.mp4", 1), EncodeOptions(picture_format=kind)
    with open_reader(source) as reader, pytest.raises(OutputError, match="not empty"):
        open_writer(out, reader.info, options=options)
    if replaced:
        run(source, out, options=options, overwrite=True)
        assert len(list(out.iterdir())) == 1
        return
    with open_reader(source) as reader, pytest.raises(OutputError, match=f"holds more than {kind} files"):
        open_writer(out, reader.info, options=options, overwrite=True)
    assert [(out / name).read_text() for name in there] == ["precious"] * len(there)


def test_a_size_that_the_kind_cannot_hold_is_refused_first(tmp_path: Path) -> None:
    source = make_video(tmp_path / "in.mp4", 1)
    with open_reader(source) as reader, pytest.raises(InvalidInputError, match="jpg cannot hold 70000x48"):
        open_writer(tmp_path / "out", reader.info, width=70000, options=EncodeOptions(picture_format="jpg"))
    assert not (tmp_path / "out").exists()
