"""Networks of a user's own: from a Python file and a checkpoint to pictures, chains and engines."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import cli
from tests.conftest import ROOT
from tests.frames import moving_frames
from tests.graphs_of_streams import takes_streams

from mtu.core.errors import InvalidInputError
from mtu.core.interface import Frame, Interface
from mtu.core.window import pad
from mtu.export.to_onnx import export_bundle
from mtu.models import families
from mtu.models.checkpoint import Checkpoint, load_checkpoint, random_checkpoint
from mtu.runtime import open_backend, open_bundle, restore
from mtu.runtime.video import read_picture, write_png

SIZE = (19, 26)  # of no family's multiples
FILES = sorted((Path(__file__).parent / "own_families").glob("*.py"))


@pytest.fixture(autouse=True)
def no_family_stays(monkeypatch):
    monkeypatch.setattr(families, "_own", {})


def example(directory: Path) -> Path:
    """The one in the documentation."""
    page = (ROOT / "docs" / "your-own-network.md").read_text()
    path = directory / "my_network.py"
    path.write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0])
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of each family a directory: its file, a checkpoint, the bundle made of them."""
    root = tmp_path_factory.mktemp("own")
    made: dict[str, Path] = {}
    for path in (example(root), *FILES):
        directory = made[path.stem] = root / path.stem
        directory.mkdir()
        shutil.copy(path, directory)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(families, "_own", {})
            name = families.load_family_file(directory / path.name)
            settings = next(iter(families.find_family(name).PRESETS.values()))
            torch.save(dict(random_checkpoint(name, settings, seed=5).weights), directory / "w.pth")
            export_bundle(load_checkpoint(directory / "w.pth"), directory / "b")
    return made


def clip_in(directory: Path, count: int, *size: int) -> Path:
    (directory / "in").mkdir()
    for number, frame in enumerate(moving_frames(count, *size)):
        write_png(directory / "in" / f"{number}.png", frame)
    return directory / "in"


def read(directory: Path) -> Checkpoint:
    families.load_family_file(directory / f"{directory.name}.py")
    return load_checkpoint(directory / "w.pth")


@torch.inference_mode()
def by_torch(checkpoint: Checkpoint, interface: Interface, frames: list[np.ndarray]) -> list[np.ndarray]:
    """The first picture or map of each frame, padded: what the description says, done by hand."""
    network = checkpoint.network()
    modules = families.find_family(checkpoint.family).graphs(network)
    padded = [torch.from_numpy(pad(frame, interface.size)[None]) for frame in frames]
    states: dict[str, torch.Tensor] = {}
    given = []
    for number in range(len(frames)):
        graph = interface.graphs[0 if number == 0 else -1]
        inputs = [
            padded[min(max(number + each.source.offset, 0), len(frames) - 1)]
            if isinstance(each.source, Frame)
            else states[each.source.name]
            for each in graph.inputs
        ]
        outputs = modules[graph.name].eval()(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        states = {each.tensor.name: value for each, value in zip(graph.outputs, outputs, strict=True)}
        shown = next(each for each in graph.outputs if each.role in ("picture", "map"))
        given.append(states[shown.tensor.name][0].numpy())
    return given


@pytest.mark.parametrize("name", ["my_network", "memories", "twice"])
def test_pictures_equal_those_of_torch(exported, tmp_path, capsys, name):
    bundle = open_bundle(exported[name] / "b")
    clip = clip_in(tmp_path, 4, *SIZE)
    frames = [read_picture(path) for path in sorted(clip.iterdir())]
    ran = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out", "--model", bundle.directory, "--no-scene-detection")
    assert ran.code == 0, ran.err
    wanted = by_torch(read(exported[name]), bundle.interface, frames)
    scale = bundle.interface.scale
    for path, truth, frame in zip(sorted((tmp_path / "out").iterdir()), wanted, frames, strict=True):
        restored = read_picture(path)
        assert restored.shape == (scale * SIZE[0], scale * SIZE[1], 3)
        assert np.abs(restored - truth[: restored.shape[0], : restored.shape[1]].astype(float)).max() <= 1
        assert np.abs(restored[::scale, ::scale] - frame.astype(float)).max() > 5


def test_maps_equal_those_of_torch(exported, tmp_path, capsys):
    bundle = open_bundle(exported["mask"] / "b")
    clip = clip_in(tmp_path, 3, *SIZE)
    frames = [read_picture(path) for path in sorted(clip.iterdir())]
    results = list(restore(frames, open_backend("onnxruntime", bundle, "cpu"), scene_threshold=None))
    for result, truth in zip(results, by_torch(read(exported["mask"]), bundle.interface, frames), strict=True):
        assert result.picture is None and result.map.shape == (10, 13)
        assert np.abs(result.map - truth[:10, :13]).max() <= 1e-4
        assert np.ptp(truth) > 0.01
    ran = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out", "--model", bundle.directory)
    assert ran.code == 0 and len(list((tmp_path / "out").iterdir())) == 3, ran.err


@pytest.mark.needs_library("tensorrt_rtx")
@pytest.mark.parametrize("name", ["my_network", "memories"])
def test_engines_are_built(exported, tmp_path, capsys, name):
    options = ("-o", tmp_path / "e", "--size", "36x24", "--runtime", "tensorrt-rtx", "--compute-capability", "8.6")
    built = cli.run(capsys, "mtu-build-engine", exported[name] / "b", *options)
    assert built.code == 0, built.err
    assert {path.suffix for path in (tmp_path / "e").iterdir()} == {".engine", ".json", ".log"}


def test_the_example_goes_from_the_module_to_a_fp16_bundle(exported, tmp_path, capsys):
    directory = exported["my_network"]
    assert 60 <= len((directory / "my_network.py").read_text().splitlines()) <= 90
    options = (
        "onnx",
        "--family",
        directory / "my_network.py",
        "--checkpoint",
        directory / "w.pth",
        "-o",
        tmp_path / "b",
    )
    ended = cli.run(capsys, "mtu-export", *options, "--precision", "fp16")
    assert ended.code == 0 and "my-small (16 channels, 4 blocks), fp16" in ended.out, ended.err
    clip = clip_in(tmp_path, 3, *SIZE)
    ended = cli.run(capsys, "mtu-compare", directory / "b", tmp_path / "b", "--input", clip, "--min-psnr", "40")
    assert ended.code == 0, ended.err + ended.out


def test_presets_of_a_file_are_random_networks(exported, tmp_path, capsys):
    file = exported["memories"] / "memories.py"
    ended = cli.run(capsys, "mtu-export", "onnx", "--family", file, "--preset", "memories", "-o", tmp_path / "b")
    assert ended.code == 0 and "memories (4 channels), fp32" in ended.out, ended.err
    assert "FILE.py" in cli.run(capsys, "mtu-export", "onnx", "--help").out


def test_two_families_that_claim_a_checkpoint_or_none(exported, tmp_path):
    copied = Path(shutil.copy(exported["twice"] / "twice.py", tmp_path / "again.py"))
    for path in (copied, exported["twice"] / "twice.py"):
        families.load_family_file(path)
    with pytest.raises(InvalidInputError, match=r"w\.pth could be of again or of twice: keep the weights of one"):
        load_checkpoint(exported["twice"] / "w.pth")
    with pytest.raises(InvalidInputError) as caught:
        load_checkpoint(exported["my_network"] / "w.pth")
    for words in (
        "is of another network: it has look.weight",
        "twice has enlarge.weight",
        "mtu has base_conv.0.weight",
    ):
        assert words in str(caught.value)


def test_a_family_that_is_not_that_of_the_weights(exported, tmp_path, capsys):
    file = exported["twice"] / "twice.py"
    torch.save(dict(random_checkpoint("mimo_unet", {"blocks": 1, "channels": 4}).weights), tmp_path / "w.pth")
    for options in (("--preset", "mtu1"), ("--checkpoint", tmp_path / "w.pth"), ("--checkpoint", "mtu2")):
        ended = cli.run(capsys, "mtu-export", "onnx", "--family", file, *options, "-o", tmp_path / "b")
        assert ended.code == 2 and "leave out --family" in ended.err and ended.err.count("error:") == 1, ended.err
        assert not (tmp_path / "b").exists()


def test_torch_knows_no_network_of_a_file(exported, tmp_path, capsys):
    clip = clip_in(tmp_path, 1, *SIZE)
    options = ("--model", exported["memories"] / "b", "--backend", "torch")
    ended = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out", *options)
    assert ended.code == 2 and "'memories' is none of this release" in ended.err, ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["my_network", *(path.stem for path in FILES)])
def test_graphs_take_several_streams(exported, name):
    assert takes_streams(open_bundle(exported[name] / "b"))


def with_changes(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """A family of tests/models/own_families with a mistake."""
    text = next(path for path in FILES if path.stem == name).read_text()
    assert old in text
    path = tmp_path / "family" / f"{name}.py"
    path.parent.mkdir()
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        # The file itself
        ("twice", "import torch\n", "import torch, no_such_module\n", "line 3: ModuleNotFoundError: No module named"),
        ("twice", "PRESETS = ", "PRESETS = 1 / 0 ", ": SyntaxError"),
        ("twice", "PRESETS = ", "raise SystemExit(0)\nPRESETS = ", "line 9: SystemExit: 0"),
        ("twice", "def graphs", "def graph", "lacks graphs; see docs/your-own-network.md"),
        ("twice", 'PRESETS = {"twice"', 'PRESETS = {"mtu2"', "the preset mtu2 is one of this release"),
        ("twice", 'PRESETS = {"twice": {"channels": 6}}', "PRESETS = [{}]", "PRESETS is [{}]; it is a dict"),
        # Settings
        ("twice", '{"channels": 6}', '{"channels": (6,)}', "PRESETS['twice'] gives the settings {'channels': (6"),
        ("twice", '{"channels": 6}', '{"channels": torch.ones(1)}', "which JSON cannot hold"),
        ("twice", '{"channels": 6}', '{"chanels": 6}', "line 37: TypeError: Twice.__init__() got an unexpected"),
        ("twice", "KEYS = (", "KEYS = 5 or (", "KEYS is 5; it is a tuple of texts"),
        ("twice", "KEYS = (", 'KEYS = "a.weight" or (', "KEYS is 'a.weight'; it is a tuple of texts"),
        ("twice", "KEYS = ", 'TRAINING_ONLY = "a"\nKEYS = ', "TRAINING_ONLY is 'a'; it is a compiled pattern"),
        ("twice", "PRESETS = ", "PRESETS = None and ", "PRESETS is None; it is a dict, names of variants"),
        ("twice", "PRESETS = ", "PRESETS = [1] or ", "PRESETS is [1]; it is a dict"),
        ("twice", "PRESETS = {", "PRESETS = {3: {}, ", "PRESETS is {3: {}"),
        # What the functions give
        ("twice", "return Interface(", "return {} and Interface(", "describe gives a dict"),
        ("twice", "return Twice(**settings)", "return None", "network gives a NoneType"),
        ("twice", 'return {"only": network}', 'return {"other": network}', "gives other, the description has only"),
        ("twice", 'return {"only": network}', 'return {"only": print}', "gives only as a builtin_func"),
        ("twice", 'return {"only": network}', 'return [network]', "graphs gives a list; see docs/your-own-network.md"),
        # The description against the module
        ("twice", '"uint8", (1, "2*H"', '"float64", (1, "2*H"', "type 'float64'; types are uint8, int32, float32"),
        ("twice", 'Tensor("large"', 'Tensor("../large"', "the name '../large'; a name has 1 to 64 of A-Z a-z 0-9"),
        ("twice", 'Graph("only"', 'Graph("a/b"', "graphs ['a/b']: one or more, none twice; a name has 1 to 64"),
        ("memories", "return coarse, ", "return [coarse], ", "gives a list: it gives a tensor, or a tuple of tensors"),
        ("twice", "scale=2", "scale=3", "output large: uint8 [1, '2*H', '2*W', 3] is no picture"),
        ("twice", "Frame(\"image\", 0)", "Frame(\"video\", 0)", "input frame is of stream 'video'"),
        ("memories", 'State("coarse")', 'State("rough")', "is state 'rough', which no output gives"),
        ("memories", '"H/3", "W/3"', '"H", "W"', "gives coarse as float32 [1, 8, 11, 16] for a frame of 48x33"),
        ("memories", "return coarse, ", "return ", "graph begin gives 2 outputs, the description has 3"),
        ("mask", '"float32"', '"float16"', "gives mask as float32 [1, 16, 24] for a frame of 48x32"),
        ("mask", "Frame(\"image\", offset)", "Frame(\"image\", -offset * 1000)", "offset 1000"),
        # The module
        ("twice", "features = torch.relu(", "features = torch.reluu(", "line 22: AttributeError: module 'torch'"),
        ("twice", "features = torch.relu(", "features = self.enlarge(", "line 23: RuntimeError: Given groups=1"),
        ("twice", "        large =", "        assert frame.max() == 0\n        large =", "line"),
        ("mask", "for layer in self.inner", "for layer in self.inner[: int(x.mean()) + 9]", "line"),
        ("mask", "return torch.sigmoid", "x = x[:, :, :32]\n        return torch.sigmoid", "mask"),
        ("twice", "nn.Conv2d(3, channels, 3, padding=1)", "nn.BatchNorm2d(3)", "has batch normalisation (inner)"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_file_is_one_message(tmp_path, capsys, name, old, new, words):
    path = with_changes(tmp_path, name, old, new)
    options = ("onnx", "--family", path, "--preset", "mtu1" if "mtu2" in new else name, "-o", tmp_path / "b")
    ended = cli.run(capsys, "mtu-export", *options)
    assert ended.code == 2 and ended.err.count("error:") == 1 and "Traceback" not in ended.err, ended.err
    assert words in " ".join(ended.err.split()) and name in ended.err, ended.err
    assert [each.name for each in tmp_path.iterdir()] == ["family"]


@pytest.mark.parametrize("new", ["torch.reluu(", "exit(", "from_nowhere("])
def test_a_relative_path_has_its_line_too(tmp_path, capsys, monkeypatch, new):
    monkeypatch.chdir(with_changes(tmp_path, "twice", "features = torch.relu(", f"features = {new}").parent)
    ended = cli.run(capsys, "mtu-export", "onnx", "--family", "twice.py", "--preset", "twice", "-o", "b")
    assert ended.code == 2 and "--family twice.py, line 22: " in ended.err, ended.err


def test_what_a_file_does_to_the_directory_or_to_its_settings_stays_in_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = with_changes(tmp_path, "twice", "PRESETS = ", 'import os\nos.chdir("/")\nPRESETS = ')
    text = path.read_text().replace("def network(settings):", 'def network(settings):\n    settings["channels"] += 1')
    path.write_text(text)
    name = families.load_family_file(Path("family/twice.py"))
    assert Path.cwd() == tmp_path
    settings = families.find_family(name).PRESETS["twice"]
    for _ in range(2):
        families.find_family(name).network(settings)
        families.find_family(name).describe(settings)
    assert settings == {"channels": 6}


@pytest.mark.parametrize("name", ["mtu.py", "my-network.py", "network.txt", "missing.py", "."])
def test_a_path_that_is_no_family(tmp_path, capsys, name):
    if name != "missing.py":
        (tmp_path / name).is_dir() or (tmp_path / name).write_text("PRESETS = {}\n")
    options = ("onnx", "--family", tmp_path / name, "--preset", "mtu1", "-o", tmp_path / "b")
    ended = cli.run(capsys, "mtu-export", *options)
    assert ended.code == 2 and ended.err.count("error:") == 1 and "--family" in ended.err, ended.err
    assert not (tmp_path / "b").exists()
