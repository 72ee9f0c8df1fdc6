"""Random small inputs: all executors agree with the truth, up to near ties, and share the op's invariances."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")
hypothesis = pytest.importorskip("hypothesis")
inliner = pytest.importorskip("onnx.inliner")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tests.plugins import one_node  # noqa: E402

from mtu.plugins.correlation_argmax_warp import reference  # noqa: E402
from mtu.plugins.correlation_argmax_warp.torch_op import correlation_argmax_warp  # noqa: E402
from mtu.runtime.tensorrt_library import is_importable  # noqa: E402

ATTRIBUTES = [(1, 1, 1), (2, 3, 2), (3, 5, 4), (7, 5, 1)]
TOLERANCE = 1e-5
"""Costs closer than this may be ranked either way; see cases.MIN_GAP."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sessions():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    shapes = ("B", "C", "h", "w"), ("B", "c", "H", "W")
    return {
        (d, pool, scale): onnxruntime.InferenceSession(
            one_node.model(*shapes, max_displacement=d, pool_size=pool, scale=scale).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        for d, pool, scale in ATTRIBUTES
    }


@pytest.fixture(scope="module")
def openvino_models():
    """By attributes, sizes dynamic; empty where OpenVINO is not installed."""
    if not is_importable("openvino"):
        return {}
    from mtu.runtime.openvino_library import shared_core

    core, shapes = shared_core(), (("B", "C", "h", "w"), ("B", "c", "H", "W"))
    inlined = {
        (d, pool, scale): inliner.inline_local_functions(
            one_node.model(*shapes, max_displacement=d, pool_size=pool, scale=scale)
        )
        for d, pool, scale in ATTRIBUTES
    }
    exactly = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return {
        attributes: core.compile_model(core.read_model(model.SerializeToString()), "CPU", exactly)
        for attributes, model in inlined.items()
    }


@settings(max_examples=40, deadline=None)
@given(
    attributes=st.sampled_from(ATTRIBUTES),
    batch=st.integers(1, 2),
    channels=st.integers(1, 6),
    height=st.integers(1, 9),
    width=st.integers(1, 43),
    sparsity=st.sampled_from([0.0, 0.5, 0.95]),
    seed=st.integers(0, 2**32 - 1),
)
def test_executors_agree(sessions, openvino_models, attributes, batch, channels, height, width, sparsity, seed):
    d, pool, scale = attributes
    random = np.random.default_rng(seed)
    shape = (batch, channels, height, width)
    motion, motion_prev = (
        (random.standard_normal(shape) * (random.random(shape) >= sparsity)).astype(np.float32) for _ in range(2)
    )
    detail = random.standard_normal((batch, 2, scale * height, scale * width)).astype(np.float32)

    costs = reference.pooled_costs(motion, motion_prev, d, pool)
    feeds = {"motion": motion, "motion_prev": motion_prev, "detail_prev": detail}
    results = {
        "torch": tuple(
            result.numpy() for result in correlation_argmax_warp(*map(torch.from_numpy, feeds.values()), d, pool, scale)
        ),
        "onnx": sessions[attributes].run(["warped", "displacement"], feeds),
    }
    if attributes in openvino_models:
        found = openvino_models[attributes](feeds)
        results["openvino"] = found["warped"], found["displacement"]
    for name, (warped, displacement) in results.items():
        # The chosen displacement is as good as the best one, and the warp follows it exactly.
        chosen = np.take_along_axis(costs, displacement[None].astype(np.int64), axis=0)[0]
        assert (costs.max(axis=0) - chosen <= TOLERANCE).all(), name
        dy, dx = reference.displacement_vectors(displacement, d)
        np.testing.assert_array_equal(warped, reference.warp(detail, dy, dx, scale), err_msg=name)
