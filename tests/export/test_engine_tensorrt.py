"""Engines by TensorRT 8.6, 10 and 11, by stand-ins that know what differs."""

# ruff: noqa: E402
from __future__ import annotations

import dataclasses
import json
import types

import pytest
from tests import needs

needs.library("onnx", "torch")

from tests.engine_builds import GPU, GRAPHS, KEPT, RANGE, SMALL, left_over, of_one_stream
from tests.fake_tensorrt import DataType

from mtu.core.errors import InvalidInputError
from mtu.export import engine_options
from mtu.export.bundle_files import load_graphs, save_bundle
from mtu.export.engine import build_engine
from mtu.export.engine_graph import inspected_half_share, plugin_nodes
from mtu.export.engine_options import BuildOptions
from mtu.export.graph_view import GraphView
from mtu.export.precision import in_fp16, to_fp16
from mtu.export.quantise import Limits, quantise
from mtu.export.working_memory import working_memory
from mtu.runtime import tensorrt_library
from mtu.runtime.bundle import open_bundle
from mtu.runtime.engine import Profile
from mtu.runtime.gpu import find_gpu


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("plugin", [False, True])
def test_strongly_typed_versions_get_the_graph_as_it_is_to_be(small, tmp_path, fake, version, fp16, plugin):
    trt = fake(version)
    said = []
    made = build_engine(small, tmp_path / "E", BuildOptions(SMALL, fp16=fp16, plugin=plugin), say=said.append).manifest
    flags = trt.NetworkDefinitionCreationFlag
    for network, config, model, graph in zip(trt.networks, trt.configs, trt.models, GRAPHS, strict=True):
        assert network.flags >> flags.STRONGLY_TYPED & 1
        assert not hasattr(flags, "EXPLICIT_BATCH") or network.flags >> flags.EXPLICIT_BATCH & 1
        assert trt.BuilderFlag.TF32 in config.cleared and not config.set
        assert not model.functions and len(plugin_nodes(model)) == plugin
        half = {tensor.data_type for tensor in model.graph.initializer} & {1, 10}
        assert (10 in half) == fp16
        shapes = config.profiles[0].shapes
        assert set(shapes) == {each.tensor.name for each in made.interface.graph(graph).inputs}
        assert shapes["frame"] == ((1, 32, 48, 3),) * 3
        assert {
            value.type.tensor_type.shape.dim[0].dim_value for value in (*model.graph.input, *model.graph.output)
        } == {1}
    assert (made.gpu, made.compute_capabilities) == (GPU.name, ("8.6",))
    assert (made.precision, bool(made.plugins)) == ("fp16" if fp16 else "fp32", plugin)
    assert made.device_memory == {"first": 12345, "step": 12345}
    assert said[-1].startswith("step.engine: 67% of the engine's floating-point layers are fp16")


def test_8_6_gets_the_fp32_graph_the_flag_and_half_states(small, tmp_path, fake):
    trt = fake("8.6.1")
    library = tmp_path / "libplugin.so"
    library.touch()
    trt.registry.loadable.add(library.name)
    options = BuildOptions(SMALL, fp16=True, plugin_library=library)
    made = build_engine(small, tmp_path / "E", options).manifest
    for network, config, model in zip(trt.networks, trt.configs, trt.models, strict=True):
        assert network.flags == 1 << trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
        assert trt.BuilderFlag.FP16 in config.set
        assert 10 not in {tensor.data_type for tensor in model.graph.initializer}
        for tensor in (*network.inputs, *network.outputs):
            if tensor.name.split("_")[0] in ("restored", "motion", "detail"):
                assert tensor.dtype == DataType.HALF, tensor.name
        assert [layer.name for layer in network.layers if layer.type.name == "PLUGIN_V2"] == ["CorrelationArgmaxWarp_0"]
    assert made.interface == in_fp16(of_one_stream(small.interface)) and made.library_version == "8.6.1"


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.16.1.11", "11.4.0.106", "without sources"])
def test_no_engine_has_kernels_of_other_libraries(small, tmp_path, fake, version):
    trt = fake(version if version[0].isdigit() else "11.4.0.106")
    if not version[0].isdigit():
        del trt.TacticSource
    build_engine(small, tmp_path / "E", BuildOptions(SMALL, plugin=False))
    for config in trt.configs:
        if trt.numbers >= (11,):
            assert config.tactic_sources is None  # nothing was switched
        else:
            on = {source.name for source in trt.TacticSource if config.tactic_sources >> source & 1}
            assert on == {"EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"}


def test_8_6_is_told_that_there_is_int8(small, tmp_path, fake):
    trt = fake("8.6.1")
    models = load_graphs(small)
    for model in models.values():
        quantise(model, {"HGs.0.enc1.0": Limits(1.0, 1.0)})
    (tmp_path / "int8").mkdir()
    save_bundle(tmp_path / "int8", dataclasses.replace(small.interface, int8_layers=("HGs.0.enc1.0",)), models)
    int8 = open_bundle(tmp_path / "int8")
    for fp16 in (False, True):
        build_engine(int8, tmp_path / "E", BuildOptions(SMALL, fp16=fp16, plugin=False), overwrite=True)
        assert trt.BuilderFlag.INT8 in trt.configs[-1].set
        assert (trt.BuilderFlag.FP16 in trt.configs[-1].set) == fp16
    build_engine(small, tmp_path / "E", BuildOptions(SMALL, plugin=False), overwrite=True)
    assert trt.BuilderFlag.INT8 not in trt.configs[-1].set


def test_8_6_is_told_which_layers_are_fp32(small, tmp_path, fake, keep):
    trt = fake("8.6.1")
    options = BuildOptions(SMALL, fp16=True, keep_fp32=keep, plugin=False)
    made = build_engine(small, tmp_path / "E", options).manifest
    assert made.fp32_layers == KEPT
    for network, config, graph in zip(trt.networks, trt.configs, GRAPHS, strict=True):
        assert trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS in config.set
        model = load_graphs(small)[graph]
        wanted = {node.name for layer in KEPT for node in GraphView(model).layers[layer]}
        told = {layer.name: layer for layer in network.layers if layer.precision is not None}
        assert wanted == {name for name, layer in told.items() if layer.type.name == "CONVOLUTION"}
        assert all(layer.precision == DataType.FLOAT for layer in told.values())
        # What is between two of them too; a state stays half.
        between = next(node.name for node in model.graph.node if node.output[0] == "cat_2")
        clip = next(node.name for node in model.graph.node if node.output[0] == "restored_out")
        assert told[between].output_types == {0: DataType.FLOAT} and told[clip].output_types == {}
    trt = fake("8.6.1")
    build_engine(small, tmp_path / "F", BuildOptions(SMALL, fp16=True, plugin=False))
    assert all(config.set == {trt.BuilderFlag.FP16} for config in trt.configs)
    assert all(layer.precision is None for network in trt.networks for layer in network.layers)


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_kept_layers_that_did_not_reach_the_network_are_refused(small, tmp_path, fake, keep, monkeypatch, version):
    trt = fake(version)
    build_engine(small, tmp_path / "E", BuildOptions(SMALL, fp16=True, keep_fp32=keep))
    assert all(not config.set for config in trt.configs)
    monkeypatch.setattr("mtu.export.precision.to_fp16", lambda model, keep: to_fp16(model))
    with pytest.raises(InvalidInputError, match=r"first.onnx: only 17 of 20 convolutions have the precision"):
        build_engine(small, tmp_path / "F", BuildOptions(SMALL, fp16=True, keep_fp32=keep))


def test_8_6_needs_the_c_plugin_or_none(small, tmp_path, fake):
    fake("8.6.1")
    with pytest.raises(InvalidInputError, match=r"tensorrt 8.6.1 takes no plugin from Python.*or use --no-plugin"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL))
    trt = fake("8.6.1")
    build_engine(small, tmp_path / "E", BuildOptions(SMALL, plugin=False))
    assert all(not model.functions and not plugin_nodes(model) for model in trt.models)
    assert all(not config.set for config in trt.configs)


def test_a_plugin_library_of_another_version_is_refused(small, tmp_path, fake):
    fake("10.16.1.11")
    library = tmp_path / "other.so"
    library.touch()
    with pytest.raises(InvalidInputError, match=r"other.so is no CorrelationArgmaxWarp plugin for tensorrt 10.16.1.11"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL, plugin_library=library))


def test_a_network_without_the_plugin_asked_for_is_refused(small, tmp_path, fake, monkeypatch):
    """TensorRT takes the op's function without a word where it does not find the plugin."""
    fake("10.3.0")
    monkeypatch.setattr("mtu.export.engine_graph.prepare", lambda model, plugin: model)
    words = r"the plugin CorrelationArgmaxWarp should be \['CorrelationArgmaxWarp_0'\], the library made it \[\]"
    with pytest.raises(InvalidInputError, match=words):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL))
    assert left_over(tmp_path) == []


def test_the_options_of_tensorrt(small, tmp_path, fake):
    trt = fake("10.16.1.11")
    options = BuildOptions(
        SMALL,
        hardware_compatibility_level="same-compute-capability",
        version_compatible=True,
        builder_optimization_level=4,
        workspace=100,
    )
    made = build_engine(small, tmp_path / "E", options).manifest
    for config in trt.configs:
        assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
        assert config.set == {trt.BuilderFlag.VERSION_COMPATIBLE}
        assert config.builder_optimization_level == 4
        assert config.pools == {trt.MemoryPoolType.WORKSPACE: 100 << 20}
    assert (made.hardware_compatibility, made.version_compatible) == ("same-compute-capability", True)
    for words in ("--hardware-compatibility-level same-compute-capability", "--version-compatible", "--workspace 100"):
        assert words in made.command


def test_the_timing_cache_goes_from_build_to_build(small, tmp_path, fake):
    cache = tmp_path / "cache"
    for number in (1, 2):
        trt = fake("10.16.1.11")
        said = []
        options = BuildOptions(SMALL, timing_cache=cache)
        build_engine(small, tmp_path / "E", options, overwrite=True, say=said.append)
        assert [config.cache for config in trt.configs] == [b"timed," * (2 * number - 2), b"timed," * (2 * number - 1)]
        assert not [line for line in said if "note" in line]
    trt, said = fake("10.17.0"), []
    build_engine(small, tmp_path / "F", BuildOptions(SMALL, timing_cache=cache), say=said.append)
    assert trt.configs[0].cache == b""
    assert "is of tensorrt 10.16.1.11 on NVIDIA GeForce RTX 3090, here is tensorrt 10.17.0 on" in said[0]
    cache.write_bytes(cache.read_bytes()[:-1])
    trt, said = fake("10.17.0"), []
    build_engine(small, tmp_path / "G", BuildOptions(SMALL, timing_cache=cache), say=said.append)
    assert trt.configs[0].cache == b"" and "is damaged; it is not used and will be replaced" in said[0]
    assert left_over(tmp_path) == ["E", "F", "G", "cache"]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        ("Cuda Runtime (out of memory)", "free or allow more device memory"),
        ("Could not find any implementation for node x", "free or allow more device memory"),
        ("Unsupported SM", "see --verbose"),
        ("Cuda Runtime (cudaError 35: driver version is insufficient)", "see --verbose"),
    ],
)
def test_a_failed_build_says_why_and_leaves_nothing(small, tmp_path, fake, failure, words):
    trt = fake("10.16.1.11")
    trt.plan, trt.failure = None, failure
    with pytest.raises(InvalidInputError) as refused:
        build_engine(small, tmp_path / "E", BuildOptions(SMALL, timing_cache=tmp_path / "cache"))
    assert f"could not build first.engine: {failure}; {words}" in str(refused.value)
    assert left_over(tmp_path) == []


def test_an_engine_that_does_not_load_is_refused(small, tmp_path, fake):
    fake("10.16.1.11").loads = False
    with pytest.raises(
        InvalidInputError, match=r"built first.engine and cannot load it: Serialization assertion failed"
    ):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL))


def test_an_error_of_an_earlier_operation_is_no_reason(small, tmp_path, fake):
    trt = fake("10.16.1.11")
    trt.Runtime = lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    trt.library.logger.record("ERROR", "something that went wrong before")
    with pytest.raises(InvalidInputError, match="cannot load it: it gives no reason"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL))


def test_fp16_without_an_fp16_layer_is_refused(small, tmp_path, fake):
    fake("10.16.1.11").inspected = ["Float", "Float"]
    with pytest.raises(InvalidInputError, match=r"built first.engine without a single fp16 layer"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL, fp16=True))
    build_engine(small, tmp_path / "F", BuildOptions(SMALL))


def test_fp16_that_did_not_reach_the_network_is_refused(small, tmp_path, fake, monkeypatch):
    fake("11.4.0")
    monkeypatch.setattr("mtu.export.precision.to_fp16", lambda model, keep: None)
    with pytest.raises(InvalidInputError, match=r"its description says"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL, fp16=True))
    monkeypatch.setattr("mtu.export.engine_graph._check_tensors", lambda *arguments: None)
    with pytest.raises(InvalidInputError, match=r"only 0 of \d+ convolutions have the precision"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL, fp16=True))


@pytest.mark.parametrize(
    ("layers", "share"),
    [
        ([["Row major linear FP16 format"], ["Channel major FP16 format where channel % 8 == 0"]], 1.0),
        ([["Half"], ["Float"], ["Int32"], ["UInt8"]], 0.5),
        ([["Half", "Int32"], ["Half", "Row major linear FP32"]], 0.5),
        ([], 0.0),
    ],
)
def test_the_inspectors_words_for_half_are_understood(layers, share):
    made = [{"Name": "x", "Outputs": [{"Format/Datatype": kind} for kind in kinds]} for kinds in layers]
    assert inspected_half_share(json.dumps({"Layers": [*made, "a name alone"], "Bindings": []})) == share


def test_the_memory_is_estimated_before_the_build(small, tmp_path, fake):
    tiny = dataclasses.replace(GPU, memory=1 << 20)
    trt = fake("10.16.1.11", tiny)
    with pytest.raises(InvalidInputError, match=r"frames of 1280x720 need about \d.\d GiB of device memory, NVIDIA"):
        build_engine(small, tmp_path / "E", BuildOptions(Profile.fixed(720, 1280)))
    assert not trt.networks
    mtu2 = open_bundle()
    graph, model = mtu2.interface.graph("step"), load_graphs(mtu2)["step"]
    single = sum(working_memory(model, graph, 720, 1280))
    to_fp16(model)
    half = sum(working_memory(model, graph, 720, 1280))
    assert half < 0.6 * single
    # TensorRT-RTX says 334540800 bytes for the activations of this graph.
    assert half == pytest.approx(334540800, rel=0.25)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("plugin", [True, False])
@pytest.mark.parametrize("fp16", [True, False])
@pytest.mark.parametrize("name", tensorrt_library.LIBRARIES)
def test_a_gpu_builds_and_proves(small, tmp_path, monkeypatch, name, fp16, plugin):
    if not tensorrt_library.is_installed(name):
        needs.skip(name, "it is not installed")
    monkeypatch.setattr(engine_options, "find_gpu", find_gpu)
    gpu, said = find_gpu(), []
    options = BuildOptions(RANGE, fp16=fp16, plugin=plugin, runtime=name, timing_cache=tmp_path / "cache")
    try:
        made = build_engine(small, tmp_path / "E", options, say=said.append).manifest
    except InvalidInputError as error:
        assert name == "tensorrt-rtx" and "does not support" in str(error)
        return
    assert (made.gpu, made.compute_capabilities) == (gpu.name, (gpu.compute_capability,))
    assert all(size > 0 for size in made.device_memory.values())
    share = [int(line.split(": ")[1].split("%")[0]) for line in said if ".engine: " in line]
    assert len(share) == 2 and all(number > 0 if fp16 else number == 0 for number in share), said


def test_a_kernel_that_cannot_do_it_is_known_before_the_build(small, tmp_path, fake, monkeypatch):
    trt = fake("10.16.1.11")

    def refuse(**sizes):
        raise InvalidInputError(f"cannot do {sizes['motion_channels']} channels")

    monkeypatch.setattr("mtu.plugins.correlation_argmax_warp.cuda_op.Problem", refuse)
    with pytest.raises(InvalidInputError, match="cannot do 8 channels"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL))
    assert not trt.networks


def test_one_unit_has_no_plugin(fake, tmp_path, single):
    trt = fake("8.6.1")
    made = build_engine(single, tmp_path / "E", BuildOptions(SMALL))
    assert not made.manifest.plugins and not trt.registry.creators
