"""The custom ops, as those tests see them that run every case of every op. Nothing here is a test."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pytest
from tests.plugins import one_node

from mtu.plugins.kernel import Kernel
from mtu.plugins.op import OPS, Op, find_op


@dataclass(frozen=True, eq=False)
class Subject:
    """An op, its cases, and its tensors with the names of their dynamic sizes."""

    op: Op
    inputs: Mapping[str, tuple[str, ...]]
    outputs: Mapping[str, tuple[str, ...]]

    @property
    def folder(self) -> str:
        return OPS[self.op.name]

    def part(self, module: str) -> Any:
        return importlib.import_module(f"mtu.plugins.{self.folder}.{module}")

    @property
    def kernel(self) -> Kernel:
        return self.part("cuda_op").KERNEL

    @property
    def torch_function(self) -> Callable[..., Any]:
        return self.part("torch_op").__dict__[self.folder]

    def model(self, case: Any, *, dynamic: bool = True) -> Any:
        """A model of one node, by the types, and the sizes unless dynamic, of a case."""
        from onnx import helper

        def described(arrays: Sequence[np.ndarray], names: Mapping[str, tuple[str, ...]]) -> dict[str, tuple]:
            return {
                name: (helper.np_dtype_to_tensor_dtype(array.dtype), shape if dynamic else array.shape)
                for array, (name, shape) in zip(arrays, names.items(), strict=True)
            }

        inputs, outputs = described([*case.inputs.values()], self.inputs), described(case.expected, self.outputs)
        return one_node.model_of(self.op, case.attributes, inputs, outputs)

    def key(self, case: Any) -> tuple[Any, ...]:
        """Cases with the same one can share a model of dynamic sizes."""
        return self.op.name, *case.attributes.values(), case.dtype

    def check(self, case: Any, results: Sequence[np.ndarray]) -> None:
        """Every element of every result is what the case expects: exactly, or as near as it allows."""
        allowances = getattr(case, "allowed", repeat(None))
        for result, expected, allowed in zip(results, case.expected, allowances, strict=False):
            assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
            if allowed is None:
                np.testing.assert_array_equal(result, expected)
            else:
                assert (np.abs(result.astype(np.float64) - expected) <= allowed).all()
        assert len(results) == len(case.expected)


_MAP, _DETAIL = ("B", "C", "h", "w"), ("B", "c", "H", "W")
WARP = Subject(
    find_op("CorrelationArgmaxWarp"),
    {"motion": _MAP, "motion_prev": _MAP, "detail_prev": _DETAIL},
    {"warped": _DETAIL, "displacement": ("B", "h", "w")},
)
FILTERS = Subject(find_op("IterativeFilters"), {"x": _MAP, "filters": ("B", "F", "h", "w")}, {"filtered": _MAP})
SUBJECTS = (WARP, FILTERS)
assert {subject.op.name for subject in SUBJECTS} == {*OPS}


def cases_where(chosen: Callable[[Subject, Any], bool]) -> pytest.MarkDecorator:
    """A test of `subject` and `case` runs the chosen cases of all ops."""
    return pytest.mark.parametrize(
        ("subject", "case"),
        [
            pytest.param(subject, case, id=case.name if subject is WARP else f"{subject.folder}-{case.name}")
            for subject in SUBJECTS
            for case in subject.part("cases").CASES
            if chosen(subject, case)
        ],
    )


every_case = cases_where(lambda subject, case: True)
