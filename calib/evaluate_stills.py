"""The evaluation of IFAN's authors: single pictures, measured in floats before they are rounded. Imports numpy and av.

Source: Lee et al. 2021 and the script that was released with it; docs/evaluation.md has what differs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from mtu.calib.evaluation import FrameScore, Settings
from mtu.calib.picture_sets import PictureLayout, Still, find_stills, sizes_of_stills
from mtu.calib.quality import measure_floats
from mtu.core.errors import InvalidInputError, MissingExtraError, some
from mtu.runtime.backends import Model, Stages, packages_missing
from mtu.runtime.bundle import Bundle
from mtu.runtime.chain import interface_of
from mtu.runtime.video.pictures.files import read_floats


class Stills:
    """The test pictures of a data set, each a sequence of its own."""

    def __init__(self, layout: PictureLayout, root: Path | str, model: Model, settings: Settings) -> None:
        """Raises as `find_stills`; InvalidInputError for what cannot be measured in floats."""
        stages = model.models if isinstance(model, Stages) else (model,)
        self._bundles = [each for each in stages if isinstance(each, Bundle)]
        if settings.align:
            raise InvalidInputError(
                f"--align is for videos: the pictures of {layout} are measured before they are rounded, and published"
                " so without alignment; leave it out"
            )
        if settings.backend not in ("auto", "onnxruntime") or len(self._bundles) < len(stages):
            what = "an engine" if len(self._bundles) < len(stages) else f"backend {settings.backend}"
            raise InvalidInputError(
                f"--layout {layout} measures pictures before they are rounded to 8 bits, which {what} does not give:"
                " give a bundle and leave --backend out (onnxruntime runs it)"
            )
        if missing := packages_missing("onnxruntime"):
            raise missing[0]
        try:
            import onnx  # noqa: F401
        except ImportError:
            raise MissingExtraError("onnx", "cpu", f"--layout {layout}") from None
        self._device = settings.device
        interface = interface_of(model)
        streams = stages[0].interface.streams
        stills = find_stills(layout, root, streams=streams)
        self._stills: dict[str, Still] = {still.name: still for still in stills}
        if len(self._stills) < len(stills):
            twice = [still.name for still in stills if self._stills[still.name] != still]
            raise InvalidInputError(f"{root} holds pictures twice, with different endings: {some(twice)}; keep one")
        self.sizes = sizes_of_stills(stills)
        self.frames = dict.fromkeys(self._stills, 1)
        self.preset = interface.variant
        self._image = streams[0]

    def example(self, name: str) -> Path:
        """The file of a blurred picture."""
        return self._stills[name].streams[self._image]

    @contextlib.contextmanager
    def opened(self, size: tuple[int, int]) -> Iterator[Callable[[str], Iterator[FrameScore]]]:
        """What measures pictures, of any size."""
        from mtu.calib.float_model import FloatModel

        model = FloatModel(self._bundles, self._device)

        def scores(name: str) -> Iterator[FrameScore]:
            still = self._stills[name]
            truth = read_floats(still.sharp)
            pictures = {stream: read_floats(path) for stream, path in still.streams.items()}
            blurred = pictures[self._image]
            restored = model.restore(name, pictures)
            yield FrameScore(self.example(name).name, measure_floats(blurred, truth), measure_floats(restored, truth))

        yield scores
