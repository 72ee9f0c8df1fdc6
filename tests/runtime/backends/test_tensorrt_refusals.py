"""What the TensorRT backends refuse before the library sees it, what they say, and what they leave when they close."""

from __future__ import annotations

import atexit
import importlib.util
import sys
import threading
import types
from functools import partial

import pytest

pytest.importorskip("av")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")


from tests import fake_cuda
from tests.conftest import ROOT
from tests.frames import submit, windows
from tests.tensorrt_sessions import ANY_SIZE, collect, dim_frames, engine, gpu, make_gpu, refused

from mtu.core.cache import keep
from mtu.core.errors import InvalidInputError, MissingExtraError, MissingFileError
from mtu.plugins.nvrtc import compile_source, read_source
from mtu.runtime import Session, open_backend, open_model
from mtu.runtime.engine import Profile
from mtu.runtime.gpu import find_gpu
from mtu.runtime.tensorrt_library import load_library

__all__ = ["engine", "gpu", "make_gpu"]  # fixtures


# The end


def test_what_is_there_after_close(gpu, engine):
    backend = open_backend("tensorrt", engine)
    window = next(windows(backend.interface, dim_frames(5)))
    pending = submit(backend, window)
    arrays = backend.read_states(pending.states)
    backend.close()
    assert pending.result()["output"].shape == (1, 32, 48, 3)  # outputs stay valid
    for call in (
        partial(submit, backend, window),
        partial(backend.read_states, pending.states),
        partial(backend.write_states, arrays),
    ):
        with pytest.raises(InvalidInputError, match="backend tensorrt is closed: open another with open_backend"):
            call()
    del call
    backend.close()
    del pending
    assert gpu.used == 0


@pytest.mark.parametrize("times", [0, 1, 2])
@pytest.mark.parametrize("frames", [0, 5])
def test_streams_events_and_memory_go_while_the_device_is_current(gpu, engine, times, frames):
    backend = open_backend("tensorrt", engine)
    pending = [submit(backend, next(windows(backend.interface, dim_frames(5)))) for _ in range(frames)]
    pending.clear()
    for _ in range(times):
        backend.close()
    if not times:
        del backend  # nobody closes it
    assert gpu.used == 0 and len(gpu.streams) == 3  # those of the library


def test_another_size_waits_for_what_is_under_way(gpu, engine):
    backend = open_backend("tensorrt", engine)
    for height, width in ((32, 48), (16, 24), (32, 48)):
        submit(backend, next(windows(backend.interface, dim_frames(5, height, width))))  # nobody asks for the result
    assert gpu.faults == []


def test_a_backend_is_closed_in_another_thread(gpu, engine):
    backend = open_backend("tensorrt", engine)
    collect(Session(backend), dim_frames(6))
    thread = threading.Thread(target=backend.close)
    thread.start()
    thread.join()
    assert gpu.used == gpu.freed_outside == 0


@pytest.mark.parametrize("with_states", [True, False])
def test_the_context_outlives_what_the_process_leaves_open(make_gpu, engine, monkeypatch, with_states):
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    gpu = make_gpu()
    backends = [open_backend("tensorrt", engine) for _ in range(2)]
    window = next(windows(engine.interface, dim_frames(5)))
    states = [submit(backend, window).states for backend in backends if with_states]
    (give_up,) = at_exit
    give_up()
    assert gpu.is_detached and not any(name in str(gpu.faults) for name in ("way", "stream"))
    for backend in backends:
        backend.close()  # nothing is left to do, and no context to do it in
    del backend, backends
    assert with_states or gpu.used == 0
    # States that somebody holds even now: pycuda frees nothing in a context that is gone, and says nothing.
    assert with_states == bool(gpu.used)
    del states
    gpu.faults.clear()
    gpu.freed_outside = 0


def test_a_backend_that_cannot_be_opened_leaves_nothing(gpu, small, single, engine, tmp_path, monkeypatch):
    wrong = fake_cuda.write_engine(single, tmp_path / "e", ANY_SIZE, interface=small.interface)
    refused("its tensors are", "tensorrt", wrong)
    assert gpu.used == 0
    monkeypatch.setattr(fake_cuda.ExecutionContext, "set_input_shape", lambda *_: False)
    refused("could not be set", "tensorrt", engine, size=(32, 48))
    assert gpu.used == 0


# What the library says, and what it compiles


def test_an_error_of_an_earlier_operation_is_no_reason(gpu, engine, monkeypatch):
    backend = open_backend("tensorrt", engine)
    for method in ("set_tensor_address", "execute_async_v3"):
        with monkeypatch.context() as patch:
            patch.setattr(fake_cuda.ExecutionContext, method, lambda *_: False)
            load_library("tensorrt").logger.record("ERROR", "something that went wrong before")
            try:
                collect(Session(backend), dim_frames(5))
            except InvalidInputError as error:
                message = str(error)  # pytest.raises would keep the frames
            assert "for frames of 48x32: it gives no reason; build it again" in message
    backend.close()
    monkeypatch.setattr(sys.modules["tensorrt"].Runtime, "deserialize_cuda_engine", lambda *_: None)
    load_library("tensorrt").logger.record("ERROR", "something that went wrong before")
    refused("cannot load .*: it gives no reason", "tensorrt", engine)


@pytest.mark.parametrize("damage", [None, "cut", "of another version", "unwritable"])
def test_rtx_compiles_once_for_a_gpu_and_a_size(make_gpu, small, tmp_path, damage, recwarn):
    version = fake_cuda.VERSIONS["tensorrt-rtx"]
    engine = fake_cuda.write_engine(small, tmp_path / "e", ANY_SIZE, library="tensorrt-rtx", library_version=version)

    def compilations(*sizes):
        gpu = make_gpu(flavour="tensorrt-rtx")
        backend = open_backend("auto", engine)
        for height, width in sizes:
            collect(Session(backend), dim_frames(4, height, width))
        backend.close()
        return gpu.compilations

    folder = tmp_path / "cache" / "rtx"
    if damage == "unwritable":
        folder.parent.mkdir()
        folder.write_text("")
    assert compilations((32, 48)) == 2  # two graphs
    if damage == "unwritable":
        assert "what TensorRT-RTX compiled cannot be kept" in str(recwarn.pop(UserWarning).message)
        assert compilations((32, 48)) == 2
        return
    for path in folder.iterdir():
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-1])
        elif damage is not None:
            keep(path, b"of another version", "it")
    assert compilations((32, 48)) == (0 if damage is None else 2)
    assert compilations((32, 48), (16, 24)) == 2
    assert compilations((16, 24), (32, 48)) == 0
    assert len(list(folder.iterdir())) == 2


# What cannot run


def test_an_engine_that_is_not_what_was_built_is_refused_before_the_library_sees_it(gpu, engine, monkeypatch):
    monkeypatch.setattr(sys.modules["tensorrt"], "Runtime", None)
    for graph, damage in (
        ("step", lambda content: content[:-1]),
        ("first", lambda content: content[:100] + bytes([content[100] ^ 1]) + content[101:]),
        ("step", lambda content: b""),
    ):
        path = engine.graph(graph)
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        refused(rf"{graph}.engine is damaged or of another build .*: mtu-build-engine", "tensorrt", engine)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"gpu": "NVIDIA A10"}, "built for NVIDIA A10 .* here is Fake GPU .*: mtu-build-engine"),
        ({"compute_capabilities": ("8.6",)}, r"compute capability 8.6\), here is Fake GPU"),
        ({"library_version": "10.3.0"}, "built with tensorrt 10.3.0, here is 10.16.1.11"),
        ({"plugins": {"CorrelationArgmaxWarp": 99}}, "revision 99 of the plugin"),
        ({"library": "tensorrt-rtx"}, "was built with tensorrt-rtx: use --backend tensorrt-rtx"),
    ],
)
def test_an_engine_for_something_else_is_refused(gpu, small, tmp_path, monkeypatch, changes, match):
    monkeypatch.setattr(sys.modules["tensorrt"], "Runtime", None)
    refused(match, "tensorrt", fake_cuda.write_engine(small, tmp_path / "e", ANY_SIZE, **changes))


def test_a_size_outside_the_profile(gpu, small, tmp_path):
    engine = fake_cuda.write_engine(small, tmp_path / "e", Profile.fixed(32, 48))
    command = "mtu-build-engine BUNDLE -o DIR --size 64x32 --runtime tensorrt"
    match = rf"64x32 do not fit engine .* which is for 48x32: build one with {command}, or cut .*--tile"
    refused(match, "tensorrt", engine, size=(30, 62))
    session = Session(open_backend("tensorrt", engine), scene_threshold=None)
    with pytest.raises(InvalidInputError, match=match):
        collect(session, dim_frames(5, 30, 62))
    assert open_backend("tensorrt", engine, size=(29, 46))


def test_an_engine_the_library_cannot_load(gpu, small, tmp_path):
    engine = fake_cuda.write_engine(small, tmp_path / "e", ANY_SIZE, plugins={})
    refused("cannot load .*first.engine: Cannot find plugin: .*; build it again", "tensorrt", engine)


def test_an_engine_of_another_model_than_its_manifest_says(gpu, small, single, tmp_path):
    engine = fake_cuda.write_engine(single, tmp_path / "e", ANY_SIZE, interface=small.interface)
    refused("its tensors are .*, its manifest says", "tensorrt", engine)


def test_not_enough_memory_is_said_before_anything_is_loaded(make_gpu, engine):
    gpu = make_gpu(total=100_000)
    match = r"not enough memory on Fake GPU: \d+ MiB are needed, 0 MiB are free; .*use smaller frames"
    refused(match, "tensorrt", engine, size=(128, 128))
    assert gpu.used == 0
    # The memory of all tiles is counted.
    gpu = make_gpu(total=8_000_000)
    open_backend("tensorrt", engine, size=(128, 128), streams=1).close()
    refused(r"not enough memory .*tiles \(mtu-run --tile", "tensorrt", engine, size=(128, 128), streams=64)
    # An allocation that fails although the estimate did not.
    gpu = make_gpu(total=400_000)
    backend = open_backend("tensorrt", engine)
    with pytest.raises(InvalidInputError, match="not enough memory on Fake GPU"):
        collect(Session(backend), dim_frames(5, 128, 128))
    backend.close()


def test_there_has_to_be_a_gpu(monkeypatch, gpu, engine):
    refused("leave out --device cpu", "tensorrt", engine, "cpu")
    refused("none answers as cuda:1", "tensorrt", engine, "cuda:1")
    monkeypatch.setattr("mtu.runtime.gpu.driver_library", lambda: None)
    find_gpu.cache_clear()
    refused("needs an NVIDIA GPU, and none answers as cuda:0: mtu-doctor", "tensorrt", engine)


def test_an_engine_is_not_for_the_other_backends(engine):
    for name in ("onnxruntime", "torch"):
        refused(f"is an engine, which backend {name} cannot run: use --backend tensorrt", name, engine, "cpu")


@pytest.mark.parametrize("package", ["tensorrt", "pycuda", "cuda.core"])
def test_a_missing_package_names_the_extra(gpu, engine, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find_spec(name))
    with pytest.raises(MissingExtraError, match=rf"'{package}', which is not installed: pip install \"mtu-trt\[gpu\]"):
        open_backend("tensorrt", engine)


def test_pycuda_without_a_driver(gpu, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.delattr(sys.modules["pycuda"], "driver")
    refused("pycuda cannot be loaded .* mtu-doctor says which is missing", "tensorrt", engine)


def test_a_plugin_library_that_is_none(gpu, engine, tmp_path, monkeypatch):
    registry = types.SimpleNamespace(get_creator=lambda *identity: None, load_library=lambda path: None)
    monkeypatch.setattr(sys.modules["tensorrt"], "get_plugin_registry", lambda: registry, raising=False)
    with pytest.raises(MissingFileError, match="does not exist: build it with mtu-build-plugin"):
        open_backend("tensorrt", engine, plugin_library=tmp_path / "none.so")
    (tmp_path / "some.so").write_bytes(b"")
    refused(
        r"some.so is no CorrelationArgmaxWarp plugin for tensorrt 10",
        "tensorrt",
        engine,
        plugin_library=tmp_path / "some.so",
    )


def test_a_bundle_needs_somebody_who_builds_and_a_size(gpu, small, tmp_path):
    match = r"runs engines, and model .* is a bundle: give an engine .*mtu-build-engine, or open_backend\(..., build="
    refused(match, "tensorrt", small)
    refused(match, "tensorrt", small, size=(32, 48))
    built = []

    def build(*arguments):
        built.append(arguments)
        return fake_cuda.write_engine(small, tmp_path / "built", Profile.fixed(32, 48))

    match = r"give open_backend\(..., size=\(height, width\)\), or an engine"
    refused(match, "tensorrt", small, build=build)
    backend = open_backend("tensorrt", small, size=(30, 45), build=build, say=print)
    ((bundle, library, found, size, plugin_library, say),) = built
    assert (bundle, library.name, found.name, size) == (small, "tensorrt", "Fake GPU", (32, 48))
    assert plugin_library is None and say is print
    backend.close()


def test_what_a_directory_holds(small, engine):
    assert open_model(small.directory) == small
    assert open_model(engine.directory) == engine


def test_the_guard_compiles():
    pytest.importorskip("cuda.core")
    source = read_source(ROOT / "runtime" / "backends" / "tensorrt_finite.cu")
    for arch in ("sm_75", "sm_90", "sm_120"):
        assert compile_source(source, arch, {})
