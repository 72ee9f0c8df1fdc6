"""Motion between the sharp frames of a clip, for data sets that do not know it. Imports OpenCV when used.

Sets OpenCV's number of threads to 1 in this process; reads and writes no files. Source of the method: Kroeger et al.
2016 (DIS flow), as in OpenCV. On made clips, whose motion is known, 93 to 97 % of the visible pixels get a motion at
256x256 (87 % at 128x128) and 99 % (98 %) of those are within 2 px; a frame of 256x256 takes about 20 ms (OpenCV 5.0).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError, MissingExtraError

SMALLEST = 8
"""Shortest side that the method takes, in pixels."""

TOLERANCE = 1.0
"""Pixels by which the way there and back may miss its start; more gives more hidden and wrong points a motion."""


def motion_between(sharp: NDArray[np.uint8]) -> NDArray[np.float16]:
    """(dy, dx) from each pixel of a frame to where the same point was in the frame before, `there = here + motion`.

    `sharp` is uint8 [T, H, W, 3] RGB, both sides at least 8; the result is float16 [T, H, W, 2] in pixels. It is NaN in
    frame 0, where the point was outside the frame, and where the way back does not lead to the start within `TOLERANCE`
    (hidden points, failures). A movement of the whole picture is followed as far as the frames overlap, other
    movements up to about a fifth of the shorter side. Raises InvalidInputError for other input and MissingExtraError
    without OpenCV.
    """
    try:
        import cv2
    except ImportError:
        raise MissingExtraError("opencv-python-headless", "train", "optical flow") from None
    if sharp.ndim != 4 or sharp.shape[3] != 3 or sharp.dtype != np.uint8 or min(sharp.shape[1:3]) < SMALLEST:
        raise InvalidInputError(
            f"frames are uint8 [T, H, W, 3], H and W at least {SMALLEST}, got {sharp.dtype} {list(sharp.shape)}"
        )
    # Its threads gain little on one clip; who wants more speed has a process for each core.
    cv2.setNumThreads(1)
    count, height, width = sharp.shape[:3]
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    # Half the resolution instead of a quarter, patches nearer to each other: twice the time for 4 % more pixels.
    flow.setFinestScale(1)
    flow.setPatchStride(3)
    window = cv2.createHanningWindow((width, height), cv2.CV_32F)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    motion = np.full((count, height, width, 2), np.nan, np.float16)
    luma = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in sharp]
    for t in range(1, count):
        here, before = luma[t], luma[t - 1]
        # Start from the movement of the whole picture, if there is one: small pictures are followed no further than
        # 20 px without. The response tells (0 to 1; near 0 for flat pictures and cuts).
        shift, response = cv2.phaseCorrelate(here.astype(np.float32), before.astype(np.float32), window)
        start = np.full((height, width, 2), shift if response > 0.1 else 0, np.float32)
        there, back = flow.calc(here, before, start.copy()), flow.calc(before, here, -start)
        to_x, to_y = x + there[..., 0], y + there[..., 1]
        returned = cv2.remap(back, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        found = np.hypot(*np.moveaxis(there + returned, -1, 0)) < TOLERANCE
        found &= (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
        motion[t][found] = there[found][:, ::-1]
    return motion
