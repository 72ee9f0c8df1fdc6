"""The ops in torch: every case. Of the matching its costs, gradients, torch.compile and the exported node, too."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.plugins.subjects import every_case  # noqa: E402

from mtu.core.errors import InvalidInputError  # noqa: E402
from mtu.plugins.correlation_argmax_warp import OP  # noqa: E402
from mtu.plugins.correlation_argmax_warp.cases import CASES, MIN_GAP, Case  # noqa: E402
from mtu.plugins.correlation_argmax_warp.onnx_function import function_proto  # noqa: E402
from mtu.plugins.correlation_argmax_warp.reference import pooled_costs  # noqa: E402
from mtu.plugins.correlation_argmax_warp.torch_op import correlation_argmax_warp, cost_volume, warp_by_costs  # noqa: E402

BY_NAME = {case.name: case for case in CASES}


pytestmark = pytest.mark.usefixtures("one_thread")


@every_case
def test_case(subject, case):
    inputs = {name: torch.from_numpy(array) for name, array in case.inputs.items()}
    results = subject.torch_function(**inputs, **case.attributes)
    subject.check(case, [each.numpy() for each in (results if isinstance(results, tuple) else [results])])


def test_gradient_goes_back_to_where_the_element_came_from():
    case = BY_NAME["scale_2"]
    motion, motion_prev, detail = (torch.from_numpy(array).requires_grad_() for array in case.inputs.values())
    warped, displacement = correlation_argmax_warp(motion, motion_prev, detail, **case.attributes)
    weights = torch.rand_like(warped)
    (warped * weights).sum().backward()
    # The warp is linear in detail: <J u, v> = <u, J^T v>.
    direction = torch.rand_like(detail)
    moved, _ = correlation_argmax_warp(motion, motion_prev, direction, **case.attributes)
    torch.testing.assert_close((moved * weights).sum(), (detail.grad * direction).sum())
    assert motion.grad is None and motion_prev.grad is None and not displacement.requires_grad


def test_compiled():
    case = BY_NAME["batch"]
    compiled = torch.compile(correlation_argmax_warp, fullgraph=True, dynamic=False, backend="aot_eager")
    warped, displacement = compiled(*(torch.from_numpy(array) for array in case.inputs.values()), **case.attributes)
    np.testing.assert_array_equal(displacement.numpy(), case.expected[1])
    np.testing.assert_array_equal(warped.numpy(), case.expected[0])


def test_matches_in_single_precision_under_autocast():
    case = BY_NAME["published"]
    with torch.autocast("cpu", torch.bfloat16):
        _, displacement = correlation_argmax_warp(*map(torch.from_numpy, case.inputs.values()), **case.attributes)
    np.testing.assert_array_equal(displacement.numpy(), case.expected[1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_costs_are_those_that_the_op_takes_its_maximum_of(case: Case):
    motion, motion_prev = case.inputs["motion"], case.inputs["motion_prev"]
    costs = cost_volume(*map(torch.from_numpy, (motion, motion_prev)), case.max_displacement, case.pool_size)
    expected = pooled_costs(motion, motion_prev, case.max_displacement, case.pool_size)
    assert costs.dtype == torch.float32
    np.testing.assert_allclose(costs.numpy(), expected.transpose(1, 0, 2, 3), atol=2e-6)
    second, best = np.partition(expected, -2, axis=0)[-2:]
    clear = best - second > MIN_GAP
    np.testing.assert_array_equal(costs.argmax(1).numpy()[clear], case.expected[1][clear])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_warp_by_the_costs_is_that_of_the_op(case: Case):
    motion, motion_prev, detail = map(torch.from_numpy, case.inputs.values())
    costs = cost_volume(motion, motion_prev, case.max_displacement, case.pool_size)
    warped, displacement = warp_by_costs(costs, detail, case.max_displacement, case.scale)
    second, best = costs.topk(2, 1).values.unbind(1)[::-1] if costs.shape[1] > 1 else (-torch.ones(1), torch.ones(1))
    clear = (best - second > MIN_GAP).expand(displacement.shape)
    np.testing.assert_array_equal(displacement[clear].numpy(), case.expected[1][clear.numpy()])
    pixels = clear.repeat_interleave(case.scale, 1).repeat_interleave(case.scale, 2)[:, None].expand(warped.shape)
    assert warped.dtype == detail.dtype and displacement.dtype == torch.int32
    np.testing.assert_array_equal(warped[pixels].numpy(), case.expected[0][pixels.numpy()])


def test_gradient_of_the_costs():
    random = np.random.default_rng(0)
    shape, attributes = (2, 3, 4, 5), (2, 3)
    maps, directions = random.standard_normal((2, *shape)), random.standard_normal((2, *shape))
    weights = random.standard_normal((25, 2, 4, 5))
    tensors = [torch.from_numpy(m).float().requires_grad_() for m in maps]
    (cost_volume(*tensors, *attributes) * torch.from_numpy(weights.transpose(1, 0, 2, 3))).sum().backward()
    for which in range(2):
        step = 1e-5 * directions[which]
        ahead, behind = ([*maps[:which], maps[which] + s, *maps[which + 1 :]] for s in (step, -step))
        slope = ((pooled_costs(*ahead, *attributes) - pooled_costs(*behind, *attributes)) * weights).sum() / 2e-5
        assert float((tensors[which].grad.double() * torch.from_numpy(directions[which])).sum()) == pytest.approx(
            slope, rel=1e-4
        )


def test_costs_are_in_single_precision_under_autocast():
    motion, motion_prev = (torch.from_numpy(BY_NAME["published"].inputs[n]) for n in ("motion", "motion_prev"))
    expected = cost_volume(motion, motion_prev)
    with torch.autocast("cpu", torch.bfloat16):
        costs = cost_volume(motion.bfloat16().float(), motion_prev.bfloat16())
        same = cost_volume(motion, motion_prev)
    assert costs.dtype == same.dtype == torch.float32
    torch.testing.assert_close(same, expected, rtol=0, atol=1e-6)


def test_black_features_have_a_gradient_that_is_finite():
    """A zero vector after a ReLU: normalising it multiplies its gradient by 1e12, which the ReLU must hold back."""
    features = torch.randn(1, 4, 6, 6)
    features[..., :3] = -1
    features.requires_grad_()
    costs = cost_volume(features.relu(), features.relu().roll(1, 3), 2, 3)
    (costs * torch.randn_like(costs)).sum().backward()
    assert features.grad.isfinite().all() and 0 < float(features.grad.abs().max()) < 1e3


def test_refuses_what_the_rules_forbid():
    motion = torch.zeros(1, 4, 2, 3)
    with pytest.raises(InvalidInputError, match=r"must be \[1, c, 8, 12\]"):
        correlation_argmax_warp(motion, motion, torch.zeros(1, 1, 8, 11))
    with pytest.raises(InvalidInputError, match="max_displacement is 0"):
        correlation_argmax_warp(motion, motion, torch.zeros(1, 1, 8, 12), max_displacement=0)


class Small(torch.nn.Module):
    """A frame gives motion at a quarter of its size; the op's results are used by other operators."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.attributes = case.attributes
        self.motion_layer = torch.nn.Conv2d(case.detail_channels, case.channels, 5, 4, 1)

    def forward(self, frame, motion_prev, detail_prev):
        motion = self.motion_layer(frame)
        warped, displacement = correlation_argmax_warp(motion, motion_prev, detail_prev, **self.attributes)
        return warped + frame, displacement, motion


def test_exports_as_one_custom_node_with_dynamic_sizes():
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    case = BY_NAME["pool_3"]
    module = Small(case).eval()
    frame, motion_prev = torch.rand(1, 2, 32, 48), torch.rand(1, case.channels, 8, 12)
    h, w = torch.export.Dim("h", min=1, max=4096), torch.export.Dim("w", min=1, max=4096)
    large, small = {2: 4 * h, 3: 4 * w}, {2: h, 3: w}
    program = torch.onnx.export(
        module,
        (frame, motion_prev, frame),
        dynamo=True,
        opset_version=18,
        verbose=False,
        dynamic_shapes={"frame": large, "motion_prev": small, "detail_prev": large},
    )
    model = program.model_proto
    (node,) = (node for node in model.graph.node if node.domain == "mtu")
    assert node.op_type == "CorrelationArgmaxWarp" and len(node.output) == 2
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert {name: v.decode() if isinstance(v, bytes) else v for name, v in attributes.items()} == OP.node_attributes(
        case.attributes
    )
    displacement = model.graph.output[1]
    assert displacement.type.tensor_type.elem_type == onnx.TensorProto.INT32
    assert [dim.dim_value or dim.dim_param for dim in displacement.type.tensor_type.shape.dim] == [1, "h", "w"]

    model.functions.append(function_proto(**case.attributes))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for height, width in ((4, 4), (24, 100)):
        frame = torch.rand(1, 2, height, width)
        motion_prev = module.motion_layer(frame.roll((4, -8), (2, 3))).detach()
        expected = module(frame, motion_prev, frame)
        got = session.run(
            None, {"frame": frame.numpy(), "motion_prev": motion_prev.numpy(), "detail_prev": frame.numpy()}
        )
        np.testing.assert_array_equal(got[1], expected[1].numpy())
        np.testing.assert_allclose(got[0], expected[0].detach().numpy(), atol=1e-6)
