"""Makes clips to look at or to try a network on: `python -m mtu.training.data.sample_clips -o DIR`.

Writes, for each seed, SEED-blurred.mp4 and SEED-sharp.mp4, and one clips.png of all: a row a clip, and from left to
right the middle frame blurred, sharp, and its motion in colours. Imports PyAV, torch and scikit-image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError, OutputError
from mtu.runtime.console import new_app, run_app
from mtu.runtime.motion_picture import motion_colours
from mtu.runtime.video import write_png
from mtu.training.data.clips import make_clip
from mtu.training.data.demo_clip import write_video
from mtu.training.data.textures import Split

FASTEST = 20.0
"""Motion in pixels a frame that gets the full colour."""

app = new_app()


def coloured(motion: NDArray[np.floating]) -> NDArray[np.uint8]:
    """`motion_colours` of `Clip.motion` [H, W, 2], full for `FASTEST` pixels or more; black where it is NaN."""
    known = np.isfinite(motion).all(-1)
    colours = motion_colours(*np.moveaxis(np.nan_to_num(motion.astype(np.float32)) / FASTEST, -1, 0))
    colours[~known] = 0
    return colours


@app.command()
def make(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the videos and clips.png.")],
    clips: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="The first clip's seed; the next ones follow.")] = 0,
    size: Annotated[int, typer.Option(min=16, help="Width and height in pixels, even.")] = 256,
    frames: Annotated[int, typer.Option(min=1, help="Frames a clip.")] = 24,
    split: Annotated[Split, typer.Option(help="Whose photographs and random numbers.")] = "train",
) -> None:
    """Makes sample clips of blurred and sharp frames."""
    if size % 2:
        raise InvalidInputError(f"--size {size}: H.264 in 4:2:0 wants an even size; take {size + 1}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out}: {error.strerror or error}") from None
    rows = []
    for number in range(seed, seed + clips):
        clip = make_clip(number, frames, size, size, split=split)
        write_video(out / f"{number}-blurred.mp4", clip.blurred)
        write_video(out / f"{number}-sharp.mp4", clip.sharp)
        middle = frames // 2
        rows.append(np.concatenate((clip.blurred[middle], clip.sharp[middle], coloured(clip.motion[middle])), 1))
    write_png(out / "clips.png", np.concatenate(rows))


def main() -> NoReturn:
    """Entry point."""
    run_app(app, "mtu.training.data.sample_clips")


if __name__ == "__main__":
    main()
