"""The plugin of IterativeFilters in Python: what is its own beside what test_trt_plugin.py shows of all."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")

import tensorrt_rtx as trt
from tests.plugins.subjects import FILTERS
from tests.plugins.test_trt_plugin import (
    FLOAT,
    HWC8,
    INT8,
    INT32,
    LINEAR,
    described,
    ints,
    library,
    registered,
    stand,
    supported,
)

from mtu.core.errors import InvalidInputError
from mtu.plugins.iterative_filters import cuda_op
from mtu.plugins.iterative_filters.cases import Case

__all__ = ["library", "stand"]  # fixtures
HALF = trt.DataType.HALF


@pytest.fixture
def creator(library, monkeypatch):
    return registered(library, monkeypatch, FILTERS.op)


def make(creator, phase="BUILD", **values):
    return creator.create_plugin("node", ints(**values), getattr(trt.TensorRTPhase, phase))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shared", [0, 1], ids=["separate", "shared"])
def test_the_builder_makes_an_engine_of_it(library, creator, dtype, shared, dynamic):
    model = FILTERS.model(Case("", "", 6, 9, channels=13, shared_taps=shared, dtype=dtype), dynamic=dynamic)
    del model.functions[:]  # only the plugin can make it
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "plugin_namespace":
            attribute.s = creator.plugin_namespace.encode()
    builder = trt.Builder(library.logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, library.logger)
    assert parser.parse(model.SerializeToString()), library.logger.last_error()
    assert [network.get_layer(i).type for i in range(network.num_layers)] == [trt.LayerType.PLUGIN_V3]
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    if dynamic:
        for name, channels in (("x", 13), ("filters", (4 if shared else 7) * 13)):
            profile.set_shape(name, *[(1, channels, h, w) for h, w in ((1, 1), (6, 9), (12, 18))])
        config.add_optimization_profile(profile)
    output = network.get_output(0)
    assert (output.name, output.dtype) == ("filtered", {"float32": FLOAT, "float16": HALF}[dtype])
    assert tuple(output.shape) == ((-1,) * 4 if dynamic else (1, 13, 6, 9))
    assert builder.build_serialized_network(network, config).nbytes > 0


def test_what_is_serialised_makes_the_same_plugin_at_run_time(creator):
    plugin = make(creator, shared_taps=0)
    stored = {field.name: int(field.data[0]) for field in plugin.get_fields_to_serialize()}
    assert stored == {"shared_taps": 0, "revision": FILTERS.op.revision}
    again = creator.create_plugin("node", plugin.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
    assert again.attributes == plugin.attributes == {"shared_taps": 0}
    assert make(creator).attributes == {"shared_taps": 1}
    assert make(creator, shared_taps=2) is None and make(creator, "RUNTIME", shared_taps=1) is None


def test_exactly_these_formats_are_offered(creator):
    plugin = make(creator)
    kinds, layouts = (FLOAT, HALF, INT8, INT32), (LINEAR, HWC8, trt.TensorFormat.CHW32)
    all_of_them = itertools.product(itertools.product(kinds, repeat=3), itertools.product(layouts, repeat=3))
    offered = {each for each in all_of_them if supported(plugin, *each)}
    wanted = ((FLOAT, LINEAR), (HALF, LINEAR), (HALF, HWC8))
    assert offered == {((kind,) * 3, (layout,) * 3) for kind, layout in wanted}


@pytest.mark.parametrize("shared", [0, 1], ids=["separate", "shared"])
@pytest.mark.parametrize(("kind", "layout"), [(FLOAT, LINEAR), (HALF, HWC8)], ids=["fp32", "fp16"])
def test_a_call_goes_to_the_kernel_as_it_came(creator, stand, kind, layout, shared):
    stand.kernel = cuda_op.KERNEL
    shapes = ((2, 13, 6, 9), (2, (4 if shared else 7) * 13, 6, 9))
    inputs = [described(shape, kind, layout) for shape in shapes]
    plugin = make(creator, shared_taps=shared)
    plugin.on_shape_change(inputs, [])
    plugin.enqueue(inputs, [], [11, 12], [13], 14, 15)
    name, order = {FLOAT: ("float32", "linear"), HALF: ("float16", "hwc8")}[kind]
    problem = cuda_op.Problem(2, 13, 6, 9, shared, name, order)
    assert stand.prepared == [problem]
    assert stand.launched == [(problem, [11, 12, 13, 14], 15)]


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 13, 6, 9), (2, 91, 6, 9)),
        ((2, 13, 6, 9), (1, 52, 6, 9)),
        ((2, 13, 6, 9), (2, 52, 6, 8)),
        ((2, 13, 0, 9), (2, 52, 0, 9)),
        ((2, 13, 9), (2, 52, 9)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_and_logged(library, creator, stand, shapes):
    stand.kernel = cuda_op.KERNEL
    with pytest.raises(InvalidInputError):
        make(creator).on_shape_change([described(shape, FLOAT) for shape in shapes], [])
    assert library.logger.last_error().startswith("IterativeFilters.on_shape_change: IterativeFilters: ")
    assert not stand.prepared
