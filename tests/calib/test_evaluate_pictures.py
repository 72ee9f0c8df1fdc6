"""Tests of mtu-eval on pictures without neighbours: DPDD and RealDOF, in floats. Writes only under tmp_path."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
for package in ("skimage", "onnxruntime", "onnxscript"):
    pytest.importorskip(package)

from tests import ifan  # noqa: E402
from tests.cli import run  # noqa: E402
from tests.training.test_flow import textured  # noqa: E402

from mtu.calib.evaluate import evaluate  # noqa: E402
from mtu.calib.float_model import FloatModel  # noqa: E402
from mtu.calib.picture_sets import find_stills  # noqa: E402
from mtu.calib.quality import measure_floats  # noqa: E402
from mtu.core.errors import InvalidInputError, MtuError  # noqa: E402
from mtu.export.chain_files import write_chain  # noqa: E402
from mtu.export.to_onnx import export_bundle  # noqa: E402
from mtu.models.checkpoint import load_checkpoint  # noqa: E402
from mtu.runtime import Bundle  # noqa: E402
from mtu.runtime.video import write_png  # noqa: E402
from mtu.runtime.video.pictures.files import read_floats  # noqa: E402

H, W = 30, 37  # no multiples of 8


def write_deep(path: Path, picture: NDArray[np.uint16]) -> None:
    """A PNG of 16 bits, by its bytes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", picture.shape[1], picture.shape[0], 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def make(root: Path, folders: dict[str, str], count: int = 2, *, deep: bool = False) -> Path:
    """Pictures in folders; each folder's names begin with its letter."""
    random = np.random.default_rng(0)
    for number, (folder, letter) in enumerate(folders.items()):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            picture = np.roll(textured(H, W + index), number, 1)  # of two sizes
            path = root / folder / f"{letter}{index}.png"
            if deep:
                write_deep(path, picture.astype(np.uint16) * 256 + random.integers(0, 256, picture.shape, np.uint16))
            else:
                write_png(path, picture)
    return root


def make_dpdd(root: Path, **options: Any) -> Path:
    names = {"test_c/source": "B", "test_c/target": "A", "test_l/source": "L", "test_r/source": "R"}
    make(root / "dd_dp_dataset_png", names, **options)
    return root / "dd_dp_dataset_png"


def make_realdof(root: Path, **options: Any) -> Path:
    return make(root / "RealDOF", {"source": "", "target": ""}, **options)


def bundle(folder: Path, settings: dict[str, int]) -> Bundle:
    path = ifan.save(folder / "w.pytorch", ifan.arrays(settings), ifan.LAYOUTS[2])
    return export_bundle(load_checkpoint(path), folder / "bundle")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("tiny"), ifan.TINY)


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundle(tmp_path_factory.mktemp("dual"), ifan.DUAL)


def expected(settings: dict[str, int], *paths: Path) -> NDArray[np.float32]:
    """What the facts give for files, in floats, padded and cut back."""
    floats = [read_floats(path) for path in paths]
    sides = [(0, -side % 8) for side in floats[0].shape[:2]]
    tensors = [torch.from_numpy(np.pad(each, (*sides, (0, 0)), mode="edge")).permute(2, 0, 1)[None] for each in floats]
    out = ifan.reference(ifan.arrays(settings), *tensors)[0].permute(1, 2, 0).numpy()
    cut: NDArray[np.float32] = out[: floats[0].shape[0], : floats[0].shape[1]]
    return cut


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["dpdd", "dual", "realdof"])
def test_figures_are_of_floats_and_all_count(tmp_path: Path, tiny: Bundle, dual: Bundle, kind: str, deep: bool) -> None:
    root = make_realdof(tmp_path, deep=deep) if kind == "realdof" else make_dpdd(tmp_path, deep=deep)
    settings, model = (ifan.DUAL, dual) if kind == "dual" else (ifan.TINY, tiny)
    layout = "realdof" if kind == "realdof" else "dpdd"
    evaluation = evaluate(layout, root, model.directory)  # type: ignore[arg-type]
    figures = []
    for index, (name, (score,)) in enumerate(evaluation.videos.items()):
        if layout == "realdof":
            sharp, paths = root / f"target/{index}.png", [root / f"source/{index}.png"]
        else:
            sharp, paths = root / f"test_c/target/A{index}.png", [root / f"test_c/source/B{index}.png"]
            paths += [root / f"test_{side}/source/{side.upper()}{index}.png" for side in "rl"][: 2 * (kind == "dual")]
        assert name == paths[0].stem
        truth = read_floats(sharp)
        assert score.blurred == measure_floats(read_floats(paths[0]), truth)
        wanted = measure_floats(expected(settings, *paths), truth)
        assert score.restored.psnr == pytest.approx(wanted.psnr, abs=1e-3)
        assert score.restored.ssim == pytest.approx(wanted.ssim, abs=1e-4)
        figures.append(wanted.psnr)
    assert len(figures) == 2 and evaluation.overall()[1].psnr == pytest.approx(np.mean(figures), abs=1e-3)
    assert "| **mean over pictures** | 2 |" in evaluation.markdown() and "video" not in evaluation.markdown()


def test_psnr_is_not_that_of_rounded_pictures() -> None:
    truth = np.full((11, 11, 3), 0.5, np.float32)
    assert measure_floats(truth + np.float32(1e-3), truth).psnr == pytest.approx(60, abs=1e-2)
    assert measure_floats(truth, truth).psnr == np.inf


def test_pictures_are_not_rounded(tmp_path: Path, tiny: Bundle) -> None:
    path = make_realdof(tmp_path) / "source/0.png"
    found = FloatModel([tiny], "cpu").restore("0", {"image": read_floats(path)})
    assert np.abs(found - expected(ifan.TINY, path)).max() < 1e-4 and np.abs(found * 255 % 1 - 0.5).min() < 0.1


def test_sixteen_bits_are_read_as_they_are(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), np.uint16)
    write_deep(tmp_path / "a.png", picture)
    assert np.array_equal(np.rint(read_floats(tmp_path / "a.png") * 65535), picture)


def test_any_model_of_pictures_is_measured(tmp_path: Path, small: Bundle, mimo: Bundle) -> None:
    root = make_realdof(tmp_path)
    for model in (small, mimo):
        assert len(evaluate("realdof", root, model.directory).videos) == 2


def test_fp16_and_a_chain_are_measured_in_floats(tmp_path: Path, tiny: Bundle, mimo: Bundle) -> None:
    root = make_realdof(tmp_path)
    half = export_bundle(load_checkpoint(tiny.directory.parent / "w.pytorch"), tmp_path / "half", precision="fp16")
    single, in_half = (evaluate("realdof", root, each.directory).overall()[1] for each in (tiny, half))
    assert single != in_half and single.psnr == pytest.approx(in_half.psnr, abs=0.1)
    write_chain([mimo.directory, tiny.directory], tmp_path / "chain")
    chained = evaluate("realdof", root, tmp_path / "chain")
    path = root / "source/0.png"
    between = FloatModel([mimo], "cpu").restore("0", {"image": read_floats(path)})
    wanted = FloatModel([tiny], "cpu").restore("0", {"image": between})
    (score,) = chained.videos["0"]
    assert score.restored == measure_floats(wanted, read_floats(root / "target/0.png"))


def test_the_papers_figures_and_the_caution(tmp_path: Path, tiny: Bundle) -> None:
    evaluation = evaluate("dpdd", make_dpdd(tmp_path), tiny.directory)
    evaluation.preset = "ifan-dual"
    text = evaluation.markdown()
    assert "25.99" in text and "0.804" in text
    assert "It measured 76 pictures, and here are 2." in text
    videos = {str(number): 1 for number in range(76)}
    evaluation.settings = dataclasses.replace(evaluation.settings, videos=videos)
    assert "Caution" not in evaluation.markdown()


def test_the_command_goes_on_where_it_stopped(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: Bundle) -> None:
    root, out = make_dpdd(tmp_path), tmp_path / "out"
    command = ("mtu-eval", root, "--layout", "dpdd", "--model", tiny.directory, "-o", out)
    first = run(capsys, *command)
    assert first.code == 0 and "B1 (2 of 2): " in first.err
    content = json.loads((out / "results.json").read_text())
    assert content["settings"]["videos"] == {"B0": 1, "B1": 1}
    again = run(capsys, *command)
    assert again.code == 0 and "B1 (2 of 2): done before" in again.err and again.out == first.out


def damage(root: Path, kind: str) -> None:
    if kind == "missing target":
        (root / "test_c/target/A1.png").unlink()
    elif kind == "no target":
        for path in (root / "test_c/target").iterdir():
            path.unlink()
        (root / "test_c/target").rmdir()
    elif kind == "other size":
        write_png(root / "test_c/target/A1.png", textured(H, W + 3))
    elif kind == "missing view":
        (root / "test_r/source/R0.png").unlink()
    elif kind == "broken":
        path = root / "test_c/source/B1.png"
        path.write_bytes(path.read_bytes()[:-60])
    elif kind == "no split":
        (root / "test_c").rename(root / "val_c")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing target", "test_c/target 1"),
        ("no target", "test_c/target 0"),
        ("other size", "A1.png"),
        ("missing view", "test_r/source 1"),
        ("broken", "B1.png"),
        ("no split", "does not hold the test pictures of dpdd"),
    ],
)
def test_a_set_that_is_not_whole_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dual: Bundle, kind: str, words: str
) -> None:
    root = make_dpdd(tmp_path)
    damage(root, kind)
    ended = run(capsys, "mtu-eval", root, "--layout", "dpdd", "--model", dual.directory)
    assert ended.code == 2 and ended.out == "" and words in ended.err and "Traceback" not in ended.err
    assert ended.err.count("error:") == 1


def test_what_cannot_be_measured_so_is_refused(tmp_path: Path, tiny: Bundle, dual: Bundle, dmenet: Bundle) -> None:
    root = make_dpdd(tmp_path)
    cases: list[tuple[str, Path, Bundle, dict[str, Any], str]] = [
        ("dpdd", root, tiny, {"aligned": True}, "--align is for videos"),
        ("dpdd", root, tiny, {"backend": "torch"}, "before they are rounded"),
        ("dpdd", root / "no", tiny, {}, "does not exist"),
        ("dpdd", root / "test_c/source", tiny, {}, "does not hold"),
        ("realdof", root, tiny, {}, "looks like dpdd"),
        ("realdof", make_realdof(tmp_path), dual, {}, "no right and no left"),
        ("dpdd", root, dmenet, {}, "gives no pictures"),
        ("dvd", root, dual, {}, "--layout dpdd"),
    ]
    for layout, folder, model, options, words in cases:
        with pytest.raises(MtuError, match=words) as caught:
            evaluate(layout, folder, model.directory, **options)  # type: ignore[arg-type]
        assert "Traceback" not in str(caught.value)


def test_several_sets_in_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_dpdd(tmp_path / name)
    (tmp_path / "both").mkdir()
    for name in ("a", "b"):
        (tmp_path / name / "dd_dp_dataset_png").rename(tmp_path / "both" / name)
    with pytest.raises(InvalidInputError, match="holds several folders"):
        find_stills("dpdd", tmp_path / "both")
    assert [still.name for still in find_stills("dpdd", tmp_path / "both" / "a")] == ["B0", "B1"]
