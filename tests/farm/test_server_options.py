"""mtu-run --server: what is refused before any server is asked."""

from __future__ import annotations

import pytest
from tests import cli
from tests.media import make_video

from mtu.core.errors import InvalidInputError
from mtu.farm import triton_client


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "mtu2"],
        ["--backend", "onnxruntime"],
        ["--device", "cpu"],
        ["--precision", "fp32"],
        ["--plugin-library", "x.so"],
        ["--no-cuda-graph"],
        ["--where", "mtu2"],
        ["--threshold", "2"],
        ["--tile", "256x256"],
        ["--resume"],
    ],
)
def test_options_about_a_model_here(tmp_path, capsys, options):
    source = make_video(tmp_path / "in.mp4", 3)
    ended = cli.run(capsys, "mtu-run", source, "-o", tmp_path / "out.mp4", "--server", "nowhere:1", *options)
    cli.refused(ended, tmp_path, f"{options[0]} is for a model on this machine", "leave one out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("box", ("box:8001", "")),
        ("box:1", ("box:1", "")),
        ("box/mtu2", ("box:8001", "mtu2")),
        ("10.0.0.1:9001/mtu2", ("10.0.0.1:9001", "mtu2")),
        ("[::1]/mtu2", ("[::1]:8001", "mtu2")),
        ("[::1]:9/mtu2", ("[::1]:9", "mtu2")),
    ],
)
def test_addresses(address, expected):
    assert triton_client._parse(address) == expected


@pytest.mark.parametrize("address", ["", "/mtu2", "http://box:8000", "box:1/a/b"])
def test_addresses_that_are_none(address):
    with pytest.raises(InvalidInputError, match="write HOST:PORT"):
        triton_client._parse(address)


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1:1", True), ("127.1.2.3:1", True), ("localhost:1", True), ("[::1]:1", True), ("10.0.0.1:1", False)],
)
def test_which_hosts_are_this_machine(host, here):
    assert triton_client._is_here(host) is here
