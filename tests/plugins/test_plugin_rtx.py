"""What TensorRT-RTX makes of the C++ plugin. In a process of its own: a library stays loaded."""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.plugins.cpp_library import opened

from mtu.plugins.op import OPS

RTX = """
import json, sys
import numpy as np
from mtu.plugins.correlation_argmax_warp import OP
from mtu.runtime.tensorrt_library import check_plugin_import, load_library

library = load_library("tensorrt-rtx")
check_plugin_import(library)
trt = library.module
registry = trt.get_plugin_registry()
assert registry.load_library(sys.argv[1]) is not None
creator = registry.get_creator("CorrelationArgmaxWarp", "1", "mtu")

def restored(revision):
    # As an engine that the Python plugin was built into keeps it.
    values = {"max_displacement": 10, "pool_size": 5, "scale": 4, "revision": revision}
    data = [np.array([value], np.int32) for value in values.values()]
    fields = [trt.PluginField(name, each, trt.PluginFieldType.INT32) for name, each in zip(values, data)]
    return creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.RUNTIME)

assert restored(OP.revision) is not None
assert restored(OP.revision + 1) is None
results = []
for job in json.loads(sys.argv[2]):
    builder = trt.Builder(library.logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, library.logger)
    parsed = parser.parse_from_file(job["onnx"])
    result = {"errors": [str(parser.get_error(i)) for i in range(parser.num_errors)], "plan": 0}
    results.append(result)
    if not parsed:
        continue
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    result["plugins"] = [layer.name for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    result["outputs"] = {each.name: [each.dtype.name, list(each.shape)] for each in outputs}
    config = builder.create_builder_config()
    if job["profile"]:
        profile = builder.create_optimization_profile()
        for name, shapes in job["profile"].items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    if job["workspace"]:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace"])
    plan = builder.build_serialized_network(network, config)
    result["plan"] = 0 if plan is None else plan.nbytes
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def rtx(library):
    """Builds ONNX files with the plugin: a function from jobs to results, as in `RTX`, and what was said on stderr."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("the package tensorrt-rtx is not installed")
    if library.tensorrt[0] != 11:
        pytest.skip("TensorRT-RTX takes the library of TensorRT 11")

    def build_all(jobs: list[dict[str, object]]) -> tuple[list[dict[str, object]], str]:
        command = [sys.executable, "-c", RTX, str(library.path), json.dumps(jobs)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / ".links")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    return build_all


COUNT = """
import tensorrt_rtx
names = [creator.name for creator in tensorrt_rtx.get_plugin_registry().all_creators]
(count,) = {names.count(name) for name in ("CorrelationArgmaxWarp", "IterativeFilters")}
print(count)
"""


def test_opening_the_second_library_registers_it_in_rtx(rtx, library, registers, tmp_path):
    load = "tensorrt_rtx.get_plugin_registry().load_library(sys.argv[1].replace('_register', ''))\n"
    open_it = "ctypes.CDLL(sys.argv[1])\n"
    link = tmp_path / "elsewhere.so"
    link.symlink_to(registers)
    for code, path in (
        (COUNT + open_it + COUNT, registers),
        (COUNT + open_it + open_it + COUNT, link),
        (COUNT + load + open_it + COUNT, registers),
        (COUNT + open_it + load + COUNT, registers),
    ):
        done = opened(code, path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n", "")


def test_opening_the_second_library_first_loads_the_rtx_that_follows(rtx, registers):
    if any(map(ctypes.util.find_library, ("nvinfer", "nvinfer_lean", "tensorrt_rtx"))):
        pytest.skip("TensorRT is installed where every program finds it")
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    path = os.pathsep.join(found.submodule_search_locations)
    done = opened("ctypes.CDLL(sys.argv[1])" + COUNT, registers, {**os.environ, "LD_LIBRARY_PATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@pytest.mark.parametrize(("plugin", "said"), [(None, "No such file"), (b"nothing", "file too short")])
def test_the_second_library_says_why_it_does_not_register(rtx, library, registers, tmp_path, plugin, said):
    alone = Path(shutil.copy(registers, tmp_path))
    beside = tmp_path / library.path.name
    if plugin is not None:
        beside.write_bytes(plugin)
    done = opened(COUNT + "ctypes.CDLL(sys.argv[1])" + COUNT, alone)
    assert (done.returncode, done.stdout) == (0, "0\n0\n")
    assert done.stderr.startswith(f"[mtu] {', '.join(OPS)}: not registered: {beside}: ")
    assert said in done.stderr and done.stderr.count("\n") == 1


def job(model, path: Path, profile: dict[str, list[tuple[int, ...]]] | None = None, workspace: int = 0):
    import onnx

    onnx.save(model, path)
    return {"onnx": str(path), "profile": profile, "workspace": workspace}


def test_rtx_builds_the_op_in_every_type_and_size(rtx, tmp_path):
    from onnx import TensorProto
    from tests.plugins import one_node

    names = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF"}
    sizes = ((16, 16), (90, 160), (180, 320))
    profile = {
        name: [(1, channels, h * times, w * times) for h, w in sizes]
        for name, channels, times in (("motion", 52, 1), ("motion_prev", 52, 1), ("detail_prev", 26, 4))
    }
    jobs, expected = [], []
    for motion in names:
        for detail in names:
            for shapes, bounds in (
                (((1, 52, 90, 160), (1, 26, 360, 640)), None),
                (((1, 52, "h", "w"), (1, 26, "H", "W")), profile),
            ):
                model = one_node.model(*shapes, motion_type=motion, detail_type=detail)
                jobs.append(job(model, tmp_path / f"{len(jobs)}.onnx", bounds))
                fixed = bounds is None
                expected.append(
                    {
                        "warped": [names[detail], [1, 26, 360, 640] if fixed else [1, 26, -1, -1]],
                        "displacement": ["INT32", [1, 90, 160] if fixed else [1, -1, -1]],
                    }
                )
    results, said = rtx(jobs)
    assert said.count("[mtu]") == 1  # the other revision
    for result, outputs in zip(results, expected, strict=True):
        assert result["plugins"] == ["compensation"], said
        assert result["outputs"] == outputs
        assert result["plan"] > 0, said


@pytest.mark.parametrize("family", ["mtu", "ifan"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_rtx_builds_exported_graphs_with_it(rtx, tmp_path, precision, family):
    import onnx
    from tests.ifan import TINY

    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import random_checkpoint

    checkpoint = random_checkpoint(family, {"mtu": {"units": 2, "channels": 8, "blocks": 1}, "ifan": TINY}[family])
    bundle = export_bundle(checkpoint, tmp_path / "bundle", precision=precision)
    jobs, nodes = [], []
    for graph in bundle.interface.graphs:
        path = bundle.graph(graph.name)
        model = onnx.load(path)
        nodes.append([node.name for node in model.graph.node if node.op_type in OPS])
        for sizes in (((32, 48), (64, 96), (720, 1280)), ((64, 96),) * 3):
            profile = {each.tensor.name: [each.tensor.at(*size) for size in sizes] for each in graph.inputs}
            jobs.append({"onnx": str(path), "profile": profile, "workspace": 0})
    results, said = rtx(jobs)
    for i, result in enumerate(results):
        assert result["plugins"] == nodes[i // 2] != [], said
        assert result["plan"] > 0, said


def test_the_workspace_is_what_the_plugin_asks_for(rtx, tmp_path):
    from tests.plugins import one_node

    shapes = (1, 52, 90, 160), (1, 26, 360, 640)
    limits = (1 << 16, 1 << 25)
    jobs = [job(one_node.model(*shapes), tmp_path / f"{each}.onnx", workspace=each) for each in limits]
    results, said = rtx(jobs)
    assert [result["plugins"] for result in results] == [["compensation"]] * 2
    assert results[0]["plan"] == 0 and results[1]["plan"] > 0, said


def test_rtx_refuses_what_the_plugin_refuses(rtx, tmp_path):
    import onnx
    from onnx import TensorProto, helper
    from tests.plugins import one_node

    shapes = (1, 52, 90, 160), (1, 26, 360, 640)

    def changed(name: str, value: object) -> onnx.ModelProto:
        model = one_node.model(*shapes)
        attributes = model.graph.node[0].attribute
        attributes.remove(next(each for each in attributes if each.name == name))
        if value is not None:
            attributes.append(helper.make_attribute(name, value))
        return model

    wrong_types = one_node.model(*shapes)
    wrong_types.graph.input[1].type.tensor_type.elem_type = TensorProto.FLOAT16
    wrong_sizes = one_node.model((1, 52, 90, 160), (1, 26, 360, 644))
    models = [
        changed("pool_size", None),
        changed("pool_size", 5.0),
        changed("pool_size", [5, 5]),
        changed("max_displacement", 0),
        wrong_types,
        wrong_sizes,
    ]
    results, said = rtx([job(model, tmp_path / f"{i}.onnx") for i, model in enumerate(models)])
    assert results[0]["plugins"] == ["compensation"] and results[0]["plan"] > 0  # the default stands in
    assert [result["plan"] for result in results[1:]] == [0] * 5
    for reason in (
        "attribute pool_size has type 1 and length 1",
        "attribute pool_size has type 5 and length 2",
        "got max_displacement 0",
        "motion and motion_prev must both be fp32 or both fp16",
        "detail_prev the same batch and 4 times the height and width",
    ):
        assert reason in said
