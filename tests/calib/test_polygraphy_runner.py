"""A backend as a runner of Polygraphy, and states that go out of a backend and into it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("polygraphy")
pytest.importorskip("torch")

from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.comparator import Comparator
from polygraphy.logger import G_LOGGER
from tests.calib.comparing import COUNT, HEIGHT, WIDTH, altered, frames, one_weight

from mtu.calib.compare_frame import compare_tensors
from mtu.calib.polygraphy_runner import BackendRunner, no_states
from mtu.calib.rollout import feed, windows
from mtu.runtime import open_backend, restore

pytestmark = pytest.mark.usefixtures("one_thread")


def test_polygraphy_compares_with_the_same_function(small, half):
    backend = open_backend("onnxruntime", small)
    _, _, inputs = next(windows(small.interface, frames()))
    states = backend.read_states(backend.submit("first", inputs, {}).states)
    backend.close()
    runners = [OnnxrtRunner(SessionFromOnnx(str(bundle.graph("step"))), name=bundle.directory.parent.name)
               for bundle in (small, altered(small, half.directory.parent / "weight", one_weight))]  # fmt: skip
    seen = []

    def within(a, b):
        seen.append(compare_tensors(a, b))
        return {name: found.largest <= 1e-4 for name, found in seen[-1].items()}

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        results = Comparator.run(runners, data_loader=[feed(small.interface.graph("step"), inputs, states)])
        passed = Comparator.compare_accuracy(results, compare_func=within)
    assert not bool(passed)
    assert seen[0]["output"].largest > 5 and seen[0]["motion_out"].largest == 0


def test_a_rollout_as_a_polygraphy_script_has_it(small, half, tmp_path):
    """The script: any two backends, each threading its own states, and a compare function of one's own."""
    clip = [inputs for _, _, inputs in windows(small.interface, frames())]
    seen = []

    def close(a, b):
        seen.append(compare_tensors(a, b))
        return {name: found.quantiles[-1] <= (1 if name == "output" else 1e-2) for name, found in seen[-1].items()}

    def compared(*bundles):
        seen.clear()
        backends = [open_backend("onnxruntime", bundle) for bundle in bundles]
        runners = [BackendRunner(backend, threads_states=True) for backend in backends]
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
            results = Comparator.run(runners, data_loader=clip)
            passed = Comparator.compare_accuracy(results, compare_func=close)
        assert len(seen) == COUNT and all(runtime > 0 for runtime in (each.runtime for each in results[0][1]))
        for backend in backends:
            backend.close()
        return results, bool(passed)

    results, passed = compared(small, half)
    assert passed
    assert any(found["detail_out"].largest > 0 for found in seen)
    alone = restore(frames(), open_backend("onnxruntime", small), scene_threshold=None)
    for made, restored in zip(results[0][1], alone, strict=True):
        assert np.array_equal(made["output"][0, :HEIGHT, :WIDTH], restored.rgb)
        assert np.array_equal(made["displacement"][0], restored.displacement)
    assert not compared(small, altered(half, tmp_path / "broken", one_weight))[1]


def test_a_runner_is_fed_what_another_gave(small):
    """Step by step with states from outside is the rollout; a first frame has states without pixels."""
    backend = open_backend("onnxruntime", small)
    states = no_states(backend.interface)
    assert {name: value.size for name, value in states.items()} == dict.fromkeys(
        ("restored_in", "motion_in", "detail_in"), 0
    )
    with BackendRunner(backend, threads_states=True) as rolling, BackendRunner(backend) as fed:
        for _, _, inputs in windows(small.interface, frames()):
            expected, found = rolling.infer(inputs), fed.infer({**inputs, **states})
            assert list(found) == ["output", "restored_out", "motion_out", "detail_out", "displacement"]
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
            states = {name: found[name.replace("_in", "_out")] for name in states}
        rolling.deactivate()
        rolling.activate()  # and is at its first frame again
        _, _, inputs = next(windows(small.interface, frames()))
        again = rolling.infer(inputs)
        assert np.array_equal(again["output"], fed.infer({**inputs, **no_states(backend.interface)})["output"])
        assert not np.array_equal(again["detail_out"], expected["detail_out"])


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_states_go_out_of_a_backend_and_into_it(small, name):
    backend = open_backend(name, small)
    (_, _, first), (_, _, second) = itertools.islice(windows(small.interface, frames()), 2)
    made = backend.submit("first", first, {})
    arrays = backend.read_states(made.states)
    for name, tensor in backend.interface.states.items():
        assert (arrays[name].dtype, arrays[name].shape) == (tensor.dtype, tensor.at(HEIGHT + 2, WIDTH + 2))
    expected = backend.submit("step", second, made.states)
    found = backend.submit("step", second, backend.write_states(arrays))
    assert np.array_equal(found.result()["output"], expected.result()["output"])
    after = backend.read_states(expected.states)
    for key, value in backend.read_states(found.states).items():
        assert np.array_equal(value, after[key]) and not np.array_equal(value, arrays[key])
