"""A real Triton: what it serves, mtu-run as its client, and what goes wrong with clients and servers.

The server is that of the wheel nvidia-pytriton, in a virtual environment of its own: `make serve-test`.
"""

# ruff: noqa: E402

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests import cli, needs
from tests.bundles import doubling_bundle, negative_bundle, views_bundle
from tests.frames import moving_frames
from tests.media import make_video
from tests.processes import environment, wait_until
from tests.small_models import trail

needs.library("pytriton", "tritonclient")  # make serve-test has them

from tests.triton_server import frame_memory, free_ports, serve
from tritonclient import grpc

from mtu.core.errors import InvalidInputError
from mtu.export.chain_files import write_chain
from mtu.export.triton_files import Serving, write_repository
from mtu.farm.triton_client import Server
from mtu.runtime import open_backend, open_model, read_frames, restore
from mtu.runtime.chain import open_session

SIZE = (48, 64)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The bundled network, one of three frames' look-ahead, one that is dropped soon, and one that is not ours."""
    root = tmp_path_factory.mktemp("serve")
    slow = trail(root / "trail").directory
    write_repository(None, root / "models", Serving())
    write_repository(slow, root / "models", Serving("onnxruntime", max_batch=2), name="trail")
    write_repository(slow, root / "models", Serving("onnxruntime", idle=1.0, max_streams=2), name="hasty")
    parts = [negative_bundle(root / "negative"), doubling_bundle(root / "double")]
    write_chain([part.directory for part in parts], root / "chain")
    views_bundle(root / "views", right=1, left=-1)
    for name in ("chain", "views"):
        write_repository(root / name, root / "models", Serving("onnxruntime"), name=name)
    other = root / "models" / "other"
    (other / "1").mkdir(parents=True)
    (other / "1" / "model.py").write_text(
        "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
    )
    (other / "config.pbtxt").write_text(
        'backend: "python"\ninput [{ name: "x" data_type: TYPE_UINT8 dims: [1] }]\n'
        'output [{ name: "y" data_type: TYPE_UINT8 dims: [1] }]\n'
    )
    return root / "models"


@pytest.fixture(scope="module")
def server(models):
    with serve(models, models.parent / "work") as running:
        yield running


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three films, one of which has a cut and another size."""
    folder = tmp_path_factory.mktemp("clips")
    for name, count, cut, (height, width) in (("a", 12, 7, SIZE), ("b", 9, None, SIZE), ("c", 10, None, (40, 56))):
        frames = moving_frames(count, height, width, seed=ord(name))
        dark = [frame // 4 + (150 if cut is not None and n >= cut else 0) for n, frame in enumerate(frames)]
        make_video(folder / f"{name}.mp4", dark, audio=name == "a")
    return folder


@pytest.fixture(autouse=True)
def no_memory_is_left(server):
    yield
    assert not frame_memory()
    with Server(f"{server.address}/trail") as connection:
        assert not connection.client.get_system_shared_memory_status().regions


class Raw:
    """A client that says what it is told, right or wrong."""

    def __init__(self, server, model="trail"):
        self.client, self.model = grpc.InferenceServerClient(server.address), model

    def ask(self, number, frame, start=False, end=False, **parameters):
        """What the answer has, or the message of its error."""
        frame = np.empty((0, 0, 3), np.uint8) if frame is None else frame
        data = grpc.InferInput("image", [1, *frame.shape], "UINT8" if frame.dtype == np.uint8 else "FP32")
        data.set_data_from_numpy(frame[None])
        how = {"sequence_id": number, "sequence_start": start, "sequence_end": end, "parameters": parameters or None}
        try:
            answer = self.client.infer(self.model, [data], **how)
        except grpc.InferenceServerException as error:
            return error.message()
        return {each.name: answer.as_numpy(each.name)[0] for each in answer.get_response().outputs}


def figures_after(server, raw):
    """The metrics; a model shows those of streams that were dropped with its next answer."""
    assert "index" in raw.ask(9, moving_frames(1, *SIZE)[0], start=True, end=True)
    return server.figures()


def run(capsys, *arguments):
    return cli.run(capsys, "mtu-run", *arguments, "-e", "x264-params=mbtree=0", "--no-progress")


def test_three_films_at_a_time_are_three_runs_bit_for_bit(server, clips, tmp_path, capsys):
    before = server.figures()
    films, encoder = [str(clips / f"{name}.mp4") for name in "abc"], ["-e", "x264-params=mbtree=0"]
    start, there = [sys.executable, "-m", "mtu.runtime.cli"], ["--server", f"{server.address}/mtu2"]
    going = [
        subprocess.Popen(
            [*start, film, "-o", f"{tmp_path}/{name}.mp4", "--json", f"{tmp_path}/{name}.json", *encoder, *there],
            env=environment(),
        )
        for name, film in zip("abc", films, strict=True)
    ]
    assert run(capsys, *films, "-o", tmp_path / "here", "--json", tmp_path / "here.json").code == 0
    assert [each.wait(120) for each in going] == [0, 0, 0]
    for name, here in zip("abc", json.loads((tmp_path / "here.json").read_text())["runs"], strict=True):
        assert (tmp_path / f"{name}.mp4").read_bytes() == (tmp_path / "here" / f"{name}.mp4").read_bytes()
        remote = json.loads((tmp_path / f"{name}.json").read_text())
        assert (remote["backend"], remote["device"]) == ("triton", f"{server.address}/mtu2")
        for key in ("model", "checkpoint", "precision", "frames", "scene_cuts", "redone", "notes", "remarks"):
            assert remote[key] == here[key], key
        assert remote["scene_cuts"] == ([7] if name == "a" else [])
    after = server.after(before, frames=31)
    assert after["mtu_cuts_total"] == 1 and after["mtu_seconds_total"] > 0


@pytest.mark.parametrize("shared", [True, False])
def test_interleaved_streams_of_one_client(server, clips, shared):
    frames = {name: list(read_frames(clips / f"{name}.mp4")) for name in "abc"}
    found = {name: [] for name in frames}
    with Server(f"{server.address}/mtu2", shared_memory=shared) as connection:
        streams = {name: connection.session() for name in frames}
        for number in range(12):
            for name, stream in streams.items():
                found[name] += stream.push(frames[name][number]) if number < len(frames[name]) else []
        assert len(frame_memory()) == (3 if shared else 0)
        for name, stream in streams.items():
            found[name] += stream.flush()
        assert [stream.cuts for stream in streams.values()] == [[7], [], []]
        assert [stream.notes for stream in streams.values()] == [[], [], []]
        again = [each.index for each in streams["b"].push(frames["b"][0]) + streams["b"].flush()]
        assert again == [9]  # it goes on counting, as any session
    backend = open_backend("auto", open_model())
    for name in frames:
        for got, wanted in zip(found[name], restore(frames[name], backend), strict=True):
            assert got.index == wanted.index
            np.testing.assert_array_equal(got.rgb, wanted.rgb)
            np.testing.assert_array_equal(got.displacement, wanted.displacement)
    backend.close()


@pytest.mark.parametrize("model", ["chain", "views"])
def test_a_chain_and_a_model_of_several_streams(server, models, model):
    with contextlib.closing(open_backend("onnxruntime", open_model(models / model / "1" / "model"))) as backend:
        views = [moving_frames(8, *SIZE, seed=seed) for seed, _ in enumerate(backend.interface.streams)]
        moments = [dict(zip(backend.interface.streams, each, strict=True)) for each in zip(*views, strict=True)]
        here = open_session(backend)
        wanted = [each for moment in moments for each in here.push(moment)] + here.flush()
    for shared in (True, False):
        with Server(f"{server.address}/{model}", shared_memory=shared) as connection:
            stream = connection.session()
            found = [each for moment in moments for each in stream.push(moment)] + stream.flush()
        for got, expected in zip(found, wanted, strict=True):
            assert got.index == expected.index
            np.testing.assert_array_equal(got.rgb, expected.rgb)


def test_requests_that_wait_are_computed_together(server):
    before, frames = server.figures(), moving_frames(30, *SIZE)
    with Server(f"{server.address}/trail") as connection:

        def film():
            stream = connection.session()
            for frame in frames:
                stream.push(frame)
            stream.flush()

        threads = [threading.Thread(target=film) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert server.after(before, frames=120)["mtu_batches_total"] < 124  # a request each, and four ENDs


def test_a_stream_that_has_not_started(server):
    frame = moving_frames(1, *SIZE)[0]
    raw = Raw(server)
    for end in (False, True):
        assert "must specify the START flag" in raw.ask(5, frame, end=end)
    assert raw.ask(5, frame, start=True, end=True)["index"].tolist() == [0]


def test_an_end_without_frames(server):
    raw, frames = Raw(server), moving_frames(3, *SIZE)
    assert raw.ask(6, None, start=True, end=True)["picture"].shape == (0, 0, 0, 3)
    for number, frame in enumerate(frames):
        answer = raw.ask(6, frame, start=number == 0)
        assert answer["picture"].shape == (0, 0, 0, 3) and answer["index"].size == 0
    answer = raw.ask(6, None, end=True)
    assert answer["index"].tolist() == [0, 1, 2] and answer["picture"].shape == (3, *SIZE, 3)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((40, 64, 3), np.uint8), ["frame 1 is 64x40", "64x48"]),
        (np.zeros((48, 64, 4), np.uint8), ["[-1,-1,-1,3]", "[1,48,64,4]"]),
        (np.zeros((48, 3), np.uint8), ["[-1,-1,-1,3]", "[1,48,3]"]),
        (np.zeros((48, 64, 3), np.float32), ["FP32", "UINT8"]),
        (None, ["no frame"]),
    ],
)
def test_a_wrong_frame_disturbs_no_other_stream(server, frame, words):
    raw, frames = Raw(server), moving_frames(6, *SIZE)
    for number, each in enumerate(frames):
        answer = raw.ask(8, each, start=number == 0, end=number == 5)
        if number == 1:
            raw.ask(7, frames[0], start=True)
            message = raw.ask(7, frame)
            assert all(word in message for word in words), message
    assert answer["index"].tolist() == [2, 3, 4, 5]
    raw.ask(7, None, end=True)


def test_idle_streams_are_dropped_and_their_places_taken(server):
    """There are places for two: a third stream waits until one of two silent ones is dropped."""
    raw, frame, dropped = Raw(server, "hasty"), moving_frames(1, *SIZE)[0], server.figures()["mtu_dropped_total"]
    for number in (1, 2):
        raw.ask(number, frame, start=True)
    assert raw.ask(3, frame, start=True, end=True)["index"].tolist() == [0]
    wait_until(lambda: "START" in raw.ask(1, frame))
    with Server(f"{server.address}/hasty") as connection:
        stream = connection.session()
        stream.push(frame)
        wait_until(lambda: figures_after(server, raw)["mtu_dropped_total"] == dropped + 3)
        assert server.figures()["mtu_streams"] == 0
        with pytest.raises(InvalidInputError, match="has dropped the stream, which sent nothing"):
            stream.flush()


VANISHES = """
import sys, time
from tests.frames import moving_frames
from mtu.farm.triton_client import Server

with Server(sys.argv[1]) as server:
    stream = server.session()
    for frame in moving_frames(6, 48, 64):
        stream.push(frame)
    print("here", flush=True)
    time.sleep(100)
"""


def test_a_client_that_vanishes_leaves_nothing_and_others_go_on(server, clips):
    root = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", VANISHES, f"{server.address}/hasty"],
        stdout=subprocess.PIPE,
        env=environment(PYTHONPATH=root),
        start_new_session=True,
    )
    frames, found = list(read_frames(clips / "a.mp4")), []
    assert process.stdout is not None and process.stdout.readline() == b"here\n"
    with Server(f"{server.address}/hasty") as connection:
        stream = connection.session()
        found += [each for frame in frames[:5] for each in stream.push(frame)]
        assert len(frame_memory()) == 2
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        found += [each for frame in frames[5:] for each in stream.push(frame)] + stream.flush()
    assert [each.index for each in found] == list(range(12))
    wait_until(lambda: not frame_memory())  # what watches over it removes it
    wait_until(lambda: figures_after(server, Raw(server, "hasty"))["mtu_streams"] == 0)
    with Server(f"{server.address}/trail") as connection:  # the next client that shares memory takes it from the server
        stream = connection.session()
        stream.push(frames[0])
        assert len(connection.client.get_system_shared_memory_status().regions) == 1


def test_a_server_that_sees_no_memory_of_this_machine(server, monkeypatch):
    from mtu.farm import shared_frames

    def refuse(*_, **__):
        raise grpc.InferenceServerException("Unable to open shared memory region")

    monkeypatch.setattr(grpc.InferenceServerClient, "register_system_shared_memory", refuse)
    frames = moving_frames(5, *SIZE)
    with Server(f"{server.address}/trail") as connection:
        stream = connection.session()
        stream.prepare(*SIZE)
        assert "Unable to open shared memory" in stream.notes[0] and not frame_memory()
        found = [each for frame in frames for each in stream.push(frame)] + stream.flush()
        assert [each.index for each in found] == [0, 1, 2, 3, 4]
        monkeypatch.setattr(shared_frames, "_FOLDER", Path("/nowhere"))
        stream.prepare(*SIZE)
        assert "/nowhere" in stream.notes[1]


def test_a_stream_given_up_is_ended_at_once(server):
    before, frames = server.figures(), moving_frames(6, *SIZE)
    with Server(f"{server.address}/trail") as connection:
        stream = connection.session()
        for frame in frames:
            stream.push(frame)
        stream.reset()
        assert server.after(before, frames=6)["mtu_streams"] <= 0
        assert [each.index for each in stream.push(frames[0]) + stream.flush()] == [6]


def test_mtu_run_asks_the_server_for_what_its_options_say(server, clips, tmp_path, capsys):
    address = f"{server.address}/mtu2"
    for how, more in (("here", []), ("there", ["--server", address])):
        ended = run(
            capsys,
            clips / "a.mp4",
            "-o",
            tmp_path / f"{how}.mp4",
            "--save-motion",
            tmp_path / f"motion-{how}",
            "--no-scene-detection",
            *more,
        )
        assert ended.code == 0, ended.err
    assert f"on triton {address}, 0 scene cuts" in ended.err
    assert (tmp_path / "here.mp4").read_bytes() == (tmp_path / "there.mp4").read_bytes()
    for picture in (tmp_path / "motion-here").iterdir():
        assert picture.read_bytes() == (tmp_path / "motion-there" / picture.name).read_bytes()


def test_several_films_go_to_a_server_and_done_ones_are_left_out(server, clips, tmp_path, capsys):
    films, out = [clips / "a.mp4", clips / "c.mp4"], tmp_path / "out"
    for said in ("2 inputs: 2 done", "2 inputs: 0 done, 2 done before"):
        ended = run(capsys, *films, "-o", out, "--server", f"{server.address}/trail", "--skip-done")
        assert ended.code == 0 and said in ended.err, ended.err
    assert sorted(path.name for path in out.glob("[a-z]*")) == ["a.mp4", "c.mp4"]


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("/nothing", [], ["has no model nothing", "hasty", "mtu2"]),
        ("/other", [], ["model other was not written by mtu-export triton"]),
        ("", [], ["several models", "hasty", "mtu2", "say which one"]),
        ("/mtu2/1", [], ["write HOST:PORT"]),
        ("/mtu2", ["--model", "mtu2"], ["--model is for a model on this machine"]),
        ("/mtu2", ["--backend", "onnxruntime"], ["--backend is for"]),
        ("/mtu2", ["--device", "cpu"], ["--device is for"]),
        ("/mtu2", ["--precision", "fp32"], ["--precision is for"]),
        ("/mtu2", ["--tile", "256x256"], ["--tile is for"]),
        ("/mtu2", ["--where", "mtu2"], ["--where is for"]),
        ("/mtu2", ["--no-cuda-graph"], ["--no-cuda-graph is for"]),
        ("/mtu2", ["--resume"], ["--resume is for"]),
        ("/mtu2", ["--heat"], ["--heat", "gives no map"]),
        ("/mtu2", ["--stream", "left=x.mp4"], ["x.mp4"]),
    ],
)
def test_what_a_server_cannot_do_is_said_first(server, clips, tmp_path, capsys, model, options, words):
    ended = run(capsys, clips / "a.mp4", "-o", tmp_path / "out.mp4", "--server", server.address + model, *options)
    cli.refused(ended, tmp_path, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", ["http", "free"])
def test_nobody_answers(server, clips, tmp_path, capsys, port):
    number = server.http if port == "http" else free_ports(1)[0]
    ended = run(capsys, clips / "a.mp4", "-o", tmp_path / "out.mp4", "--server", f"127.0.0.1:{number}")
    cli.refused(ended, tmp_path, f"server 127.0.0.1:{number} does not answer", "8001")
