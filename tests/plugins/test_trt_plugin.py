"""The plugin in Python: TensorRT-RTX's builder calls it, its answers are right, its errors do not vanish.

What needs a GPU (a real enqueue) is in the tests that need one; here the launcher is a stand-in.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import types

import numpy as np
import pytest

if importlib.util.find_spec("tensorrt_rtx") is None:
    pytest.skip("the package tensorrt-rtx is not installed", allow_module_level=True)

import tensorrt_rtx as trt
from onnx import TensorProto
from tests.plugins import one_node

from mtu.core.errors import InvalidInputError
from mtu.export.bundle_files import load_graphs
from mtu.export.engine_graph import Messages, PreparedGraph, build_graph, prepare
from mtu.export.engine_options import BuildOptions, Target
from mtu.plugins import register, trt_python
from mtu.plugins.correlation_argmax_warp import OP, cuda_op, rules
from mtu.plugins.op import DOMAIN, OPS
from mtu.runtime.engine import Profile
from mtu.runtime.tensorrt_library import Library, check_plugin_import, load_library

NAMESPACES = (f"mtu-test-{number}" for number in itertools.count())
KEPT = []
SINGLE, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
BUILDER_CALLS = {
    "get_output_data_types",
    "get_output_shapes",
    "supports_format_combination",
    "configure_plugin",
    "get_workspace_size",
    "get_fields_to_serialize",
    "clone",
}


@pytest.fixture(scope="module")
def library():
    found = load_library("tensorrt-rtx")
    check_plugin_import(found)
    return found


def registered(library, monkeypatch, op):
    """Its creator, registered under a namespace of its own, so that nothing else in this process gets in its way."""
    namespace = next(NAMESPACES)
    for module in (trt_python, register):
        monkeypatch.setattr(module, "DOMAIN", namespace)
    trt_python.register(library, op)
    return trt_python._keep[-1]


@pytest.fixture
def creator(library, monkeypatch):
    return registered(library, monkeypatch, OP)


def fields(**values):
    made = [trt.PluginField(name, value, getattr(trt.PluginFieldType, kind)) for name, (value, kind) in values.items()]
    KEPT.append((made, values))  # a collection holds pointers alone
    return trt.PluginFieldCollection(made)


def ints(**values):
    return fields(**{name: (np.array([value], np.int32), "INT32") for name, value in values.items()})


def make(creator, phase="BUILD", **values):
    return creator.create_plugin("node", ints(**values), getattr(trt.TensorRTPhase, phase))


def model_of(namespace, *, motion=SINGLE, detail=SINGLE, dynamic=False, **attributes):
    """One node, without function: only the plugin can make it."""
    shapes = [(1, 13, "h", "w"), (1, 5, "H", "W")] if dynamic else [(2, 13, 6, 9), (2, 5, 24, 36)]
    model = one_node.model(*shapes, motion_type=motion, detail_type=detail, **attributes)
    del model.functions[:]
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "plugin_namespace":
            attribute.s = namespace.encode()
    return model


def build(library, model, *, dynamic=False, workspace=None):
    """The plan or None, the layer types and what the library said."""
    said = []
    with library.logger.to(lambda severity, text: said.append((severity, text))):
        builder = trt.Builder(library.logger)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, library.logger)
        if not parser.parse(model.SerializeToString()):
            return None, set(), said
        config = builder.create_builder_config()
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        if dynamic:
            profile = builder.create_optimization_profile()
            for name, channels, scale in (("motion", 13, 1), ("motion_prev", 13, 1), ("detail_prev", 5, 4)):
                sizes = [(1, channels, h * scale, w * scale) for h, w in ((1, 1), (6, 9), (12, 18))]
                profile.set_shape(name, *sizes)
            config.add_optimization_profile(profile)
        kinds = {network.get_layer(index).type for index in range(network.num_layers)}
        outputs = {network.get_output(i).name: network.get_output(i).dtype for i in range(network.num_outputs)}
        plan = builder.build_serialized_network(network, config)
    assert outputs["displacement"] == trt.int32
    return plan, kinds, said


def test_registering_twice_is_registering_once(library, creator, monkeypatch):
    namespace = creator.plugin_namespace
    registry = trt.get_plugin_registry()
    assert registry.get_creator(OP.name, "1", namespace) is not None
    kept = len(trt_python._keep)
    trt_python.register(library, OP)
    assert len(trt_python._keep) == kept


def test_a_library_without_v3_plugins_names_the_way_out():
    old = Library("tensorrt", types.SimpleNamespace(), "8.6.1", None)
    with pytest.raises(InvalidInputError, match=r"tensorrt 8.6.1 takes no plugin from Python.*--plugin-library"):
        trt_python.register(old, OP)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("detail", [SINGLE, HALF], ids=["detail32", "detail16"])
@pytest.mark.parametrize("motion", [SINGLE, HALF], ids=["motion32", "motion16"])
def test_the_builder_asks_the_plugin_and_makes_an_engine(library, creator, monkeypatch, motion, detail, dynamic):
    called = []
    plugin_class = type(make(creator))
    for name in BUILDER_CALLS:

        def spy(self, *arguments, _name=name, _method=plugin_class.__dict__[name]):
            result = _method(self, *arguments)
            called.append((_name, result))
            return result

        monkeypatch.setattr(plugin_class, name, spy)
    model = model_of(creator.plugin_namespace, motion=motion, detail=detail, dynamic=dynamic)
    plan, kinds, said = build(library, model, dynamic=dynamic)
    assert plan is not None and plan.nbytes > 0, said
    assert trt.LayerType.PLUGIN_V3 in kinds
    assert {name for name, _ in called} == BUILDER_CALLS
    # A workspace for the largest frames, whatever their size here.
    largest = max(result for name, result in called if name == "get_workspace_size")
    kind = {SINGLE: "float32", HALF: "float16"}
    batch, height, width = (1, 12, 18) if dynamic else (2, 6, 9)
    problem = cuda_op.Problem(batch, 13, height, width, 5, motion_type=kind[motion], detail_type=kind[detail])
    both = motion == detail == HALF
    wide = dataclasses.replace(problem, motion_layout="hwc8", detail_layout="hwc8") if both else problem
    assert largest == max(cuda_op.workspace_bytes(problem), cuda_op.workspace_bytes(wide))
    assert not trt_plugin_errors(said)


def trt_plugin_errors(said):
    return [text for severity, text in said if severity == "ERROR" and text.startswith(OP.name)]


def test_too_small_a_workspace_fails_the_build(library, creator, monkeypatch):
    large = dataclasses.replace(cuda_op.KERNEL, workspace_bytes=lambda problem: 1 << 24)
    monkeypatch.setattr(cuda_op, "KERNEL", large)
    plan, _, said = build(library, model_of(creator.plugin_namespace), workspace=1 << 20)
    assert plan is None
    assert any("workspace" in text for severity, text in said if severity == "WARNING")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_displacement": 10, "pool_size": 5, "scale": 4}),
        ({"max_displacement": 3, "scale": 2}, {"max_displacement": 3, "pool_size": 5, "scale": 2}),
        ({"pool_size": 1, "unknown": 7}, {"max_displacement": 10, "pool_size": 1, "scale": 4}),
    ],
)
def test_a_creator_takes_what_the_node_says_and_has_defaults(creator, given, expected):
    assert make(creator, **given).attributes == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: fields(scale=(np.array([4.0], np.float32), "FLOAT32")), "scale is 1 x FLOAT32, it must be one INT32"),
        (lambda: fields(pool_size=(np.array([5, 5], np.int32), "INT32")), "pool_size is 2 x INT32"),
        (lambda: ints(pool_size=4), "pool_size is 4, it must be odd"),
        (lambda: ints(max_displacement=0), "max_displacement is 0"),
    ],
)
def test_a_creator_refuses_fields_that_make_no_plugin(library, creator, given, words):
    assert creator.create_plugin("node", given(), trt.TensorRTPhase.BUILD) is None
    assert words in library.logger.last_error() and library.logger.last_error().startswith(OP.name)


def test_what_is_serialised_makes_the_same_plugin_at_run_time(creator):
    plugin = make(creator, max_displacement=7, pool_size=3, scale=2)
    stored = {field.name: int(field.data[0]) for field in plugin.get_fields_to_serialize()}
    assert stored == {"max_displacement": 7, "pool_size": 3, "scale": 2, "revision": OP.revision}
    again = creator.create_plugin("node", plugin.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
    assert again.attributes == plugin.attributes


@pytest.mark.parametrize("revision", [{}, {"revision": OP.revision + 1}])
def test_an_engine_of_another_revision_is_refused(library, creator, revision):
    assert make(creator, "RUNTIME", **revision) is None
    found = revision.get("revision")
    assert f"holds revision {found} of the plugin, this release has {OP.revision}" in library.logger.last_error()


def test_clones_are_whole_and_share_nothing(creator):
    plugin = make(creator, max_displacement=7)
    for copy in (plugin.clone(), plugin.attach_to_context(None)):
        assert copy is not plugin and copy.attributes == plugin.attributes
        assert copy.attributes is not plugin.attributes and copy._fields is not plugin._fields
        assert (copy.plugin_name, copy.plugin_version, copy.num_outputs) == (OP.name, "1", 2)
        assert copy.timing_cache_id == plugin.timing_cache_id


def test_the_timing_cache_tells_attributes_and_revisions_apart(creator, monkeypatch):
    identities = {make(creator, max_displacement=d).timing_cache_id for d in (7, 8)}
    monkeypatch.setattr(creator._plugin, "op", dataclasses.replace(OP, revision=OP.revision + 1))
    identities.add(make(creator, max_displacement=7).timing_cache_id)
    assert len(identities) == 3


FLOAT, INT8, INT32 = trt.DataType.FLOAT, trt.DataType.INT8, trt.DataType.INT32
LINEAR, HWC8, CHW32 = trt.TensorFormat.LINEAR, trt.TensorFormat.HWC8, trt.TensorFormat.CHW32


def described(dims, kind, layout=LINEAR):
    return types.SimpleNamespace(dims=dims, type=kind, format=layout)


def supported(plugin, kinds, layouts):
    tensors = [types.SimpleNamespace(desc=described((), k, f)) for k, f in zip(kinds, layouts, strict=True)]
    nothing = types.SimpleNamespace(desc=described((), None, None))
    # Entries after the position asked for are garbage.
    return all(
        plugin.supports_format_combination(
            at, tensors[: at + 1] + [nothing] * (len(tensors) - at - 1), plugin.input_count
        )
        for at in range(len(tensors))
    )


def test_exactly_these_formats_are_offered(creator):
    plugin = make(creator)
    kinds, layouts = (FLOAT, trt.DataType.HALF, INT8, INT32), (LINEAR, HWC8, CHW32)
    offered = set()
    for motion, motion_prev, detail, warped in itertools.product(kinds, repeat=4):
        for layout in itertools.product(layouts, repeat=4):
            if supported(plugin, (motion, motion_prev, detail, warped, INT32), (*layout, LINEAR)):
                offered.add((motion, motion_prev, detail, warped, layout))
    half = trt.DataType.HALF
    expected = {(m, m, d, d, (LINEAR,) * 4) for m in (FLOAT, half) for d in (FLOAT, half)}
    assert offered == expected | {(half, half, half, half, (HWC8,) * 4)}
    linear = (LINEAR,) * 4
    assert not supported(plugin, (half,) * 4 + (FLOAT,), (*linear, LINEAR))
    assert not supported(plugin, (half,) * 4 + (INT32,), (*linear, HWC8))


SHAPES = ((2, 13, 6, 9), (2, 13, 6, 9), (2, 5, 24, 36))


class Stand:
    """In place of the launcher."""

    def __init__(self):
        self.kernel, self.prepared, self.launched = cuda_op.KERNEL, [], []

    def prepare(self, problem):
        self.prepared.append(problem)

    def launch(self, problem, pointers, stream):
        self.launched.append((problem, pointers, stream))


@pytest.fixture
def stand(monkeypatch):
    stand = Stand()
    monkeypatch.setattr(trt_python, "launcher", lambda *given: {(stand.kernel, 3): stand}[given])
    monkeypatch.setattr(trt_python, "current_device", lambda: 3)
    return stand


@pytest.mark.parametrize(("kind", "layout"), [(FLOAT, LINEAR), (trt.DataType.HALF, HWC8)])
def test_a_call_goes_to_the_kernel_as_it_came(creator, stand, kind, layout):
    plugin = make(creator, max_displacement=7)
    inputs = [described(shape, kind, layout) for shape in SHAPES]
    plugin.on_shape_change(inputs, [])
    plugin.enqueue(inputs, [], [11, 12, 13], [14, 15], 16, 17)
    name = {FLOAT: "float32", trt.DataType.HALF: "float16"}[kind]
    order = {LINEAR: "linear", HWC8: "hwc8"}[layout]
    problem = cuda_op.Problem(2, 13, 6, 9, 5, 7, 5, 4, name, name, order, order)
    assert stand.prepared == [problem]
    assert stand.launched == [(problem, [11, 12, 13, 14, 15, 16], 17)]


@pytest.mark.parametrize(
    "shapes",
    [
        ((2, 13, 6, 9), (2, 13, 6, 8), (2, 5, 24, 36)),
        ((2, 13, 6, 9), (2, 13, 6, 9), (2, 5, 24, 32)),
        ((2, 13, 6, 9), (2, 13, 6, 9), (1, 5, 24, 36)),
        ((2, 13, 0, 9), (2, 13, 0, 9), (2, 5, 0, 36)),
    ],
)
def test_shapes_that_do_not_fit_are_refused_and_logged(library, creator, stand, shapes):
    with pytest.raises(InvalidInputError):
        make(creator).on_shape_change([described(shape, FLOAT) for shape in shapes], [])
    assert library.logger.last_error().startswith(f"{OP.name}.on_shape_change: {OP.name}: ")
    assert not stand.prepared


def test_an_error_of_the_kernel_is_logged_with_its_kind(library, creator, stand, monkeypatch):
    monkeypatch.setattr(stand, "launch", lambda *arguments: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        make(creator).enqueue([described(shape, FLOAT) for shape in SHAPES], [], [1, 2, 3], [4, 5], 6, 7)
    assert library.logger.last_error().startswith(f"{OP.name}.enqueue: ZeroDivisionError: ")


def test_without_a_cuda_context_a_call_says_so(creator, monkeypatch):
    driver = pytest.importorskip("cuda.bindings.driver")
    monkeypatch.setattr(driver, "cuCtxGetDevice", lambda: (driver.CUresult.CUDA_ERROR_INVALID_CONTEXT, 0))
    with pytest.raises(InvalidInputError, match="no CUDA context is current"):
        make(creator).on_shape_change([described(shape, FLOAT) for shape in SHAPES], [])


@pytest.mark.parametrize("callback", ["get_workspace_size", "get_output_shapes"])
def test_an_error_in_a_callback_fails_the_build(library, creator, small, monkeypatch, callback, capfd):
    """TensorRT takes an error in get_workspace_size for 0 bytes and builds on."""
    model = prepare(load_graphs(small)["step"], OPS)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "plugin_namespace":
                attribute.s = creator.plugin_namespace.encode()

    def fail(*arguments):
        raise RuntimeError("no such luck")

    if callback == "get_workspace_size":
        monkeypatch.setattr(cuda_op, "KERNEL", dataclasses.replace(cuda_op.KERNEL, workspace_bytes=fail))
    else:
        monkeypatch.setattr(rules, "check_shapes", fail)
    messages = Messages()
    with library.logger.to(messages.take), pytest.raises(InvalidInputError) as refused:
        prepared = PreparedGraph(
            graph=small.interface.graph("step"), model=model, is_half=False, has_int8=False, kept_nodes=frozenset()
        )
        build_graph(
            prepared, Target(library, None, ("8.6",)), BuildOptions(Profile.fixed(32, 48)), messages, None, None
        )
    assert "RuntimeError: no such luck" in str(refused.value) and f"{OP.name}." in str(refused.value)
    capfd.readouterr()


def test_the_published_namespace_is_the_nodes(library):
    trt_python.register(library, OP)
    assert trt.get_plugin_registry().get_creator(OP.name, "1", DOMAIN) is not None
    plan, kinds, said = build(library, model_of(DOMAIN))
    assert plan is not None and trt.LayerType.PLUGIN_V3 in kinds, said
