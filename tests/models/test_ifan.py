"""IFAN: the released files load, the network and its graph compute what the facts say, the commands take it."""

from __future__ import annotations

import json
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from tests import cli, ifan
from tests.graphs import before_rounding
from tests.graphs_of_streams import takes_streams
from tests.ifan import DUAL, LAYOUTS, MISTAKES, TINY, arrays, reference

from mtu.core.errors import InvalidInputError
from mtu.core.window import pad
from mtu.export.bundle_files import load_graphs
from mtu.export.precision import fp32_layers, to_fp16
from mtu.export.to_onnx import export_bundle, may_hold_size
from mtu.models.checkpoint import Checkpoint, load_checkpoint
from mtu.models.families import find_family, find_preset
from mtu.models.ifan import PRESETS, describe, from_released, released
from mtu.plugins.nodes import op_nodes
from mtu.plugins.op import find_op
from mtu.runtime.backends import open_backend
from mtu.runtime.backends.torch_backend import read_checkpoint
from mtu.runtime.bundle import Bundle, open_bundle
from mtu.runtime.video import read_picture, write_png

pytestmark = pytest.mark.usefixtures("one_thread")


def checkpoint(settings, seed=0) -> Checkpoint:
    return Checkpoint("ifan", settings, from_released(arrays(settings, seed)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """A folder with a file as the authors' training writes it, and the bundle of it."""
    folder = tmp_path_factory.mktemp("ifan")
    path = ifan.save(folder / "IFAN.pytorch", arrays(TINY), LAYOUTS[0])
    export_bundle(load_checkpoint(path), folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def bundle(exported) -> Bundle:
    return open_bundle(exported / "bundle")


@pytest.fixture(scope="module")
def dual(tmp_path_factory) -> Bundle:
    return export_bundle(checkpoint(DUAL), tmp_path_factory.mktemp("dual") / "bundle")


@pytest.mark.parametrize(
    ("preset", "parameters", "here"),
    [
        ("ifan-8", 9_436_740, 9_573_604),
        ("ifan", 10_476_996, 10_168_036),
        ("ifan-26", 11_517_252, 10_762_468),
        ("ifan-35", 12_557_508, 11_356_900),
        ("ifan-44", 13_597_764, 11_951_332),
        ("ifan-dual", 10_477_860, 10_168_900),
    ],
)
def test_the_presets_have_the_tensors_and_parameters_of_the_released_files(preset, parameters, here):
    name, settings = find_preset(preset)
    shapes = released(settings)
    assert (name, len(shapes), sum(map(prod, shapes.values()))) == ("ifan", 158, parameters)
    file = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with torch.device("meta"):
        own = find_family(name).network(settings).state_dict()
    assert sum(value.numel() for value in own.values()) == here
    assert find_family(name).settings_of(file) == find_family(name).settings_of(own) == settings
    assert all(find_family(other).settings_of(file) is None for other in ("mtu", "mimo_unet"))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        (TINY, (8, 8)),
        (TINY, (24, 40)),
        (DUAL, (16, 24)),
        ({"iterations": 1, "channels": 3, "streams": 1}, (40, 16)),
        (PRESETS["ifan"], (16, 24)),
        (PRESETS["ifan-44"], (8, 16)),
        (PRESETS["ifan-dual"], (16, 16)),
    ],
    ids=str,
)
def test_the_network_computes_what_the_facts_say(settings, size):
    frames = torch.rand(settings["streams"], 1, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = checkpoint(settings).network()(*frames).clamp(0, 1)
        wanted = reference(arrays(settings), *frames)
    assert (wanted - frames[0]).abs().max() > 0.1 and ((wanted > 0) & (wanted < 1)).float().mean() > 0.5
    assert (found - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_weights_of_the_tests_tell_a_mistake(mistake):
    picture = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    weights = arrays(PRESETS["ifan"])
    right, wrong = (reference(weights, picture, mistake=each) for each in ("", mistake))
    assert (right - wrong).abs().max() > 0.1


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (33, 50), (64, 48)])
def test_the_graph_gives_what_the_facts_say_at_every_size(bundle, size):
    frame = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    padded = pad(frame, bundle.interface.size)[None]
    assert padded.shape[1] % 8 == padded.shape[2] % 8 == 0
    wanted = reference(arrays(TINY), torch.from_numpy(padded).permute(0, 3, 1, 2).float() / 255).numpy()
    found = before_rounding(onnx.load(bundle.graph("picture")), {"frame": padded})
    assert np.abs(found - wanted).max() <= 1e-4
    rounded = (wanted * 255).transpose(0, 2, 3, 1)
    for name in ("onnxruntime", "openvino", "torch"):
        if name == "openvino":
            pytest.importorskip("openvino")
        backend = open_backend(name, bundle, "cpu")
        output = backend.submit("picture", {"frame": padded}, {}).result()["output"]
        backend.close()
        assert np.abs(output - rounded).max() <= 0.5 + 255e-4, name


@pytest.mark.parametrize("size", [(7, 7), (7, 64), (64, 7), (1, 1)])
def test_a_picture_that_is_too_small(tmp_path, capsys, bundle, size):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "a.png", np.zeros((*size, 3), np.uint8))
    for command in (
        ("mtu-run", tmp_path / "in", "-o", tmp_path / "out", "--model", bundle.directory),
        ("mtu-compare", bundle.directory, bundle.directory, "--input", tmp_path / "in"),
    ):
        ended = cli.run(capsys, *command)
        assert ended.code == 2 and f"frames of {size[1]}x{size[0]} are too small for this model" in ended.err
    assert [each.name for each in tmp_path.iterdir()] == ["in"]


def test_the_graph_of_three_streams_gives_what_the_facts_say(dual):
    assert dual.interface.streams == ("image", "right", "left")
    assert [frame.stream for frame in dual.interface.frames.values()] == ["image", "right", "left"]
    random = np.random.default_rng(2)
    frames = {name: random.integers(0, 256, (1, 24, 40, 3), dtype=np.uint8) for name in ("frame", "right", "left")}
    pictures = [torch.from_numpy(frame).permute(0, 3, 1, 2).float() / 255 for frame in frames.values()]
    wanted = reference(arrays(DUAL), *pictures).numpy()
    found = before_rounding(onnx.load(dual.graph("picture")), frames)
    assert np.abs(found - wanted).max() <= 1e-4
    swapped = before_rounding(onnx.load(dual.graph("picture")), {**frames, "right": frames["left"]})
    assert np.abs(swapped - wanted).max() > 1e-2
    assert read_checkpoint(dual).network().state_dict().keys() == checkpoint(DUAL).weights.keys()


def test_the_filters_are_split_by_iteration_and_hold_no_dead_rows(bundle):
    model = onnx.load(bundle.graph("picture"))
    assert [op.name for _, op in op_nodes(model)] == ["IterativeFilters"] * TINY["iterations"]
    assert bundle.interface.ops == {"IterativeFilters": {"version": 1, "shared_taps": 1}}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = checkpoint(TINY).weights
    assert set(weights) <= set(stored)
    assert all((stored[name] == value.numpy()).all() for name, value in weights.items())
    c, n, file = 4 * TINY["channels"], TINY["iterations"], arrays(TINY)["F.3.weight"].numpy()
    assert max(tensor.shape[0] for tensor in stored.values() if tensor.ndim == 4) == 4 * c
    for iteration, tap, channel in ((0, 0, 0), (1, 2, 3), (2, 1, 7)):  # where they come from, as the facts page says
        found = stored[f"F.3.{iteration}.weight"]
        assert (found[tap * c + channel] == file[iteration * 6 * c + 3 * channel + tap]).all()
        assert (found[3 * c + channel] == file[6 * c * n + c * iteration + channel]).all()
    assert not may_hold_size(model)  # so it was traced once


def test_an_iteration_s_filters_are_computed_behind_the_one_before(tmp_path, bundle):
    """All at the beginning they would be most of the memory."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.enable_profiling = 4, True
    options.profile_file_prefix = str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(str(bundle.graph("picture")), options, providers=["CPUExecutionProvider"])
    session.run(None, {"frame": np.zeros((1, 32, 48, 3), np.uint8)})
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event for event in events if event["name"].endswith("_kernel_time")]
    is_filters = [{"float": [1, 32, 4, 6]} in event["args"]["output_type_shape"] for event in ran]
    kinds = [event["args"]["op_name"] for event in ran]
    found = [index for index, kind in enumerate(kinds) if kind == "Conv" and is_filters[index]]
    between = [kinds[before:behind].count("Mul") for before, behind in pairwise(found[: TINY["iterations"]])]
    assert between == [6] * (TINY["iterations"] - 1)


def test_the_weights_come_back_out_of_the_bundle(exported, bundle):
    found, wanted = read_checkpoint(bundle), load_checkpoint(exported / "IFAN.pytorch")
    assert (found.family, found.settings, found.digest) == ("ifan", TINY, wanted.digest)
    assert all((found.weights[name] == value).all() for name, value in wanted.weights.items())


def test_rows_that_nothing_uses_change_nothing(tmp_path):
    weights = arrays(TINY)
    c = 4 * TINY["channels"]
    weights["F.3.weight"][3 * c : 6 * c] = 5
    path = ifan.save(tmp_path / "x", weights, LAYOUTS[1])
    assert load_checkpoint(path).digest == checkpoint(TINY).digest


@pytest.mark.parametrize("settings", [TINY, DUAL, {"iterations": 5, "channels": 3, "streams": 1}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_a_file_is_recognised(tmp_path, layout, settings):
    found = load_checkpoint(ifan.save(tmp_path / "IFAN.pytorch", arrays(settings), layout))
    assert (found.family, found.settings, found.digest) == ("ifan", settings, checkpoint(settings).digest)
    assert len(found.dropped) == (20 if "reblurNet" in layout else 0)
    assert all(name.startswith("reblurNet.RBF.") for name in found.dropped)


def without(name):
    return lambda weights: weights.pop(name)


WRONG = {
    "a layer is missing": (without("conv_res.1.stem.2.0.bias"), "missing conv_res.1.stem.2.0.bias [8]"),
    "no filters": (without("F.3.weight"), "missing F.3.weight"),
    "no biases of the filters": (without("F.3.bias"), "missing F.3.bias [168]"),
    "one more": (lambda w: w.update(extra=torch.zeros(2)), "unexpected extra [2]"),
    "another N in the biases": (
        lambda w: w.update({"F.3.bias": torch.zeros(112)}),
        "F.3.bias is [112], should be [168]",
    ),
    "no whole N": (
        lambda w: w.update({"F.3.weight": torch.zeros(170, 8, 1, 1)}),
        "F.3.weight is [170, 8, 1, 1], should be [168, 8, 1, 1]",
    ),
    "no iteration": (lambda w: w.update({"F.3.weight": torch.zeros(7, 8, 1, 1)}), "F.3.weight is [7, 8, 1, 1]"),
    "not finite": (lambda w: w["F.3.weight"].fill_(torch.nan), "has non-finite values"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_file_that_is_nearly_one_says_what_is_wrong(tmp_path, capsys, what):
    change, words = WRONG[what]
    weights = arrays(TINY)
    change(weights)
    path = ifan.save(tmp_path / "IFAN.pytorch", weights, LAYOUTS[0])
    ended = cli.run(capsys, "mtu-export", "onnx", "--checkpoint", path, "-o", tmp_path / "b")
    cli.refused(ended, tmp_path, words)
    assert [each.name for each in tmp_path.iterdir()] == ["IFAN.pytorch"]


def test_a_file_of_the_reblurring_network_alone_is_refused(tmp_path, capsys):
    ifan.save(tmp_path / "IFAN.pytorch", {}, LAYOUTS[0])
    ended = cli.run(capsys, "mtu-export", "onnx", "--checkpoint", tmp_path / "IFAN.pytorch", "-o", tmp_path / "b")
    cli.refused(ended, tmp_path, "is of another network: it has reblurNet.RBF", "ifan has kconv1_1.0.weight")


@pytest.mark.parametrize(
    "settings",
    [{}, {"iterations": 17}, {**TINY, "iterations": 0}, {**TINY, "streams": 2}, {**TINY, "channels": "8"}],
    ids=str,
)
def test_settings_of_no_network(settings):
    for function in (describe, find_family("ifan").network):
        with pytest.raises(InvalidInputError, match="no such network"):
            function(settings)


def test_a_released_file_becomes_pictures(tmp_path, exported, capsys):
    (tmp_path / "in").mkdir()
    frame = np.random.default_rng(2).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    write_png(tmp_path / "in" / "a.png", frame)
    ran = cli.run(capsys, "mtu-run", tmp_path / "in", "-o", tmp_path / "out", "--model", exported / "bundle")
    assert ran.code == 0, ran.err
    picture = torch.from_numpy(pad(frame, describe(TINY).size)).permute(2, 0, 1)[None].float() / 255
    wanted = (reference(arrays(TINY), picture) * 255)[0].permute(1, 2, 0)[:21, :34].numpy()
    assert np.abs(read_picture(tmp_path / "out" / "a.png") - wanted).max() <= 0.5 + 255e-4


def test_a_bundle_is_compared_with_its_checkpoint(tmp_path, exported, capsys):
    (tmp_path / "in").mkdir()
    for index in range(2):
        frame = np.random.default_rng(index).integers(0, 256, (21, 34, 3), dtype=np.uint8)
        write_png(tmp_path / "in" / f"{index}.png", frame)
    sides = exported / "IFAN.pytorch", exported / "bundle"
    options = "--input", tmp_path / "in", "--backend-a", "torch", "--backend-b", "onnxruntime", "--min-psnr", "60"
    ended = cli.run(capsys, "mtu-compare", *sides, *options)
    assert ended.code == 0, ended.err


def test_three_streams_are_refused_in_words_where_one_is_read(tmp_path, dual, capsys):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "a.png", np.zeros((16, 16, 3), np.uint8))
    arguments = tmp_path / "in", "-o", tmp_path / "out.mp4", "--model", dual.directory, "--backend", "onnxruntime"
    cli.refused(cli.run(capsys, "mtu-run", *arguments), tmp_path, "reads 3 streams: the input is image")


@pytest.mark.parametrize("keep", [(), ("F.3.1", "conv_res.0.0"), ("F.0.0", "conv_res.2.0")], ids=str)
def test_an_fp16_graph_keeps_layers_on_both_sides_of_the_op(bundle, keep):
    """Where values go through the op in fp32, features and filters both do."""
    model = load_graphs(bundle)["picture"]
    to_fp16(model, keep)
    onnx.checker.check_model(model, full_check=True)
    assert fp32_layers(model) == frozenset(keep)
    frame = np.random.default_rng(1).integers(0, 256, (1, 24, 32, 3), dtype=np.uint8)
    wanted = reference(arrays(TINY), torch.from_numpy(frame).permute(0, 3, 1, 2).float() / 255).numpy()
    assert np.abs(before_rounding(model, {"frame": frame}).astype(np.float32) - wanted).max() < 0.02


@pytest.mark.needs_library("tensorrt_rtx")
@pytest.mark.parametrize("plugin", [True, False], ids=["plugin", "no plugin"])
def test_an_engine_has_the_plugin_or_standard_layers(tmp_path, bundle, plugin):
    from mtu.export.engine import build_engine
    from mtu.export.engine_options import BuildOptions
    from mtu.runtime.engine import Profile

    (tmp_path / "keep").write_text("F.3.1\nconv_res.0.0\n")  # before and behind an op
    for name, how in {
        "fp32": {},
        "fp16": {"fp16": True},
        "mixed": {"fp16": True, "keep_fp32": tmp_path / "keep"},
    }.items():
        said: list[str] = []
        options = BuildOptions(Profile.fixed(32, 48), runtime="tensorrt-rtx", plugin=plugin, **how)
        engine = build_engine(bundle, tmp_path / name, options, say=said.append)
        assert engine.manifest.plugins == ({"IterativeFilters": find_op("IterativeFilters").revision} if plugin else {})
        assert any("no plugin layer" in text for text in said) == (not plugin), said


def test_graphs_take_several_streams_at_once(bundle, dual):
    """Of frames; the pictures of a view are streams of another kind."""
    assert takes_streams(bundle) and takes_streams(dual)
