"""An op as one object: the table, its parts, its limits in README and in refusals, the nodes of a graph."""

from __future__ import annotations

import dataclasses
import re

import pytest
from tests.conftest import ROOT

from mtu.core.errors import InvalidInputError
from mtu.models.mtu import PRESETS, describe
from mtu.plugins.correlation_argmax_warp import OP, cuda_op
from mtu.plugins.kernel import Kernel
from mtu.plugins.op import DOMAIN, OPS, Limit, find_op

SHAPES = ([1, 52, 8, 12], [1, 52, 8, 12], [1, 26, 32, 48])
HALF = ("float16",) * 3


@pytest.mark.parametrize("name", OPS)
def test_each_op_of_the_table_is_there_and_complete(name):
    op = find_op(name)
    assert op.name == name and op.version >= 1
    folder = ROOT / "plugins" / OPS[name]
    module, _ = op.function.split(":")
    assert (folder / f"{module}.py").is_file() and (folder / "README.md").is_file()
    included = f'#include "../{OPS[name]}/tensorrt/adapter.h"' in (ROOT / "plugins/cpp/ops.h").read_text()
    assert included and op.revision >= 1


@pytest.mark.parametrize("name", OPS)
def test_each_op_has_its_adapters(name):
    op, folder = find_op(name), ROOT / "plugins" / OPS[name]
    for place in (op.kernel, op.plugin):
        assert (folder / f"{place.split(':')[0]}.py").is_file()
    assert isinstance(op.part(op.kernel), Kernel)
    adapter = (folder / "tensorrt" / "adapter.h").read_text()
    assert f'kName = "{name}"' in adapter and f'kVersion = "{op.version}"' in adapter
    said = dict(re.findall(r'\{"(\w+)", (-?\d+)\}', adapter))
    assert {key: int(value) for key, value in said.items()} == op.attributes


def test_an_op_that_is_not_ours():
    with pytest.raises(InvalidInputError, match=f"no op {DOMAIN}::Deconvolve, there are {', '.join(OPS)}"):
        find_op("Deconvolve")


def readme_rows(op):
    """What the README says the kernel can do: name as in `Op.limits` -> words."""
    text = (ROOT / "plugins" / OPS[op.name] / "README.md").read_text()
    table = text[text.index("## Limits of the kernel") :].split("\n\n")[1]
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", table, re.M))
    names = {re.sub(r"channels of `(\w+)`", r"\1_channels", name).strip("`"): words for name, words in rows.items()}
    return {name: words for name, words in names.items() if name in op.limits}


@pytest.mark.parametrize("op", list(map(find_op, OPS)), ids=lambda op: op.name)
def test_the_readme_has_the_limits_that_hold(op):
    assert readme_rows(op) == {name: limit.words for name, limit in op.limits.items()}


AXES = {"batch": 0, "channels": 1, "motion_channels": 1, "height": 2}


@pytest.mark.parametrize(
    ("op", "name"),
    [pytest.param(op, name, id=f"{op.name}-{name}") for op in map(find_op, OPS) for name in op.limits],
)
def test_what_is_outside_a_limit_is_refused_in_its_words(op, name):
    limit = op.limits[name]
    edges = limit.allowed or [edge for edge in (limit.least, limit.most) if edge is not None]

    def check(value):
        attributes, shapes = dict(op.attributes), [list(shape) for shape in SHAPES]
        if name in attributes:
            attributes[name] = value
        else:
            shapes[0][AXES[name]] = value
        op.check(attributes, shapes, HALF)

    for edge in edges:
        check(edge)
    for value in {max(edges) + 1, min(edges) - 1 if limit.most is None or limit.least else max(edges) + 2}:
        with pytest.raises(InvalidInputError, match=re.escape(limit.refusal)):
            check(value)


def test_what_a_node_does_not_say_has_a_default():
    OP.check({}, SHAPES, HALF)
    with pytest.raises(InvalidInputError, match=r"pool_size must be 1, 3, 5 or 7; got .* scale 4; use --no-plugin"):
        OP.check({"pool_size": 9}, SHAPES, HALF)


@pytest.mark.parametrize(
    ("limit", "inside", "outside", "words"),
    [
        (Limit("{}", 1, 20), (1, 20), (0, 21), "1 to 20"),
        (Limit("{}", most=128), (-1, 128), (129,), "at most 128"),
        (Limit("{}", allowed=(2, 4)), (2, 4), (1, 3, 5), "2 or 4"),
    ],
)
def test_limits(limit, inside, outside, words):
    assert all(map(limit.allows, inside)) and not any(map(limit.allows, outside))
    assert limit.words == words


@pytest.mark.parametrize("graph", ["first", "step"])
def test_the_nodes_of_a_graph_are_checked_with_the_sizes_that_reach_them(graph, monkeypatch):
    onnx = pytest.importorskip("onnx")
    from mtu.plugins.nodes import check_nodes, op_nodes

    model = onnx.load(ROOT / "models" / "weights" / "mtu2" / f"{graph}.onnx")
    nodes = list(op_nodes(model))
    assert [op for _, op in nodes] == [OP]
    problems = []
    seen = dataclasses.replace(cuda_op.KERNEL, problem_of=lambda *given: problems.append(given))
    monkeypatch.setattr(cuda_op, "KERNEL", seen)
    shapes = {each.tensor.name: each.tensor.at(36, 52) for each in describe(PRESETS["mtu2"]).graph(graph).inputs}
    check_nodes(model, shapes)
    sizes = [[1, 52, 9, 13], [1, 52, 9, 13], [1, 26, 36, 52]]
    assert problems == [(OP.attributes, sizes, ["float32"] * 3)]
    monkeypatch.undo()
    for attribute in nodes[0][0].attribute:
        if attribute.name == "max_displacement":
            attribute.i = 21
    with pytest.raises(InvalidInputError, match="max_displacement must be from 1 to 20"):
        check_nodes(model, shapes)
