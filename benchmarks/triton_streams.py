"""Several streams through a Triton server, against the same streams one after the other in this process; in turns.

python -m mtu.benchmarks.triton_streams HOST:PORT/MODEL --size 640x360 --streams 3 --frames 40

The server runs on this machine, with the model that is given here, and computes on what the process would; neither has
anything to do while the other works. Prints frames a second, their ratio, and how long a frame takes from `push` to its
picture, with the frames after it that it waits for. A warm-up is not counted. Imports numpy and tritonclient.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtu.core.window import Picture
from mtu.farm.triton_client import Server
from mtu.runtime.backends import open_backend, open_model
from mtu.runtime.chain import open_session
from mtu.runtime.engine import Sizes
from mtu.runtime.session import Stream


def through(stream: Stream, frames: Sequence[Picture], waits: list[float]) -> None:
    """All frames through a stream; adds the seconds from `push` to the picture to `waits`."""
    begun: list[float] = []
    first = None
    for number in range(len(frames) + 1):
        begun.append(time.perf_counter())
        restored = stream.push(frames[number]) if number < len(frames) else stream.flush()
        for each in restored:
            first = each.index if first is None else first
            waits.append(time.perf_counter() - begun[each.index - first])


def together(streams: Sequence[Stream], clips: Sequence[Sequence[Picture]], waits: list[float]) -> None:
    """A clip through each stream, at the same time."""
    threads = [
        threading.Thread(target=through, args=(stream, frames, waits))
        for stream, frames in zip(streams, clips, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("server", metavar="HOST:PORT/MODEL")
    parser.add_argument("--model", type=Path, help="the one that is served there; mtu2 where none is given")
    parser.add_argument("--size", type=Sizes.parse, default=Sizes(360, 640))
    parser.add_argument("--streams", type=int, default=3)
    parser.add_argument("--frames", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    height, width = asked.size.height, asked.size.width
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (asked.streams, height // 8 + 2, width // 8 + 2 + asked.frames, 3), np.uint8)
    large = coarse.repeat(8, 1).repeat(8, 2)
    clips = [
        [np.ascontiguousarray(each[:height, 3 * number : 3 * number + width]) for number in range(asked.frames)]
        for each in large
    ]
    here: list[float] = []
    there: list[float] = []
    waits_here: list[float] = []
    waits_there: list[float] = []
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(
            contextlib.closing(open_backend("auto", open_model(asked.model), size=(height, width)))
        )
        server = stack.enter_context(Server(asked.server))
        streams = [server.session() for _ in clips]
        for number in range(asked.rounds + 1):
            began = time.perf_counter()
            for frames in clips:
                through(open_session(backend), frames, waits_here)
            middle = time.perf_counter()
            together(streams, clips, waits_there)
            if number == 0:
                waits_here.clear()
                waits_there.clear()
            else:
                here.append(middle - began)
                there.append(time.perf_counter() - middle)
        notes = [note for stream in streams for note in stream.notes]
    count = asked.streams * asked.frames
    print(f"{asked.streams} streams of {asked.size}, {asked.frames} frames each, {backend.name} {backend.device}")
    for name, seconds, waits in (("in process", here, waits_here), ("server", there, waits_there)):
        rate, late = count / statistics.median(seconds), np.percentile(waits, (50, 95))
        print(f"{name}: {rate:.2f} frames/s; a frame takes {late[0] * 1e3:.0f} ms, p95 {late[1] * 1e3:.0f} ms")
    ratios = [before / after for before, after in zip(here, there, strict=True)]
    print(f"server / in process: {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    for note in notes:
        print(f"note: {note}")


if __name__ == "__main__":
    main()
