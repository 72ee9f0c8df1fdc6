"""What TensorRT-RTX makes of models, without a GPU."""

# ruff: noqa: E402
from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys

import pytest
from tests import cli, needs

needs.library("onnx", "torch")

from tests.conftest import ROOT
from tests.engine_builds import GRAPHS, KEPT, PROGRAM, RANGE, SIZE, SMALL, half_bundle, left_over, of_one_stream, rtx
from tests.processes import LIMIT

from mtu.export.bundle_files import load_graphs
from mtu.export.engine import build_engine
from mtu.export.engine_graph import plugin_nodes, prepare
from mtu.export.engine_options import USUAL_CAPABILITIES, BuildOptions
from mtu.export.graph_view import GraphView
from mtu.export.precision import in_fp16, to_fp16
from mtu.plugins.correlation_argmax_warp import OP
from mtu.plugins.op import OPS
from mtu.runtime import tensorrt_library
from mtu.runtime.bundle import bundled_directory, open_bundle
from mtu.runtime.engine import check_files, file_digest, open_engine

pytestmark = rtx


@pytest.mark.parametrize("profile", [SMALL, RANGE], ids=["static", "dynamic"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("model", ["mtu2", "small", "single"])
def test_models_become_engines(request, tmp_path, model, precision, profile):
    said = []
    bundle = open_bundle() if model == "mtu2" else request.getfixturevalue(model)
    options = BuildOptions(profile, fp16=precision == "fp16", runtime="tensorrt-rtx")
    engine = build_engine(bundle, tmp_path / "E", options, say=said.append)
    assert engine == open_engine(tmp_path / "E")
    check_files(engine)
    made = engine.manifest
    wanted = of_one_stream(bundle.interface)
    assert made.interface == (in_fp16(wanted) if precision == "fp16" else wanted)
    assert (made.library, made.precision) == ("tensorrt-rtx", precision)
    assert made.plugins == ({} if model == "single" else {OP.name: OP.revision})
    assert (made.profile, made.compute_capabilities, made.gpu) == (profile, USUAL_CAPABILITIES, "")
    assert made.onnx == {graph: file_digest(bundle.graph(graph)) for graph in GRAPHS}
    assert left_over(tmp_path) == ["E"]
    assert left_over(tmp_path / "E") == ["build.log", "engine.json", "first.engine", "step.engine"]
    nodes = {graph: len(plugin_nodes(model)) for graph, model in load_graphs(bundle).items()}
    assert nodes["step"] == (0 if model == "single" else 1)
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


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_network_has_the_plugin_or_standard_layers(small, tmp_path, precision):
    import tensorrt_rtx as trt

    # Registers the plugin too, so that the second half shows that it stays out.
    build_engine(small, tmp_path / "with", BuildOptions(SMALL, fp16=precision == "fp16"))
    said = []
    options = BuildOptions(SMALL, fp16=precision == "fp16", plugin=False)
    without = build_engine(small, tmp_path / "without", options, say=said.append)
    assert without.manifest.plugins == {}
    assert all("no plugin layer" in line for line in said[-2:])
    for graph in GRAPHS:
        for plugin in (True, False):
            model = load_graphs(small)[graph]
            if precision == "fp16":
                to_fp16(model)
            kinds = layer_kinds(prepare(model, OPS if plugin else ()))
            assert kinds.count(trt.LayerType.PLUGIN_V3) == plugin


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


def test_an_fp16_bundle_is_fp16_with_or_without_the_option(small, tmp_path):
    half, said = half_bundle(small, tmp_path / "half"), []
    for fp16 in (True, False):
        options = BuildOptions(SMALL, fp16=fp16)
        made = build_engine(half, tmp_path / str(fp16), options, say=said.append)
        assert made.interface == of_one_stream(half.interface) and made.manifest.precision == "fp16"
    assert [line for line in said if "already" in line] == ["the bundle is fp16 already, and so is the engine"]


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
        model = load_graphs(small)[graph]
        wanted = {node.name for layer in KEPT for node in GraphView(model).layers[layer]}
        to_fp16(model, KEPT)
        assert wanted == {
            name for name, half in convolutions(prepare(model, OPS if plugin else ())).items() if not half
        }


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


def test_an_fp16_bundle_with_kept_layers(small, tmp_path, capsys, keep):
    """The engine has them too, and the option is refused."""
    half = half_bundle(small, tmp_path / "half", KEPT)
    options = BuildOptions(SMALL, compute_capability=("8.6",))
    made = build_engine(half, tmp_path / "E", options).manifest
    assert made.fp32_layers == KEPT and "--keep-fp32" not in made.command
    options = ("--fp16", "--keep-fp32", keep, "-o", tmp_path / "F")
    ended = cli.run(capsys, PROGRAM, tmp_path / "half", *SIZE, *options)
    assert ended.code == 2 and "--keep-fp32 needs the fp32 bundle, this one is fp16 already" in ended.err


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
