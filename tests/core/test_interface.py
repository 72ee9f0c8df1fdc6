"""The interface description: names, shapes, metadata round trip, refusals."""

import dataclasses
import json

import pytest

from mtu.core.errors import InvalidInputError
from mtu.core.interface import PRESETS, Interface, NetworkConfig, preset_config, preset_name

MTU2 = Interface(PRESETS["mtu2"], checkpoint="ab" * 32)


def test_names_and_shapes_are_those_of_the_contract():
    assert [(t.name, t.dtype, t.at(8, 12)) for t in MTU2.inputs("step")] == [
        ("frame_prev2", "uint8", (1, 8, 12, 3)),
        ("frame_prev1", "uint8", (1, 8, 12, 3)),
        ("frame", "uint8", (1, 8, 12, 3)),
        ("frame_next1", "uint8", (1, 8, 12, 3)),
        ("frame_next2", "uint8", (1, 8, 12, 3)),
        ("restored_in", "float32", (1, 3, 8, 12)),
        ("motion_in", "float32", (1, 52, 2, 3)),
        ("detail_in", "float32", (1, 26, 8, 12)),
    ]
    assert [(t.name, t.dtype, t.at(8, 12)) for t in MTU2.outputs] == [
        ("output", "uint8", (1, 8, 12, 3)),
        ("restored_out", "float32", (1, 3, 8, 12)),
        ("motion_out", "float32", (1, 52, 2, 3)),
        ("detail_out", "float32", (1, 26, 8, 12)),
        ("displacement", "int32", (1, 2, 3)),
    ]
    assert len(MTU2.inputs("first")) == 5


def test_one_unit_carries_the_restored_frame_alone():
    mtu1 = Interface(PRESETS["mtu1"])
    assert [state.name for state in mtu1.states] == ["restored"]
    assert [tensor.name for tensor in mtu1.outputs] == ["output", "restored_out"]


@pytest.mark.parametrize("graph", ["first", "step"])
@pytest.mark.parametrize("config", [*PRESETS.values(), NetworkConfig(3, 5, 0)])
def test_metadata_round_trip(config, graph):
    interface = Interface(config, "float16", "cd" * 32, max_displacement=7)
    assert Interface.from_metadata(interface.to_metadata(graph), graph, "x.onnx") == interface


def broken(**changes):
    metadata = MTU2.to_metadata("step")
    for key, value in changes.items():
        key = "mtu." + key
        if value is None:
            del metadata[key]
        else:
            metadata[key] = value
    return metadata


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "not an MTU model"),
        (broken(format_version="2"), "metadata version 2, this release reads 1"),
        (broken(interface=None), "broken mtu.interface"),
        (broken(interface="[1]"), "broken mtu.interface"),
        (broken(interface='{"config": {"units": 0, "channels": 1, "blocks": 1}}'), "broken mtu.interface"),
        (broken(interface=json.dumps(dataclasses.asdict(dataclasses.replace(MTU2, op_version=9)))), "version 9"),
        (broken(graph="first"), "mtu.graph is 'first'"),
        (broken(tensors=None), "mtu.tensors is None"),
        (broken(window="[-1, 0, 1]"), "mtu.window"),
    ],
)
def test_refusals_say_what_is_wrong(metadata, message):
    with pytest.raises(InvalidInputError, match=message.replace("[", r"\[")):
        Interface.from_metadata(metadata, "step", "x.onnx")


def test_presets_by_name_and_by_shape():
    assert preset_config("mtu10-large") == NetworkConfig(10, 48, 6)
    assert preset_name(NetworkConfig(2, 26, 8)) == "mtu2"
    assert preset_name(NetworkConfig(2, 26, 7)) == "custom"
    with pytest.raises(InvalidInputError, match="unknown preset 'mtu3': choose one of mtu1, mtu2"):
        preset_config("mtu3")
    with pytest.raises(ValueError, match="no such network"):
        NetworkConfig(0, 26, 8)
