"""The op as an ONNX function: valid, of standard operators only, equal to the truth on every case in onnxruntime."""

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

inliner = pytest.importorskip("onnx.inliner")

from tests.plugins import one_node  # noqa: E402

from mtu.core.errors import InvalidInputError  # noqa: E402
from mtu.plugins.correlation_argmax_warp import onnx_function  # noqa: E402
from mtu.plugins.correlation_argmax_warp.cases import CASES, Case  # noqa: E402

BUNDLED = Path(onnx_function.__file__).parents[2] / "models" / "weights" / "mtu2"
TYPES = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}
DYNAMIC_MOTION, DYNAMIC_DETAIL = ("B", "C", "h", "w"), ("B", "c", "H", "W")


def make_model(case: Case, motion_shape=DYNAMIC_MOTION, detail_shape=DYNAMIC_DETAIL):
    kind = TYPES[case.dtype]
    return one_node.model(motion_shape, detail_shape, **case.attributes, motion_type=kind, detail_type=kind)


@pytest.fixture(scope="module")
def sessions():
    """One session for each set of attributes and types: all sizes are dynamic."""
    kept = {}

    def get(case: Case):
        key = (*case.attributes.values(), case.dtype)
        if key not in kept:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = 1
            kept[key] = onnxruntime.InferenceSession(
                make_model(case).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        return kept[key]

    return get


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, sessions):
    warped, displacement = sessions(case).run(["warped", "displacement"], case.inputs)
    assert warped.dtype == case.dtype and displacement.dtype == np.int32
    np.testing.assert_array_equal(displacement, case.expected[1])
    np.testing.assert_array_equal(warped, case.expected[0])


@pytest.mark.parametrize("name", ["published", "published_half", "reach_1", "pool_1", "scale_1", "lower_than_reach"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_checker_and_shape_inference(name: str, dynamic: bool):
    (case,) = (case for case in CASES if case.name == name)
    shapes = () if dynamic else (case.inputs["motion"].shape, case.inputs["detail_prev"].shape)
    model = make_model(case, *shapes)
    onnx.checker.check_model(model, full_check=True)
    # Shapes of the outputs must follow from the inputs alone where those are static.
    inferred = inliner.inline_local_functions(model)
    for output in inferred.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(inferred, check_type=True, strict_mode=True, data_prop=True)
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    for output, array in zip(inferred.graph.output, case.expected, strict=True):
        kind = output.type.tensor_type
        assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == array.dtype
        if not dynamic and output.name == "warped":
            assert tuple(dim.dim_value for dim in kind.shape.dim) == array.shape


def test_uses_nothing_that_runtimes_lack():
    function = onnx_function.function_proto(10, 5, 4)
    kinds = {node.op_type for node in function.node}
    assert not kinds & {"Loop", "Scan", "If", "GridSample", "NonZero", "Unique", "ScatterND", "Einsum", "Resize"}
    assert all(node.domain == "" for node in function.node)
    assert [(opset.domain, opset.version) for opset in function.opset_import] == [("", 18)]
    assert list(function.attribute) == ["max_displacement", "pool_size", "scale", "plugin_version", "plugin_namespace"]
    assert (function.domain, function.name) == ("mtu", "CorrelationArgmaxWarp")
    assert len(function.node) < 500


def test_never_holds_the_cost_volume():
    """Largest intermediate tensor, in elements, at a size where the cost volume would be the largest by far."""
    motion, detail = (1, 52, 90, 160), (1, 26, 360, 640)
    model = inliner.inline_local_functions(one_node.model(motion, detail))
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    sizes = {
        value.name: int(np.prod([dim.dim_value for dim in value.type.tensor_type.shape.dim]))
        for value in model.graph.value_info
    }
    cost_volume = 21 * 21 * 90 * 160
    largest = max(sizes, key=lambda name: sizes[name])
    assert sizes[largest] < 1.05 * np.prod(detail), (largest, sizes[largest])
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert len(products) == 21
    assert sum(sizes[node.output[0]] for node in products) / 21 < cost_volume / 7


def test_features_that_are_not_numbers_still_give_a_displacement(sessions):
    (case,) = (case for case in CASES if case.name == "reach_2")
    motion = case.inputs["motion"].copy()
    motion[:, :, 3, 5] = np.nan
    _, displacement = sessions(case).run(None, {**case.inputs, "motion": motion})
    assert displacement.min() >= 0 and displacement.max() < (2 * case.max_displacement + 1) ** 2


def test_refuses_what_the_rules_forbid():
    with pytest.raises(InvalidInputError, match="pool_size is 2"):
        onnx_function.function_proto(10, 2, 4)


@pytest.mark.parametrize("graph", ["first", "step"])
def test_bundled_graphs_have_this_function(graph: str):
    """One that is out of date is replaced in the file; nothing else of the file changes."""
    (function,) = onnx.load(BUNDLED / f"{graph}.onnx").functions
    assert function == onnx_function.function_proto(10, 5, 4)
