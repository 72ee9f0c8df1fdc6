"""`python -m mtu.training.data.clips_cli samples|demo -o DIR`: parses, makes clips, writes them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mtu.core.errors import InvalidInputError
from mtu.runtime.console import new_app, run_app, say
from mtu.training.data.textures import Split

PROGRAM = "mtu.training.data.clips_cli"
app = new_app()
OutputOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the videos.")]


@app.command()
def samples(
    out: OutputOption,
    clips: Annotated[int, typer.Option(min=1, help="How many.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="The first clip's seed; the next ones follow.")] = 0,
    size: Annotated[int, typer.Option(min=16, help="Width and height in pixels, even.")] = 256,
    frames: Annotated[int, typer.Option(min=1, help="Frames a clip.")] = 24,
    split: Annotated[Split, typer.Option(help="Whose pictures and random numbers.")] = "train",
    photos: Annotated[Path | None, typer.Option(metavar="DIR", help="Photographs, as mtu-train's photos:DIR.")] = None,
    videos: Annotated[Path | None, typer.Option(metavar="DIR", help="Sharp footage, as its videos:DIR.")] = None,
) -> None:
    """Makes clips to look at or to try a network on: SEED-blurred.mp4, SEED-sharp.mp4, and clips.png of all."""
    from mtu.training.data.footage import find_footage
    from mtu.training.data.material import Material, made_clip
    from mtu.training.data.photographs import find_photographs
    from mtu.training.data.samples import write_samples

    if size % 2:
        raise InvalidInputError(f"--size {size}: H.264 in 4:2:0 wants an even size; take {size + 1}")
    if photos and videos:
        raise InvalidInputError("--photos and --videos: clips are made of one or the other; give one")
    material: Material = None
    if videos:
        material = find_footage(videos, split, frames, size, partial(say, PROGRAM))
    elif photos:
        material = find_photographs(photos, split, partial(say, PROGRAM))
    seeds = range(seed, seed + clips)
    write_samples(out, ((str(each), made_clip(each, frames, size, split, material)) for each in seeds))


@app.command()
def demo(out: OutputOption) -> None:
    """Makes the clip of the demo, calib/demo: blurred.mp4 and sharp.mp4."""
    from mtu.training.data.demo_clip import demo_clip
    from mtu.training.data.samples import write_clip

    write_clip(out, demo_clip())


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
