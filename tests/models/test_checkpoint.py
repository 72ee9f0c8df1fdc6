"""Checkpoints: every accepted form gives the same network; every refusal lists what is wrong; no code runs."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.models.checkpoint import load_checkpoint, random_checkpoint
from mtu.models.families import find_family
from mtu.models.mtu.architecture import Network
from mtu.models.mtu.config import PRESETS, NetworkConfig

SMALL = {"units": 2, "channels": 4, "blocks": 1}

FACTS = {"mtu1": 538_073, "mtu2": 1_037_325, "mtu4": 2_035_829, "mtu10": 5_031_341, "mtu10-large": 13_802_547}


@pytest.mark.parametrize("name", FACTS)
def test_parameter_counts_are_those_of_the_paper(name):
    with torch.device("meta"):
        network = find_family("mtu").network(PRESETS[name])
    assert sum(value.numel() for value in network.parameters()) == FACTS[name]


def released(settings: dict[str, int], prefix: str = "module.Network.") -> dict[str, torch.Tensor]:
    """A state dict as the authors save it: prefixed, with the training-only layers."""
    torch.manual_seed(1)
    return {
        prefix + key: value for key, value in Network(NetworkConfig(**settings), auxiliary=True).state_dict().items()
    }


@pytest.mark.parametrize("prefix", ["module.Network.", "module.", "Network.", ""])
@pytest.mark.parametrize("shape", [(1, 3, 0), (2, 4, 1), (4, 5, 2)])
def test_the_network_is_read_off_keys_and_shapes(tmp_path, shape, prefix):
    settings = dict(zip(SMALL, shape, strict=True))
    path = tmp_path / "MTU2_DVD.pytorch"
    state = released(settings, prefix)
    torch.save(state, path)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.family, checkpoint.settings) == ("mtu", settings)
    assert len(checkpoint.dropped) == 2 * (settings["units"] - 1)
    assert all(key.startswith("deblur_layer.") for key in checkpoint.dropped)
    for key, value in checkpoint.network().state_dict().items():
        assert torch.equal(value, state[prefix + key])


def test_all_forms_of_a_file_give_the_same_digest(tmp_path):
    state = random_checkpoint("mtu", SMALL).weights
    torch.save(dict(state), tmp_path / "zip.pt")
    torch.save(dict(state), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": dict(state), "epoch": 3}, tmp_path / "nested.pt")
    save_file(dict(state), tmp_path / "named-anything.bin")
    digests = {load_checkpoint(path).digest for path in tmp_path.iterdir()}
    assert digests == {random_checkpoint("mtu", SMALL).digest}
    assert random_checkpoint("mtu", SMALL, seed=1).digest not in digests


def test_half_precision_checkpoints_become_fp32(tmp_path):
    torch.save(
        {key: value.half() for key, value in random_checkpoint("mtu", SMALL).weights.items()}, tmp_path / "half.pt"
    )
    assert {value.dtype for value in load_checkpoint(tmp_path / "half.pt").weights.values()} == {torch.float32}


def saved(tmp_path: Path, state: object) -> Path:
    path = tmp_path / "x.pt"
    torch.save(state, path)
    return path


def test_every_problem_is_listed_in_one_message(tmp_path):
    state = released(SMALL)
    del state["module.Network.out.bias"]
    state["module.Network.extra"] = torch.zeros(3)
    state["module.Network.HGs.1.enc2.0.weight"] = torch.zeros(4, 4, 5, 5)
    with pytest.raises(InvalidInputError) as caught:
        load_checkpoint(saved(tmp_path, state))
    message = str(caught.value)
    assert "missing out.bias [3]" in message
    assert "unexpected extra [3]" in message
    assert "HGs.1.enc2.0.weight is [4, 4, 5, 5], should be [4, 4, 3, 3]" in message


def test_long_lists_are_cut_and_counted(tmp_path):
    state = {key: value for key, value in released(SMALL).items() if "enc1" in key or "base_conv" in key}
    with pytest.raises(InvalidInputError, match=r"and \d+ more"):
        load_checkpoint(saved(tmp_path, state))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"conv1.weight": torch.zeros(3)}, "of another network: it has conv1.weight"),
        ({}, "of another network: it has nothing"),
        ([1, 2], "holds a list, not a state dict"),
        ({"a": 1, "b": "two"}, "entries that are not tensors"),
    ],
)
def test_other_content(tmp_path, state, message):
    with pytest.raises(InvalidInputError, match=message):
        load_checkpoint(saved(tmp_path, state))


def test_non_finite_weights_are_named(tmp_path):
    state = released(SMALL)
    state["module.Network.HGs.0.dec1.0.bias"][1] = float("nan")
    with pytest.raises(InvalidInputError, match=r"non-finite values:\n  HGs.0.dec1.0.bias"):
        load_checkpoint(saved(tmp_path, state))


def test_integer_weights_are_refused(tmp_path):
    state = {key: value.int() for key, value in released(SMALL).items()}
    with pytest.raises(InvalidInputError, match="should be floating-point"):
        load_checkpoint(saved(tmp_path, state))


class Malicious:
    def __reduce__(self):
        return os.system, ("touch HACKED",)


@pytest.mark.parametrize("plain", [True, False])
def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path, monkeypatch, plain):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pytorch"
    if plain:
        path.write_bytes(pickle.dumps({"base_conv.0.weight": Malicious()}))
    else:
        torch.save({"base_conv.0.weight": Malicious()}, path)
    with pytest.raises(InvalidInputError, match=r"more than tensors|cannot be read|neither"):
        load_checkpoint(path)
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, this is text\n",
        bytes(range(256)) * 40,
        b"PK\x03\x04" + b"\0" * 100,
        b"\x10\0\0\0\0\0\0\0{" + b"x" * 40,
    ],
)
def test_broken_files(tmp_path, content):
    path = tmp_path / "x.pytorch"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=str(path)):
        load_checkpoint(path)


def test_truncated_file(tmp_path):
    path = saved(tmp_path, released(SMALL))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_checkpoint(path)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(MissingFileError, match="does not exist"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        load_checkpoint(tmp_path)
