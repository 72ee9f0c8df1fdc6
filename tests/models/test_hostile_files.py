"""Checkpoints and graphs that would mislead: refused in one message. Writes only under tmp_path."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests import cli
from tests.cli import refused
from tests.media import make_video, moving

from mtu.core.errors import InvalidInputError
from mtu.export.bundle_files import load_graphs, save_bundle
from mtu.models.checkpoint import load_checkpoint
from mtu.runtime import open_backend, open_bundle


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "in.mkv", moving(3, 48, 64), codec="ffv1", pix_fmt="bgr0")


# Checkpoints


def checkpoint_with(tmp_path, **changed):
    import torch

    from mtu.models.mtu.architecture import Network
    from mtu.models.mtu.config import NetworkConfig

    state = Network(NetworkConfig(1, 2, 0)).state_dict()
    some = state["out.bias"]
    kinds = {"same": some, "sparse": some.to_sparse(), "meta": some.to("meta")}
    torch.save({**state, **{key: kinds[kind] for key, kind in changed.items()}}, tmp_path / "c.pt")
    return tmp_path / "c.pt"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"module.Network.out.bias": "same"}, "holds out.bias twice"),
        ({"out.bias": "sparse"}, "out.bias is torch.sparse_coo"),
        ({"out.bias": "meta"}, "out.bias is on the meta device"),
        ({"HGs.300000000.enc1.0.bias": "same"}, "unexpected HGs.300000000"),
        ({"HGs.0.RBs.300000000.0.bias": "same"}, "unexpected HGs.0.RBs.300000000"),
        ({"HGs." + "9" * 5000 + ".enc1.0.bias": "same"}, "unexpected HGs.999"),
    ],
    ids=range(6),
)
def test_checkpoints_that_would_mislead(tmp_path, changed, words):
    with pytest.raises(InvalidInputError, match=re.escape(words)):
        load_checkpoint(checkpoint_with(tmp_path, **changed))


# Bundles that are not what they say.


def edited(tmp_path, bundle, edit):
    for name in ("first", "step"):
        model = onnx.load(bundle.graph(name))
        edit(model, name)
        (tmp_path / f"{name}.onnx").write_bytes(model.SerializeToString())
    shutil.copy(bundle.directory / "bundle.json", tmp_path)
    return open_bundle(tmp_path)


def weight(**changed):
    def edit(model, name):
        for tensor in model.graph.initializer:
            if tensor.name == "out.bias":
                if "value" in changed:
                    tensor.CopyFrom(numpy_helper.from_array(changed["value"], tensor.name))
                elif "cut" in changed:
                    tensor.raw_data = tensor.raw_data[: -changed["cut"]]
                else:
                    onnx.external_data_helper.set_external_data(tensor, changed["external"])
                    tensor.ClearField("raw_data")

    return edit


@pytest.mark.parametrize(
    "changed", [{"value": np.zeros(5, np.float32)}, {"value": np.array(["a", "b", "c"], object)}, {"cut": 4}]
)
def test_weights_that_do_not_fit_are_refused_by_torch(tmp_path, small, changed):
    with pytest.raises(InvalidInputError, match="export the model again"):
        open_backend("torch", edited(tmp_path, small, weight(**changed)))


def test_external_data_that_lacks_is_refused(tmp_path, small):
    with pytest.raises(InvalidInputError, match="cannot be read as ONNX"):
        open_backend("torch", edited(tmp_path, small, weight(external="none.bin")))


def test_a_graph_that_fails_only_when_it_runs_ends_in_a_message(capsys, tmp_path, small, clip):
    bundle = edited(tmp_path, small, weight(value=np.zeros(5, np.float32)))
    ended = cli.run(
        capsys, "mtu-run", clip, "-o", tmp_path / "out.mp4", "--model", bundle.directory, "--backend", "onnxruntime"
    )
    refused(ended, tmp_path, "could not run first.onnx on frames of 64x48")


@pytest.mark.parametrize("settings", [{"units": 10**9}, {"channels": 5}, {"blocks": 0}, {"other": 1}])
def test_settings_that_are_not_those_of_the_weights_are_refused_by_torch(tmp_path, small, settings):
    """Before a network of that size is made."""
    changed = replace(small.interface, settings={**small.interface.settings, **settings})
    save_bundle(tmp_path, changed, load_graphs(small))
    with pytest.raises(InvalidInputError, match=r"holds the weights of .*, bundle\.json says .*export the model again"):
        open_backend("torch", open_bundle(tmp_path))
