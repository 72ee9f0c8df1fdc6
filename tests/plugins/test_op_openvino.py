"""OpenVINO takes the function of the op as it is: equal to the truth on every case, with fixed and dynamic sizes."""

from tests import needs

needs.library("openvino", "onnx", "onnx.inliner")

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import openvino  # noqa: E402
import pytest  # noqa: E402
from onnx import inliner  # noqa: E402
from tests.plugins import one_node  # noqa: E402

from mtu.plugins.correlation_argmax_warp.cases import CASES, Case  # noqa: E402

TYPES = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


@pytest.fixture(scope="module")
def models():
    """Gives the op as OpenVINO reads it, its sizes dynamic: once for each set of attributes and types."""
    core, kept = openvino.Core(), {}

    def get(case: Case, *, dynamic: bool) -> openvino.CompiledModel:
        key = (*case.attributes.values(), case.dtype)
        if key not in kept:
            kind = TYPES[case.dtype]
            shapes = ("B", "C", "h", "w"), ("B", "c", "H", "W")
            model = one_node.model(*shapes, **case.attributes, motion_type=kind, detail_type=kind)
            kept[key] = [core.read_model(inliner.inline_local_functions(model).SerializeToString()), None]
        model, compiled = kept[key]
        if not dynamic:
            model = model.clone()
            model.reshape({name: array.shape for name, array in case.inputs.items()})
            return core.compile_model(model, "CPU", SETTINGS)
        if compiled is None:
            kept[key][1] = compiled = core.compile_model(model, "CPU", SETTINGS)
        return compiled

    return get


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_case(case: Case, dynamic: bool, models):
    compiled = models(case, dynamic=dynamic)
    assert compiled.input("motion").partial_shape.is_dynamic == dynamic
    results = compiled.create_infer_request().infer(case.inputs)
    warped, displacement = results["warped"], results["displacement"]
    assert warped.dtype == case.dtype and displacement.dtype == np.int32
    np.testing.assert_array_equal(displacement, case.expected[1])
    np.testing.assert_array_equal(warped, case.expected[0])
