"""OpenVINO takes the functions of the ops as they are: right on every case, with fixed and dynamic sizes."""

from tests import needs

needs.library("openvino", "onnx", "onnx.inliner")

import openvino  # noqa: E402
import pytest  # noqa: E402
from onnx import inliner  # noqa: E402
from tests.plugins.subjects import every_case  # noqa: E402

from mtu.runtime.openvino_library import shared_core  # noqa: E402

SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


@pytest.fixture(scope="module")
def models():
    """Gives an op as OpenVINO reads it, its sizes dynamic: once for each set of attributes and types."""
    core, kept = shared_core(), {}

    def get(subject, case, *, dynamic: bool) -> openvino.CompiledModel:
        key = subject.key(case)
        if key not in kept:
            model = inliner.inline_local_functions(subject.model(case))
            kept[key] = [core.read_model(model.SerializeToString()), None]
        model, compiled = kept[key]
        if not dynamic:
            model = model.clone()
            model.reshape({name: array.shape for name, array in case.inputs.items()})
            return core.compile_model(model, "CPU", SETTINGS)
        if compiled is None:
            kept[key][1] = compiled = core.compile_model(model, "CPU", SETTINGS)
        return compiled

    return get


@every_case
@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed", "dynamic"])
def test_case(subject, case, dynamic: bool, models):
    compiled = models(subject, case, dynamic=dynamic)
    assert compiled.input(0).partial_shape.is_dynamic == dynamic
    results = compiled.create_infer_request().infer(case.inputs)
    subject.check(case, [results[name] for name in subject.outputs])
