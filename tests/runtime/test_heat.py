"""Maps in colours beside the frame (mtu-run --heat), and their figures in the report. Writes only under tmp_path."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from tests import cli
from tests.bundles import map_bundle
from tests.dmenet import SMALL, arrays, reference
from tests.media import make_video, moving

from mtu.core.interface import Output, Tensor, Unit
from mtu.core.window import pad
from mtu.runtime import read_frames
from mtu.runtime.maps import COLOURS, figures, heat_picture
from mtu.runtime.video import read_picture, write_png

MAP = Output(Tensor("map", "float32", (1, "H", "W")), "map")
PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
LARGER = np.random.default_rng(1).integers(0, 256, (18, 35, 3), np.uint8)
GRAY = np.tile(np.linspace(0, 255, 9).astype(np.uint8)[None, :, None], (6, 1, 3))


def heat_of(picture):
    return heat_picture(picture.astype(np.float32).mean(2) / np.float32(255), MAP, *picture.shape[:2])


def run(capsys, source, bundle, *arguments):
    ended = cli.run(capsys, "mtu-run", source, "--model", bundle.directory, *arguments)
    assert ended.code == 0, ended.err
    return ended


def test_colours_are_those_of_the_table_and_rise_in_brightness():
    values = np.linspace(0, 1, 7, dtype=np.float32)[None]
    assert np.abs(heat_picture(values, MAP, 1, 7)[0].astype(int) - COLOURS).max() <= 1
    every = heat_picture(np.linspace(0, 1, 256, dtype=np.float32)[None], MAP, 1, 256)[0]
    assert (np.diff(every @ np.array([0.299, 0.587, 0.114])) > 0).all()
    outside = np.array([[-1, 2, 0, 1]], np.float16)
    assert np.array_equal(heat_picture(outside, MAP, 1, 4)[0, :2], heat_picture(outside, MAP, 1, 4)[0, 2:])


def test_a_smaller_map_fills_the_frame():
    output = Output(Tensor("map", "float32", (1, "H/2", "W/2")), "map")
    found = heat_picture(np.array([[0, 1], [1, 0]], np.float32), output, 3, 4)
    assert found.shape == (3, 4, 3) and [list(row.sum(1) > 0) for row in found] == [[0, 0, 1, 1]] * 2 + [[1, 1, 0, 0]]


@pytest.mark.parametrize("picture", [PICTURE, GRAY], ids=["colour", "gray"])
def test_the_map_in_colours_beside_the_frame(tmp_path, capsys, picture):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "0.png", picture)
    bundle = map_bundle(tmp_path / "bundle")
    heat = heat_of(picture)
    assert np.ptp(heat, 2).max() > 50
    for name, option, wanted in (
        ("beside", (), np.concatenate((picture, heat), 1)),
        ("same", ("--compare", "side-by-side"), np.concatenate((picture, heat), 1)),
        ("split", ("--compare", "split"), np.concatenate((picture[:, :4], heat[:, 4:]), 1)),
    ):
        run(capsys, tmp_path / "in", bundle, "-o", tmp_path / name, "--heat", *option)
        found = read_picture(tmp_path / name / "0.png")
        if name == "split":  # the line between them is white
            assert (found[:, 3:5] == 255).all()
            found, wanted = np.delete(found, (3, 4), 1), np.delete(wanted, (3, 4), 1)
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "gray", "gray10le"])
@pytest.mark.parametrize("ending", ["mkv", "y4m"])
def test_a_video_in_gray_is_shown_in_colours_too(tmp_path, capsys, pix_fmt, ending):
    source = make_video(tmp_path / "in.mkv", moving(2), codec="ffv1", pix_fmt=pix_fmt)
    options = ("--codec", "ffv1", "--pix-fmt", "yuv444p") if ending == "mkv" and pix_fmt == "yuv420p" else ()
    ended = run(capsys, source, map_bundle(tmp_path / "bundle"), "-o", tmp_path / f"out.{ending}", "--heat", *options)
    assert "maps are written in gray" not in ended.err
    for before, shown in zip(read_frames(source), read_frames(tmp_path / f"out.{ending}"), strict=True):
        assert shown.shape == (48, 128, 3)
        assert np.abs(shown[:, 64:].astype(int) - heat_of(before)).mean() < 20
        assert np.ptp(shown[:, 64:].astype(int), 2).mean() > 50
        with av.open(str(tmp_path / f"out.{ending}")) as container:
            assert "gray" not in container.streams.video[0].format.name


@pytest.mark.parametrize("unit", [None, Unit("sigma", 7.5, -0.5), Unit("loss", -2.0, 1.0)])
def test_the_report_has_mean_and_95th_percentile_of_each_frame(tmp_path, capsys, unit):
    source = make_video(tmp_path / "in.mkv", moving(3), codec="ffv1", pix_fmt="bgr0", rate=Fraction(25))
    bundle, report = map_bundle(tmp_path / "bundle", unit), tmp_path / "r.json"
    run(capsys, source, bundle, "-o", tmp_path / "out", "--json", report)
    found = json.loads(report.read_text())["map"]
    assert found["unit"] == (unit and unit.name) and [each["time"] for each in found["frames"]] == [0, 0.04, 0.08]
    for told, picture in zip(found["frames"], moving(3), strict=True):
        values = np.sort((picture.astype(float).mean(2) / 255).ravel())
        if unit is not None:
            values = np.sort(np.maximum(0, unit.factor * values + unit.offset))
        assert told["mean"] == pytest.approx(values.mean(), abs=1e-3)
        assert told["p95"] == pytest.approx(values[round(0.95 * (values.size - 1))], abs=0.02)


def test_sigma_of_dmenet(tmp_path, capsys, dmenet):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "0.png", LARGER)
    run(capsys, tmp_path / "in", dmenet, "-o", tmp_path / "heat", "--heat", "--json", tmp_path / "r.json")
    values = reference(pad(LARGER, dmenet.interface.size) / 255, arrays(SMALL), SMALL["blocks"])[:18, :35]
    sigma = np.maximum(0, (15 * values - 1) / 2)
    (told,) = json.loads((tmp_path / "r.json").read_text())["map"]["frames"]
    assert told["mean"] == pytest.approx(sigma.mean(), abs=1e-3) and told["mean"] > 0.3
    assert told["p95"] == pytest.approx(np.percentile(sigma, 95), abs=1e-3)
    heat = read_picture(tmp_path / "heat" / "0.png")[:, 35:].astype(int)
    assert np.abs(heat - heat_picture(values, dmenet.interface.the("map"), 18, 35)).max() <= 8  # a colour of 256


def test_a_model_without_a_map_reports_none(tmp_path, capsys, mimo):
    (tmp_path / "in").mkdir()
    write_png(tmp_path / "in" / "0.png", PICTURE)
    run(capsys, tmp_path / "in", mimo, "-o", tmp_path / "out", "--json", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["map"] is None


def test_figures_of_a_frame():
    values = np.linspace(0, 1, 101, dtype=np.float16).reshape(1, 101)
    assert figures(values, MAP) == {"mean": pytest.approx(0.5, abs=1e-3), "p95": pytest.approx(0.95, abs=1e-3)}
    dark = Output(MAP.tensor, "map", unit=Unit("sigma", 7.5, -0.5))
    assert figures(np.zeros((2, 2), np.float32), dark) == {"mean": 0, "p95": 0}
