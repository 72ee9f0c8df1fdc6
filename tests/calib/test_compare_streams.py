"""mtu-compare over models that read several streams. Writes only under tmp_path."""

from __future__ import annotations

import json
import math

import pytest
from tests import cli
from tests.bundles import negative_bundle, views_bundle
from tests.cli import refused
from tests.frames import write_clip
from tests.media import moving

from mtu.runtime.video import read_picture, write_png

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
@pytest.mark.parametrize(
    ("changed", "channels"), [(None, (0, 1, 2)), ("image", (1, 1, 2)), ("right", (0, 2, 2)), ("left", (0, 1, 1))]
)
def test_each_model_gets_every_stream(tmp_path, capsys, folders, mode, changed, channels):
    a, b, report = views_bundle(tmp_path / "a"), views_bundle(tmp_path / "b", channels=channels), tmp_path / "r.json"
    views = {name: folders[name] for name in STREAMS[1:]}
    ended = compare(capsys, a, b, folders, "--mode", mode, "--json", report, "--frames", 3, **views)
    assert ended.code == 0, ended.err
    found = [frame["psnr"] for frame in json.loads(report.read_text())["modes"][mode]["frames"]]
    if changed is None:
        assert found == [None] * 3
        return
    at = STREAMS.index(changed)
    pictures = [read_picture(folders[changed] / f"{number}.png").astype(float) for number in range(3)]
    errors = [((each[..., at] - each[..., channels[at]]) ** 2).mean() / 3 for each in pictures]
    assert found == [pytest.approx(10 * math.log10(255**2 / error), abs=1e-3) for error in errors]


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
