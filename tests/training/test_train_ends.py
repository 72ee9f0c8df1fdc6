"""How a training run begins and ends: its folder, its first checkpoint, and what it says meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
for package in ("skimage", "safetensors", "lightning_fabric", "tensorboard", "cv2"):
    pytest.importorskip(package)

from tests import cli  # noqa: E402
from tests.media import moving  # noqa: E402
from tests.tiny_training import write_gopro  # noqa: E402
from tests.training.test_train_cli import SMALL, tiny  # noqa: E402, F401

from mtu.core.errors import InvalidInputError, OutputError  # noqa: E402
from mtu.runtime.video import write_png  # noqa: E402
from mtu.training import mtu_recipe, pulse, run, start  # noqa: E402
from mtu.training.pulse import Pulse  # noqa: E402
from mtu.training.run_folder import CHECKPOINT, run_folder  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def ended_by_sigterm(patch: pytest.MonkeyPatch, place: Any, name: str) -> None:
    """SIGTERM comes when this function is called."""
    original: Callable[..., Any] = getattr(place, name)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    patch.setattr(place, name, interrupted)


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("training_clips", False),
        ("validation_clips", False),
        ("new_fabric", False),
        ("batches", False),
        ("validate", True),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_sigterm_at_any_time_leaves_a_checkpoint_or_no_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, saved: bool
) -> None:
    with monkeypatch.context() as patch:
        ended_by_sigterm(patch, start if name in ("new_fabric", "batches") else mtu_recipe, name)
        ended = cli.run(capsys, "mtu-train", *SMALL, "-o", tmp_path / "runs" / "run")
    assert ended.code == 143 and "Traceback" not in ended.err
    assert [path.name for path in tmp_path.iterdir()] == (["runs"] if saved else [])
    if saved:
        assert (tmp_path / "runs" / "run" / CHECKPOINT).is_file()
        arguments = ("--resume", "--device=cpu", "--workers=0")
        ended = cli.run(capsys, "mtu-train", "-o", tmp_path / "runs" / "run", *arguments)
        assert ended.code == 0 and "from step 0 to 6" in ended.err


@pytest.mark.parametrize("error", [InvalidInputError("no"), KeyboardInterrupt(), RuntimeError("a bug")])
def test_a_folder_that_holds_nothing_yet_goes(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), run_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "logs").mkdir()
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_was_there_before_or_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyError), run_folder(tmp_path / "mine"):
        raise KeyError
    with pytest.raises(KeyError), run_folder(tmp_path / "runs" / "one"):
        (tmp_path / "runs" / "two").mkdir()  # of another run
        raise KeyError
    with pytest.raises(KeyError), run_folder(tmp_path / "saved"):
        (tmp_path / "saved" / CHECKPOINT).write_text("x")
        raise KeyError
    assert sorted(path.name for path in tmp_path.rglob("*")) == [CHECKPOINT, "mine", "runs", "saved", "two"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="-o is the folder of the run"), run_folder(tmp_path / "file"):
        pass


@pytest.mark.usefixtures("tiny")
def test_all_sizes_of_a_data_set_are_seen_at_the_start(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = write_gopro(tmp_path / "gopro")
    last = max((folder / "train").rglob("sharp/*.png"))
    write_png(last, moving(1, 40, 40)[0])
    ended = cli.run(capsys, "mtu-train", *SMALL, f"--data=gopro:{folder}", "-o", tmp_path / "run")
    assert ended.code == 2 and f"{last} is 40x40, but" in ended.err and not (tmp_path / "run").exists()
    last.write_bytes(b"\x89PNG\r\n\x1a\n")
    ended = cli.run(capsys, "mtu-train", *SMALL, f"--data=gopro:{folder}", "-o", tmp_path / "run")
    assert ended.code == 2 and "header is damaged" in ended.err and not (tmp_path / "run").exists()


def test_a_silent_run_says_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "SILENCE", 0.02)
    said, enough = [], threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) >= 3:
            enough.set()

    with Pulse(say) as beat:
        beat.doing = lambda: "step 3 of 10: training"
        assert enough.wait(60)
    assert "step 3 of 10: training" in said
    assert not [thread for thread in threading.enumerate() if thread.name == "pulse"]


def test_what_else_is_said_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(pulse.time, "monotonic", lambda: now[0])
    said: list[str] = []
    beat = Pulse(said.append)
    now[0] += 29
    beat.say("something")
    now[0] += 29
    waits = iter([False, False, True])
    monkeypatch.setattr(beat._ended, "wait", lambda seconds: next(waits))
    beat._watch()
    assert said == ["something"]
    now[0] += 2
    waits = iter([False, True])
    beat._watch()
    assert said == ["something", "starting"]


def test_a_second_process_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "SILENCE", 0.0)
    said: list[str] = []
    beat = Pulse(said.append)
    beat.quiet()
    with beat:
        pass
    assert said == []


@pytest.mark.usefixtures("tiny")
def test_words_of_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words: list[str] = []
    for name in ("train_batch", "_refuse_broken_weights"):
        original = getattr(run.Run, name)
        monkeypatch.setattr(
            run.Run, name, lambda self, *a, original=original: words.append(self.words()) or original(self, *a)
        )
    validate = mtu_recipe.validate
    monkeypatch.setattr(mtu_recipe, "validate", lambda *a: words.append(owner[0].words()) or validate(*a))
    owner: list[Any] = []
    initialise = run.Run.__init__
    monkeypatch.setattr(run.Run, "__init__", lambda self, *a, **k: owner.append(self) or initialise(self, *a, **k))
    assert cli.run(capsys, "mtu-train", *SMALL, "-o", tmp_path / "run").code == 0
    assert "step 0 of 6: validating" in words and "step 3 of 6: training" in words


@pytest.mark.usefixtures("tiny")
def test_the_time_of_a_step_is_without_validation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    now = [0.0]  # a batch of three steps takes 6 s, a validation 90
    for place, name, seconds in ((run.Run, "train_batch", 6.0), (mtu_recipe, "validate", 90.0)):
        original = getattr(place, name)

        def slow(*a: Any, original: Any = original, seconds: float = seconds) -> Any:
            now[0] += seconds
            return original(*a)

        monkeypatch.setattr(place, name, slow)
    clock = SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(run, "time", clock)
    ended = cli.run(capsys, "mtu-train", *SMALL, "--validate-every", 3, "-o", tmp_path / "run")
    assert ended.code == 0
    paces = [line.removeprefix("mtu-train: ") for line in ended.err.splitlines() if " a step" in line]
    assert paces == ["2.000 s a step, 2 minutes to go", "2.000 s a step"]
