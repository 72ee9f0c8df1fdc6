"""The ops as ONNX functions: valid, of standard operators only, right on every case in onnxruntime."""

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

inliner = pytest.importorskip("onnx.inliner")

from tests.plugins import one_node  # noqa: E402
from tests.plugins.subjects import FILTERS, SUBJECTS, WARP, every_case  # noqa: E402

from mtu.core.errors import InvalidInputError  # noqa: E402
from mtu.plugins.correlation_argmax_warp import onnx_function  # noqa: E402
from mtu.plugins.correlation_argmax_warp.cases import CASES  # noqa: E402

BUNDLED = Path(onnx_function.__file__).parents[2] / "models" / "weights" / "mtu2"


@pytest.fixture(scope="module")
def sessions():
    """One session for each set of attributes and types: all sizes are dynamic."""
    kept = {}

    def get(subject, case):
        key = subject.key(case)
        if key not in kept:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = 1
            kept[key] = onnxruntime.InferenceSession(
                subject.model(case).SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        return kept[key]

    return get


@every_case
def test_case(subject, case, sessions):
    subject.check(case, sessions(subject, case).run(list(subject.outputs), case.inputs))


CHECKED = [
    *((WARP, name) for name in ("published", "published_half", "reach_1", "pool_1", "scale_1", "lower_than_reach")),
    *((FILTERS, name) for name in ("published", "published_half", "published_separate", "one_by_one")),
]


@pytest.mark.parametrize(("subject", "name"), CHECKED, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_checker_and_shape_inference(subject, name: str, dynamic: bool):
    (case,) = (case for case in subject.part("cases").CASES if case.name == name)
    model = subject.model(case, dynamic=dynamic)
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
        if not dynamic and output.name != "displacement":
            assert tuple(dim.dim_value for dim in kind.shape.dim) == array.shape


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.folder)
def test_uses_nothing_that_runtimes_lack(subject):
    op = subject.op
    function = op.part(op.function)(**op.attributes)
    kinds = {node.op_type for node in function.node}
    assert not kinds & {"Loop", "Scan", "If", "GridSample", "NonZero", "Unique", "ScatterND", "Einsum", "Resize"}
    assert all(node.domain == "" for node in function.node)
    assert [(opset.domain, opset.version) for opset in function.opset_import] == [("", 18)]
    assert list(function.attribute) == [*op.attributes, "plugin_version", "plugin_namespace"]
    assert (function.domain, function.name) == ("mtu", op.name)
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
    _, displacement = sessions(WARP, case).run(None, {**case.inputs, "motion": motion})
    assert displacement.min() >= 0 and displacement.max() < (2 * case.max_displacement + 1) ** 2


def test_refuses_what_the_rules_forbid():
    with pytest.raises(InvalidInputError, match="pool_size is 2"):
        onnx_function.function_proto(10, 2, 4)


@pytest.mark.parametrize("graph", ["first", "step"])
def test_bundled_graphs_have_this_function(graph: str):
    """One that is out of date is replaced in the file; nothing else of the file changes."""
    (function,) = onnx.load(BUNDLED / f"{graph}.onnx").functions
    assert function == onnx_function.function_proto(10, 5, 4)
