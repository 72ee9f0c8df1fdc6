"""Tests of what a training run leaves and how it goes on from there. Writes only under tmp_path."""

from __future__ import annotations

import dataclasses
import math
import pickle
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
for package in ("skimage", "safetensors", "lightning_fabric", "tensorboard", "cv2"):
    pytest.importorskip(package)

from safetensors.torch import load_file, save_file  # noqa: E402
from tests.tiny_training import CPU, OPTIONS, TINY, new_run, noted, sliding_clip, tiny  # noqa: E402
from torch import Tensor  # noqa: E402

from mtu.core.errors import InvalidInputError, MissingFileError, MtuError, OutputError  # noqa: E402
from mtu.models.checkpoint import random_checkpoint  # noqa: E402
from mtu.models.mtu.architecture import Network  # noqa: E402
from mtu.training import mtu_recipe, muon, sources  # noqa: E402
from mtu.training.batches import Batch  # noqa: E402
from mtu.training.options import Options  # noqa: E402
from mtu.training.run import CHECKPOINT, WEIGHTS, Run  # noqa: E402
from mtu.training.start import train  # noqa: E402
from mtu.training.validation import validate  # noqa: E402
from mtu.training.weights import centre, initialise, is_centred  # noqa: E402

__all__ = ["tiny"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


def content(folder: Path) -> dict[str, Any]:
    saved: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=True)
    return saved


def same(a: object, b: object) -> bool:
    """Equal to the last bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    "changes",
    [{}, {"unroll": 2, "precision": "bf16"}, {"preset": "mtu1", "schedule": "cosine"}, {"optimiser": "muon"}],
    ids=str,
)
def test_an_interrupted_run_resumed_is_the_run_not_interrupted(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changes: dict[str, Any]
) -> None:
    given = {**OPTIONS, "max_steps": 12, **changes}
    monkeypatch.setattr(muon, "SMALLEST", 4)  # the tiny network has no larger kernels
    noted(monkeypatch)
    ended = train(tmp_path / "whole", given, CPU)
    assert (ended.step, ended.signal) == (12, None)
    train_batch = Run.train_batch

    def interrupted(self: Run, batch: Batch) -> None:
        if self.batch == 1:
            signal.raise_signal(signal.SIGTERM)
        train_batch(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "train_batch", interrupted)
        before = signal.getsignal(signal.SIGTERM)
        ended = train(tmp_path / "part", given, CPU)
        assert (ended.step, ended.signal) == (6, signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before
    assert train(tmp_path / "part", {}, CPU, resume=True).step == 12
    whole, part = content(tmp_path / "whole"), content(tmp_path / "part")
    assert same(whole, part)
    assert whole["optimiser"]["state"] and not same(whole["network"], content_of_first_weights(given))


def content_of_first_weights(given: dict[str, Any]) -> dict[str, Tensor]:
    network = Network(TINY[given.get("preset", "mtu2")], auxiliary=True)
    initialise(network, torch.Generator().manual_seed(0))
    return network.state_dict()


def test_a_signal_in_the_last_batch_does_not_spoil_a_run_that_is_done(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noted(monkeypatch)
    train_batch = Run.train_batch

    def interrupted(self: Run, batch: Batch) -> None:
        train_batch(self, batch)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "train_batch", interrupted)
    ended = train(tmp_path, {**OPTIONS, "max_steps": 3}, CPU)
    assert (ended.step, ended.signal) == (3, None) and content(tmp_path)["step"] == 3


@pytest.fixture
def finished(tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of a run that is through."""
    noted(monkeypatch)
    train(tmp_path / "run", {**OPTIONS, "max_steps": 3}, CPU)
    return tmp_path / "run"


def test_a_run_goes_on_with_other_options(finished: Path) -> None:
    assert train(finished, {}, CPU, resume=True).step == 3
    assert train(finished, {"max_steps": 5, "rate": 1e-5, "batch": 1}, CPU, resume=True).step == 5
    saved = content(finished)
    assert (saved["options"]["rate"], saved["options"]["batch"], saved["step"], saved["batch"]) == (1e-5, 1, 5, 2)
    assert saved["optimiser"]["param_groups"][0]["lr"] == pytest.approx(1e-5, rel=1) and saved["options"]["seed"] == 0


def test_weights_are_kept_for_export_and_the_best_ones(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, kept = content(finished), load_file(finished / WEIGHTS)
    assert kept.keys() == Network(TINY["mtu2"], auxiliary=True).state_dict().keys()
    before = (finished / WEIGHTS).read_bytes()
    worse = dataclasses.replace(validate(Network(TINY["mtu2"]), [sliding_clip(3, 16, 16, (0, 1))]), gains=(-50.0,))
    monkeypatch.setattr(mtu_recipe, "validate", lambda network, clips: worse)
    train(finished, {"max_steps": 5}, CPU, resume=True)
    assert (finished / WEIGHTS).read_bytes() == before and content(finished)["best"] == saved["best"]
    monkeypatch.setattr(mtu_recipe, "validate", lambda network, clips: dataclasses.replace(worse, gains=(50.0,)))
    assert train(finished, {"max_steps": 7}, CPU, resume=True).best == 50
    assert same(load_file(finished / WEIGHTS), dict(content(finished)["average"]))


def test_runs_that_cannot_be_resumed_or_begun(finished: Path, tmp_path: Path) -> None:
    def refused(message: str, error: type[MtuError] = InvalidInputError, **given: Any) -> None:
        with pytest.raises(error, match=message):
            train(given.pop("folder", finished), given.pop("options", {}), CPU, **given)

    before = (finished / CHECKPOINT).read_bytes()
    refused("holds a run already: add --resume", OutputError)
    refused("--preset mtu1 was given", resume=True, options={"preset": "mtu1"})
    refused("nothing to resume", MissingFileError, resume=True, folder=tmp_path / "none")
    refused("leave --start-from out", resume=True, start_from=finished / WEIGHTS)
    refused("must be above 0", resume=True, options={"rate": -1.0})
    assert not (tmp_path / "none").exists()
    assert (finished / CHECKPOINT).read_bytes() == before
    refused("--preset asks for", folder=tmp_path / "new", start_from=finished / WEIGHTS, options={"preset": "mtu1"})
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        refused("-o is the folder", OutputError, folder=folder, options=OPTIONS)
    assert not (tmp_path / "new").exists() and (tmp_path / "file").read_text() == "mine"


class Harmful:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "list", "tensor", "weights", "part", "options", "code"])
def test_files_that_are_no_checkpoint(finished: Path, tmp_path: Path, damage: str) -> None:
    path, whole = finished / CHECKPOINT, (finished / CHECKPOINT).read_bytes()
    saved = content(finished)
    if damage in ("empty", "text", "cut"):
        path.write_bytes({"empty": b"", "text": b"not a checkpoint\n", "cut": whole[: len(whole) // 2]}[damage])
    elif damage == "code":
        path.write_bytes(pickle.dumps(Harmful(tmp_path / "written"), protocol=2))
    else:
        other = {"list": [1], "tensor": torch.zeros(3, 2), "weights": saved["network"]}
        other["part"] = {name: part for name, part in saved.items() if name != "average"}
        other["options"] = {**saved, "options": {"preset": "mtu2", "colour": "red"}}
        torch.save(other[damage], path)
    with pytest.raises(InvalidInputError, match="is no checkpoint of mtu-train, or damaged"):
        train(finished, {}, CPU, resume=True)
    assert not (tmp_path / "written").exists()


def test_a_checkpoint_from_before_there_were_other_networks(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the first trainer wrote, by name: whoever trains for weeks goes on with the next release."""
    noted(monkeypatch)
    wanted = {
        "data": ("synthetic",),
        "preset": "mtu2",
        "max_steps": 4,
        "batch": 1,
        "crop": 16,
        "frames": 3,
        "rate": 1e-3,
    }
    wanted |= {"schedule": "cosine", "image_loss": "psnr", "motion_weight": 0.01, "unroll": 1, "centre": True}
    wanted |= {"average": 0.999, "precision": "bf16", "seed": 0, "validate_every": 2000}
    network = Network(TINY["mtu2"], auxiliary=True)
    initialise(network, torch.Generator().manual_seed(0))
    adam = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
    sum(value.square().sum() for value in network.parameters()).backward()
    adam.step()
    weights = network.state_dict()
    saved = {"format": 1, "options": wanted, "network": weights, "average": weights, "optimiser": adam.state_dict()}
    torch.save(saved | {"step": 1, "batch": 1, "best": 9.0}, tmp_path / CHECKPOINT)
    assert train(tmp_path, {}, CPU, resume=True).best == 9
    after = content(tmp_path)
    assert (after["step"], after["batch"], after["options"]) == (4, 2, {**wanted, "optimiser": "adam"})
    assert {int(state["step"]) for state in after["optimiser"]["state"].values()} == {4}
    assert not same(dict(after["network"]), dict(weights))


def test_a_checkpoint_of_another_version(finished: Path) -> None:
    torch.save({**content(finished), "format": 99}, finished / CHECKPOINT)
    with pytest.raises(InvalidInputError, match=r"another version of mtu-train: start from weights\.safetensors"):
        train(finished, {}, CPU, resume=True)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_checkpoint(finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    with pytest.raises(
        MtuError, match=r"the loss is (nan|inf) at step [45]: .*last\.ckpt is from before.*lower --rate"
    ):
        train(finished, {"max_steps": 9, "rate": 1e30}, CPU, resume=True)
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_weights_that_are_not_finite_are_never_saved(finished: Path) -> None:
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    broken = new_run(finished)
    for network in (broken.plain, broken.average):
        network.out.bias.data[0] = math.nan
    with pytest.raises(MtuError, match="not finite at step 0"):
        broken.keep([sliding_clip(3, 16, 16, (0, 1))])
    with pytest.raises(MtuError, match="not finite at step 0"):
        broken.save()
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_a_full_disk_keeps_the_old_checkpoint(finished: Path) -> None:
    """A file-size limit stands in for a full disk."""
    resource = pytest.importorskip("resource")
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(
            OutputError, match=r"cannot write .*(ckpt|safetensors): File too large; what was there is as it was"
        ):
            train(finished, {"max_steps": 5}, CPU, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before


def test_a_new_run_begins_with_the_weights_of_another(finished: Path, tmp_path: Path) -> None:
    said: list[str] = []
    weights = load_file(finished / WEIGHTS)
    weights["out.weight"] += torch.randn_like(weights["out.weight"]) * 0.05
    network = Network(TINY["mtu2"], auxiliary=True)
    network.load_state_dict(weights)
    centre(network)
    save_file(network.state_dict(), tmp_path / "centred.safetensors")
    ended = train(tmp_path / "new", OPTIONS, CPU, start_from=tmp_path / "centred.safetensors", say=said.append)
    assert ended.step == 6
    expected = validate(network, sources.validation_clips(Options(**OPTIONS)))
    assert f"step 0: gain {expected.gain:+.3f} dB (worst clip {min(expected.gains):+.2f})" in said[1]
    assert not any(f"gain {expected.gain:+.3f} dB" in line for line in said[2:])


def test_weights_that_are_not_centred_need_no_centre(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(dict(random_checkpoint("mtu", dataclasses.asdict(TINY["mtu2"])).weights), path)
    with pytest.raises(InvalidInputError, match="add --no-centre"):
        train(tmp_path / "new", OPTIONS, CPU, start_from=path)
    assert train(tmp_path / "new", {**OPTIONS, "centre": False}, CPU, start_from=path).step == 6
    network = Network(TINY["mtu2"], auxiliary=True)
    network.load_state_dict(content(tmp_path / "new")["network"])
    assert not is_centred(network)


def test_kernels_stay_centred(finished: Path) -> None:
    network = Network(TINY["mtu2"], auxiliary=True)
    network.load_state_dict(content(finished)["network"])
    assert is_centred(network)
    assert not same(network.state_dict(), content_of_first_weights({}))
