"""PSNR and SSIM of pictures and clips against their sharp originals. Imports numpy; scikit-image where it measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError
from mtu.runtime import Picture

SMALLEST = 11
"""Side of the window of SSIM."""


@dataclass(frozen=True)
class Quality:
    """Measures of one frame against the truth; both grow with likeness."""

    psnr: float
    """dB over all pixels and channels, to the peak."""
    ssim: float
    """Structural similarity (Wang et al. 2004), mean over channels."""


def measure(picture: Picture, truth: Picture) -> Quality:
    """Compares two uint8 pictures [H, W, 3] of the same size; PSNR of equal pictures is infinite.

    The window of SSIM is Gaussian with sigma 1.5.
    """
    return Quality(psnr(picture, truth), _ssim(picture, truth)[0])


def _ssim(picture: Picture, truth: Picture) -> tuple[float, NDArray[np.float64]]:
    """Its mean, without the borders, and that of each value [H, W, 3]."""
    from skimage.metrics import structural_similarity

    mean, each = structural_similarity(
        truth, picture, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )
    return float(mean), each


def measure_floats(picture: NDArray[np.float32], truth: NDArray[np.float32]) -> Quality:
    """Compares two pictures in [0, 1], float32 [H, W, 3], not rounded: PSNR with peak 1, SSIM over even windows of 7x7
    with sample covariances, as the script released with IFAN does."""
    from skimage.metrics import structural_similarity

    error = float(np.mean(np.square(picture.astype(np.float64) - truth)))
    ssim = structural_similarity(truth, picture, channel_axis=2, data_range=1.0)
    return Quality(10 * math.log10(1 / error) if error else math.inf, float(ssim))


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


def for_json(measures: Any) -> dict[str, float | None]:
    """The numbers of a dataclass; an infinite one is None, for JSON has no such."""
    return {name: value if math.isfinite(value) else None for name, value in asdict(measures).items()}


class Part(NamedTuple):
    """A part of one frame of a video, in pixels."""

    frame: int
    top: int
    left: int
    height: int
    width: int


def most_gained(videos: Mapping[str, Sequence[Picture]]) -> Part:
    """Where restoring helped most: of all parts of all frames, a third as wide and as high, the one whose mean SSIM to
    "sharp" rises most from "blurred" to "restored"."""
    height, width = (-(-n // 3) for n in videos["sharp"][0].shape[:2])
    best, found = -math.inf, Part(0, 0, 0, height, width)
    for number, pictures in enumerate(zip(*(videos[name] for name in ("blurred", "restored", "sharp")), strict=True)):
        before, after = (_ssim(picture, pictures[2])[1] for picture in pictures[:2])
        sums = np.pad((after - before).mean(2).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        rose = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        if rose.max() > best:
            best, (top, left) = float(rose.max()), np.unravel_index(int(rose.argmax()), rose.shape)
            found = Part(number, int(top), int(left), height, width)
    return found


def comparison(videos: Mapping[str, Sequence[Picture]], part: Part) -> Picture:
    """A frame of each video side by side with their names, and below each the part, enlarged to the same width."""
    from PIL import Image, ImageDraw

    frame, top, left, height, width = part
    columns: list[NDArray[np.uint8]] = []
    for name, pictures in videos.items():
        whole = Image.fromarray(pictures[frame])
        large = whole.crop((left, top, left + width, top + height)).resize(whole.size, Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(whole)
        draw.rectangle((left, top, left + width - 1, top + height - 1), outline=(255, 255, 255))
        draw.rectangle((0, 0, 8 + 7 * len(name), 14), fill=(0, 0, 0))
        draw.text((4, 1), name, fill=(255, 255, 255))
        columns.append(np.concatenate((np.asarray(whole), np.asarray(large))))
    return np.concatenate(columns, axis=1)


def measure_restored(videos: Mapping[str, Sequence[Picture]]) -> dict[str, list[Quality]]:
    """The measures of the frames of "blurred" and of "restored" against those of "sharp".

    Raises InvalidInputError for videos of different lengths or sizes.
    """
    counts = {name: len(frames) for name, frames in videos.items()}
    if len(set(counts.values())) != 1 or not counts["sharp"]:
        raise InvalidInputError(f"the videos have different numbers of frames: {counts}")
    sizes = {name: frames[0].shape[:2] for name, frames in videos.items()}
    if len(set(sizes.values())) != 1 or min(sizes["sharp"]) < SMALLEST:
        said = ", ".join(f"{name} {width}x{height}" for name, (height, width) in sizes.items())
        raise InvalidInputError(f"the videos must have one size, at least {SMALLEST}x{SMALLEST}, and are: {said}")
    return {name: measure_clip(videos[name], videos["sharp"]) for name in ("blurred", "restored")}
