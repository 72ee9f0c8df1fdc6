"""Clips as files, to look at or to try a network on. Imports PyAV where it writes a video."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import OutputError
from mtu.runtime.motion_picture import motion_colours
from mtu.runtime.video import write_png
from mtu.training.data.scene import Clip

CRF = "9"
FASTEST = 20.0
"""Motion in pixels a frame that gets the full colour."""


def write_samples(folder: Path, clips: Iterable[tuple[str, Clip]]) -> None:
    """Writes NAME-blurred.mp4 and NAME-sharp.mp4 of each named clip, and clips.png of all.

    Its rows are the clips: the middle frame blurred, sharp, and its motion in colours. Raises OutputError.
    """
    rows = []
    for name, clip in clips:
        write_clip(folder, clip, f"{name}-")
        middle = len(clip.sharp) // 2
        rows.append(np.concatenate((clip.blurred[middle], clip.sharp[middle], coloured(clip.motion[middle])), 1))
    write_png(folder / "clips.png", np.concatenate(rows))


def write_clip(folder: Path, clip: Clip, prefix: str = "") -> None:
    """Writes blurred.mp4 and sharp.mp4 at 24 frames a second, `prefix` before their names. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from None
    _write_video(folder / f"{prefix}blurred.mp4", clip.blurred)
    _write_video(folder / f"{prefix}sharp.mp4", clip.sharp)


def _write_video(path: Path, frames: NDArray[np.uint8]) -> None:
    """Writes uint8 RGB frames [T, H, W, 3] as H.264, yuv420p, BT.709, TV range. Raises OutputError if that fails."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    try:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", 24, options={"crf": CRF, "preset": "slow", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
            context = stream.codec_context
            context.color_primaries = context.color_trc = context.colorspace = 1
            context.color_range = ColorRange.MPEG
            for picture in frames:
                rgb = av.VideoFrame.from_ndarray(picture, "rgb24")
                frame = rgb.reformat(
                    format="yuv420p",
                    src_color_range=ColorRange.JPEG,
                    dst_color_range=ColorRange.MPEG,
                    dst_colorspace=Colorspace.ITU709,
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (OSError, av.FFmpegError) as error:
        raise OutputError(f"cannot write {path}: {error}") from None


def coloured(motion: NDArray[np.floating]) -> NDArray[np.uint8]:
    """`motion_colours` of `Clip.motion` [H, W, 2], full for `FASTEST` pixels or more; black where it is NaN."""
    known = np.isfinite(motion).all(-1)
    colours = motion_colours(*np.moveaxis(np.nan_to_num(motion.astype(np.float32)) / FASTEST, -1, 0))
    colours[~known] = 0
    return colours
