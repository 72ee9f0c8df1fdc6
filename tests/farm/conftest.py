"""Fixtures of the tests of mtu-farm."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil

import pytest
from tests.farm.made_films import in_process, jobs, make_films, spread_here

from mtu.farm import engine
from mtu.farm import films as module
from mtu.farm.planning import plan_film
from mtu.runtime.job import run_job


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    """A folder with a model, two films, and what mtu-run makes of them."""
    folder = tmp_path_factory.mktemp("films")
    make_films(folder)
    for job in jobs(folder, "expected"):
        (folder / "expected").mkdir(exist_ok=True)
        run_job(dataclasses.replace(job, resume=False))
    return folder


@pytest.fixture
def alone(films, tmp_path):
    """A film and its model in a folder of its own."""
    shutil.copy(films / "a.mp4", tmp_path / "a.mp4")
    shutil.copytree(films / "model", tmp_path / "model")
    return tmp_path


@pytest.fixture
def ready(alone):
    """A film that is restored, not joined, in a folder of its own."""
    (planned,) = [plan_film(job, 20) for job in jobs(alone, "out", ["a.mp4"])]
    in_process([planned])
    return planned


@pytest.fixture
def no_ray(monkeypatch):
    """Workers are in this process, and take turns."""
    monkeypatch.setattr(module, "share_cores", lambda count: None)
    monkeypatch.setattr(module, "spread", spread_here())
    monkeypatch.setattr(engine, "cluster", lambda workers: contextlib.nullcontext())
