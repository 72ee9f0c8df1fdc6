"""Tests of mtu-train as a command: what it prints, how it ends. Writes only under tmp_path; needs the extra [train]."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for package in ("skimage", "safetensors", "lightning_fabric", "tensorboard", "cv2"):
    pytest.importorskip(package)

from tests import cli, tiny_training  # noqa: E402
from tests.calib.test_datasets import make_gopro  # noqa: E402
from tests.cli import Ended  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.processes import LIMIT, wait_until  # noqa: E402
from tests.tiny_training import make_tiny, write_gopro  # noqa: E402

from mtu.models.checkpoint import load_checkpoint  # noqa: E402
from mtu.models.mtu.architecture import Network  # noqa: E402
from mtu.models.mtu.config import preset_config  # noqa: E402
from mtu.training import batches, options, pulse, sources  # noqa: E402
from mtu.training.losses import frame_losses  # noqa: E402
from mtu.training.options import Options  # noqa: E402
from mtu.training.run import CHECKPOINT, WEIGHTS, Run  # noqa: E402
from mtu.training.weights import initialise  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("--crop=16", "--frames=3", "--batch=1", "--rate=1e-3", "--device=cpu", "--workers=0", "--max-steps=6")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny(monkeypatch)


def refused(ended: Ended, *words: str) -> None:
    """One message, and nothing else."""
    assert ended.code == 2, ended.err
    assert ended.err.count("error:") == 1 and "Traceback" not in ended.err
    assert ended.out == ""
    assert all(word in ended.err for word in words), ended.err


def test_training_on_made_clips_lowers_the_loss_and_exports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The published mtu1 itself; only the validation is smaller."""
    for name, value in tiny_training.SMALL.items():
        monkeypatch.setattr(batches, name, value)
    monkeypatch.setattr(options, "WARM_UP", 10)
    monkeypatch.setattr(pulse, "SILENCE", 3600.0)
    folder = tmp_path / "run"
    arguments = ("--crop", 32, "--frames", 5, "--batch", 2, "--rate", 1e-3, "--average", 0.5, "--workers", 0)
    arguments += ("--data", "synthetic", "--preset", "mtu1", "--max-steps", 50, "--image-loss", "psnr")
    ended = cli.run(capsys, "mtu-train", *arguments, "--device", "cpu", "-o", folder)
    assert ended.code == 0, ended.err
    lines = ended.err.splitlines()
    assert all(line.startswith("mtu-train: ") for line in lines), ended.err
    assert lines[0] == "mtu-train: mtu1 on 1 x cpu, fp32, from step 0 to 50"
    assert ended.out.startswith(f"{folder / WEIGHTS}: ") and ended.out.endswith("clips after 50 steps\n")

    wanted = Options(crop=32, frames=5, batch=8, seed=1, image_loss="psnr", preset="mtu1")
    held_out = batches.Batches(wanted, sources.made_clips(wanted))[0]

    def loss(network: Network) -> float:
        frames, states, total = [batches.floats(frame) for frame in held_out.blurred], None, 0.0
        with torch.no_grad():
            for t, sharp in enumerate(held_out.sharp):
                out, states, inner = network.train_step(frames[t : t + 5], states)
                total += float(
                    frame_losses(out, inner, batches.floats(sharp), frames[t + 2], None, held_out.target[t], wanted)[0]
                )
        return total / len(held_out.sharp)

    first, last = (Network(preset_config("mtu1"), auxiliary=True) for _ in range(2))
    initialise(first, torch.Generator().manual_seed(0))
    last.load_state_dict(torch.load(folder / CHECKPOINT, weights_only=True)["average"])
    assert loss(last) < loss(first) - 0.001

    assert load_checkpoint(folder / WEIGHTS).settings == dataclasses.asdict(preset_config("mtu1"))
    ended = cli.run(capsys, "mtu-export", "onnx", "--checkpoint", folder / WEIGHTS, "-o", tmp_path / "bundle")
    assert ended.code == 0, ended.err
    assert {path.name for path in (tmp_path / "bundle").glob("*.onnx")} == {"first.onnx", "step.onnx"}


def test_sigterm_saves_and_ends_and_the_run_goes_on(
    tiny: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train_batch = Run.train_batch

    def interrupted(self: Run, batch: batches.Batch) -> None:
        signal.raise_signal(signal.SIGTERM)
        train_batch(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_batch", interrupted)
        ended = cli.run(capsys, "mtu-train", *SMALL, "-o", tmp_path / "run")
    assert (ended.code, ended.out) == (143, "")
    assert ended.err.splitlines()[-1] == "mtu-train: stopped at step 3 and saved: --resume goes on"
    ended = cli.run(capsys, "mtu-train", "-o", tmp_path / "run", "--resume", "--device=cpu", "--workers=0")
    assert ended.code == 0 and "from step 3 to 6" in ended.err and "after 6 steps" in ended.out


def test_bfloat16_says_nothing_of_its_library(tiny: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ended = cli.run(capsys, "mtu-train", *SMALL, "--precision=bf16", "-o", tmp_path / "run")
    assert ended.code == 0 and all(line.startswith("mtu-train: ") for line in ended.err.splitlines()), ended.err


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join((str(ROOT), str(ROOT / ".links")))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
def test_ctrl_c_in_a_terminal_reaches_the_loader_too(
    tiny: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.tiny_training", *SMALL, "--workers=1", "--max-steps=100000"]
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment(MTU_WATCH=str(tmp_path / "rank")),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: (tmp_path / "rank0").exists(), process)  # after the first step
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (130, ""), err
    # A loader's process that aborts while it ends adds a line of C++'s.
    *_, stopped, interrupted = (line for line in err.splitlines() if line.startswith("mtu-train: "))
    assert stopped.startswith("mtu-train: stopped at step ") and interrupted == "mtu-train: interrupted", err
    assert "Traceback" not in err
    step = int(stopped.split()[4])
    more = ("--resume", "--max-steps", step + 3, "--device=cpu", "--workers=0")
    ended = cli.run(capsys, "mtu-train", "-o", tmp_path / "run", *more)
    assert ended.code == 0 and f"from step {step} to {step + 3}" in ended.err


def train_with_two(tmp_path: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], list[list[list[str]]]]:
    """A tiny training by two processes, which say nothing but mtu-train's lines; and of each what it saw, by step."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.tiny_training", *words, "--devices=2", "-o", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment(MTU_WATCH=str(tmp_path / "rank")),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    assert all(line.startswith("mtu-train: ") for line in ended.stderr.splitlines()), ended.stderr
    return ended, [[line.split() for line in (tmp_path / f"rank{n}").read_text().splitlines()] for n in (0, 1)]


@pytest.mark.parametrize("unroll", [1, 2])
def test_two_processes_train_one_network(tmp_path: Path, unroll: int) -> None:
    ended, ranks = train_with_two(tmp_path, *SMALL, f"--unroll={unroll}")
    assert ended.stderr.startswith("mtu-train: mtu2 on 2 x cpu, fp32, from step 0 to 6\n")
    assert ended.stdout.count("\n") == 1 and "after 6 steps" in ended.stdout
    drawn = [number for rank in ranks for number, _ in rank]
    weights = [[after for _, after in rank] for rank in ranks]
    assert len(drawn) == 4 == len(set(drawn))
    assert weights[0] == weights[1] and len(set(weights[0])) == 2
    saved = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert (saved["step"], saved["batch"]) == (6, 4)
    assert tiny_training.digest(saved["network"].values()) == weights[0][-1]


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset=mtu3"], ["unknown preset 'mtu3'", "mtu10-large"]),
        (["--data=real"], ["--data is 'real'", "synthetic", "dvd:DIR, gopro:DIR, reds:DIR"]),
        (["--data=dvd:"], ["--data is 'dvd:'"]),
        (["--data=vimeo:/x"], ["--data is 'vimeo:/x'"]),
        (["--data=reds:{tmp}/nowhere"], ["nowhere does not exist", "reds data set was unpacked"]),
        (["--data=dvd:{tmp}/gopro"], ["quantitative_datasets/IMG_0003/input"]),
        (["--data=gopro:{tmp}/short"], ["fewer than 7 frames", "GOPR0372_07_00"]),
        (["--data=gopro:{tmp}/gopro", "--crop=64"], ["is 32x24: smaller than --crop 64"]),
        (["--data=gopro:{tmp}/unpaired"], ["1 frames have no counterpart", "000003.png"]),
        (["--data=gopro:{tmp}/sizes"], ["must have one size"]),
        (["--max-steps=0"], ["--max-steps is 0"]),
        (["--crop=30"], ["--crop is 30", "multiple of 4"]),
        (["--rate=0"], ["--rate is 0"]),
        (["--average=1"], ["--average is 1"]),
        (["--motion-weight=nan"], ["--motion-weight is nan"]),
        (["--resume"], ["nothing to resume"]),
        (["--start-from={tmp}/nothing.pt"], ["nothing.pt does not exist"]),
        (["--start-from={tmp}/text"], ["checkpoint", "text"]),
        (["-o", "{tmp}/text"], ["-o is the folder of the run"]),
        (["-o", "{tmp}/text/run"], ["-o is the folder of the run"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_message(
    tiny: None, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    given = " ".join(arguments)
    (tmp_path / "text").write_text("not a checkpoint")
    for name in ("gopro", "unpaired", "sizes"):
        if f"{{tmp}}/{name}" in given:
            folder = write_gopro(tmp_path / name)
    if "unpaired" in given:
        (folder / "train/GOPR_train/sharp/000003.png").unlink()
    if "sizes" in given:
        large = write_gopro(tmp_path / "large", size=(32, 40))
        for name in ("000003.png", "000007.png"):
            (large / "train/GOPR_train/sharp" / name).replace(folder / "train/GOPR_train/sharp" / name)
    if "short" in given:
        make_gopro(tmp_path).rename(tmp_path / "short")
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    ended = cli.run(capsys, "mtu-train", "-o", tmp_path / "run", *SMALL, *filled)
    refused(ended, *words)
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "text").read_text() == "not a checkpoint"


@pytest.mark.parametrize("wrong", ["--precision=fp8", "--schedule=linear", "--device=tpu", "--devices=0", "--batch=x"])
def test_words_that_no_option_has(capsys: pytest.CaptureFixture[str], tmp_path: Path, wrong: str) -> None:
    ended = cli.run(capsys, "mtu-train", "-o", tmp_path / "run", wrong)
    assert ended.code == 2 and wrong.split("=")[0] in ended.err and "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run(tiny: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ("mtu-train", "-o", tmp_path / "run", *SMALL)
    assert cli.run(capsys, *arguments).code == 0
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    refused(cli.run(capsys, *arguments), "holds a run already", "--resume")
    refused(cli.run(capsys, *arguments, "--resume", "--preset=mtu1"), "--preset mtu1 was given")
    refused(cli.run(capsys, *arguments, "--resume", "--seed=1"), "--seed 1 was given")
    (tmp_path / "run" / CHECKPOINT).write_bytes(before[:1000])
    refused(cli.run(capsys, *arguments, "--resume"), "is no checkpoint of mtu-train, or damaged")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu(tiny: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ended = cli.run(capsys, "mtu-train", "-o", tmp_path / "run", *SMALL, "--device=cuda")
    refused(ended, "1 CUDA devices are needed and 0 found: use --device cpu")


def test_a_folder_without_a_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an unset variable: that would be the folder one is in."""
    monkeypatch.chdir(tmp_path)
    ended = cli.run(capsys, "mtu-train", "-o", "")
    assert ended.code == 2 and "has no name: -o '' is given (an unset variable?)" in ended.err
    assert list(tmp_path.iterdir()) == []
