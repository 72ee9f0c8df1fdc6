"""`make soak`: kills `mtu-run --resume`, and the workers and the driver of `mtu-farm run`, at random times, over and
over, and compares what comes out with a run that nobody kills: no frame may be lost, repeated or otherwise. Prints a
line a round; exit code 1 if a file differs.

Writes a temporary directory alone. Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

RUN = [sys.executable, "-c", "from mtu.runtime.cli import main\nmain()"]
FARM = [sys.executable, "-c", "from mtu.farm.cli import main\nmain()"]
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


def workers_of(driver: int) -> list[int]:
    """Processes under a driver that restore."""
    children: dict[int, list[int]] = {}
    names: dict[int, bytes] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(entry.name)
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(pid)
            names[pid] = (entry / "cmdline").read_bytes()
    found, under = [], [driver]
    while under:
        under += children.get(pid := under.pop(), [])
        if names.get(pid, b"").startswith(b"ray::") and b"_Worker" in names[pid]:
            found.append(pid)
    return found


class Soak:
    """Runs that are killed, against one that is not."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self._folder, self._chance = folder, chance
        make_clip(folder / "in.mp4")
        # With mbtree x264 may encode the same pictures otherwise from run to run.
        self._words = [str(folder / "in.mp4"), "--no-progress", "-e", "x264-params=mbtree=0", "-o"]
        (folder / "plain").mkdir()
        began = time.monotonic()
        subprocess.run([*RUN, *self._words, str(folder / "plain" / "in.mp4")], check=True, stderr=subprocess.DEVNULL)
        self._lasts = time.monotonic() - began

    def compare(self, name: str, target: Path, kills: str) -> None:
        """Ends all if a file differs."""
        same = target.read_bytes() == (self._folder / "plain" / "in.mp4").read_bytes()
        print(f"{name}: {kills}, {'the same' if same else 'OTHERWISE'}", flush=True)
        if not same:
            sys.exit(1)

    def run(self, number: int) -> int:
        """`mtu-run --resume`, killed until it is through; returns how often."""
        target, kills = self._folder / f"{number}.mp4", 0
        while not target.exists():
            process = subprocess.Popen([*RUN, *self._words, str(target), "--resume"], stderr=subprocess.DEVNULL)
            try:
                if process.wait(self._chance.uniform(0.2, 1.1) * self._lasts) != 0:
                    sys.exit(f"a run that was not killed ended with {process.returncode}")
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        self.compare("mtu-run", target, f"{kills} kills")
        return kills

    def farm(self, number: int) -> int:
        """`mtu-farm run` with two workers; one of these or the driver is killed until all is done."""
        target = self._folder / f"farm{number}" / "in.mp4"
        command = [*FARM, "run", *self._words, str(target.parent), "--workers", "2", "--unit", "30"]
        killed = {"worker": 0, "driver": 0}
        while not target.exists():
            said = (self._folder / "said").open("w+")
            process = subprocess.Popen(command, stderr=said, start_new_session=True)
            restored = -1
            while process.poll() is None:
                if restored >= (now := len(list(target.parent.glob(".in.mp4.resume/0*.json")))):
                    time.sleep(0.05)  # a worker that has just begun would be killed for ever
                    continue
                restored = now
                time.sleep(self._chance.uniform(0, 0.2) * self._lasts)
                workers = workers_of(process.pid)
                if workers and self._chance.random() < 0.7:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._chance.choice(workers), signal.SIGKILL)
                        killed["worker"] += 1
                elif workers and process.poll() is None:
                    process.kill()
                    process.wait()
                    killed["driver"] += 1
            # 4: every worker was killed that took a unit. What was restored is kept.
            if process.returncode not in (0, 4, -signal.SIGKILL):
                said.seek(0)
                sys.exit(f"mtu-farm ended with {process.returncode}: {said.read()}")
            said.close()
        self.compare("mtu-farm", target, f"{killed['worker']} kills of workers, {killed['driver']} of the driver")
        return sum(killed.values())


def main() -> None:
    """Parses and soaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="how many runs are killed of each command (default 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["run", "farm"], help="one of the commands; default: both")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        soak = Soak(Path(name), random.Random(asked.seed))
        for command in ("run", "farm") if asked.only is None else (asked.only,):
            kills = rounds = 0
            while kills < asked.kills:
                rounds += 1
                kills += getattr(soak, command)(rounds)
            print(f"mtu-{command}: {kills} kills in {rounds} rounds: every file the same as without, byte for byte")


if __name__ == "__main__":
    main()
