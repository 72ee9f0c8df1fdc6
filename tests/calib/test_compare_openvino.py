"""mtu-compare of OpenVINO with onnxruntime, and of bf16 with fp32: the floors that the model in the package keeps."""

from __future__ import annotations

import json

import pytest

pytestmark = [
    pytest.mark.needs_library("openvino", "onnx", "onnxruntime", "polygraphy", "skimage"),
    pytest.mark.usefixtures("one_thread"),
]

from tests import cli  # noqa: E402
from tests.frames import write_clip  # noqa: E402

from mtu.core.processor import bf16_units  # noqa: E402


@pytest.fixture(scope="module")
def textured(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("textured"), 5, 64, 96)


def compared(capsys, directory, clip, *options):
    ended = cli.run(
        capsys, "mtu-compare", "mtu2", "mtu2", "--input", clip, *options, "--json", directory / "report.json"
    )
    assert ended.code == 0, ended.err + ended.out
    return json.loads((directory / "report.json").read_text()), ended.out


def test_openvino_keeps_75_db_and_all_displacements(capsys, tmp_path, textured):
    floors = ["--min-psnr", 75, "--min-agreement", 99.99]
    report, out = compared(capsys, tmp_path, textured, "--backend-a", "onnxruntime", "--backend-b", "openvino", *floors)
    assert [report[side]["backend"] for side in "ab"] == ["onnxruntime", "openvino"]
    assert report["passed"] and "fp32 on openvino cpu" in out
    assert {*report["modes"]} == {"step", "rollout"}


def test_bf16_keeps_50_db(capsys, tmp_path, textured):
    if not bf16_units():
        pytest.skip("this processor has no units for bf16")
    sides = ["--backend-a", "openvino", "--backend-b", "openvino", "--precision-b", "bf16"]
    report, out = compared(capsys, tmp_path, textured, *sides, "--min-psnr", 50)
    assert report["passed"] and "bf16 on openvino cpu" in out
    for mode in report["modes"].values():
        assert min(frame["psnr"] or 99 for frame in mode["frames"]) < 75  # it is not fp32
