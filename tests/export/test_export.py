"""Exported bundles: against torch over a recurrent sequence, the graph's contract, fp16, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from tests import cli
from tests.frames import moving_frames

from mtu.core.errors import InvalidInputError, OutputError
from mtu.export.graph_view import GraphView
from mtu.export.precision import fp32_layers, fp32_nodes, to_fp16
from mtu.export.to_onnx import export_bundle
from mtu.models.checkpoint import Checkpoint, random_checkpoint
from mtu.models.mtu import PRESETS
from mtu.runtime import Bundle, Session, open_backend, open_bundle
from mtu.runtime.backends.torch_backend import read_checkpoint
from mtu.runtime.bundle import PACKAGED, metadata

SMALL = {"units": 2, "channels": 4, "blocks": 1}
FP32_TOLERANCE = 1e-4  # float sums in another order; a displacement that flips would be thousands of times more


def states_after(backend, frames):
    """The states and pictures after each frame."""
    session = Session(backend, scene_threshold=None)
    for frame in [*frames, None, None]:
        for result in session.push(frame) if frame is not None else ():
            yield result, backend.read_states(session._states)


@pytest.mark.parametrize(
    "settings",
    [{"units": 1, "channels": 4, "blocks": 1}, PRESETS["mtu2"], {"units": 4, "channels": 4, "blocks": 1}],
    ids=["one unit", "mtu2", "four units"],
)
def test_parity_with_torch_over_eight_frames(settings, tmp_path):
    bundle = export_bundle(random_checkpoint("mtu", settings), tmp_path / "b")
    ours, truth = open_backend("onnxruntime", bundle, "cpu"), open_backend("torch", bundle, "cpu")
    frames = moving_frames(10, 32, 48)
    for (a, a_states), (b, b_states) in zip(states_after(ours, frames), states_after(truth, frames), strict=True):
        for name, value in b_states.items():
            assert np.abs(a_states[name] - value).max() <= FP32_TOLERANCE, (name, a.index)
        assert np.abs(a.rgb.astype(int) - b.rgb).max() <= 1
        assert (a.displacement is None) == (settings["units"] == 1)
        if a.displacement is not None:
            assert np.array_equal(a.displacement, b.displacement)
    assert a.index == 7


def test_size_is_dynamic_and_reruns_are_bit_identical(small):
    for height, width in ((4, 4), (8, 100), (60, 36)):
        frames = moving_frames(4, height, width)
        runs = []
        for _ in range(2):
            backend = open_backend("onnxruntime", small, "cpu")
            runs.append([(r.rgb.tobytes(), r.displacement.tobytes()) for r, _ in states_after(backend, frames)])
            backend.close()
        assert runs[0] == runs[1]
        assert len(runs[0]) == 2


@pytest.mark.parametrize("graph", ["first", "step"])
def test_the_graph_keeps_its_contract(small, graph):
    model = onnx.load(small.graph(graph))
    described = small.interface.graph(graph)
    assert {prop.key: prop.value for prop in model.metadata_props} == metadata(small.interface, described)
    assert small.interface.weights == random_checkpoint("mtu", SMALL).digest and small.interface.settings == SMALL
    found = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.output)}
    assert list(found) == list(described.tensors)
    for name, tensor in found.items():
        assert onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) == np.dtype(described.tensors[name].dtype)
        first, *others = (dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
        assert (first, *others) == ("N", *described.tensors[name].shape[1:])
    consumers = {name: node.op_type for node in model.graph.node for name in node.input}
    assert all(consumers[name] == "Cast" for name in described.frames)
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    assert producers["output"] == "Cast"
    (node,) = [node for node in model.graph.node if node.domain == "mtu"]
    assert node.name == "CorrelationArgmaxWarp_0"
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes == {
        "max_displacement": 10,
        "pool_size": 5,
        "scale": 4,
        "plugin_version": b"1",
        "plugin_namespace": b"mtu",
    }
    assert len(node.output) == 2 and all(node.output)
    ops = {n.op_type for n in model.graph.node} | {n.op_type for f in model.functions for n in f.node}
    assert not ops & {"GridSample", "Loop", "Scan", "If"}
    assert {o.domain: o.version for o in model.opset_import} == {"": 18, "mtu": 1}


def test_one_compensation_a_step_and_one_a_unit_in_the_first_frame(tmp_path):
    bundle = export_bundle(random_checkpoint("mtu", {"units": 4, "channels": 3, "blocks": 0}), tmp_path / "b")
    nodes = {g: [n for n in onnx.load(bundle.graph(g)).graph.node if n.domain == "mtu"] for g in ("first", "step")}
    assert len(nodes["step"]) == 1
    assert len(nodes["first"]) == 3


def test_every_weight_is_found_again_even_if_zero_or_twice_the_same(tmp_path):
    weights = dict(random_checkpoint("mtu", SMALL).weights)
    weights |= {key: torch.zeros_like(value) for key, value in weights.items() if key.endswith("bias")}
    weights |= {key: weights[key.replace("HGs.1", "HGs.0")] for key in weights if key.startswith("HGs.1")}
    checkpoint = Checkpoint("mtu", SMALL, weights)
    bundle = export_bundle(checkpoint, tmp_path / "b")
    assert bundle.interface.weights == read_checkpoint(bundle).digest == checkpoint.digest


def test_one_unit_exports_without_motion(tmp_path):
    checkpoint = random_checkpoint("mtu", {"units": 1, "channels": 3, "blocks": 0})
    model = onnx.load(export_bundle(checkpoint, tmp_path / "b").graph("step"))
    assert not model.functions
    assert not any("motion" in tensor.name for tensor in model.graph.initializer)


def test_fp16_is_in_the_graph_and_stays_close(small, tmp_path):
    half = export_bundle(random_checkpoint("mtu", SMALL), tmp_path / "half", precision="fp16")
    model = onnx.load(half.graph("step"))
    kinds = {t.data_type for t in model.graph.initializer if t.name != "scalar_tensor_default_fp32"}
    assert TensorProto.FLOAT not in kinds and TensorProto.FLOAT16 in kinds
    assert half.graph("step").stat().st_size < small.graph("step").stat().st_size
    backend = open_backend("onnxruntime", half, "cpu")
    assert backend.interface.precision == "fp16"
    frames = moving_frames(8, 32, 48)
    full = states_after(open_backend("onnxruntime", small, "cpu"), frames)
    for (a, _), (b, _) in zip(states_after(backend, frames), full, strict=True):
        assert np.abs(a.rgb.astype(float) - b.rgb).mean() < 0.5
        assert np.mean(a.displacement == b.displacement) > 0.9


def test_weights_beyond_fp16_are_refused(tmp_path):
    checkpoint = random_checkpoint("mtu", SMALL)
    checkpoint.weights["out.weight"][0, 0, 0, 0] = 1e5
    with pytest.raises(InvalidInputError, match=r"out.weight exceed fp16's range"):
        export_bundle(checkpoint, tmp_path / "b", precision="fp16")
    assert list(tmp_path.iterdir()) == []


KEPT = ("HGs.0.enc2.0", "HGs.0.enc3.0", "HGs.1.dec2.0", "out")


def test_kept_layers_and_what_is_between_them_stay_fp32(tmp_path, capsys):
    keep = tmp_path / "keep.txt"
    keep.write_text("# why\n\n" + "\n".join(KEPT) + "\n")
    checkpoint = random_checkpoint("mtu", SMALL)
    half = export_bundle(checkpoint, tmp_path / "half", precision="fp16", keep_fp32=keep)
    for graph in ("first", "step"):
        model = onnx.load(half.graph(graph))
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        for name, value in checkpoint.weights.items():
            kept = name.rpartition(".")[0] in KEPT
            assert stored[name].data_type == (TensorProto.FLOAT if kept else TensorProto.FLOAT16), name
            if kept:
                assert np.array_equal(onnx.numpy_helper.to_array(stored[name]), value.numpy())
        values = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True).graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*values.value_info, *values.output)}
        producers = {name: node for node in model.graph.node for name in node.output}
        convolutions = {name: node for name, (node,) in GraphView(model).layers.items()}
        assert {name for name, node in convolutions.items() if types[node.output[0]] == TensorProto.FLOAT} == set(KEPT)
        assert fp32_layers(model) == set(KEPT)
        # Between two kept layers there is no Cast; at the other borders there is one.
        assert producers[convolutions["HGs.0.enc3.0"].input[0]].op_type == "Relu"
        assert producers[convolutions["HGs.0.enc2.0"].input[0]].op_type == "Cast"
        assert producers[convolutions["HGs.0.RBs.0.0"].input[0]].op_type == "Cast"
        # The sum that is a state goes on in fp32 to the output layer, and from there to the last scaling.
        assert producers[convolutions["out"].input[0]].op_type == "Add"
        assert types["detail_out"] == types["restored_out"] == TensorProto.FLOAT16
        scaling = next(node for node in model.graph.node if node.op_type == "Mul")
        assert producers[scaling.input[0]].op_type == "Clip"


def test_one_kept_layer_costs_two_casts(small):
    for layer in ("HGs.0.RBs.0.0", "motion_layer.0.0", "out"):
        plain, kept = (onnx.load(small.graph("step")) for _ in range(2))
        to_fp16(plain)
        to_fp16(kept, [layer])
        assert fp32_layers(plain) == set() and fp32_layers(kept) == {layer}
        assert len(kept.graph.node) - len(plain.graph.node) == 2


def test_what_is_computed_in_fp32_is_found_again_in_an_fp16_graph(small):
    for keep in ((), KEPT, ("HGs.0.enc1.0", "HGs.1.enc1.0")):
        model = onnx.load(small.graph("first"))
        wanted = fp32_nodes(model, keep)
        to_fp16(model, keep)
        assert fp32_nodes(model, fp32_layers(model)) == wanted
    assert "CorrelationArgmaxWarp_0" in wanted  # the map that it moves lies between the two


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("HGs.0.enc9.0\nout\n", "names HGs.0.enc9.0, which the network has not: its layers are base_conv.0, inp_prev"),
        ("\n".join("abcdef"), "names a, b, c, d and 2 more, which"),
        (b"\xff\xfe", "cannot be read: give a text file"),
        (None, "does not exist: make it with mtu-calibrate ranges --keep"),
    ],
)
def test_a_file_of_layers_that_is_of_no_use(tmp_path, capsys, content, words):
    keep = tmp_path / "keep.txt"
    if content is not None:
        keep.write_bytes(content if isinstance(content, bytes) else content.encode())
    options = ("onnx", "--preset", "mtu1", "--precision", "fp16", "--keep-fp32", keep, "-o", tmp_path / "b")
    ended = cli.run(capsys, "mtu-export", *options)
    assert ended.code == 2 and words in ended.err and ended.err.count("error:") == 1, ended.err
    assert not (tmp_path / "b").exists()


def test_layers_are_kept_in_fp16_alone(tmp_path, capsys):
    (tmp_path / "keep.txt").write_text("")
    options = ("onnx", "--preset", "mtu1", "--keep-fp32", tmp_path / "keep.txt", "-o", tmp_path / "b")
    ended = cli.run(capsys, "mtu-export", *options)
    assert ended.code == 2 and "--keep-fp32 is for --precision fp16" in ended.err


@pytest.mark.parametrize("model", PACKAGED)
def test_the_models_of_the_package_are_checkpoints_too(tmp_path, capsys, model):
    target = tmp_path / "half"
    ended = cli.run(capsys, "mtu-export", "onnx", "--checkpoint", model, "--precision", "fp16", "-o", target)
    assert ended.code == 0, ended.err
    half, whole = open_bundle(target), open_bundle(model)
    assert half.interface.precision == "fp16"
    assert half.interface.weights == whole.interface.weights == read_checkpoint(whole).digest


def test_an_existing_directory_is_kept_unless_asked(small, tmp_path):
    target = tmp_path / "b"
    target.mkdir()
    (target / "first.onnx").write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        export_bundle(random_checkpoint("mtu", SMALL), target)
    assert (target / "first.onnx").read_text() == "old"
    export_bundle(random_checkpoint("mtu", SMALL), target, overwrite=True)
    assert (target / "first.onnx").read_bytes() == small.graph("first").read_bytes()
    (target / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds thesis\.txt"):
        export_bundle(random_checkpoint("mtu", SMALL), target, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        export_bundle(random_checkpoint("mtu", SMALL), tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write"):
        export_bundle(random_checkpoint("mtu", SMALL), tmp_path / "file" / "b")


def test_a_failed_check_leaves_nothing(tmp_path, monkeypatch):
    def refuse(bundle, network):
        raise InvalidInputError("no")

    monkeypatch.setattr("mtu.export.to_onnx.verify", refuse)
    with pytest.raises(InvalidInputError):
        export_bundle(random_checkpoint("mtu", SMALL), tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def edited(bundle: Bundle, target: Path, edit) -> Bundle:
    """A copy of a bundle whose step graph went through `edit`."""
    shutil.copytree(bundle.directory, target)
    model = onnx.load(bundle.graph("step"))
    edit(model)
    onnx.save(model, target / "step.onnx")
    return open_bundle(target)


def drop_metadata(model):
    del model.metadata_props[:]


def other_version(model):
    next(p for p in model.metadata_props if p.key == "mtu.format_version").value = "7"


def rename_input(model):
    model.graph.input[0].name = "image"
    model.graph.node[0].input[0] = "image"


def other_weights(model):
    interface = open_bundle().interface
    onnx.helper.set_model_props(model, metadata(interface, interface.graph("step")))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_metadata, "mtu.format_version is None"),
        (other_version, "mtu.format_version is '7', should be '2'"),
        (rename_input, "its inputs are"),
        (other_weights, "step.onnx is not the graph step that bundle.json describes"),
    ],
)
def test_a_model_that_contradicts_its_metadata_is_refused(small, tmp_path, edit, message):
    with pytest.raises(InvalidInputError, match=message):
        open_backend("onnxruntime", edited(small, tmp_path / "b", edit), "cpu")


@pytest.mark.parametrize("content", [b"", b"some text", bytes(range(256)) * 50, None])
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_corrupt_onnx_is_refused(small, tmp_path, backend, content):
    shutil.copytree(small.directory, tmp_path / "b")
    for path in small.files:
        whole = path.read_bytes()
        (tmp_path / "b" / path.name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(InvalidInputError, match=r"(first|step)\.onnx"):
        open_backend(backend, open_bundle(tmp_path / "b"), "cpu")


def test_bundle_paths(small, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_bundle(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"lacks bundle.json; a model is mtu2"):
        open_bundle(tmp_path)
    shutil.copy(small.directory / "bundle.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"lacks first.onnx and step.onnx"):
        open_bundle(tmp_path)
    (tmp_path / "first.onnx").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"lacks step.onnx"):
        open_bundle(tmp_path)
    with pytest.raises(InvalidInputError, match=r"first\.onnx is empty"):
        open_bundle(tmp_path / "first.onnx")
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InvalidInputError, match="notes is a file"):
        open_bundle(tmp_path / "notes")


@pytest.mark.parametrize("value", [3e38, np.nan])
@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_non_finite_values_are_refused_not_shown(small, tmp_path, name, value):
    def overflow(model):
        tensor = next(t for t in model.graph.initializer if t.name == "HGs.1.enc1.0.weight")
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tensor.dims, value, np.float32), tensor.name))

    backend = open_backend(name, edited(small, tmp_path / "bad", overflow), "cpu")
    session = Session(backend, scene_threshold=None, strict=True)
    with pytest.raises(InvalidInputError, match="non-finite values in"):
        for frame in moving_frames(8, 16, 16):
            list(session.push(frame))


def test_unknown_backend_and_device(small):
    known = r"unknown backend 'opencv' \(did you mean openvino\?\): choose one of auto, openvino, onnxruntime, torch"
    with pytest.raises(InvalidInputError, match=known):
        open_backend("opencv", small)
    for device in ("intel", "cuda:x", "cuda:", "gpu:", "npu:0"):
        with pytest.raises(InvalidInputError, match="unknown device"):
            open_backend("onnxruntime", small, device)
