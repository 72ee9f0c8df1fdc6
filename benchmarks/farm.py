"""`python -m mtu.benchmarks.farm`: what mtu-farm costs beside restoring, and how evenly its units spread.

Measures, on a film that it makes: planning against restoring, the start of a unit (from being given out to its first
frame being restored, with the model open), and how long units are. From these it simulates 16 workers with films of
other lengths. OpenVINO or what `auto` is here; the film is 320x184, so on larger frames the share of planning is less.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import av
import numpy as np

from mtu.farm.films import Restoring
from mtu.farm.plan import packed
from mtu.farm.planning import jobs_of, plan_film
from mtu.runtime.scene_store import SceneWriter

HEIGHT, WIDTH = 184, 320
WORKERS = 16
UNITS = (60, 120, 240, 480, 960)
HOURS = (0.25, 0.5, 2.0, 10.0)
FPS = 24


def scene_lengths(hours: float, seed: int = 0) -> list[int]:
    """Frames of the scenes of a film: 5 s on average, half of them under 3.5 s, some a minute (log-normal)."""
    chance, left, found = random.Random(seed), round(hours * 3600 * FPS), []
    while left > 0:
        found.append(min(left, max(8, round(FPS * chance.lognormvariate(np.log(3.5), 0.85)))))
        left -= found[-1]
    return found


def balance(seconds: Sequence[float], workers: int) -> float:
    """How busy workers are on average until the last one ends, when each takes the next unit as it is free; 0 to 1."""
    free = [0.0] * workers
    for each in seconds:
        first = min(range(workers), key=free.__getitem__)
        free[first] += each
    return sum(free) / workers / max(free)


def simulate(frame: float, start: float) -> list[tuple[float, int, int, float, float]]:
    """Of each length of film and unit: hours, frames of a unit, units, balance in order and with the longest first."""
    table = []
    for hours in HOURS:
        scenes = scene_lengths(hours)
        for least in UNITS:
            units = [start + frame * sum(scenes[first:end]) for first, end in packed(scenes, least)]
            ordered = balance(units, WORKERS)
            table.append((hours, least, len(units), ordered, balance(sorted(units, reverse=True), WORKERS)))
    return table


def make_film(path: Path, scenes: int, frames: int) -> None:
    """Noise that moves, in scenes that differ."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"crf": "14"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for scene in range(scenes):
            base = np.kron(rng.integers(0, 120, (HEIGHT // 8 + 1, WIDTH // 8 + 2, 3)), np.ones((8, 8, 1)))
            for t in range(frames):
                picture = np.uint8(base[t % 8 :, t % 16 :][:HEIGHT, :WIDTH] + 40 * (3 * scene % 5))
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(stream.encode())


def measure(folder: Path, scenes: int, frames: int) -> tuple[float, float, list[float]]:
    """Seconds of a frame to plan, of a frame to restore, and of the start of each unit but the first."""
    make_film(folder / "in.mp4", scenes, frames)
    (job,) = jobs_of([str(folder / "in.mp4")], str(folder / "out"), "")
    began = time.perf_counter()
    film = plan_film(job, frames)
    planning = (time.perf_counter() - began) / film.plan.frames
    restoring, begun = Restoring([film].__getitem__, 1), [0.0]
    starts: list[float] = []
    seconds: list[float] = []
    real = SceneWriter.add_source

    def add_source(scene: SceneWriter, digest: str) -> None:
        if len(starts) == len(seconds):  # of the unit that is restored
            starts.append(time.perf_counter() - begun[0])  # the first frame is decoded, and goes into the model now
        real(scene, digest)

    with mock.patch.object(SceneWriter, "add_source", add_source):
        for unit in range(len(film.plan.units)):
            begun[0] = time.perf_counter()
            restoring(0, unit)
            seconds.append(time.perf_counter() - begun[0])
    lasts = (sum(scene.frames for scene in film.plan.scenes_of(unit)) for unit in range(len(seconds)))
    each = [(whole - start) / count for whole, start, count in zip(seconds, starts, lasts, strict=True)]
    return planning, statistics.median(each[1:]), starts[1:]


def main() -> None:
    """Parses, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--frames", type=int, default=48, help="of a scene")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        planning, frame, starts = measure(Path(name), asked.scenes, asked.frames)
    start = statistics.median(starts)
    print(f"planning: {1000 * planning:.1f} ms a frame, {planning / frame:.1%} of restoring ({1000 * frame:.0f} ms)")
    print(f"start of a unit, after the first: median {start:.3f} s, at most {max(starts):.3f} s")
    print(f"balance of {WORKERS} workers, simulated: film, frames of a unit, units; in order; the longest first")
    for hours, least, units, ordered, longest in simulate(frame, start):
        print(f"| {hours:g} h | {least} | {units} | {ordered:.1%} | {longest:.1%} |")


if __name__ == "__main__":
    main()
