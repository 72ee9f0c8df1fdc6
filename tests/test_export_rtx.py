"""TensorRT-RTX's parser and builder take the exported graphs, without plugin and without GPU. Skipped without it."""

import importlib.util

import pytest

if importlib.util.find_spec("tensorrt_rtx") is None:
    pytest.skip("the package tensorrt-rtx is not installed", allow_module_level=True)

import tensorrt_rtx as trt

from mtu.export.to_onnx import export_bundle
from mtu.models.checkpoint import random_checkpoint
from mtu.models.interface import Interface, NetworkConfig

LOGGER = trt.Logger(trt.Logger.ERROR)
SIZES = ((32, 48), (360, 640), (720, 1280))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("units", [1, 2])
def test_both_graphs_become_engines(tmp_path, units, precision):
    checkpoint = random_checkpoint(NetworkConfig(units, 8, 1))
    bundle = export_bundle(checkpoint, tmp_path / "b", precision=precision)
    interface = Interface(checkpoint.config, "float16" if precision == "fp16" else "float32")
    for graph in ("first", "step"):
        for dynamic in (False, True):
            builder = trt.Builder(LOGGER)
            network = builder.create_network(0)
            parser = trt.OnnxParser(network, LOGGER)
            assert parser.parse(bundle.graph(graph).read_bytes()), [
                parser.get_error(i) for i in range(parser.num_errors)
            ]
            found = {
                network.get_output(i).name: trt.nptype(network.get_output(i).dtype) for i in range(network.num_outputs)
            }
            assert {name: str(kind.__name__) for name, kind in found.items()} == {
                spec.name: spec.dtype for spec in interface.outputs
            }
            profile = builder.create_optimization_profile()
            for spec in interface.inputs(graph):
                shapes = [spec.at(*size) for size in (SIZES if dynamic else SIZES[1:2] * 3)]
                profile.set_shape(spec.name, *shapes)
            config = builder.create_builder_config()
            config.add_optimization_profile(profile)
            plan = builder.build_serialized_network(network, config)
            assert plan is not None and plan.nbytes > 0
