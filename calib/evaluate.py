"""The paper's evaluation: PSNR and SSIM of a model, and of its blurred input, on the test part of a data set.

Reads the data set and the model; `mtu.calib.evaluation` has the figures and writes them. Imports numpy and av; a
backend and scikit-image where they are used. Source: Son et al. 2022, section 4 and Tables 3, 4 and 7, and the script
`evaluation.m` that was released with it; docs/evaluation.md has what differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from mtu.calib.alignment import align
from mtu.calib.datasets import LAYOUTS, Layout, VideoPair, find_pairs, read_clip, sizes_of
from mtu.calib.evaluate_stills import Stills
from mtu.calib.evaluation import UNCOUNTED, Evaluation, FrameScore, Settings, begun, means
from mtu.calib.picture_sets import PICTURE_LAYOUTS, PictureLayout
from mtu.calib.quality import SMALLEST, Quality, measure
from mtu.calib.rollout import restored
from mtu.core.errors import InvalidInputError
from mtu.core.window import Picture
from mtu.export.engine_cache import cached_engine
from mtu.runtime.backends import Backend, Model, Stages, open_backend, open_model
from mtu.runtime.bundle import BUNDLED, Bundle
from mtu.runtime.chain import interface_of
from mtu.runtime.engine import Engine, file_digest


def evaluate(
    layout: Layout | PictureLayout,
    root: Path | str,
    model: Path | str | None = None,
    *,
    aligned: bool = False,
    backend: str = "auto",
    device: str = "auto",
    output: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Restores the test videos or pictures of the data set in `root` and measures them; `say` is told of each.

    `model`, `backend` and `device` as in `open_model` and `open_backend`; `aligned` measures after `align`. `output` is
    a folder that has the figures after each video, and is gone on with if it is there. Of each video a few frames are
    in memory at a time. Raises as `find_pairs`, `find_stills`, `open_model` and `open_backend`; InvalidInputError for
    frames that differ in size, are smaller than the window of SSIM or cannot be read; NonFiniteError; OutputError for a
    folder that cannot be written or holds something else.
    """
    if str(root) in (*LAYOUTS, *PICTURE_LAYOUTS) and not Path(root).exists():
        raise InvalidInputError(
            f"'{root}' is read as the folder, and there is none: --layout takes one data set, as in --layout {root} DIR"
        )
    opened = open_model(model)
    _check_pictures(opened)
    settings = Settings(layout, aligned, backend, device, _digest(opened), {})
    runs: Videos | Stills
    if layout in PICTURE_LAYOUTS:
        runs = Stills(layout, root, opened, settings)
    else:
        runs = Videos(cast(Layout, layout), root, opened, settings, say)
    for name, (height, width) in zip(runs.frames, runs.sizes, strict=True):
        if min(height, width) < SMALLEST:
            raise InvalidInputError(
                f"{runs.example(name)} is {width}x{height}: SSIM needs {SMALLEST}x{SMALLEST} pixels; use larger frames"
            )
    settings = replace(settings, videos=runs.frames)
    evaluation = begun(output, settings) or Evaluation(settings, Path(model or BUNDLED).name)

    def missing() -> Iterator[tuple[str, tuple[int, int], str]]:
        for number, (name, size) in enumerate(zip(runs.frames, runs.sizes, strict=True), 1):
            place = f"{name} ({number} of {len(runs.frames)})"
            if name in evaluation.videos:
                say(f"{place}: done before")
            else:
                yield name, size, place

    for size, group in itertools.groupby(missing(), key=lambda each: each[1]):
        with runs.opened(size) as scores_of:
            evaluation.preset = runs.preset
            evaluation.save(output)  # now, and not only after the first video, to see whether it can be
            for name, _, place in group:
                scores = list(scores_of(name))
                evaluation.videos[name] = scores
                evaluation.videos = {each: evaluation.videos[each] for each in runs.frames if each in evaluation.videos}
                evaluation.save(output)
                before, after = means(evaluation.counted(scores))
                done = "" if settings.is_of_pictures else f"{len(scores) - UNCOUNTED} of {len(scores)} frames count, "
                say(f"{place}: {done}{before.psnr:.2f} dB blurred, {after.psnr:.2f} dB restored")
    evaluation.save(output)
    return evaluation


ScoresOf = Callable[[str], Iterator[FrameScore]]
"""The scores of the frames of what has a name."""


class Videos:
    """The test videos of a data set, each restored as one sequence by a backend and measured in 8 bits."""

    def __init__(
        self, layout: Layout, root: Path | str, model: Model, settings: Settings, say: Callable[[str], None]
    ) -> None:
        """Raises as `find_pairs`; InvalidInputError for a model that reads several streams."""
        self._model, self._settings, self._say = model, settings, say
        streams = interface_of(model).streams
        if len(streams) > 1:
            raise InvalidInputError(
                f"model {model.directory} reads {len(streams)} streams ({', '.join(streams)}), and a video of {layout}"
                " is one: use --layout dpdd"
            )
        pairs = find_pairs(layout, root, "test", shortest=UNCOUNTED + 1, option="--layout {layout}")
        self._pairs = {pair.name: pair for pair in pairs}
        self.sizes = sizes_of(pairs)
        self.frames = {pair.name: len(pair.sharp) for pair in pairs}
        self.preset = ""

    def example(self, name: str) -> Path:
        """A blurred frame of a video."""
        return self._pairs[name].blurred[0]

    @contextlib.contextmanager
    def opened(self, size: tuple[int, int]) -> Iterator[ScoresOf]:
        """What measures videos of this size."""
        asked = self._settings
        running = open_backend(asked.backend, self._model, asked.device, size=size, build=cached_engine, say=self._say)
        with contextlib.closing(running):
            self.preset = running.interface.variant
            yield lambda name: _score(self._pairs[name], running, asked.align)


def _score(pair: VideoPair, backend: Backend, aligned: bool) -> Iterator[FrameScore]:
    """The frames of a video in order, restored as one sequence."""
    waiting: deque[tuple[Picture, Picture]] = deque()

    def blurred_frames() -> Iterator[Picture]:
        for index in range(len(pair.sharp)):
            blurred, sharp = (frames[0] for frames in read_clip(pair, index, 1))
            waiting.append((blurred, sharp))
            yield blurred

    for result in restored(backend, blurred_frames()):
        blurred, sharp = waiting.popleft()
        before, before_shift = _compare(blurred, sharp, aligned)
        after, after_shift = _compare(result.rgb, sharp, aligned)
        yield FrameScore(pair.blurred[result.index].name, before, after, before_shift, after_shift)


def _compare(picture: Picture, truth: Picture, aligned: bool) -> tuple[Quality, tuple[float, float]]:
    if not aligned:
        return measure(picture, truth), (0.0, 0.0)
    picture, truth, shift = align(picture, truth)
    return measure(picture, truth), shift


def _stages(model: Model) -> Sequence[Bundle | Engine]:
    return model.models if isinstance(model, Stages) else (model,)


def _check_pictures(model: Model) -> None:
    """Raises InvalidInputError unless the model gives pictures of the size of its frames."""
    interfaces = [each.interface for each in _stages(model)]
    scale = math.prod(interface.scale for interface in interfaces)
    if interfaces[-1].the("picture") is None or scale != 1:
        gives = f"pictures of {scale} times the size of a frame" if scale != 1 else "no pictures"
        raise InvalidInputError(
            f"model {model.directory} gives {gives}; the data sets have sharp pictures of the size of the blurred ones,"
            " and only such can be measured"
        )


def _digest(model: Model) -> str:
    """sha256 over the digests of the model's files, those of a chain stage by stage."""
    paths = [path for each in _stages(model) for path in each.files]
    return hashlib.sha256("".join(map(file_digest, paths)).encode()).hexdigest()
