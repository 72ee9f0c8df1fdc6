"""IterativeFilters: the truth worked out by hand, what cases cover, what is refused, gradients, the exported node."""

import numpy as np
import pytest

from mtu.core.errors import InvalidInputError
from mtu.plugins.iterative_filters import OP
from mtu.plugins.iterative_filters.cases import CASES, Case
from mtu.plugins.iterative_filters.reference import iterative_filters

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", [case for case in CASES if case.by_hand], ids=lambda case: case.name)
def test_truth_is_what_a_person_worked_out(case: Case):
    (filtered,) = case.expected
    np.testing.assert_allclose(filtered[0, 0], case.by_hand, rtol=1e-6)
    assert filtered.dtype == case.dtype


def test_each_channel_has_its_own_taps_in_the_documented_order():
    filters = np.zeros((1, 14, 1, 3), np.float32)
    filters[0, 1 * 2 + 1] = 2  # the middle tap down, of the second channel
    filters[0, 5 * 2 + 1] = 1  # the right one across
    filters[0, 6 * 2 + 0] = 7  # the bias of the first
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 1, 3)
    np.testing.assert_array_equal(iterative_filters(x, filters, 0)[0, :, 0], [[7, 7, 7], [8, 10, 10]])


def test_cases_cover_what_they_must():
    assert len(BY_NAME) == len(CASES)
    for shared in (0, 1):
        found = [case for case in CASES if case.shared_taps == shared]
        assert {case.dtype for case in found} == {"float16", "float32"}
        assert any((case.height, case.width) == (1, 1) for case in found)
        assert any(case.height % 2 and case.width % 2 and case.height > 1 for case in found)
        assert any(case.channels == 128 for case in found) and any(case.batch > 1 for case in found)
    assert any(case.height == 1 < case.width for case in CASES) and any(case.width == 1 < case.height for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_case_leaves_its_type(case: Case):
    assert all(np.isfinite(array).all() for array in (*case.inputs.values(), *case.expected))
    assert (case.allowed[0] < 0.01 * np.abs(case.expected[0]).max()).all()


MISTAKES = {
    "transposed": lambda x, f: iterative_filters(x.swapaxes(2, 3), f.swapaxes(2, 3)).swapaxes(2, 3),
    "flipped": lambda x, f: iterative_filters(x, np.concatenate([*np.split(f, 4, 1)[2::-1], f[:, -128:]], 1)),
    "no bias": lambda x, f: iterative_filters(x, np.concatenate([f[:, :-128], 0 * f[:, -128:]], 1)),
    "zeros outside": lambda x, f: iterative_filters(
        np.pad(x, [(0, 0)] * 2 + [(1, 1)] * 2), np.pad(f, [(0, 0)] * 2 + [(1, 1)] * 2)
    )[:, :, 1:-1, 1:-1],
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_case_tells_a_mistake(mistake):
    case = BY_NAME["published"]
    wrong = MISTAKES[mistake](*case.inputs.values())
    assert (np.abs(wrong - case.expected[0]) > case.allowed[0]).mean() > 0.05


@pytest.mark.parametrize(
    ("x", "filters", "shared_taps", "words"),
    [
        ((1, 4, 2, 3), (1, 16, 2, 3), 2, "shared_taps is 2, it must be 0 or 1"),
        ((1, 4, 2, 3), (1, 28, 2, 3), 1, r"filters must be \[1, 16, 2, 3\], 4 times"),
        ((1, 4, 2, 3), (1, 16, 2, 3), 0, r"filters must be \[1, 28, 2, 3\], 7 times"),
        ((1, 4, 2, 3), (1, 16, 3, 2), 1, r"filters must be \[1, 16, 2, 3\]"),
        ((4, 2, 3), (16, 2, 3), 1, "must be .batch, channels, height, width."),
        ((1, 4, 0, 3), (1, 16, 0, 3), 1, "none of them empty"),
    ],
)
def test_all_refuse_what_the_rules_forbid(x, filters, shared_taps, words):
    with pytest.raises(InvalidInputError, match=words):
        iterative_filters(np.zeros(x, np.float32), np.zeros(filters, np.float32), shared_taps)
    torch = pytest.importorskip("torch")
    from mtu.plugins.iterative_filters.torch_op import iterative_filters as in_torch

    with pytest.raises(InvalidInputError, match=words):
        in_torch(torch.zeros(x), torch.zeros(filters), shared_taps)
    if shared_taps == 2:
        pytest.importorskip("onnx")
        with pytest.raises(InvalidInputError, match=words):
            OP.part(OP.function)(shared_taps=2)


@pytest.mark.needs_library("torch")
@pytest.mark.parametrize("name", ["odd", "odd_separate"])
def test_gradient(name):
    import torch

    from mtu.plugins.iterative_filters.torch_op import iterative_filters as in_torch

    case, random = BY_NAME[name], np.random.default_rng(3)
    arrays = [array.astype(np.float64) for array in case.inputs.values()]
    directions = [random.standard_normal(array.shape) for array in arrays]
    weights = random.standard_normal(arrays[0].shape)
    tensors = [torch.from_numpy(array).float().requires_grad_() for array in arrays]
    (in_torch(*tensors, case.shared_taps) * torch.from_numpy(weights)).sum().backward()
    for which, tensor in enumerate(tensors):
        sums = []
        for step in (1e-6, -1e-6):
            moved = [array + step * directions[i] if i == which else array for i, array in enumerate(arrays)]
            sums.append((iterative_filters(*moved, case.shared_taps) * weights).sum())
        found = (tensor.grad.double() * torch.from_numpy(directions[which])).sum()
        assert float(found) == pytest.approx((sums[0] - sums[1]) / 2e-6, rel=1e-3)


@pytest.mark.needs_library("torch")
def test_compiled_and_under_autocast():
    import torch

    from mtu.plugins.iterative_filters.torch_op import iterative_filters as in_torch

    case = BY_NAME["published"]
    compiled = torch.compile(in_torch, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        found = compiled(*map(torch.from_numpy, case.inputs.values()))
    assert (np.abs(found.numpy() - case.expected[0]) <= case.allowed[0]).all()


@pytest.mark.needs_library("torch", "onnx", "onnxruntime")
@pytest.mark.parametrize("shared_taps", [0, 1])
def test_exports_as_one_custom_node_with_dynamic_sizes(shared_taps):
    import onnx
    import onnxruntime
    import torch

    from mtu.plugins.iterative_filters.rules import parts
    from mtu.plugins.iterative_filters.torch_op import iterative_filters as in_torch

    class Small(torch.nn.Module):
        def forward(self, x, filters):
            return in_torch(x + 1, filters, shared_taps) * 2

    shapes = (1, 3, 5, 6), (1, 3 * parts(shared_taps), 5, 6)
    h, w = torch.export.Dim("h", min=1, max=4096), torch.export.Dim("w", min=1, max=4096)
    sizes = {"x": {2: h, 3: w}, "filters": {2: h, 3: w}}
    example = tuple(map(torch.rand, shapes))
    made = torch.onnx.export(
        Small().eval(), example, dynamo=True, opset_version=18, verbose=False, dynamic_shapes=sizes
    )
    model = made.model_proto
    (node,) = (node for node in model.graph.node if node.domain == "mtu")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    said = {name: value.decode() if isinstance(value, bytes) else value for name, value in attributes.items()}
    assert node.op_type == OP.name and said == OP.node_attributes({"shared_taps": shared_taps})
    model.functions.append(OP.part(OP.function)(shared_taps))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for height, width in ((1, 1), (7, 4)):
        x, filters = torch.randn(1, 3, height, width), torch.randn(1, shapes[1][1], height, width)
        (found,) = session.run(None, {"x": x.numpy(), "filters": filters.numpy()})
        np.testing.assert_allclose(found, Small()(x, filters).numpy(), rtol=1e-5, atol=1e-5)
