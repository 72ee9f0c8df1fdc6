"""mtu-build-engine: real engines by TensorRT-RTX without a GPU; TensorRT 8.6, 10 and 11 by stand-ins; every bad input.

Tests with `rtx` need the package tensorrt-rtx and are skipped without it.
"""

# ruff: noqa: E402
from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import types

import pytest
from tests import cli, needs

needs.library("onnx", "torch")

import onnx
from tests.conftest import ROOT
from tests.fake_tensorrt import DataType, FakeTensorRT
from tests.processes import LIMIT

from mtu.core.errors import InvalidInputError, MissingExtraError, OutputError
from mtu.core.interface import GRAPHS, PRESETS, Interface, NetworkConfig
from mtu.export import engine as build
from mtu.export.engine import USUAL_CAPABILITIES, BuildOptions, build_engine
from mtu.export.engine_graph import estimate_memory, inspected_half_share, load_graphs, plugin_nodes, prepare
from mtu.export.graph_file import to_bytes
from mtu.export.precision import layers, to_fp16
from mtu.export.quantise import Limits, quantise
from mtu.export.timing_cache import check_timing_cache, read_timing_cache, write_timing_cache
from mtu.runtime import tensorrt_library
from mtu.runtime.bundle import Bundle, bundled_directory, open_bundle
from mtu.runtime.engine import Profile, Sizes, check_files, file_digest, open_engine
from mtu.runtime.gpu import Gpu, find_gpu

PROGRAM = "mtu-build-engine"
SMALL = Profile.fixed(32, 48)
RANGE = Profile(Sizes(16, 16), Sizes(32, 48), Sizes(64, 96))
SIZE = ("--size", "48x32")
GPU = Gpu(0, "NVIDIA GeForce RTX 3090", "8.6", 24 << 30)
rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the package tensorrt-rtx is not installed"
)


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Bundles of mtu1, mtu2 and mtu4, in fp32; mtu2 is the one in the package."""
    from mtu.export.to_onnx import export_graph
    from mtu.models.checkpoint import random_checkpoint

    bundles = {"mtu2": open_bundle()}
    for name in ("mtu1", "mtu4"):
        directory = tmp_path_factory.mktemp(name)
        interface = Interface(PRESETS[name])
        for graph in GRAPHS:
            model = export_graph(random_checkpoint(PRESETS[name]), interface, graph)
            onnx.helper.set_model_props(model, interface.to_metadata(graph))
            (directory / f"{graph}.onnx").write_bytes(model.SerializeToString())
        bundles[name] = open_bundle(directory)
    return bundles


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """As on a machine without one; tests that want another set it."""
    monkeypatch.setattr(build, "find_gpu", lambda: None)


@pytest.fixture
def fake(monkeypatch):
    """Puts a stand-in for a version of TensorRT, and a GPU, in place; returns it."""

    def install(version, gpu=GPU):
        found = FakeTensorRT(version)
        monkeypatch.setattr(build, "load_library", lambda name: found.library)
        monkeypatch.setattr(build, "is_installed", lambda name: True)
        monkeypatch.setattr(build, "find_gpu", lambda: gpu)
        return found

    return install


def left_over(directory):
    return sorted(path.name for path in directory.iterdir())


# What TensorRT-RTX makes of the presets.


@rtx
@pytest.mark.parametrize("profile", [SMALL, RANGE], ids=["static", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("preset", ["mtu1", "mtu2", "mtu4"])
def test_presets_become_engines(tmp_path, presets, preset, precision, profile):
    said = []
    bundle = presets[preset]
    options = BuildOptions(profile, fp16=precision == "fp16", runtime="tensorrt-rtx")
    engine = build_engine(bundle, tmp_path / "E", options, say=said.append)
    assert engine == open_engine(tmp_path / "E")
    check_files(engine)
    made, interface = engine.manifest, load_graphs(bundle)[0]
    wanted = "float16" if precision == "fp16" else "float32"
    assert made.interface == dataclasses.replace(interface, state_dtype=wanted)
    assert (made.library, made.precision, made.plugin) == ("tensorrt-rtx", precision, preset != "mtu1")
    assert (made.profile, made.compute_capabilities, made.gpu) == (profile, USUAL_CAPABILITIES, "")
    assert made.onnx == {graph: file_digest(bundle.graph(graph)) for graph in GRAPHS}
    assert left_over(tmp_path) == ["E"]
    assert left_over(tmp_path / "E") == ["build.log", "engine.json", "first.engine", "step.engine"]
    nodes = {graph: len(plugin_nodes(model)) for graph, model in load_graphs(bundle)[1].items()}
    assert nodes["step"] == (0 if preset == "mtu1" else 1)
    for line, graph in zip(said[-2:], GRAPHS, strict=True):
        assert line.startswith(f"{graph}.engine: {'9' if precision == 'fp16' else '0%'}")
        assert f", {nodes[graph] or 'no'} plugin layer" in line
    log = (tmp_path / "E" / "build.log").read_text()
    assert "INFO" in log and "VERBOSE" not in log and "Build was cancelled" not in log


def layer_kinds(model):
    import tensorrt_rtx as trt

    library = tensorrt_library.load_library("tensorrt-rtx")
    network = trt.Builder(library.logger).create_network(0)
    parser = trt.OnnxParser(network, library.logger)
    assert parser.parse(model.SerializeToString()), library.logger.last_error()
    return [network.get_layer(index).type for index in range(network.num_layers)]


@rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_network_has_the_plugin_or_standard_layers(small, tmp_path, precision):
    import tensorrt_rtx as trt

    # Registers the plugin too, so that the second half shows that it stays out.
    build_engine(small, tmp_path / "with", BuildOptions(SMALL, fp16=precision == "fp16"))
    said = []
    options = BuildOptions(SMALL, fp16=precision == "fp16", plugin=False)
    without = build_engine(small, tmp_path / "without", options, say=said.append)
    assert not without.manifest.plugin and without.manifest.plugin_revision == 0
    assert all("no plugin layer" in line for line in said[-2:])
    for graph in GRAPHS:
        for plugin in (True, False):
            model = load_graphs(small)[1][graph]
            if precision == "fp16":
                to_fp16(model)
            kinds = layer_kinds(prepare(model, plugin=plugin))
            assert kinds.count(trt.LayerType.PLUGIN_V3) == plugin


@rtx
def test_720p_in_fp16_from_the_command_line(tmp_path, capsys):
    size = ("--size", "1280x720")
    ended = cli.run(
        capsys, PROGRAM, bundled_directory(), "--fp16", *size, "--runtime", "tensorrt-rtx", "-o", tmp_path / "E"
    )
    assert ended.code == 0, ended.err
    assert "mtu2 fp16 with plugin, frames 1280x720, tensorrt-rtx" in ended.out
    assert "no NVIDIA GPU here: building for compute capability 8.0, 8.6, 8.9, 12.0, 12.1" in ended.err
    assert "first.engine: 97% of the network's floating-point layers are fp16, 1 plugin layer" in ended.err
    check_files(open_engine(tmp_path / "E"))


@rtx
def test_an_fp16_bundle_is_fp16_with_or_without_the_option(small, tmp_path):
    interface, models = load_graphs(small)
    (tmp_path / "half").mkdir()
    for graph, model in models.items():
        to_fp16(model)
        onnx.helper.set_model_props(model, dataclasses.replace(interface, state_dtype="float16").to_metadata(graph))
        onnx.save(model, tmp_path / "half" / f"{graph}.onnx")
    said = []
    for fp16 in (True, False):
        options = BuildOptions(SMALL, fp16=fp16)
        made = build_engine(open_bundle(tmp_path / "half"), tmp_path / str(fp16), options, say=said.append)
        assert (made.manifest.precision, made.manifest.interface.state_dtype) == ("fp16", "float16")
    assert [line for line in said if "already" in line] == ["the bundle is fp16 already, and so is the engine"]


KEPT = ("HGs.0.enc1.0", "HGs.1.enc1.0", "out")


@pytest.fixture
def keep(tmp_path):
    """A file of layers; in the first frame the op moves a map that lies between the first two."""
    path = tmp_path / "keep.txt"
    path.write_text("# of a test\n" + "\n".join(KEPT))
    return path


@rtx
@pytest.mark.parametrize("plugin", [True, False])
def test_kept_layers_are_fp32_in_the_network(small, tmp_path, capsys, keep, plugin):
    options = ("--fp16", "--keep-fp32", keep, *(() if plugin else ("--no-plugin",)), "-o", tmp_path / "E")
    ended = cli.run(capsys, PROGRAM, small.directory, *SIZE, "--compute-capability", "8.6", *options)
    assert ended.code == 0, ended.err
    assert f"custom fp16 (3 layers in fp32) with{'' if plugin else 'out'} plugin" in ended.out
    made = open_engine(tmp_path / "E").manifest
    assert (made.precision, made.fp32_layers) == ("fp16", KEPT)
    assert f"--keep-fp32 {keep}" in made.command
    for graph in GRAPHS:
        model = load_graphs(small)[1][graph]
        wanted = {layers(model)[layer].name for layer in KEPT}
        to_fp16(model, KEPT)
        assert wanted == {name for name, half in convolutions(prepare(model, plugin=plugin)).items() if not half}


def convolutions(model):
    """The convolutions of the network that TensorRT-RTX makes of a graph, and whether they are fp16."""
    import tensorrt_rtx as trt

    library = tensorrt_library.load_library("tensorrt-rtx")
    network = trt.Builder(library.logger).create_network(0)
    parser = trt.OnnxParser(network, library.logger)
    assert parser.parse(model.SerializeToString()), library.logger.last_error()
    kinds = (trt.LayerType.CONVOLUTION, trt.LayerType.DECONVOLUTION)
    found = (network.get_layer(index) for index in range(network.num_layers))
    return {layer.name: layer.get_output(0).dtype == trt.DataType.HALF for layer in found if layer.type in kinds}


@rtx
def test_an_fp16_bundle_with_kept_layers(small, tmp_path, capsys, keep):
    """The engine has them too, and the option is refused."""
    interface, models = load_graphs(small)
    (tmp_path / "half").mkdir()
    for graph, model in models.items():
        to_fp16(model, KEPT)
        onnx.helper.set_model_props(model, dataclasses.replace(interface, state_dtype="float16").to_metadata(graph))
        onnx.save(model, tmp_path / "half" / f"{graph}.onnx")
    options = BuildOptions(SMALL, compute_capabilities=("8.6",))
    made = build_engine(open_bundle(tmp_path / "half"), tmp_path / "E", options).manifest
    assert made.fp32_layers == KEPT and "--keep-fp32" not in made.command
    options = ("--fp16", "--keep-fp32", keep, "-o", tmp_path / "F")
    ended = cli.run(capsys, PROGRAM, tmp_path / "half", *SIZE, *options)
    assert ended.code == 2 and "--keep-fp32 needs the fp32 bundle, this one is fp16 already" in ended.err


@rtx
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--keep-fp32", "keep.txt"), "--keep-fp32 is for --fp16"),
        (("--fp16", "--keep-fp32", "none.txt"), "--keep-fp32 none.txt does not exist"),
        (("--fp16", "--keep-fp32", "."), "--keep-fp32 . cannot be read"),
        (("--fp16", "--keep-fp32", "other.txt"), "names HGs.2.enc1.0, which the network has not: its layers are base"),
    ],
)
def test_bad_files_of_layers(small, tmp_path, capsys, monkeypatch, keep, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.txt").write_text("HGs.2.enc1.0\nout")
    ended = cli.run(capsys, PROGRAM, small.directory, *SIZE, *options, "-o", tmp_path / "E")
    assert ended.code == 2 and words in ended.err and ended.err.count("error:") == 1, ended.err
    assert not (tmp_path / "E").exists()


@rtx
def test_the_options_of_rtx(small, tmp_path, capsys):
    size = ("--min-size", "16x16", "--opt-size", "48x32", "--max-size", "96x64")
    options = ("--compute-capability", "12.0, 7.5", "--version-compatible", "--workspace", 512)
    more = ("--builder-optimization-level", 2, "--timing-cache", tmp_path / "cache", "--verbose")
    directory = tmp_path / "a b"
    ended = cli.run(capsys, PROGRAM, small.directory, *size, *options, *more, "-o", directory)
    assert ended.code == 0, ended.err
    made = open_engine(directory).manifest
    assert (made.compute_capabilities, made.version_compatible) == (("7.5", "12.0"), True)
    assert made.profile == RANGE
    assert "tensorrt-rtx times nothing while it builds" in ended.err and not (tmp_path / "cache").exists()
    assert f"{PROGRAM}: VERBOSE " in ended.err and "\nVERBOSE " in (directory / "build.log").read_text()
    # The command in the manifest builds the same again.
    words = shlex.split(made.command)
    assert words[0] == PROGRAM and words[-1] == "--overwrite"
    ended = cli.run(capsys, *words)
    assert ended.code == 0, ended.err
    assert open_engine(directory).manifest.command == made.command


@rtx
def test_two_processes_building_the_same(small, tmp_path):
    command = [sys.executable, "-m", "mtu.export.engine_cli", str(small.directory), *map(str, SIZE), "-o", "E"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / ".links"), os.environ.get("PYTHONPATH", "")]),
    }
    both = [
        subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    loser = said[0] if both[0].returncode == 2 else said[1]
    assert loser.count("error:") == 1 and ("appeared meanwhile" in loser or "exists already" in loser)
    assert left_over(tmp_path) == ["E"]
    check_files(open_engine(tmp_path / "E"))


@rtx
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_build_leaves_nothing(tmp_path, number, code):
    options = ["--size", "1280x720", "--no-plugin", "--verbose", "-o", "E"]
    command = [sys.executable, "-m", "mtu.export.engine_cli", str(bundled_directory()), *options]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / ".links"), os.environ.get("PYTHONPATH", "")]),
    }
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    line = process.stderr.readline()
    while "After dead-layer removal" not in line:  # of the builder, which has begun
        assert line, process.wait()
        line = process.stderr.readline()
    assert left_over(tmp_path)
    process.send_signal(number)
    said = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == code, said
    assert left_over(tmp_path) == [] and "Traceback" not in said


# TensorRT 8.6, 10 and 11, by stand-ins that know what differs.


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
        assert set(shapes) == {spec.name for spec in made.interface.inputs(graph)}
        assert shapes["frame"] == ((1, 32, 48, 3),) * 3
    assert (made.gpu, made.compute_capabilities) == (GPU.name, ("8.6",))
    assert (made.precision, made.plugin) == ("fp16" if fp16 else "fp32", plugin)
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
        assert [layer.name for layer in network.layers if layer.type.name == "PLUGIN_V2"] == ["motion_compensation_0"]
    assert made.interface.state_dtype == "float16" and made.library_version == "8.6.1"


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
    int8 = tmp_path / "int8"
    int8.mkdir()
    interface, models = load_graphs(small)
    for graph, model in models.items():
        quantise(model, {"HGs.0.enc1.0": Limits(1.0, 1.0)})
        (int8 / f"{graph}.onnx").write_bytes(
            to_bytes(model, dataclasses.replace(interface, int8_layers=("HGs.0.enc1.0",)), graph)
        )
    for fp16 in (False, True):
        build_engine(open_bundle(int8), tmp_path / "E", BuildOptions(SMALL, fp16=fp16, plugin=False), overwrite=True)
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
        model = load_graphs(small)[1][graph]
        wanted = {layers(model)[layer].name for layer in KEPT}
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
    words = r"the plugin CorrelationArgmaxWarp should be \['motion_compensation_0'\], the library made it \[\]"
    with pytest.raises(InvalidInputError, match=words):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL))
    assert left_over(tmp_path) == []


def test_the_options_of_tensorrt(small, tmp_path, fake):
    trt = fake("10.16.1.11")
    options = BuildOptions(
        SMALL,
        hardware_compatibility="same-compute-capability",
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


@pytest.mark.parametrize("position", range(0, 200, 7))
def test_no_flipped_bit_of_a_timing_cache_reaches_tensorrt(tmp_path, position):
    path = tmp_path / "cache"
    write_timing_cache(path, "x", bytes(range(100)))
    content = bytearray(path.read_bytes())
    assert read_timing_cache(path, "x", pytest.fail) == bytes(range(100))
    content[position % len(content)] ^= 4
    path.write_bytes(content)
    said = []
    try:
        check_timing_cache(path)
    except InvalidInputError as error:
        assert "is no timing cache of mtu-build-engine and is not replaced" in str(error)
    else:
        assert read_timing_cache(path, "x", said.append) == b"" and len(said) == 1


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
    with pytest.raises(InvalidInputError, match=r"its metadata says"):
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
    interface, models = load_graphs(open_bundle())
    single = estimate_memory(models["step"], interface, "step", Sizes(720, 1280))
    to_fp16(models["step"])
    half = estimate_memory(models["step"], interface, "step", Sizes(720, 1280))
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
    monkeypatch.setattr(build, "find_gpu", find_gpu)
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


# Bad input, through the command line.


def bad_bundle(tmp_path, content):
    (tmp_path / "bad").mkdir()
    for graph in GRAPHS:
        (tmp_path / "bad" / f"{graph}.onnx").write_bytes(content)
    return tmp_path / "bad"


SIZES = ("--min-size", "--opt-size", "--max-size")


@rtx
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "say which frames the engine is for"),
        (("--height", 32), "say which frames the engine is for"),
        ((*SIZE, "--opt-size", "48x32"), "say which frames the engine is for"),
        ((SIZES[0], "16x16", SIZES[2], "64x64"), "say which frames the engine is for"),
        (("--size", "1918x1078"), "build it for 1920x1080"),
        (("--size", "4x0"), "whole numbers from 4"),
        ((SIZES[0], "16x16", SIZES[1], "16x16", SIZES[2], "64:96"), "'64:96' is no frame size: write WIDTHxHEIGHT"),
        ((SIZES[0], "16x16", SIZES[1], "96x64", SIZES[2], "64x96"), "the widths have to rise"),
        (("--height", 1078, "--width", 1918), "write --size 1918x1078"),
        (("--min-shapes", "16x16", "--opt-shapes", "64x96", "--max-shapes", "96x64"), "the widths have to rise"),
        ((*SIZE, "--compute-capability", "8.6,9.0,x"), "does not know 9.0, x, it knows 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
        ((*SIZE, "--runtime", "tensorrt"), "tensorrt"),
        ((*SIZE, "--builder-optimization-level", 6), "choose 0 (quick build) to 5"),
        ((*SIZE, "--workspace", 0), "at least 1 MiB"),
        ((*SIZE, "--hardware-compatibility-level", "ampere-plus"), "is not for tensorrt-rtx: name the GPUs with"),
        ((*SIZE, "--plugin-library", "no.so"), "no.so does not exist: build it with mtu-build-plugin"),
        ((*SIZE, "--plugin-library", __file__), "is no CorrelationArgmaxWarp plugin for tensorrt-rtx"),
        ((*SIZE, "--plugin-library", __file__, "--no-plugin"), "contradict each other"),
        ((*SIZE, "--timing-cache", __file__), "is no timing cache of mtu-build-engine and is not replaced"),
        ((*SIZE, "--timing-cache", "no/such/cache"), "the timing cache no/such/cache cannot be written"),
        ((*SIZE, "--workspace", 1), "could not build first.engine"),
    ],
)
def test_bad_options_get_one_message(small, tmp_path, capsys, monkeypatch, arguments, words):
    if words.startswith("is no CorrelationArgmaxWarp"):
        import tensorrt_rtx as trt

        if trt.get_plugin_registry().get_creator("CorrelationArgmaxWarp", "1", "mtu") is not None:
            nothing = types.SimpleNamespace(get_creator=lambda *names: None, load_library=lambda path: None)
            monkeypatch.setattr(trt, "get_plugin_registry", lambda: nothing)
    if words.startswith("could not build"):  # the tiny network is content with 1 MiB
        monkeypatch.setattr("mtu.export.engine_cli.open_bundle", lambda path: open_bundle())
        arguments = ("--size", "1280x720", "--workspace", 1)
    monkeypatch.chdir(tmp_path)
    ended = cli.run(capsys, PROGRAM, small.directory, *arguments, "-o", "E")
    assert ended.code == 2 and words in ended.err, ended.err
    assert ended.err.count(f"{PROGRAM}: error:") == 1 and "Traceback" not in ended.err
    assert ended.out == "" and left_over(tmp_path) == []


@rtx
@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x07"], ids=["empty", "text", "no metadata"])
def test_a_broken_bundle_gets_one_message(tmp_path, capsys, content):
    ended = cli.run(capsys, PROGRAM, bad_bundle(tmp_path, content), *SIZE, "-o", tmp_path / "E")
    assert ended.code == 2 and ended.err.count("error:") == 1 and "first.onnx" in ended.err, ended.err
    assert left_over(tmp_path) == ["bad"]


@rtx
def test_a_mixed_or_truncated_bundle_is_refused(small, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(small.directory, mixed)
    shutil.copy(bundled_directory() / "step.onnx", mixed)
    with pytest.raises(InvalidInputError, match="are of different models"):
        build_engine(Bundle(mixed), tmp_path / "E", BuildOptions(SMALL))
    content = small.graph("first").read_bytes()
    (mixed / "first.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(InvalidInputError, match=r"first.onnx"):
        build_engine(Bundle(mixed), tmp_path / "E", BuildOptions(SMALL))


@rtx
def test_outputs_that_are_in_the_way(small, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    (tmp_path / "E").mkdir()
    (tmp_path / "E" / "engine.json").touch()
    for name, options, words in (
        ("file", ("--overwrite",), "is a file; an engine is a directory"),
        ("full", ("--overwrite",), "holds letter.txt, which is no part of an engine"),
        ("E", (), "exists already: choose another name or add --overwrite"),
        ("file/E", (), "cannot write beside"),
    ):
        ended = cli.run(capsys, PROGRAM, small.directory, *SIZE, *options, "-o", tmp_path / name)
        assert ended.code == 2 and words in ended.err, ended.err
    ended = cli.run(capsys, PROGRAM, small.directory, *SIZE, "--overwrite", "-o", tmp_path / "E")
    assert ended.code == 0, ended.err
    assert left_over(tmp_path) == ["E", "file", "full"]


def test_an_engine_that_appears_during_the_build_is_not_replaced(small, tmp_path, fake):
    fake("10.16.1.11")

    def other(text):
        (tmp_path / "E").mkdir(exist_ok=True)
        (tmp_path / "E" / "engine.json").write_text("theirs")

    with pytest.raises(OutputError, match="has appeared meanwhile, written by another process, and is not replaced"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL), say=other)
    assert (tmp_path / "E" / "engine.json").read_text() == "theirs"
    build_engine(small, tmp_path / "E", BuildOptions(SMALL), say=other, overwrite=True)
    check_files(open_engine(tmp_path / "E"))
    assert left_over(tmp_path) == ["E"]


def test_a_full_disk_leaves_nothing(small, tmp_path, fake, monkeypatch):
    fake("10.16.1.11")

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write first.engine: No space left on device"):
        build_engine(small, tmp_path / "E", BuildOptions(SMALL))
    assert left_over(tmp_path) == []


# Which library.


@pytest.mark.parametrize(
    ("runtime", "installed", "gpu", "chosen"),
    [
        ("auto", {"tensorrt", "tensorrt-rtx"}, GPU, "tensorrt"),
        ("auto", {"tensorrt", "tensorrt-rtx"}, None, "tensorrt-rtx"),
        ("auto", {"tensorrt-rtx"}, GPU, "tensorrt-rtx"),
        ("tensorrt-rtx", {"tensorrt", "tensorrt-rtx"}, GPU, "tensorrt-rtx"),
        ("auto", set(), GPU, 'pip install "mtu-trt[gpu]"'),
        ("auto", set(), None, 'pip install "mtu-trt[rtx]"'),
        ("auto", {"tensorrt"}, None, 'pip install "mtu-trt[rtx]"'),
        ("tensorrt", set(), None, 'pip install "mtu-trt[gpu]"'),
        ("tensorrt", {"tensorrt"}, None, "no NVIDIA GPU answers here: build it there, or use --runtime tensorrt-rtx"),
    ],
)
def test_the_library_that_fits_is_chosen(monkeypatch, runtime, installed, gpu, chosen):
    def load(name):
        if name not in installed:
            raise MissingExtraError(name, tensorrt_library.EXTRAS[name], name)
        return name

    monkeypatch.setattr(build, "is_installed", installed.__contains__)
    monkeypatch.setattr(build, "load_library", load)
    try:
        found = build._choose_library(BuildOptions(SMALL, runtime=runtime), gpu)
    except (InvalidInputError, MissingExtraError) as error:
        found = str(error)
    assert chosen in found


@rtx
@pytest.mark.parametrize(
    ("asked", "gpu", "found"),
    [
        ((), None, USUAL_CAPABILITIES),
        ((), GPU, ("8.6",)),
        (("12.0", "8.6", "8.6"), GPU, ("8.6", "12.0")),
        ((), Gpu(0, "NVIDIA H200", "9.0", 1), "does not support NVIDIA H200 (compute capability 9.0)"),
        (("9.0",), GPU, "does not know 9.0"),
    ],
)
def test_the_gpus_that_rtx_builds_for(asked, gpu, found):
    library = tensorrt_library.load_library("tensorrt-rtx")
    options = BuildOptions(SMALL, compute_capabilities=asked)
    try:
        assert build._capabilities(library, options, gpu, lambda text: None) == found
    except InvalidInputError as error:
        assert isinstance(found, str) and found in str(error)


@pytest.mark.parametrize(
    ("version", "options", "gpu", "words"),
    [
        (
            "10.16.1",
            {"compute_capabilities": ("8.6",)},
            GPU,
            "builds for the GPU at hand (NVIDIA GeForce RTX 3090, 8.6)",
        ),
        ("8.6.1", {"hardware_compatibility": "same-compute-capability"}, GPU, "has no hardware compatibility level"),
        ("10.16.1", {"hardware_compatibility": "ampere-plus"}, Gpu(0, "T4", "7.5", 1 << 34), "T4 has 7.5: use none"),
    ],
)
def test_options_that_tensorrt_cannot_do(small, tmp_path, fake, version, options, gpu, words):
    fake(version, gpu)
    with pytest.raises(InvalidInputError) as refused:
        build_engine(small, tmp_path / "E", BuildOptions(SMALL, **options))
    assert words in str(refused.value)


@pytest.fixture
def fresh(monkeypatch):
    """`load_library` that finds what `module` is set to."""
    monkeypatch.setattr(tensorrt_library.importlib.util, "find_spec", lambda name: types.SimpleNamespace())

    def install(module):
        def load(name):
            if isinstance(module, Exception):
                raise module
            return module

        monkeypatch.setattr(tensorrt_library.importlib, "import_module", load)
        return tensorrt_library.load_library.__wrapped__  # the cache is to keep the real one

    return install


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            ImportError("libnvinfer.so.10: cannot open\nshared object file"),
            "(libnvinfer.so.10: cannot open shared object",
        ),
        (OSError("libcudart.so.12"), "is installed but cannot be loaded (libcudart.so.12)"),
        (types.SimpleNamespace(), "is installed but cannot be loaded"),
        (types.SimpleNamespace(__version__="8.5.3.1"), "tensorrt 8.5.3.1 is too old: 8.6 or newer is needed"),
    ],
)
def test_a_library_that_is_of_no_use_says_why(fresh, module, words):
    with pytest.raises(InvalidInputError) as refused:
        fresh(module)("tensorrt")
    assert words in str(refused.value) and '"mtu-trt[gpu]"' in str(refused.value) and "\n" not in str(refused.value)


def test_an_unknown_or_absent_library(monkeypatch):
    with pytest.raises(InvalidInputError, match="unknown library 'cudnn': choose tensorrt or tensorrt-rtx"):
        tensorrt_library.load_library("cudnn")
    monkeypatch.setattr(tensorrt_library, "is_installed", lambda name: False)
    with pytest.raises(MissingExtraError, match=r"package 'tensorrt_rtx'.*rtx"):
        tensorrt_library.load_library.__wrapped__("tensorrt-rtx")


def test_a_link_that_cannot_be_made_is_explained(monkeypatch, tmp_path):
    """Without the link TensorRT-RTX's parser ends the process at the first plugin."""
    (tmp_path / "libtensorrt_rtx.so.1").touch()
    place = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(tensorrt_library.importlib.util, "find_spec", lambda name: place)
    library = tensorrt_library.Library("tensorrt-rtx", None, "1.7.1", None)
    tensorrt_library.check_plugin_import(library)
    link = tmp_path / "libtensorrt_rtx.so"
    assert str(link.readlink()) == "libtensorrt_rtx.so.1"
    tensorrt_library.check_plugin_import(library)
    link.unlink()

    def refuse(self, target):
        raise PermissionError(13, "Permission denied", target, None, str(self))

    monkeypatch.setattr(tensorrt_library.Path, "symlink_to", refuse)
    with pytest.raises(InvalidInputError, match=r"Permission denied.*make it, or build with --no-plugin"):
        tensorrt_library.check_plugin_import(library)


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
    assert PRESETS["mtu1"] == NetworkConfig(1, 26, 8)
    made = build_engine(single, tmp_path / "E", BuildOptions(SMALL))
    assert not made.manifest.plugin and not trt.registry.creators
