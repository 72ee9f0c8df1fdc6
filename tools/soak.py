"""`make soak`: kills `mtu-run --resume` at random times, over and over, and compares what comes out with a run that
nobody kills: no frame may be lost, repeated or otherwise. Prints a line a round; exit code 1 if a file differs.

Writes a temporary directory alone.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

RUN = [sys.executable, "-c", "from mtu.runtime.cli import main\nmain()"]
SCENES, FRAMES, HEIGHT, WIDTH = 10, 24, 96, 160


def make_clip(path: Path) -> None:
    """Noise that moves, in scenes that differ."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "12", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for scene in range(SCENES):
            base = np.kron(rng.integers(0, 60, (20, 30, 3)), np.ones((8, 8, 1))).astype(np.uint8)
            for t in range(FRAMES):
                picture = base[t % 8 :, t % 16 :][:HEIGHT, :WIDTH] + 40 * (3 * scene % 5)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture, np.uint8), format="rgb24")
                out.mux(stream.encode(frame))
        out.mux(stream.encode())


def main() -> None:
    """Parses and soaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many runs are killed (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_clip(folder / "in.mp4")
        # With mbtree x264 may encode the same pictures otherwise from run to run.
        words = [*RUN, str(folder / "in.mp4"), "--no-progress", "-e", "x264-params=mbtree=0", "-o"]
        began = time.monotonic()
        subprocess.run([*words, str(folder / "plain.mp4")], check=True, stderr=subprocess.DEVNULL)
        lasts = time.monotonic() - began
        kills = rounds = 0
        while kills < asked.kills:
            rounds += 1
            target, here = folder / f"{rounds}.mp4", 0
            while not target.exists():
                process = subprocess.Popen([*words, str(target), "--resume"], stderr=subprocess.DEVNULL)
                try:
                    if process.wait(chance.uniform(0.2, 1.1) * lasts) != 0:
                        sys.exit(f"round {rounds}: a run that was not killed ended with {process.returncode}")
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                    here += 1
            kills += here
            same = target.read_bytes() == (folder / "plain.mp4").read_bytes()
            print(f"round {rounds}: {here} kills, {'the same' if same else 'OTHERWISE'}", flush=True)
            if not same:
                sys.exit(1)
        print(f"{kills} kills in {rounds} rounds: every file the same as without, byte for byte")


if __name__ == "__main__":
    main()
