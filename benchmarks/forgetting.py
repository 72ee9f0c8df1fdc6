"""`python -m mtu.benchmarks.forgetting [--model M]`: how fast a model forgets, for `mtu-farm --split-long`.

Clips are restored once as a whole and again from frames in their middle; after how many frames is a picture what it is
with all that came before? Prints a table: by frames of warm-up, the PSNR of one to the other. fp32, OpenVINO.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import mtu.calib
from mtu.calib.quality import psnr
from mtu.core.window import Picture
from mtu.runtime import open_backend, open_session, read_frames
from mtu.runtime.backends import Backend, open_model
from mtu.training.data.clips import make_clip

HEIGHT, WIDTH, FRAMES = 184, 320, 84
WARM_UPS = (0, 1, 2, 5, 10, 20, 40)
STARTS = (12, 25, 38)
PHOTOGRAPHS = ("astronaut", "coffee", "cat", "rocket")


def clips(made: int) -> Iterator[tuple[str, list[Picture]]]:
    """The demo, `made` clips of the training's kind that it has not seen, and photographs that pass by."""
    demo = Path(mtu.calib.__path__[0]) / "demo" / "blurred.mp4"
    yield "demo", [np.ascontiguousarray(frame[16 : 16 + HEIGHT, 32 : 32 + WIDTH]) for frame in read_frames(demo)]
    for seed in range(made):
        yield f"made {seed}", list(make_clip(seed, FRAMES, HEIGHT, WIDTH, split="validation").blurred)
    from skimage import data

    for number, name in enumerate(PHOTOGRAPHS):
        yield name, passing(getattr(data, name)(), 2 + 3 * number)


def passing(photograph: Picture, speed: int) -> list[Picture]:
    """A photograph, mirrored at its sides, that passes by at `speed` pixels a frame, blurred by half of that."""
    large = np.pad(photograph[:HEIGHT], ((0, 0), (0, speed * FRAMES + WIDTH), (0, 0)), "symmetric").astype(np.float32)
    shown = []
    for first in range(0, speed * FRAMES, speed):
        exposed = [large[:, first + k : first + k + WIDTH] for k in range(1 + speed // 2)]
        shown.append(np.ascontiguousarray(np.rint(np.mean(exposed, axis=0)).astype(np.uint8)))
    return shown


def restored(backend: Backend, frames: list[Picture]) -> list[Picture]:
    """All of one scene."""
    session = open_session(backend, scene_threshold=None)
    pictures = [each.rgb for frame in frames for each in session.push(frame)]
    return pictures + [each.rgb for each in session.flush()]


def compare(backend: Backend, frames: list[Picture]) -> Iterator[tuple[int, float]]:
    """Of each start and warm-up: the frames of the warm-up, and the PSNR of the picture after it."""
    whole, ahead = restored(backend, frames), backend.interface.look_ahead
    for start in STARTS:
        reached = [k for k in WARM_UPS if start + k + ahead < len(frames)]
        again = restored(backend, frames[start : start + reached[-1] + 1 + ahead])
        for warm_up in reached:
            yield warm_up, psnr(again[warm_up], whole[start + warm_up])


def main() -> None:
    """Parses, compares, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="default: the bundled weights")
    parser.add_argument("--made", type=int, default=6, help="how many made clips (default 6)")
    asked = parser.parse_args()
    found: dict[int, list[float]] = {warm_up: [] for warm_up in WARM_UPS}
    model = open_model(asked.model)
    backend = open_backend("openvino", model, "cpu", size=(HEIGHT, WIDTH), precision="fp32")
    with contextlib.closing(backend):
        for name, frames in clips(asked.made):
            results = list(compare(backend, frames))
            for warm_up, value in results:
                found[warm_up].append(value)
            said = {k: round(min(v for n, v in results if n == k), 1) for k, _ in results}
            print(f"{name}: {said}", flush=True)
    print(f"{backend.interface.variant}\n\n| warm-up, frames | worst | median | of |\n|---|---|---|---|")
    for warm_up, values in found.items():
        worst, median = (f"{v:.1f} dB" if np.isfinite(v) else "the same" for v in (min(values), np.median(values)))
        print(f"| {warm_up} | {worst} | {median} | {len(values)} |")


if __name__ == "__main__":
    main()
