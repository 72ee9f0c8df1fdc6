"""DMENet: the released file loads, the graph computes what the facts say, at every size, in every backend here."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from tests import cli, needs
from tests.cli import refused
from tests.dmenet import NET, SMALL, arrays, extras, reference, write_npz

from mtu.core.errors import InvalidInputError
from mtu.core.window import cut, pad
from mtu.export.bundle_files import load_graphs, save_bundle
from mtu.export.chain_files import write_chain
from mtu.export.precision import in_fp16, to_fp16
from mtu.export.to_onnx import may_hold_size
from mtu.models import dmenet as family
from mtu.models.checkpoint import load_checkpoint, random_checkpoint
from mtu.models.families import FAMILIES, find_family, find_preset
from mtu.runtime import Session, open_backend, open_bundle
from mtu.runtime.backends import open_model
from mtu.runtime.chain import restore
from mtu.runtime.video import write_png

FULL = family.PRESETS["dmenet"]


@pytest.fixture(scope="module")
def values():
    return arrays(SMALL)


def frame(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_preset_has_the_arrays_and_parameters_of_the_released_file():
    name, settings = find_preset("dmenet")
    with torch.device("meta"):
        weights = find_family(name).network(settings).state_dict()
        released = {name: torch.empty(shape) for name, shape in family.released(settings).items()}
    assert (name, len(weights), sum(value.numel() for value in weights.values())) == ("dmenet", 100, 25_346_177)
    trained = sum(value.numel() for name, value in released.items() if "moving" not in name)
    assert (len(released), sum(math.prod(each.shape) for each in released.values())) == (199, 25_354_721)
    assert trained == 25_349_025
    assert family.settings_of(weights) == family.settings_of(released) == settings
    others = [find_family(other) for other in FAMILIES if other != name]
    assert not [other for other in others for each in (weights, released) if other.settings_of(each) is not None]


@pytest.mark.parametrize(
    ("settings", "seed", "size"),
    [
        (SMALL, 2, (16, 16)),
        (SMALL, 8, (32, 48)),
        ({"blocks": 7, "channels": 4}, 2, (48, 32)),
        ({"blocks": 1, "channels": 2}, 0, (16, 64)),
        ({"blocks": 3, "channels": 6}, 1, (80, 16)),
        (FULL, 0, (32, 16)),
    ],
)
def test_the_network_computes_what_the_facts_say(tmp_path, settings, seed, size):
    found, picture = arrays(settings, seed), frame(*size)
    checkpoint = load_checkpoint(write_npz(tmp_path / "DMENet_BDCS.npz", found))
    assert checkpoint.settings == settings and len(found) == 109 - 15 + 15 * settings["blocks"]
    with torch.inference_mode():
        (given,) = family.graphs(checkpoint.network())["map"](torch.from_numpy(picture)[None]).numpy()
    wanted = reference(picture / 255, found, settings["blocks"])
    assert wanted.max() - wanted.min() > 0.1  # a map that has something to compare
    assert np.abs(given - wanted).max() <= 2e-5


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("size", [(16, 16), (17, 40), (33, 31)])
def test_every_backend_gives_the_map_of_the_padded_frame_cut_back(dmenet, values, backend, size):
    needs.library(backend)
    picture = frame(*size)
    wanted = reference(pad(picture, dmenet.interface.size) / 255, values, SMALL["blocks"])[: size[0], : size[1]]
    with_backend = open_backend(backend, dmenet, "cpu")
    try:
        session = Session(with_backend)
        (result,) = session.push(picture) + session.flush()
    finally:
        with_backend.close()
    assert result.picture is None and result.map.shape == size
    assert np.abs(result.map - wanted).max() <= 1e-4


def test_onnxruntime_gives_what_torch_gives(dmenet):
    picture = frame(64, 80)[None]
    found = []
    for name in ("onnxruntime", "torch"):
        backend = open_backend(name, dmenet, "cpu")
        found.append(
            cut(
                backend.submit("map", {"frame": picture}, {}).result()["map"],
                dmenet.interface.outputs[0].tensor,
                64,
                80,
            )
        )
        backend.close()
    assert np.abs(found[0] - found[1]).max() <= 1e-5


def test_the_graph_holds_every_weight_under_its_name_and_no_size(dmenet):
    model = onnx.load(dmenet.graph("map"))
    stored = {tensor.name for tensor in model.graph.initializer}
    assert set(random_checkpoint("dmenet", SMALL).weights) <= stored
    assert not may_hold_size(model)  # so it was traced once
    kinds = Counter(node.op_type for node in model.graph.node)
    assert "BatchNormalization" not in kinds and kinds["Conv"] == 16 + 9 + 1 + 3 * SMALL["blocks"] + 3
    assert kinds["Pad"] == kinds["Conv"] - SMALL["blocks"]
    modes = {a.s for node in model.graph.node if node.op_type == "Pad" for a in node.attribute if a.name == "mode"}
    assert modes == {b"edge"}
    (output,) = dmenet.interface.outputs
    assert (output.role, output.tensor.shape, dmenet.interface.size.multiple) == ("map", (1, "H", "W"), 16)


@pytest.mark.parametrize("form", ["compressed", "float64", "big-endian", "by columns", "without extras", "other name"])
def test_every_form_of_a_file_gives_the_same_weights(tmp_path, values, form):
    plain = load_checkpoint(write_npz(tmp_path / "plain.npz", {**values, **extras()}))
    path, found = tmp_path / "other.npz", {**values, **extras()}
    if form == "compressed":
        np.savez_compressed(path, **found)
    else:
        kind = {"float64": "<f8", "big-endian": ">f4"}.get(form, "<f4")
        order = "F" if form == "by columns" else "C"
        found = values if form == "without extras" else found
        write_npz(path, {name: np.asarray(value, kind, order=order) for name, value in found.items()})
    if form == "other name":
        path = path.rename(tmp_path / "weights.bin")
    checkpoint = load_checkpoint(path)
    assert (checkpoint.family, checkpoint.settings, checkpoint.digest) == ("dmenet", SMALL, plain.digest)
    assert len(plain.dropped) == 122 and checkpoint.dropped == (() if form == "without extras" else plain.dropped)


def test_the_arrays_may_come_as_safetensors(tmp_path, values):
    save_file({name: torch.from_numpy(value) for name, value in values.items()}, tmp_path / "x.safetensors")
    wanted = load_checkpoint(write_npz(tmp_path / "x.npz", values))
    assert load_checkpoint(tmp_path / "x.safetensors").digest == wanted.digest


MISSING = [
    "encoder/conv1_1/kernel:0",
    "encoder/conv1_1/bias:0",
    "encoder/conv5_4/kernel:0",
    "decoder/u3/b2/moving_mean:0",
    "decoder/u0/c_res1/kernel:0",
    "decoder/u0/b1_2/beta:0",
    "decoder/uf/c3/kernel:0",
]


@pytest.mark.parametrize("name", MISSING)
def test_an_array_that_is_missing_is_named(tmp_path, values, name):
    found = dict(values)
    del found[NET + name]
    with pytest.raises(InvalidInputError, match=re.escape(f"missing {NET}{name} [")) as caught:
        load_checkpoint(write_npz(tmp_path / "x.npz", found))
    assert "unexpected" not in str(caught.value) and "and " not in str(caught.value)


@pytest.mark.parametrize("block", [0, 3, 6])
def test_a_released_file_that_lacks_a_whole_block_is_no_smaller_network(tmp_path, block):
    parts = f"(b|c)({block}_[12]|_res{block})"
    shapes = family.released(FULL)
    lacking = {name for name in shapes if re.search(f"u0/{parts}/", name)}
    found = {name: torch.empty(shape, device="meta") for name, shape in shapes.items() if name not in lacking}
    assert len(lacking) == 15 and family.settings_of(found) == FULL
    if block == 6:
        zeros = {name: np.zeros(value.shape, np.float32) for name, value in found.items()}
        with pytest.raises(InvalidInputError, match=r"missing .*u0/[bc](_res6|6_1)/") as caught:
            load_checkpoint(write_npz(tmp_path / "x.npz", zeros))
        assert "unexpected" not in str(caught.value)


CONV = f"{NET}decoder/u2/c1"
SPOILT = {
    "unknown": ({f"{NET}decoder/u9/c1/kernel:0": np.ones(2, np.float32)}, "unexpected main_net/defocus_net/decoder/u9"),
    "another gamma": ({f"{NET}decoder/u2/b1/gamma:0": np.ones(8, np.float32)}, "unexpected .*u2/b1/gamma:0"),
    "shape": (
        {f"{CONV}/kernel:0": np.ones((3, 3, 8, 32), np.float32)},
        r"is \[3, 3, 8, 32\], should be \[3, 3, 32, 8\]",
    ),
    "no shape": ({f"{CONV}/bias:0": np.float32(1)}, r"u2/c1/bias:0 is \[\], should be \[8\]"),
    "integers": ({f"{CONV}/bias:0": np.ones(8, np.int32)}, "u2/c1/bias:0 has type int32, should be floating-point"),
    "complex": ({f"{CONV}/bias:0": np.ones(8, np.complex64)}, "has type complex64, should be floating-point"),
    "texts": ({f"{CONV}/bias:0": np.array(["a"] * 8)}, "has type <U1, should be floating-point"),
    "not finite": ({f"{CONV}/bias:0": np.full(8, np.nan, np.float32)}, "non-finite values:\n  .*u2/c1/bias:0"),
    "a variance below zero": (
        {f"{NET}decoder/u2/b1/moving_variance:0": np.full(8, -1, np.float32)},
        "non-finite values:\n  decoder.u2.c1.weight",
    ),
    "an eighth block": ({f"{NET}decoder/u0/c99999_1/bias:0": np.ones(4, np.float32)}, "unexpected .*c99999_1/bias:0"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_file_that_is_nearly_one_says_what_is_wrong(tmp_path, values, what):
    changed, words = SPOILT[what]
    with pytest.raises(InvalidInputError, match=words):
        load_checkpoint(write_npz(tmp_path / "x.npz", {**values, **extras(), **changed}))


def test_files_of_other_networks(tmp_path, capsys):
    other = {"conv1/kernel:0": np.ones((3, 3, 3, 4), np.float32)}
    mimo = {
        name: value.numpy()
        for name, value in random_checkpoint("mimo_unet", {"blocks": 1, "channels": 4}).weights.items()
    }
    for name, found in (("vgg", other), ("aux", extras()), ("nothing", {})):
        write_npz(tmp_path / f"{name}.npz", found)
        ended = cli.run(capsys, "mtu-export", "onnx", "--checkpoint", tmp_path / f"{name}.npz", "-o", tmp_path / "b")
        words = "does not fit a network" if name == "aux" else "is of another network"
        refused(ended, tmp_path, words, f"{name}.npz", f"{NET}encoder/conv1_1/kernel:0")
    assert load_checkpoint(write_npz(tmp_path / "mimo.npz", mimo)).family == "mimo_unet"
    assert not (tmp_path / "b").exists()


def test_from_the_file_to_maps(tmp_path, capsys, values):
    path = write_npz(tmp_path / "DMENet_BDCS.npz", {**values, **extras()})
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "a.png", frame(21, 34))
    ran = cli.run(capsys, "mtu-run", tmp_path / "in", "-o", tmp_path / "out", "--model", path)
    refused(ran, tmp_path, "is a checkpoint; make a bundle of it with: mtu-export onnx --checkpoint")
    exported = cli.run(capsys, "mtu-export", "onnx", "--checkpoint", path, "-o", tmp_path / "b")
    assert exported.code == 0, exported.err
    assert "left out 122 tensors that only training uses: discriminator/" in exported.err
    assert "custom (2 blocks, 4 channels), fp32" in exported.out
    ran = cli.run(
        capsys,
        "mtu-run",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "--model",
        tmp_path / "b",
        "--save-maps",
        tmp_path / "exact",
    )
    assert ran.code == 0, ran.err
    wanted = reference(pad(frame(21, 34), family.describe(SMALL).size) / 255, values, SMALL["blocks"])[:21, :34]
    exact = np.load(tmp_path / "exact" / "a.npy", allow_pickle=False)
    assert np.abs(exact - wanted).max() <= 1e-4
    assert np.array_equal(gray16(tmp_path / "out" / "a.png"), np.rint(exact.astype(np.float64) * 65535))


@pytest.mark.parametrize("size", [(7, 7), (7, 64), (40, 15), (1, 1)])
def test_a_picture_that_is_too_small(tmp_path, capsys, dmenet, size):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "a.png", frame(*size))
    words = f"frames of {size[1]}x{size[0]} are too small for this model, which takes 16x16 and larger ones"
    for output, options in (("out", ()), ("out.mp4", ("--save-maps", tmp_path / "exact")), ("heat", ("--heat",))):
        ended = cli.run(
            capsys, "mtu-run", tmp_path / "in", "-o", tmp_path / output, "--model", dmenet.directory, *options
        )
        refused(ended, tmp_path, words)
    ended = cli.run(capsys, "mtu-compare", dmenet.directory, dmenet.directory, "--input", tmp_path / "in")
    refused(ended, tmp_path, words)
    assert [each.name for each in tmp_path.iterdir()] == ["in"]


def test_in_fp16_and_behind_another_network(tmp_path, dmenet, mimo):
    """What goes through the description alone works for a map as for a picture."""
    models, half = load_graphs(dmenet), tmp_path / "half"
    for model in models.values():
        to_fp16(model)
    half.mkdir()
    save_bundle(half, in_fp16(dmenet.interface), models)
    write_chain([mimo.directory, dmenet.directory], tmp_path / "chain")

    def restored(model, picture):
        backend = open_backend("onnxruntime", model, "cpu")
        (result,) = restore([picture], backend)
        backend.close()
        return result

    picture, made = frame(30, 33), open_bundle(half)
    one, less = restored(dmenet, picture).map, restored(made, picture).map
    assert made.interface.the("map").unit == family.SIGMA and less.dtype == np.float16
    assert 0 < np.abs(less - one).max() < 0.01
    in_a_row = restored(open_model(tmp_path / "chain"), picture).map
    assert np.array_equal(in_a_row, restored(dmenet, restored(mimo, picture).rgb).map)
    assert not np.array_equal(in_a_row, one)


def gray16(path):
    import av

    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="gray16le")


@pytest.mark.parametrize(
    "settings",
    [{}, {"blocks": 7}, {"blocks": 0, "channels": 64}, {"blocks": 7, "channels": 1}, {"blocks": 7.0, "channels": 64}],
)
def test_settings_of_no_network(settings):
    with pytest.raises(InvalidInputError, match="no such network"):
        find_family("dmenet").network(settings)
