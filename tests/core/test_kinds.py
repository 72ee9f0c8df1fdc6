"""What was given for something else: the message has the command that was meant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.cli import run

from mtu.core.errors import MtuError
from mtu.core.kinds import kind_of
from mtu.models.checkpoint import load_checkpoint
from mtu.runtime.bundle import PACKAGED, bundled_directory, open_bundle
from mtu.runtime.video import open_reader

FILES = {
    "w.pth": b"PK\x03\x04 and more",
    "w.pytorch": b"\x80\x02 and more",
    "weights": b"\x10\0\0\0\0\0\0\0{}",
    "none.pth": b"",
    "in.mp4": b"\0\0\0\x20ftypisom",
    "video": b"\0\0\0\x20ftypisom",
    "matroska": b"\x1aE\xdf\xa3 and more",
    "a.onnx": b"\x08\x08 and more",
    "a.engine": b"ftrt and more",
    "notes.txt": b"hello, this is text",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "mine").mkdir()
    for name in ("first.onnx", "step.onnx", "bundle.json"):
        (tmp_path / "mine" / name).write_bytes(b"\x08\x08 and more")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "w.pth",
            "is a checkpoint; make a bundle of it with: mtu-export onnx --checkpoint w.pth -o w; then run it: mtu-run",
        ),
        ("w.pytorch", "mtu-run INPUT -o OUTPUT --model w"),
        ("weights", "mtu-export onnx --checkpoint weights -o weights-bundle"),
        ("none.pth", "is empty (0 bytes): get it again; then: mtu-export onnx --checkpoint none.pth -o none"),
        ("in.mp4", "is a video or a picture; deblur it with: mtu-run in.mp4 -o OUTPUT"),
        ("video", "deblur it with: mtu-run video -o OUTPUT"),
        ("matroska", "deblur it with: mtu-run matroska -o OUTPUT"),
        ("a.onnx", "a model is a directory, made by: mtu-export onnx --checkpoint FILE -o DIR"),
        ("mine/step.onnx", "is one file of a model; give its directory: mine"),
        ("a.engine", "a model is a directory, made by: mtu-build-engine mtu2 --size WxH -o DIR"),
        ("notes.txt", "is a file; a model is mtu2 or mtu1, which come with the package"),
    ],
)
def test_given_for_a_model(here, given, words):
    with pytest.raises(MtuError) as error:
        open_bundle(given)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("in.mp4", "is a video or a picture; deblur it with: mtu-run in.mp4 -o OUTPUT"),
        ("matroska", "deblur it with: mtu-run matroska -o OUTPUT"),
        ("none.pth", "is empty (0 bytes): get it again"),
        ("mine", "is a model; use it with: mtu-run INPUT -o OUTPUT --model mine"),
        ("a.onnx", "give the .pytorch, .pth, .npz or .safetensors file"),
        ("a.engine", "give the .pytorch, .pth, .npz or .safetensors file"),
        ("notes.txt", "is neither a torch file nor safetensors"),
    ],
)
def test_given_for_a_checkpoint(here, given, words):
    with pytest.raises(MtuError) as error:
        load_checkpoint(Path(given))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("w.pth", "mtu-export onnx --checkpoint w.pth -o w"),
        ("weights", "mtu-export onnx --checkpoint weights -o weights-bundle"),
        ("mine/first.onnx", "give its directory: mine"),
        ("mine", "mtu-run INPUT -o OUTPUT --model mine"),
    ],
)
def test_given_for_a_video(here, given, words):
    with pytest.raises(MtuError) as error:
        open_reader(given)
    assert words in str(error.value)


def test_input_and_output_the_wrong_way_round(capsys, here):
    ended = run(capsys, "mtu-run", "sharp.mp4", "-o", "in.mp4")
    assert ended.code == 2 and "was this meant: mtu-run in.mp4 -o sharp.mp4?" in ended.err
    assert (here / "in.mp4").read_bytes() == FILES["in.mp4"]


def test_names_are_quoted(here):
    (here / "my net.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(MtuError, match=r"--checkpoint 'my net\.pth' -o 'my net'; then"):
        open_bundle("my net.pth")


def test_a_pipe_is_not_read(here):
    os.mkfifo(here / "pipe")
    assert kind_of(here / "pipe") is None and kind_of(here) is None


def test_the_models_that_come_with_the_package_are_one_everywhere(here):
    assert open_bundle("mtu2").directory == open_bundle().directory == bundled_directory()
    for name in PACKAGED:
        bundle = open_bundle(name)
        assert bundle.name == bundle.interface.variant == name and bundle.directory == bundled_directory(name)
