"""mtu-compare over models that read several streams. Writes only under tmp_path."""

from __future__ import annotations

import json

import pytest
from tests import cli
from tests.bundles import negative_bundle, views_bundle
from tests.cli import refused
from tests.frames import write_clip
from tests.media import moving

from mtu.runtime.video import write_png

STREAMS = ("image", "right", "left")


@pytest.fixture
def folders(tmp_path):
    """Four pictures for each stream, all different."""
    for seed, name in enumerate(STREAMS):
        (tmp_path / name).mkdir()
        for number, picture in enumerate(moving(4, 24, 32, seed)):
            write_png(tmp_path / name / f"{number}.png", picture)
    return {name: tmp_path / name for name in STREAMS}


def compare(capsys, a, b, folders, *arguments, **streams):
    given = [word for name, path in streams.items() for word in ("--stream", f"{name}={path}")]
    return cli.run(capsys, "mtu-compare", a.directory, b.directory, "--input", folders["image"], *given, *arguments)


@pytest.mark.parametrize("mode", ["step", "rollout"])
@pytest.mark.parametrize("right", [0, 1])
def test_each_model_gets_every_stream(tmp_path, capsys, folders, mode, right):
    a, b, report = views_bundle(tmp_path / "a"), views_bundle(tmp_path / "b", right=right), tmp_path / "r.json"
    views = {name: folders[name] for name in STREAMS[1:]}
    ended = compare(capsys, a, b, folders, "--mode", mode, "--json", report, "--frames", 3, **views)
    assert ended.code == 0, ended.err
    (run,) = json.loads(report.read_text())["runs"]
    assert len(run["frames"]) == 3
    # The last frame has no next one.
    assert [frame["psnr"] is None or frame["psnr"] > 90 for frame in run["frames"]] == [not right, not right, True]


def test_streams_that_are_missing_or_too_many_are_refused(tmp_path, capsys, folders):
    three, one = views_bundle(tmp_path / "three"), negative_bundle(tmp_path / "one")
    views = {name: folders[name] for name in STREAMS[1:]}
    small = write_clip(tmp_path / "small", 4, 12, 16)
    for a, b, streams, words in (
        (three, three, {}, "the input is image; the others are given with --stream right=PATH --stream left=PATH"),
        (three, three, {"right": folders["right"]}, "and there is right"),
        (one, one, views, "--stream right: the model test reads one stream"),
        (three, one, views, "--stream right: the model test reads one stream"),
        (three, three, {**views, "left": small}, "is 16x12, and"),
    ):
        refused(compare(capsys, a, b, folders, **streams), tmp_path, words)


def test_a_report_does_not_replace_a_stream(tmp_path, capsys, folders):
    bundle, views = views_bundle(tmp_path / "b"), {name: folders[name] for name in STREAMS[1:]}
    picture = folders["left"] / "0.png"
    ended = compare(capsys, bundle, bundle, folders, "--json", picture, **views)
    refused(ended, tmp_path, "is one of the files of")
