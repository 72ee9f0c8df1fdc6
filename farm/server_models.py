"""What `mtu-run --server` has in place of the models of this machine. Imports numpy, and tritonclient as its client."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from mtu.core.errors import InvalidInputError
from mtu.core.window import check_streams
from mtu.farm.triton_client import Server
from mtu.runtime.job import Job
from mtu.runtime.opened import Models, Opened
from mtu.runtime.session import ROLES, Stream
from mtu.runtime.tiles import Sides

LOCAL = ("model", "backend", "device", "precision", "cuda_graph", "plugin_library", "where", "threshold", "resume")
"""Fields of a `Job` that are about a model on this machine."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Served(Opened):
    """On a server."""

    backend: Server
    frame: Sides

    def session(self, job: Job) -> Stream:
        """See `Opened`; one at a time."""
        server = self.backend
        server.end_streams()
        roles = [role for role in ROLES if role != "displacement" or job.save_motion is not None]
        stream = server.session(scene_threshold=job.scene_threshold, strict=job.strict, roles=roles)
        stream.prepare(*self.frame)
        self.notes.extend(stream.notes)
        return stream


class ServerModels(Models):
    """`Models` of runs whose frames a server restores."""

    def __init__(self, address: str, job: Job) -> None:
        """Raises InvalidInputError for options of `job` that are about a model on this machine, and as `Server`."""
        super().__init__()
        for field in dataclasses.fields(Job):
            if field.name in LOCAL and getattr(job, field.name) != field.default:
                option = "no-cuda-graph" if field.name == "cuda_graph" else field.name.replace("_", "-")
                raise InvalidInputError(
                    f"--{option} is for a model on this machine, and --server has its own: leave one out"
                )
        if job.tile not in ("auto", "off"):
            raise InvalidInputError("--tile is for a model on this machine, --server takes whole frames: leave one out")
        self._server = self._stack.enter_context(Server(address))

    def made_by(self, job: Job) -> list[str]:
        """See `Models.made_by`."""
        return [self._server.interface.digest, self._server.arithmetic]

    def open(self, job: Job, frame: Sides, say: Callable[[str], None]) -> Opened:
        """See `Models.open`."""
        check_streams(job.streams, self._server.interface)
        return _Served(backend=self._server, frame=frame)
