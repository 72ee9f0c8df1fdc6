"""TensorRT-RTX builds the ops' function bodies, without plugin and without GPU. Skipped where it is not installed."""

import importlib.util

import pytest

if importlib.util.find_spec("tensorrt_rtx") is None:
    pytest.skip("the package tensorrt-rtx is not installed", allow_module_level=True)
onnx = pytest.importorskip("onnx")

import tensorrt_rtx as trt  # noqa: E402
from onnx import inliner  # noqa: E402
from tests.plugins import one_node  # noqa: E402
from tests.plugins.subjects import FILTERS  # noqa: E402

from mtu.plugins.iterative_filters.cases import Case  # noqa: E402
from mtu.plugins.iterative_filters.rules import parts  # noqa: E402

LOGGER = trt.Logger(trt.Logger.ERROR)
HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
STATIC = (1, 52, 90, 160), (1, 26, 360, 640)
DYNAMIC = (1, 52, "h", "w"), (1, 26, "H", "W")


@pytest.mark.parametrize(("kind", "trt_kind"), [(SINGLE, trt.float32), (HALF, trt.float16)], ids=["fp32", "fp16"])
@pytest.mark.parametrize("shapes", [STATIC, DYNAMIC], ids=["static", "dynamic"])
@pytest.mark.parametrize(("max_displacement", "pool_size", "scale"), [(10, 5, 4)])
def test_builds_from_the_function(shapes, kind, trt_kind, max_displacement, pool_size, scale):
    model = one_node.model(
        *shapes,
        max_displacement=max_displacement,
        pool_size=pool_size,
        scale=scale,
        motion_type=kind,
        detail_type=kind,
    )
    sizes = [(16, 16), (180, 320), (270, 480)]
    inputs = {"motion": (52, 1), "motion_prev": (52, 1), "detail_prev": (26, scale)}
    profile = {name: [(1, c, h * times, w * times) for h, w in sizes] for name, (c, times) in inputs.items()}
    outputs = {"warped": trt_kind, "displacement": trt.int32}
    build(model, outputs, profile if shapes is DYNAMIC else {})


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("shared_taps", [0, 1])
def test_builds_the_filters_from_the_function(shared_taps, dynamic, dtype):
    case = Case("720p", "", 90, 160, "zeros", channels=128, shared_taps=shared_taps, dtype=dtype)
    sizes = [(1, 1), (90, 160), (135, 240)]
    channels = {"x": 128, "filters": 128 * parts(shared_taps)}
    profile = {name: [(1, c, *size) for size in sizes] for name, c in channels.items()}
    model = FILTERS.model(case, dynamic=dynamic)
    for value in (*model.graph.input, *model.graph.output) if dynamic else ():
        dims = value.type.tensor_type.shape.dim
        dims[0].dim_value, dims[1].dim_value = 1, channels.get(value.name, 128)
    build(model, {"filtered": trt.float16 if dtype == "float16" else trt.float32}, profile if dynamic else {})


def build(model, outputs, profile):
    """A plan can be made of a model, without a plugin; `profile` has the smallest, usual and largest shapes."""
    # Inlined, because another test may have registered the plugin in this process, and then the parser prefers it.
    model = inliner.inline_local_functions(model)
    builder = trt.Builder(LOGGER)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, LOGGER)
    assert parser.parse(model.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert trt.LayerType.PLUGIN_V3 not in {network.get_layer(i).type for i in range(network.num_layers)}
    assert outputs == {network.get_output(i).name: network.get_output(i).dtype for i in range(network.num_outputs)}
    config = builder.create_builder_config()
    if profile:
        made = builder.create_optimization_profile()
        for name, shapes in profile.items():
            made.set_shape(name, *shapes)
        config.add_optimization_profile(made)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None and plan.nbytes > 0
