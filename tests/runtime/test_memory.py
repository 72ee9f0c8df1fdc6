"""How much memory a run needs and the machine has; what happens where it is too little, before frame 1 and after."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests import cli
from tests.media import make_video, moving
from tests.processes import environment

from mtu.core.errors import InvalidInputError
from mtu.models.mtu import PRESETS, describe
from mtu.runtime import Bundle, open_backend, read_frames
from mtu.runtime.engine import Engine, Profile, Sizes
from mtu.runtime.memory import COSTS, Cost, available_memory, needed
from mtu.runtime.tiles import OVERLAP, TiledSession, Tiling, choose_tiling, fit_memory
from mtu.runtime.video import read_picture

GIB = 2**30


def files(root: Path, **content: str) -> Path:
    for name, text in content.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MACHINE = "MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n"
TOP = "sys__fs__cgroup__"


@pytest.mark.parametrize(
    ("content", "free"),
    [
        ({}, None),
        ({"proc__meminfo": MACHINE}, 4 * GIB),
        ({"proc__meminfo": "MemTotal: many\n"}, None),
        # Version 2: the group has 1 GiB of which half is used; a quarter of that are files.
        (
            {
                "proc__meminfo": MACHINE,
                "proc__self__cgroup": "0::/a/b\n",
                TOP + "a__b__memory_dot_max": str(GIB),
                TOP + "a__b__memory_dot_current": str(GIB // 2),
                TOP + "a__b__memory_dot_stat": f"anon 1\ninactive_file {GIB // 8}\n",
            },
            GIB * 5 // 8,
        ),
        # The group around it has less.
        (
            {
                "proc__meminfo": MACHINE,
                "proc__self__cgroup": "0::/a/b\n",
                TOP + "a__b__memory_dot_max": "max",
                TOP + "a__memory_dot_max": str(3 * GIB),
                TOP + "a__memory_dot_current": str(GIB),
            },
            2 * GIB,
        ),
        # In a container: the path is the host's, the group is the top.
        (
            {
                "proc__meminfo": MACHINE,
                "proc__self__cgroup": "0::/../docker/1\n",
                TOP + "memory_dot_max": str(GIB),
                TOP + "memory_dot_current": "0",
            },
            GIB,
        ),
        # Version 1, and more used than allowed.
        (
            {
                "proc__meminfo": MACHINE,
                "proc__self__cgroup": "5:cpu,cpuacct:/x\n4:memory:/x\n0::/\n",
                TOP + "memory__x__memory_dot_limit_in_bytes": str(GIB),
                TOP + "memory__x__memory_dot_usage_in_bytes": str(2 * GIB),
            },
            0,
        ),
        # No limit in version 1 is a number beyond every machine.
        (
            {
                "proc__meminfo": MACHINE,
                "proc__self__cgroup": "4:memory:/\n",
                TOP + "memory__memory_dot_limit_in_bytes": "9223372036854771712",
                TOP + "memory__memory_dot_usage_in_bytes": "5",
            },
            4 * GIB,
        ),
        # What the process has and may have: ulimit -v and -d.
        (
            {
                "proc__meminfo": MACHINE,
                "proc__self__status": "Name:\tmtu-run\nVmSize:\t 524288 kB\nVmData:\t 1024 kB\n",
                "proc__self__limits": f"Limit Soft Hard Units\nMax address space  {GIB}  unlimited  bytes\n",
            },
            GIB // 2,
        ),
        (
            {
                "proc__self__status": "VmSize:\t 524288 kB\nVmData:\t 1024 kB\n",
                "proc__self__limits": f"Max data size  {2**20}  {GIB}  bytes\nMax address space  unlimited  \n",
            },
            0,
        ),
    ],
)
def test_free_memory(tmp_path, content, free):
    assert available_memory(files(tmp_path, **content)) == free


@pytest.mark.parametrize(("working_bytes", "bytes_each"), [(10, 10), (100, 100), (200, 300), (300, 500)])
def test_cost_is_on_a_line_and_never_below_what_the_tensors_take(working_bytes, bytes_each):
    assert Cost(7, 2, -100).of(working_bytes, 1000) == 7 + 1000 * bytes_each


@pytest.mark.parametrize(
    ("name", "working_bytes", "measured"),
    # mtu2 with 8, 26 and 48 channels
    [
        *zip(["onnxruntime"] * 3, (266, 704, 1254), (1000, 3260, 6000), strict=True),
        *zip(["openvino"] * 3, (266, 704, 1254), (680, 1800, 3130), strict=True),
        *zip(["torch"] * 3, (266, 704, 1254), (610, 1500, 2420), strict=True),
    ],
)
def test_the_lines_go_through_what_was_measured(name, working_bytes, measured):
    cost = COSTS[name, "fp32"]
    assert (cost.of(working_bytes, 10**6) - cost.fixed) / 10**6 == pytest.approx(measured, rel=0.1)


def stand_in(name="onnxruntime", device="cpu", arithmetic=None, **fields):
    interface = replace(describe(PRESETS["mtu2"]), working_bytes=704, **fields)
    return SimpleNamespace(name=name, device=device, interface=interface, arithmetic=arithmetic or interface.arithmetic)


def test_what_was_not_measured_is_not_known():
    size = (720, 1280)
    assert needed(stand_in("tensorrt"), size, size, 1) is None
    assert needed(stand_in(device="cuda:0"), size, size, 1) is None
    assert needed(stand_in("torch-compile", precision="fp16"), size, size, 1) is None
    assert (
        needed(SimpleNamespace(**{**vars(stand_in()), "interface": describe(PRESETS["mtu2"])}), size, size, 1) is None
    )
    for name, precision in COSTS:
        fields = {"int8": {"int8_layers": ("a",)}}.get(precision, {"arithmetic": precision})
        assert GIB < needed(stand_in(name, **fields), size, size, 1) < 6 * GIB


def test_what_a_backend_computes_in_counts():
    size = (720, 1280)
    bf16, fp32, widened = (
        needed(stand_in("openvino", arithmetic=words), size, size, 1)
        for words in ("bf16", "fp32", "fp16 computed in fp32")
    )
    assert bf16 < fp32 * 3 / 4 and widened == fp32
    rounded, exact = (
        needed(stand_in("openvino", int8_layers=("a",), arithmetic=words), size, size, 1)
        for words in ("fp32 with 1 layers in int8", "fp32 with 1 layers in int8 computed in fp32")
    )
    assert rounded < fp32 and exact == fp32


def test_tiles_take_less_and_their_states_count():
    backend, frame = stand_in(), (2160, 3840)
    whole = needed(backend, frame, frame, 1)
    tiles = [needed(backend, frame, (720, 1280), count) for count in (1, 9, 16)]
    assert tiles[0] < tiles[1] < tiles[2] < whole / 2


@pytest.fixture
def free(monkeypatch):
    def set_to(size):
        monkeypatch.setattr("mtu.runtime.tiles.available_memory", lambda: size)

    return set_to


def test_auto_cuts_only_what_does_not_fit(free):
    frame, backend = (2160, 3840), stand_in()
    whole = needed(backend, frame, frame, 1)
    for size in (None, 2 * whole, int(whole / 0.89)):
        free(size)
        assert fit_memory("auto", None, frame, backend) == (None, "")
    counts = []
    for share in (1.0, 0.5, 0.25):
        free(int(whole * share))
        tiling, why = fit_memory("auto", None, frame, backend)
        assert needed(backend, frame, tiling.tile, tiling.count) <= 0.9 * whole * share
        assert f"whole frames of 3840x2160 take some {whole / GIB:.1f} GiB of memory with onnxruntime" in why
        counts.append(tiling.count)
    assert counts == sorted(set(counts)) and counts[0] == 2
    free(GIB)
    with pytest.raises(InvalidInputError, match=r"3840x2160 take some .* GiB .* 1.0 GiB are free; the smallest tiles"):
        fit_memory("auto", None, frame, backend)


def test_what_was_asked_for_and_does_not_fit_is_refused_or_said(free):
    frame, backend = (2160, 3840), stand_in()
    whole = needed(backend, frame, frame, 1)
    free(whole - 1)
    with pytest.raises(InvalidInputError, match=r"frames of 3840x2160 take some .* GiB .*: use --tile auto"):
        fit_memory("off", None, frame, backend)
    free(int(whole * 1.05))
    assert fit_memory("off", None, frame, backend)[1].endswith("that is close; --tile auto takes less")
    tiling = Tiling(frame, (1200, 2048))
    assert fit_memory((1200, 2048), tiling, frame, backend) == (tiling, "")
    free(2 * GIB)
    with pytest.raises(InvalidInputError, match=r"frames of 3840x2160 in 4 tiles of 2048x1200 .* take some"):
        fit_memory((1200, 2048), tiling, frame, backend)


@pytest.mark.parametrize(
    ("choice", "profile", "frame", "tile"),
    [
        ("auto", None, (2160, 3840), None),
        ("off", None, (2160, 3840), None),
        ((720, 1280), None, (2160, 3840), (720, 1280)),
        ((720, 1280), None, (720, 1280), None),
        ((720, 1280), None, (718, 1279), None),
        ((720, 1280), None, (601, 3840), (604, 1280)),  # lower than a tile
        # An engine of one size
        ("auto", Profile.fixed(720, 1280), (2160, 3840), (720, 1280)),
        ("auto", Profile.fixed(720, 1280), (719, 1279), None),
        ("auto", Profile.fixed(720, 1280), (600, 3840), (720, 1280)),  # the engine takes no lower one
        ("auto", Profile.fixed(720, 1280), (600, 800), None),  # the engine's own refusal
        ("auto", Profile.fixed(128, 1280), (600, 3840), None),
        ("off", Profile.fixed(720, 1280), (2160, 3840), None),
        ((720, 1280), Profile.fixed(720, 1280), (2160, 3840), (720, 1280)),
        # An engine of several
        ("auto", Profile(Sizes(360, 640), Sizes(720, 1280), Sizes(1080, 1920)), (2160, 3840), (1080, 1920)),
        ("auto", Profile(Sizes(360, 640), Sizes(720, 1280), Sizes(1080, 1920)), (500, 3840), (500, 1920)),
        ((400, 800), Profile(Sizes(360, 640), Sizes(720, 1280), Sizes(1080, 1920)), (1080, 1920), (400, 800)),
    ],
)
def test_tiles_before_the_model_is_loaded(choice, profile, frame, tile):
    interface = describe(PRESETS["mtu2"])
    manifest = SimpleNamespace(profile=profile, interface=interface)
    model = Bundle(Path("bundle"), interface) if profile is None else Engine(Path("engine"), manifest)
    tiling = choose_tiling(choice, frame, model)
    assert (tiling and tiling.tile) == tile


def test_tiles_that_are_too_small_are_refused_before_frame_1(capsys, tmp_path, small):
    clip = make_video(tmp_path / "in.mkv", moving(3, 48, 400))
    arguments = (clip, "-o", tmp_path / "out.mkv", "--model", small.directory)
    for tile, message in {
        "128x48": "too small: neighbours share 128 pixels",
        "302x48": "both are multiples of 4, for example 304x48",
        "300": "write auto, off, or WIDTHxHEIGHT",
    }.items():
        ended = cli.run(capsys, "mtu-run", *arguments, "--tile", tile, "--overwrite")
        assert ended.code == 2 and message in ended.err, ended.err
        assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


def test_a_run_in_tiles(capsys, tmp_path, small, free):
    """Chosen by size and by memory: the note, the report, the pictures and the motion pictures."""
    clip = make_video(tmp_path / "in.mkv", moving(5, 46, 399), codec="ffv1", pix_fmt="bgr0")
    model = ("--model", small.directory, "--json", tmp_path / "report.json", "--save-motion", tmp_path / "motion")
    ended = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out", *model, "--tile", "264x720")
    assert ended.code == 0, ended.err
    assert "note: each frame is restored in 2 tiles of 264x48 that overlap by 128 pixels or more; near" in ended.err
    assert json.loads((tmp_path / "report.json").read_text())["tiles"] == {
        "count": 2,
        "width": 264,
        "height": 48,
        "overlap": OVERLAP,
    }
    backend = open_backend("auto", small, "cpu")
    session = TiledSession(backend, Tiling((46, 399), (48, 264)))
    frames = list(read_frames(clip))
    expected = [r.rgb for frame in frames for r in session.push(frame)] + [r.rgb for r in session.flush()]
    written = [read_picture(path) for path in sorted((tmp_path / "out").iterdir())]
    assert np.array_equal(written, expected)
    assert [read_picture(path).shape for path in (tmp_path / "motion").iterdir()] == [(46, 399, 3)] * 5
    whole = needed(backend, (46, 399), (48, 400), 1)
    backend.close()
    free(int(whole / 0.9) - 1)
    ended = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "auto", *model, "--overwrite")
    assert ended.code == 0 and "2 tiles of 264x48" in ended.err and "are free" in ended.err, ended.err
    ended = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "off", *model, "--overwrite", "--tile", "off")
    assert ended.code == 0 and json.loads((tmp_path / "report.json").read_text())["tiles"] is None
    assert "that is close" in ended.err
    free(whole // 2)
    ended = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "none", *model, "--overwrite", "--tile", "off")
    assert ended.code == 2 and "use --tile auto" in ended.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("stage", ["mtu-decode", "mtu-encode"])
def test_a_thread_that_the_system_does_not_start(capsys, tmp_path, small, monkeypatch, stage):
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == stage:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    clip = make_video(tmp_path / "in.mkv", moving(3, 48, 64))
    ended = cli.run(capsys, "mtu-run", clip, "-o", tmp_path / "out.mkv", "--model", small.directory)
    assert ended.code == 2 and "starts no further thread (can't start new thread)" in ended.err, ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


LIMITED = """
import resource, sys
mib = int(sys.argv.pop())
from mtu.runtime.console.progress import Progress
begin = Progress.begin
def limited(*arguments):
    begin(*arguments)
    size = int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + mib * 2**20,) * 2)
Progress.begin = limited
from mtu.runtime.cli import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and RLIMIT_AS")
@pytest.mark.parametrize("mib", [32, 90])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "torch"])
def test_memory_that_runs_out_all_the_same_gives_one_message(tmp_path, small, backend, mib):
    clip = make_video(tmp_path / "in.mkv", moving(3, 720, 1280), codec="ffv1")
    arguments = (clip, "-o", tmp_path / "out", "--model", small.directory, "--backend", backend, mib)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("mtu-run: note:")]
    assert done.returncode == 2 and len(said) == 1, done.stderr
    assert "memory" in said[0].replace(str(tmp_path), "") and said[0].startswith("mtu-run: error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_another_failure_of_the_library_is_no_lack_of_memory(name, small):
    """States of another size than the frames."""
    backend = open_backend(name, small, "cpu")
    small_frame, large_frame = np.zeros((1, 8, 12, 3), np.uint8), np.zeros((1, 16, 16, 3), np.uint8)
    frames = small.interface.frames
    states = backend.submit("first", dict.fromkeys(frames, small_frame), {}).states
    with pytest.raises((InvalidInputError, RuntimeError)) as error:
        backend.submit("step", dict.fromkeys(frames, large_frame), states)
    assert "memory" not in str(error.value)
    backend.close()


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (4) must match the size of tensor b (8)"), False),
    ],
)
def test_what_torch_says_of_memory_is_told_from_bugs(monkeypatch, small, error, is_memory):
    def fail(*_):
        raise error

    backend = open_backend("torch", small, "cpu")
    monkeypatch.setattr(backend, "_run", fail)
    with pytest.raises(InvalidInputError if is_memory else RuntimeError) as found:
        backend.submit("first", dict.fromkeys(small.interface.frames, np.zeros((1, 8, 12, 3), np.uint8)), {})
    assert ("the memory is too small for frames of 12x8 with torch" in str(found.value)) == is_memory
    backend.close()


def test_onnxruntime_leaves_the_words_to_us(single: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    """It writes what it raises into its log too, which is stderr."""
    pytest.importorskip("onnxruntime")
    frames = {name: np.zeros((1, 16, 16, 3), np.uint8) for name in single.interface.frames}
    frames[list(frames)[-1]] = np.zeros((1, 32, 32, 3), np.uint8)
    with contextlib.closing(open_backend("onnxruntime", single, "cpu")) as backend:
        capfd.readouterr()
        with pytest.raises(InvalidInputError, match=r"could not run first\.onnx"):
            backend.submit("first", frames, {})
    assert capfd.readouterr().err == ""
