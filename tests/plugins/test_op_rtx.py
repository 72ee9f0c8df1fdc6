"""TensorRT-RTX builds the op's function body, without plugin and without GPU. Skipped where it is not installed."""

import importlib.util

import pytest

if importlib.util.find_spec("tensorrt_rtx") is None:
    pytest.skip("the package tensorrt-rtx is not installed", allow_module_level=True)
onnx = pytest.importorskip("onnx")

import tensorrt_rtx as trt  # noqa: E402
from onnx import inliner  # noqa: E402
from tests.plugins import one_node  # noqa: E402

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
    # Inlined, because another test may have registered the plugin in this process, and then the parser prefers it.
    model = inliner.inline_local_functions(model)
    builder = trt.Builder(LOGGER)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, LOGGER)
    assert parser.parse(model.SerializeToString()), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    assert trt.LayerType.PLUGIN_V3 not in {network.get_layer(i).type for i in range(network.num_layers)}
    outputs = {network.get_output(i).name: network.get_output(i).dtype for i in range(network.num_outputs)}
    assert outputs == {"warped": trt_kind, "displacement": trt.int32}

    config = builder.create_builder_config()
    if shapes is DYNAMIC:
        profile = builder.create_optimization_profile()
        for name, channels, times in (("motion", 52, 1), ("motion_prev", 52, 1), ("detail_prev", 26, scale)):
            sizes = [(1, channels, h * times, w * times) for h, w in ((16, 16), (180, 320), (270, 480))]
            profile.set_shape(name, *sizes)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None and plan.nbytes > 0
