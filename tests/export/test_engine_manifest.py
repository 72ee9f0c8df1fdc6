"""engine.json: round trip, refusals, files that are not what was built. Needs no TensorRT."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import shutil

import pytest

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.interface import Size
from mtu.export.precision import in_fp16
from mtu.plugins.correlation_argmax_warp import OP
from mtu.runtime.bundle import open_bundle
from mtu.runtime.engine import (
    EngineManifest,
    Profile,
    Sizes,
    check_files,
    is_engine,
    open_engine,
    refusals,
)
from mtu.runtime.gpu import Gpu

CONTENT = {"first": b"first plan" * 100, "step": b"step plan" * 100}
FP32 = open_bundle().interface
COMMAND = "mtu-build-engine B -o E --fp16 --size 1280x720 --overwrite"


def manifest(**changes):
    fields = {
        "interface": in_fp16(FP32),
        "library": "tensorrt",
        "library_version": "10.16.1.11",
        "plugins": {OP.name: OP.revision},
        "gpu": "NVIDIA GeForce RTX 3090",
        "compute_capabilities": ("8.6",),
        "hardware_compatibility": "none",
        "version_compatible": False,
        "profile": Profile.fixed(720, 1280),
        "onnx": {"first": "0" * 64, "step": "1" * 64},
        "engines": {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()},
        "device_memory": {"first": 1 << 28, "step": 0},
        "command": COMMAND,
        "release": "0.1.0",
    }
    return EngineManifest(**{**fields, **changes})


RTX = {"library": "tensorrt-rtx", "library_version": "1.7.1.116", "gpu": "", "compute_capabilities": ("8.6", "12.0")}
BUILT, RTX_3090 = "10.16.1.11", "NVIDIA GeForce RTX 3090"


def host(version=BUILT, gpu=RTX_3090, compute_capability="8.6"):
    """What `refusals` asks of a machine."""
    return version, Gpu(0, gpu, compute_capability, 1 << 34) if gpu else None


@pytest.fixture
def engine(tmp_path):
    directory = tmp_path / "E"
    directory.mkdir()
    for name, content in CONTENT.items():
        (directory / f"{name}.engine").write_bytes(content)
    (directory / "engine.json").write_text(manifest().to_json())
    return open_engine(directory)


@pytest.mark.parametrize(
    "made",
    [
        manifest(),
        manifest(**RTX, version_compatible=True, plugins={}),
        manifest(profile=Profile(Sizes(4, 8), Sizes(360, 640), Sizes(2160, 3840)), interface=FP32),
        manifest(fp32_layers=("HGs.0.enc1.0", "out")),
    ],
)
def test_round_trip(made):
    assert EngineManifest.from_json(made.to_json(), "x") == made


def test_an_engine_is_opened_and_its_files_are_checked(engine):
    assert is_engine(engine.directory) and not is_engine(engine.directory.parent)
    assert engine.manifest == manifest()
    assert engine.graph("step").read_bytes() == CONTENT["step"]
    check_files(engine)


def change(text, path, value):
    fields = json.loads(text)
    inner = fields
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(fields)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (["format_version"], "1", "manifest version 1, this release reads 2"),
        (["format_version"], None, "no engine manifest"),
        (["library"], "tensorflow", "library is 'tensorflow'"),
        (["library_version"], "new", "library_version is 'new'"),
        (["library_version"], 10, "library_version is 10"),
        (["plugins"], "yes", "damaged"),
        (["fp32_layers"], [7], "fp32_layers is (7,)"),
        (["fp32_layers"], 7, "is damaged"),
        (["fp32_layers"], None, "is damaged ('fp32_layers')"),
        (["plugins", "CorrelationArgmaxWarp"], 0, "plugins is {'CorrelationArgmaxWarp': 0}"),
        (["plugins", "CorrelationArgmaxWarp"], True, "plugins is {'CorrelationArgmaxWarp': True}"),
        (["plugins", "Sharpen"], 1, "plugins is"),
        (["compute_capabilities"], [], "compute_capabilities is ()"),
        (["compute_capabilities"], ["8,6"], "compute_capabilities is ('8,6',)"),
        (["compute_capabilities"], 8.6, "damaged"),
        (["hardware_compatibility"], "all", "hardware_compatibility is 'all'"),
        (["version_compatible"], 1, "version_compatible is 1"),
        (["profile", "max", "height"], 719, "have to rise"),
        (["profile", "max", "height"], "720", "whole numbers"),
        (["profile", "max", "height"], 360, "have to rise"),
        (["profile", "opt"], None, "damaged"),
        (["profile", "best"], {"height": 4, "width": 4}, "damaged"),
        (["engines", "step"], "0" * 63, "engines is"),
        (["engines", "first"], None, "engines is"),
        (["onnx", "third"], "0" * 64, "onnx is"),
        (["device_memory", "step"], -1, "device_memory is"),
        (["device_memory"], None, "damaged"),
        (["command"], None, "damaged"),
        (["extra"], 1, "damaged"),
        (["interface", "precision"], "int8", "precision is 'int8'"),
        (["interface", "graphs"], [], "graphs []"),
        (["interface", "graphs"], None, "lacks 'graphs'"),
        (
            ["interface", "ops", "CorrelationArgmaxWarp", "version"],
            2,
            "version 2 of CorrelationArgmaxWarp, this",
        ),
    ],
)
def test_a_changed_manifest_is_refused(engine, path, value, words):
    file = engine.directory / "engine.json"
    file.write_text(change(file.read_text(), path, value))
    with pytest.raises(InvalidInputError) as refused:
        open_engine(engine.directory)
    assert words in str(refused.value) and "mtu-build-engine" in str(refused.value)
    assert str(file) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "\0", "[" * 100_000])
def test_text_that_is_no_manifest_is_refused(engine, text):
    (engine.directory / "engine.json").write_text(text)
    with pytest.raises(InvalidInputError, match="is no engine manifest: build the engine again with mtu-build-engine"):
        open_engine(engine.directory)


def test_bytes_that_are_no_text_are_refused(engine):
    (engine.directory / "engine.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        open_engine(engine.directory)


def test_missing_things_are_named(engine, tmp_path):
    engine.graph("step").unlink()
    with pytest.raises(MissingFileError, match=r"lacks step.engine; build it again: mtu-build-engine B -o E"):
        open_engine(engine.directory)
    (engine.directory / "engine.json").unlink()
    with pytest.raises(MissingFileError, match=r"lacks engine.json; an engine is a directory"):
        open_engine(engine.directory)
    with pytest.raises(MissingFileError, match="does not exist; an engine is a directory"):
        open_engine(tmp_path / "none")
    with pytest.raises(InvalidInputError, match="is a file; an engine is a directory"):
        open_engine(engine.graph("first"))


def truncated(engine):
    engine.graph("step").write_bytes(CONTENT["step"][:-1])
    return r"step.engine is damaged or of another build"


def bit_flipped(engine):
    content = bytearray(CONTENT["first"])
    content[len(content) // 2] ^= 1
    engine.graph("first").write_bytes(content)
    return r"first.engine is damaged or of another build"


def emptied(engine):
    engine.graph("first").write_bytes(b"")
    return r"first.engine is damaged"


def exchanged(engine):
    spare = engine.directory / "spare"
    engine.graph("first").rename(spare)
    engine.graph("step").rename(engine.graph("first"))
    spare.rename(engine.graph("step"))
    return r"first.engine is step.engine under another name"


def doubled(engine):
    shutil.copy(engine.graph("first"), engine.graph("step"))
    return r"step.engine is first.engine under another name"


@pytest.mark.parametrize("damage", [truncated, bit_flipped, emptied, exchanged, doubled])
def test_files_that_are_not_what_was_built_are_refused(engine, damage):
    words = damage(engine)
    with pytest.raises(InvalidInputError, match=words) as refused:
        check_files(engine)
    assert str(refused.value).endswith(f"build it again: {COMMAND}")


@pytest.mark.parametrize(
    ("made", "here", "words"),
    [
        (manifest(), host(), None),
        (manifest(), host(None), 'which is not installed here: pip install "mtu-trt[gpu]"'),
        (manifest(**RTX), host(None), 'pip install "mtu-trt[rtx]"'),
        (manifest(), host("10.16.2.1"), "with tensorrt 10.16.1.11, here is 10.16.2.1"),
        (manifest(), host("11.4.0.106"), "with tensorrt 10.16.1.11, here is 11.4.0.106"),
        (manifest(version_compatible=True), host("10.17.0.1"), None),
        (manifest(version_compatible=True), host("10.13.0.1"), "or newer of the same major version"),
        (manifest(version_compatible=True), host("11.1.0.1"), "or newer of the same major version"),
        (manifest(), host(gpu=None), "no NVIDIA GPU answers here"),
        (manifest(), host(BUILT, "NVIDIA H200", "9.0"), "here is NVIDIA H200 (compute capability 9.0)"),
        (manifest(), host(BUILT, "NVIDIA RTX A6000", "8.6"), "one model of GPU only"),
        (manifest(hardware_compatibility="same-compute-capability"), host(), None),
        (manifest(hardware_compatibility="same-compute-capability"), host("10.16.1.11", "NVIDIA A40", "8.6"), None),
        (manifest(hardware_compatibility="same-compute-capability"), host("10.16.1.11", "L4", "8.9"), "here is L4"),
        (manifest(hardware_compatibility="ampere-plus"), host("10.16.1.11", "NVIDIA L4", "8.9"), None),
        (manifest(hardware_compatibility="ampere-plus"), host("10.16.1.11", "NVIDIA B200", "10.0"), None),
        (manifest(hardware_compatibility="ampere-plus"), host("10.16.1.11", "NVIDIA T4", "7.5"), "here is NVIDIA T4"),
        (manifest(**RTX), host("1.7.1.116", "NVIDIA GeForce RTX 5090", "12.0"), None),
        (manifest(**RTX), host("1.7.1.116", "NVIDIA L4", "8.9"), "--compute-capability 8.6,12.0,8.9"),
        (
            manifest(plugins={OP.name: 99}),
            host(),
            "holds revision 99 of the plugin CorrelationArgmaxWarp, this release has",
        ),
        (manifest(plugins={}), host(), None),
    ],
)
def test_refusals_say_what_was_built_what_is_here_and_what_to_do(made, here, words):
    found = refusals(made, *here)
    assert len(found) == (words is not None), found
    if words is not None:
        assert words in found[0] and "\n" not in found[0]
        assert any(fix in found[0] for fix in (COMMAND, "pip install", "use mtu-run with a bundle"))


def test_every_reason_is_named():
    other = host("8.6.1", "NVIDIA T4", "7.5")
    assert len(refusals(manifest(plugins={OP.name: 99}), *other)) == 3


@pytest.mark.parametrize("text", ["720", "720,1280", "720X1280", "1280:720", "x", "-4x4", "4x4x4", "4.0x4", "٤x٤", ""])
def test_a_size_is_written_one_way(text):
    with pytest.raises(InvalidInputError, match="write WIDTHxHEIGHT, as in 1280x720"):
        Sizes.parse(text)


def test_a_size_that_has_to_be_padded_names_the_padded_one():
    assert Sizes.parse("1280x720") == Sizes(height=720, width=1280)
    with pytest.raises(InvalidInputError, match=r"1918x1078 .* build it for 1920x1080"):
        Sizes(1078, 1918).check(Size(4, 4))
    with pytest.raises(InvalidInputError, match="whole numbers from 1"):
        Sizes(0, 4)


def test_profiles_rise():
    with pytest.raises(InvalidInputError, match="the widths have to rise from min over opt to max, they are 8, 4, 8"):
        Profile(Sizes(4, 8), Sizes(4, 4), Sizes(4, 8))
    profile = Profile(Sizes(4, 8), Sizes(8, 8), Sizes(16, 12))
    assert profile.holds(4, 12) and not profile.holds(20, 8) and not profile.holds(4, 4)
    assert str(profile) == "8x4 to 12x16, best at 8x8" and str(Profile.fixed(720, 1280)) == "1280x720"


def test_a_command_in_a_refusal_can_be_pasted():
    text = refusals(manifest(**RTX), *host("1.7.1.116", "NVIDIA L4", "8.9"))[0].split("build it again: ")[1]
    assert shlex.split(text) == [*shlex.split(COMMAND), "--compute-capability", "8.6,12.0,8.9"]


def test_fields_are_described_by_json_alone():
    fields = json.loads(manifest().to_json())
    assert set(fields) == {"format_version", *(field.name for field in dataclasses.fields(EngineManifest))}
