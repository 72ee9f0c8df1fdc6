"""mtu-compare of models that are not recurrent, give a map, have another scale, or are a chain."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("polygraphy")
pytest.importorskip("skimage")

from tests import cli
from tests.calib.comparing import COUNT, HEIGHT, WIDTH, Made, Page, frames, one_graph

from mtu.calib import compare as module
from mtu.calib.compare import compare
from mtu.calib.polygraphy_runner import no_states
from mtu.calib.quality import comparison, most_gained
from mtu.calib.rollout import first_frames
from mtu.core.errors import InvalidInputError, NonFiniteError
from mtu.core.interface import Frame, Graph, Input, Interface, Output, Size, State, Tensor
from mtu.export.chain_files import write_chain
from mtu.runtime import open_backend, open_model, restore
from mtu.runtime.backends import Finished


@pytest.fixture
def run_pair(monkeypatch, capsys, clip):
    """mtu-compare of two backends, as if they had been opened."""

    def run(a, b, *options):
        backends = iter((a, b))
        monkeypatch.setattr(module, "_open", lambda *_: next(backends))
        return cli.run(capsys, "mtu-compare", "A", "B", "--input", clip, *options)

    return run


def test_a_picture_to_look_at_shows_what_was_gained():
    """The command of mtu.calib.quality: frames side by side, and below the part that gained most, enlarged."""
    pytest.importorskip("PIL")
    pytest.importorskip("skimage")
    sharp = np.random.default_rng(0).integers(0, 255, (2, 31, 53, 3)).astype(np.uint8)
    blurred, restored = np.full_like(sharp, 128), np.full_like(sharp, 128)
    restored[1, 18:31, 28:50] = sharp[1, 18:31, 28:50]
    videos = {"blurred": blurred, "restored": restored, "sharp": sharp}
    part = most_gained(videos)
    assert (part.frame, part.height, part.width) == (1, 11, 18) and part.top >= 14 and part.left >= 22
    shown = comparison(videos, part)
    assert shown.shape == (62, 159, 3)
    assert (shown[31 + 16, 53 + 25] == sharp[1, part.top + 5, part.left + 8]).all()


def test_a_model_without_states_is_run_once(run_pair):
    a, b = (Made(one_graph("picture")) for _ in range(2))
    ended = run_pair(a, b, "--min-psnr", 99)
    assert ended.code == 0 and len(a.seen) == len(b.seen) == COUNT
    assert "note: the model has no states, so step and rollout are the same" in ended.err
    assert "step      " in ended.out and "rollout" not in ended.out
    ended = run_pair(a, Made(one_graph("picture"), 1), "--mode", "rollout", "--min-psnr", 50)
    assert ended.code == 1 and ended.err == "" and "rollout: below the floor from frame 0: PSNR" in ended.out


@pytest.mark.parametrize("scale", [1, 2])
def test_pictures_are_cut_back_to_their_size(scale):
    interface = one_graph("picture", scale)
    clip = [frame[: HEIGHT - 1, : WIDTH - 3] for frame in frames()]
    (run,) = compare(Made(interface), Made(interface, 1), clip, ["step"])
    assert run.shown[0].rgb.shape == (scale * (HEIGHT - 1), scale * (WIDTH - 3), 3)
    assert run.worst.psnr == pytest.approx(48.13, abs=0.01) and run.worst.displacement is None


def test_a_map_is_gated_by_a_quantile(run_pair, tmp_path):
    interface = one_graph("map")
    options = ("--json", tmp_path / "r.json", "--html", tmp_path / "r.html", "--max-map-difference")
    ended = run_pair(Made(interface), Made(interface, 0.02), *options, 0.03)
    assert ended.code == 0 and "99.9 % of the map within 0.02 in every frame, median 0.02" in ended.out, ended
    ended = run_pair(Made(interface), Made(interface, 0.02), *options, 0.01)
    assert ended.code == 1 and "step: below the floor from frame 0: 99.9 % of the map within 0.02" in ended.out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["floors"]["map_difference"] == 0.01 and report["modes"]["step"]["first_below_floor"] == 0
    frame = report["modes"]["step"]["frames"][0]
    assert frame["psnr"] is frame["ssim"] is None
    assert frame["tensors"]["out"]["99.9%"] == pytest.approx(0.02, abs=1e-6)
    shown = Page((tmp_path / "r.html").read_text())
    assert list(shown.pictures) == ["map of A", "map of B", "difference of the maps, 51 times"]
    assert "difference of maps 0.01" in shown.text


def test_the_worst_map_is_that_of_the_worst_frame():
    interface, broken = one_graph("map"), Made(one_graph("map"))
    submit = broken.submit

    def worse_later(graph, frames_, states):
        done = submit(graph, frames_, states)
        return Finished({}, {"out": done.outputs["out"] + np.float32(0.1 * (len(broken.seen) == 3))}, [])

    broken.submit = worse_later
    (run,) = compare(Made(interface), broken, frames(), ["step"])
    assert run.worst.index == 2 and run.worst.map_difference == pytest.approx(0.1)
    padded = replace(interface, size=Size(8, 8))  # 56 pixels wide, of which 50 are the frame's
    outside = Made(padded, np.where(np.arange(28) < 25, 0, 1))
    (run,) = compare(Made(padded), outside, frames(), ["step"])
    assert run.worst.map_difference == 0
    nan = Made(interface, np.nan)
    with pytest.raises(NonFiniteError, match="non-finite values in out"):
        compare(Made(interface), nan, frames(), ["step"])


@pytest.mark.parametrize(
    ("role", "option", "message"),
    [
        ("map", ("--min-psnr", 40), "--min-psnr: the model own gives no picture; leave the option out"),
        ("map", ("--min-agreement", 90), "--min-agreement: the model own estimates no motion"),
        ("picture", ("--max-map-difference", 0.1), "--max-map-difference: the model own gives no map"),
        ("picture", ("--max-map-difference", 1.5), "--max-map-difference 1.5: give a number from 0 to 1"),
    ],
)
def test_a_floor_for_what_is_not_given(run_pair, role, option, message):
    ended = run_pair(*(Made(one_graph(role)) for _ in range(2)), *option)
    assert ended.code == 2 and message in ended.err and ended.out == ""


def test_states_without_height_and_width():
    """A first frame has none, whatever their shape."""
    frame = Input(Tensor("frame", "uint8", (1, "H", "W", 3)), Frame("image", 0))
    state = Tensor("sum_out", "float32", (1, 3))
    outputs = (Output(Tensor("out", "uint8", (1, "H", "W", 3)), "picture"), Output(state, "state"))
    taken = Input(Tensor("sum_in", "float32", (1, 3)), State("sum_out"))
    graphs = Graph("begin", (frame,), outputs), Graph("go_on", (frame, taken), outputs)
    interface = Interface(family="own", variant="own", settings={}, graphs=graphs)
    assert np.isnan(no_states(interface)["sum_in"]).all()

    class Summing(Made):
        def submit(self, graph, frames, states):
            self.seen.append(graph)
            before = states["sum_out"] if graph == "go_on" else np.zeros((1, 3), np.float32)
            total = before + frames["frame"].mean((1, 2), dtype=np.float32)
            return Finished({"sum_out": total}, {"out": frames["frame"]}, [])

    a, b = Summing(interface), Summing(interface)
    for run in compare(a, b, frames()):
        assert all(frame.tensors["sum_out"].largest == 0 for frame in run.frames)
    assert a.seen == ["begin"] + ["go_on"] * (COUNT - 1) and sorted(b.seen) == sorted(2 * a.seen)


# A chain


@pytest.fixture(scope="module")
def chains(small, half, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains")
    return [
        write_chain([first.directory, small.directory], folder / name).directory
        for name, first in (("a", small), ("b", half))
    ]


def test_a_chain_is_compared_by_its_pictures(capsys, clip, chains, tmp_path):
    ended = cli.run(capsys, "mtu-compare", *chains, "--input", clip, "--min-psnr", 40, "--json", tmp_path / "r.json")
    assert ended.code == 0 and "note: the states of a chain stay inside it" in ended.err, ended
    report = json.loads((tmp_path / "r.json").read_text())
    assert list(report["modes"]) == ["rollout"] and report["a"]["preset"] == "custom + custom"
    (run,) = compare(*(open_backend("auto", open_model(chain)) for chain in chains), first_frames(clip, None))
    assert [frame.psnr for frame in run.frames] == [each["psnr"] for each in report["modes"]["rollout"]["frames"]]
    alone = list(restore(frames(), open_backend("auto", open_model(chains[1])), scene_threshold=None))
    assert len(alone) == len(run.frames) == COUNT
    assert np.array_equal(run.shown[1].rgb, alone[run.worst.index].rgb)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--mode", "step"), "--mode step: the states of a chain stay inside it"),
        (("--min-agreement", 90), "--min-agreement: a chain is compared by its pictures alone"),
    ],
)
def test_what_a_chain_cannot_be_asked(capsys, clip, chains, options, message):
    ended = cli.run(capsys, "mtu-compare", *chains, "--input", clip, *options)
    assert ended.code == 2 and message in ended.err and ended.out == ""


def test_a_chain_and_a_model_that_gives_something_else(chains):
    chain = open_backend("auto", open_model(chains[0]))
    with pytest.raises(InvalidInputError, match="one of A and B gives a picture and the other none"):
        compare(chain, Made(one_graph("map")), frames())
    with pytest.raises(InvalidInputError, match=r"output is \[30, 50, 3\] on one side and \[60, 100, 3\]"):
        compare(chain, Made(one_graph("picture", 2)), frames())
