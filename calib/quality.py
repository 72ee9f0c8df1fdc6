"""PSNR and SSIM of a restored video against its sharp original, before and after. Imports numpy, scikit-image, av.

python -m mtu.calib.quality RESTORED --blurred B --sharp S [--picture P]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import numpy as np
import typer
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.core.extras import require
from mtu.runtime import Picture, read_frames
from mtu.runtime.console import new_app, run_app

PROGRAM = "mtu.calib.quality"
app = new_app()

SMALLEST = 11
"""Side of the window of SSIM."""


@dataclass(frozen=True)
class Quality:
    """Measures of one frame against the truth; both grow with likeness."""

    psnr: float
    """dB over all pixels and channels, peak 255."""
    ssim: float
    """Structural similarity, Gaussian window of sigma 1.5 (Wang et al. 2004), mean over channels."""


def measure(picture: Picture, truth: Picture) -> Quality:
    """Compares two uint8 pictures [H, W, 3] of the same size; PSNR of equal pictures is infinite."""
    from skimage.metrics import structural_similarity

    ssim = structural_similarity(
        truth, picture, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    return Quality(psnr(picture, truth), float(ssim))


def psnr(picture: Picture, truth: Picture) -> float:
    """PSNR in dB of two uint8 pictures of the same size; infinite for equal ones."""
    from skimage.metrics import peak_signal_noise_ratio

    with np.errstate(divide="ignore"):
        return float(peak_signal_noise_ratio(truth, picture))


def measure_clip(pictures: Sequence[Picture], truths: Sequence[Picture]) -> list[Quality]:
    """The measures of each frame of a clip; both have the same number of frames."""
    return [measure(picture, truth) for picture, truth in zip(pictures, truths, strict=True)]


def mean(qualities: Sequence[Quality]) -> Quality:
    """The mean of each measure."""
    return Quality(float(np.mean([q.psnr for q in qualities])), float(np.mean([q.ssim for q in qualities])))


def read_all(path: Path) -> list[Picture]:
    """All frames of a short video."""
    return list(read_frames(path))


def comparison(panels: dict[str, Picture], zoom: int = 2) -> Picture:
    """The panels side by side, each with its name and the middle of it enlarged below."""
    from PIL import Image, ImageDraw

    columns: list[NDArray[np.uint8]] = []
    for name, picture in panels.items():
        height, width = picture.shape[:2]
        crop = picture[height // 4 : height // 4 + height // zoom, width // 4 : width // 4 + width // zoom]
        large = crop.repeat(zoom, 0).repeat(zoom, 1)[:height, :width]
        canvas = Image.fromarray(np.concatenate((picture, large)))
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((0, 0, 8 + 7 * len(name), 14), fill=(0, 0, 0))
        draw.text((4, 1), name, fill=(255, 255, 255))
        columns.append(np.asarray(canvas))
    return np.concatenate(columns, axis=1)


@app.command()
def main_command(
    restored: Annotated[Path, typer.Argument(help="The video that mtu-run wrote.")],
    blurred: Annotated[Path, typer.Option(help="The video it was made from.")],
    sharp: Annotated[Path, typer.Option(help="The truth.")],
    picture: Annotated[
        Path | None, typer.Option(help="PNG to write: blurred, restored and sharp side by side.")
    ] = None,
) -> None:
    """Prints PSNR and SSIM before and after."""
    require("compare", PROGRAM, "skimage")
    from mtu.runtime.video import write_png

    videos = {"blurred": read_all(blurred), "restored": read_all(restored), "sharp": read_all(sharp)}
    counts = {name: len(frames) for name, frames in videos.items()}
    if len(set(counts.values())) != 1 or not counts["sharp"]:
        raise InvalidInputError(f"the videos have different numbers of frames: {counts}")
    sizes = {name: frames[0].shape[:2] for name, frames in videos.items()}
    if len(set(sizes.values())) != 1 or min(sizes["sharp"]) < SMALLEST:
        said = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sizes.items())
        raise InvalidInputError(f"the videos must have one size, at least {SMALLEST}x{SMALLEST}, and are: {said}")
    each = {name: measure_clip(videos[name], videos["sharp"]) for name in ("blurred", "restored")}
    before, after = mean(each["blurred"]), mean(each["restored"])
    print(f"{counts['sharp']} frames      PSNR        SSIM")
    print(f"blurred      {before.psnr:6.2f} dB   {before.ssim:.4f}")
    print(f"restored     {after.psnr:6.2f} dB   {after.ssim:.4f}")
    print(f"gain         {after.psnr - before.psnr:+6.2f} dB  {after.ssim - before.ssim:+.4f}")
    if picture is not None:
        gains = [b.psnr - a.psnr for a, b in zip(each["blurred"], each["restored"], strict=True)]
        best = int(np.argmax(gains))
        write_png(picture, comparison({name: frames[best] for name, frames in videos.items()}))
        print(f"comparison picture: {picture} (frame {best}, {gains[best]:+.2f} dB, the one that gained most)")


def main() -> NoReturn:
    """Entry point."""
    run_app(app, PROGRAM)


if __name__ == "__main__":
    main()
