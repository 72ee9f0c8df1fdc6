"""What a run of `mtu-run` writes: pictures, maps, or maps in colours beside the frame; motion pictures and maps in
directories of their own. Imports numpy."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtu.core.errors import InvalidInputError, OutputError
from mtu.core.interface import Interface, Output
from mtu.core.window import Picture
from mtu.runtime.compare import Comparison, compared_size, compose
from mtu.runtime.gate import Gate
from mtu.runtime.maps import figures, heat_picture
from mtu.runtime.motion_picture import motion_picture
from mtu.runtime.session import Restored
from mtu.runtime.video import EncodeOptions, Frame, SourceInfo, Writer, open_writer

if TYPE_CHECKING:
    from mtu.runtime.job import Job


@dataclass(frozen=True)
class Shown:
    """A frame and what became of it, on the way to the writer."""

    source: Frame
    result: Restored


class Outputs:
    """Everything that a run writes: what the model gives, and beside it motion pictures and maps, if asked for.

    A context manager; leaving it without `commit` removes what was written.
    """

    def __init__(self, job: Job, source: SourceInfo, interface: Interface, gate: Gate | None) -> None:
        """`gate` is that of the model, if it has one. Raises InvalidInputError for what the model does not give, and as
        `open_writer`."""
        self._gate = gate
        self._compare: Comparison | None = job.compare or ("side-by-side" if job.heat else None)
        self._turn = source.display_matrix
        self._map, self._motion = interface.the("map"), interface.the("displacement")
        self._shows = "heat" if job.heat else "picture" if interface.the("picture") else "map"
        self.map_figures: list[dict[str, float]] = []
        """Of each frame so far, for a model that gives maps: its time in seconds, what `figures` says, and with a gate
        which share is `restored`."""
        if job.compare is not None and self._shows == "map":
            raise InvalidInputError(
                f"--compare: the model {interface.variant} gives a map, no picture; leave it out, or show the map in"
                " colours with --heat"
            )
        for option, wanted, given, what in (
            ("--heat", job.heat, self._map, "gives no map"),
            ("--save-motion", job.save_motion, self._motion, "estimates no motion"),
            ("--save-maps", job.save_maps, self._map, "gives no map"),
        ):
            if wanted and given is None:
                raise InvalidInputError(
                    f"{option}: the model {interface.variant} {what}; leave it out, or use a model that does"
                )
        shown = shown_size(interface.the("picture") or self._map, source)
        if self._shows == "heat":
            shown = (source.height, source.width)
        height, width = compared_size(*shown, self._compare, self._turn)
        with contextlib.ExitStack() as stack:
            self.writer = stack.enter_context(
                open_writer(
                    job.target,
                    _in_colour(source) if self._shows == "heat" else source,
                    width=width,
                    height=height,
                    options=job.encode,
                    overwrite=job.overwrite,
                    maps=self._shows == "map",
                )
            )
            self._motion_writer = self._map_writer = None
            if job.save_motion is not None:
                self._motion_writer = stack.enter_context(_open_beside("--save-motion", job.save_motion, job, source))
            if job.save_maps is not None:
                size = shown_size(self._map, source)
                self._map_writer = stack.enter_context(_open_beside("--save-maps", job.save_maps, job, source, size))
            self._stack = stack.pop_all()

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, item: Any) -> None:
        """Writes a `Shown` frame, or copies a packet of another stream."""
        if not isinstance(item, Shown):
            self.writer.copy(item)
            return
        source, result = item.source, item.result
        if self._map is not None:
            seconds = round(float(source.pts * source.time_base), 6)
            self.map_figures.append({"time": seconds, **figures(_map(result), self._map)})
            if self._gate is not None:
                self.map_figures[-1]["restored"] = round(self._gate.share(_map(result)), 4)
        if self._shows == "map":
            self.writer.write(_map(result), source)
        else:
            self.writer.write(compose(source.rgb, self._after(source, result), self._compare, self._turn), source)
        if self._motion_writer is not None and self._motion is not None and result.displacement is not None:
            size = source.rgb.shape[:2]
            self._motion_writer.write(motion_picture(result.displacement, self._motion, *size), source)
        if self._map_writer is not None:
            self._map_writer.write(_map(result), source)

    def _after(self, source: Frame, result: Restored) -> Picture:
        """The picture that is shown, alone or beside the frame."""
        if self._shows == "picture":
            return result.rgb
        assert self._map is not None
        return heat_picture(_map(result), self._map, *source.rgb.shape[:2])

    def commit(self) -> None:
        """Gives everything its name."""
        for writer in (self.writer, self._motion_writer, self._map_writer):
            if writer is not None:
                writer.commit()


def _map(result: Restored) -> NDArray[np.float32]:
    assert result.map is not None
    return result.map.astype(np.float32, copy=False)


def shown_size(output: Output | None, source: SourceInfo) -> tuple[int, int]:
    """Height and width of an output of the model for the frames of the source."""
    assert output is not None, "every model gives a picture or a map"
    height, width = output.tensor.at(source.height, source.width)[1:3]
    return height, width


def _in_colour(source: SourceInfo) -> SourceInfo:
    """`source` for a writer that would else choose gray because the source is."""
    return replace(source, pix_fmt="yuv420p") if source.pix_fmt.startswith(("gray", "ya")) else source


def _open_beside(
    option: str, directory: Path, job: Job, source: SourceInfo, map_size: tuple[int, int] | None = None
) -> Writer:
    """A directory of colour pictures, or of .npy files of maps of `map_size`. Raises OutputError if it and the output
    lie in each other."""
    whole, other = Path(job.target).resolve(), directory.resolve()
    if job.target != "-" and (whole == other or whole in other.parents or other in whole.parents):
        raise OutputError(f"{option} {directory} and the output {job.target} lie in each other: separate them")
    height, width = map_size or (None, None)
    return open_writer(
        f"{directory}/",
        source,
        width=width,
        height=height,
        options=EncodeOptions(picture_format="npy") if map_size else None,
        overwrite=job.overwrite,
        copy_streams=False,
        maps=map_size is not None,
    )
