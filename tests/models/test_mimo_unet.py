"""MIMO-UNet: the released files load, the graph computes what the facts say, at every size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests import cli
from tests.graphs import before_rounding
from torch.nn import functional as F

from mtu.core.errors import InvalidInputError
from mtu.core.window import pad
from mtu.export.to_onnx import may_hold_size
from mtu.models.checkpoint import load_checkpoint, random_checkpoint
from mtu.models.families import find_family, find_preset
from mtu.models.mimo_unet import describe
from mtu.runtime.video import read_picture, write_png

TINY = {"blocks": 1, "channels": 4}


@pytest.mark.parametrize(
    ("preset", "tensors", "parameters"), [("mimo-unet", 244, 6_807_171), ("mimo-unet-plus", 532, 16_107_651)]
)
def test_the_presets_have_the_tensors_and_parameters_of_the_released_files(preset, tensors, parameters):
    name, settings = find_preset(preset)
    with torch.device("meta"):
        weights = find_family(name).network(settings).state_dict()
    assert (name, len(weights), sum(value.numel() for value in weights.values())) == ("mimo_unet", tensors, parameters)
    assert find_family(name).settings_of(weights) == settings
    assert find_family("mtu").settings_of(weights) is None


def reference(x: torch.Tensor, weights: dict[str, torch.Tensor], blocks: int) -> torch.Tensor:
    """The facts page, line by line, over the plain weights."""

    def conv(name: str, x: torch.Tensor, relu: bool = True, stride: int = 1) -> torch.Tensor:
        weight, bias = weights[name + ".main.0.weight"], weights[name + ".main.0.bias"]
        x = F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)
        return F.relu(x) if relu else x

    def up(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.conv_transpose2d(x, weights[name + ".main.0.weight"], weights[name + ".main.0.bias"], 2, 1))

    def stage(name: str, x: torch.Tensor) -> torch.Tensor:
        for block in range(blocks):
            x = x + conv(f"{name}.layers.{block}.main.1", conv(f"{name}.layers.{block}.main.0", x), relu=False)
        return x

    def shallow(name: str, x: torch.Tensor) -> torch.Tensor:
        y = x
        for layer in range(4):
            y = conv(f"{name}.main.{layer}", y)
        return conv(f"{name}.conv", torch.cat([x, y], 1), relu=False)

    def fam(name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + conv(f"{name}.merge", a * b, relu=False)

    def aff(name: str, *features: torch.Tensor) -> torch.Tensor:
        return conv(f"{name}.conv.1", conv(f"{name}.conv.0", torch.cat(features, 1)), relu=False)

    def nearest(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, size=like.shape[2:], mode="nearest")

    x2 = F.interpolate(x, scale_factor=0.5)
    x4 = F.interpolate(x2, scale_factor=0.5)
    res1 = stage("Encoder.0", conv("feat_extract.0", x))
    res2 = stage("Encoder.1", fam("FAM2", conv("feat_extract.1", res1, stride=2), shallow("SCM2", x2)))
    z = stage("Encoder.2", fam("FAM1", conv("feat_extract.2", res2, stride=2), shallow("SCM1", x4)))
    new2 = aff("AFFs.1", nearest(res1, res2), res2, nearest(z, res2))
    new1 = aff("AFFs.0", res1, nearest(res2, res1), nearest(z, res1))
    z = up("feat_extract.3", stage("Decoder.0", z))
    z = up("feat_extract.4", stage("Decoder.1", conv("Convs.0", torch.cat([z, new2], 1))))
    return conv("feat_extract.5", stage("Decoder.2", conv("Convs.1", torch.cat([z, new1], 1))), relu=False) + x


@pytest.mark.parametrize("size", [(4, 4), (8, 20), (36, 28)])
@pytest.mark.parametrize("settings", [TINY, {"blocks": 2, "channels": 6}, {"blocks": 1, "channels": 32}])
def test_the_network_computes_what_the_facts_say(settings, size):
    checkpoint = random_checkpoint("mimo_unet", settings)
    picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = checkpoint.network()(picture)
        wanted = reference(picture, dict(checkpoint.weights), settings["blocks"])
    assert (wanted - picture).abs().max() > 0.01
    assert (found - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (33, 50), (64, 48), (90, 131)])
def test_the_graph_gives_what_torch_gives_at_every_size(mimo, size):
    frame = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    padded = pad(frame, mimo.interface.size)[None]
    assert padded.shape[1] % 4 == padded.shape[2] % 4 == 0
    picture = torch.from_numpy(padded).permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        wanted = random_checkpoint("mimo_unet", TINY).network()(picture).clamp(0, 1).numpy()
    found = before_rounding(onnx.load(mimo.graph("picture")), {"frame": padded})
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-4


def test_the_graph_holds_every_weight_that_counts_and_no_size(mimo):
    model = onnx.load(mimo.graph("picture"))
    weights = random_checkpoint("mimo_unet", TINY).weights
    stored = {tensor.name for tensor in model.graph.initializer}
    assert {name for name in weights if name not in stored} == {name for name in weights if "ConvsOut" in name}
    assert not may_hold_size(model)  # so it was traced once
    assert {each.op_type for each in model.graph.node} >= {"Slice", "Resize"}


def saved(path: Path, weights: Mapping[str, torch.Tensor], layout: str) -> Path:
    """A checkpoint as Blur2Blur ("bare") or MIMO-UNet ("model") releases it, or trained on several GPUs ("module")."""
    if layout == "module":
        weights = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"model": dict(weights), "epoch": 3000} if layout == "model" else OrderedDict(weights), path)
    return path


@pytest.mark.parametrize("layout", ["bare", "model", "module"])
def test_every_layout_of_a_file_is_recognised(tmp_path, layout):
    checkpoint = random_checkpoint("mimo_unet", {"blocks": 3, "channels": 6})
    found = load_checkpoint(saved(tmp_path / "latest_net_G.pth", checkpoint.weights, layout))
    assert (found.family, found.settings, found.digest) == (checkpoint.family, checkpoint.settings, checkpoint.digest)


@pytest.mark.parametrize("layout", ["bare", "model"])
def test_both_released_layouts_from_file_to_pictures(tmp_path, capsys, layout):
    checkpoint = random_checkpoint("mimo_unet", TINY, seed=3)
    path = saved(tmp_path / "latest_net_G.pth", checkpoint.weights, layout)
    (tmp_path / "in").mkdir()
    frame = np.random.default_rng(2).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    write_png(tmp_path / "in" / "a.png", frame)
    exported = cli.run(capsys, "mtu-export", "onnx", "--checkpoint", path, "-o", tmp_path / "b")
    assert exported.code == 0, exported.err
    ran = cli.run(capsys, "mtu-run", tmp_path / "in", "-o", tmp_path / "out", "--model", tmp_path / "b")
    assert ran.code == 0, ran.err
    picture = torch.from_numpy(pad(frame, describe(TINY).size)).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        wanted = (checkpoint.network()(picture).clamp(0, 1) * 255).round()[0].permute(1, 2, 0)[:21, :34].numpy()
    assert np.abs(read_picture(tmp_path / "out" / "a.png") - wanted).max() <= 1  # a half may be rounded either way


def test_a_file_that_is_nearly_one_says_what_is_wrong(tmp_path):
    weights = dict(random_checkpoint("mimo_unet", TINY).weights)
    del weights["ConvsOut.1.main.0.bias"]
    weights["Encoder.0.layers.1.main.0.main.0.extra"] = torch.zeros(2)
    weights["FAM1.merge.main.0.weight"] = torch.zeros(16, 16, 1, 1)
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(InvalidInputError) as caught:
        load_checkpoint(tmp_path / "x.pth")
    for words in (
        "does not fit a network of 1 block, 4 channels",
        "missing ConvsOut.1.main.0.bias [3]",
        "unexpected Encoder.0.layers.1.main.0.main.0.extra [2]",
        "FAM1.merge.main.0.weight is [16, 16, 1, 1], should be [16, 16, 3, 3]",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{}, {"blocks": 8}, {"blocks": 0, "channels": 32}, {"blocks": 8, "channels": 1}, {"blocks": "8", "channels": 32}],
)
def test_settings_of_no_network(settings):
    with pytest.raises(InvalidInputError, match="no such network"):
        find_family("mimo_unet").network(settings)
