"""A model on a Triton server, as `mtu-export triton` made it, and a stream of frames restored there.

Imports numpy; tritonclient (extra [triton]) inside `Server`.

with Server("gpu-box:8001") as server:
    stream = server.session()
    for frame in frames:  # uint8 [H, W, 3], RGB
        for restored in stream.push(frame): ...
    for restored in stream.flush(): ...

Note [requests under way]
    A frame is a request, and a stream sends a few before it asks for the answer of the first, so that the server has
    the next frame when it is done with one. All go through one connection and are answered in order. Between a client
    and a server on one machine the pixels lie in shared memory, which has a slot for each request under way.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

from mtu.core.errors import InvalidInputError, MtuError, some
from mtu.core.extras import require_for
from mtu.core.interface import Interface, Role
from mtu.core.window import Picture
from mtu.export.triton_files import CUT, INDEX, REDONE, as_text
from mtu.farm.shared_frames import SharedFrames
from mtu.runtime.engine import Sizes
from mtu.runtime.scenes import SCENE_THRESHOLD
from mtu.runtime.session import ROLES, Restored, Stream
from mtu.runtime.tiles import Sides

PORT = 8001
"""Triton's for gRPC."""
UNDER_WAY = 3
"""See Note [requests under way]."""
ANSWERS, ENDING = 10.0, 2.0
"""Seconds in which a server says what it serves, and is done with what is under way when a stream is given up."""


class Server:
    """A model of a server. It says of itself what a `Runner` says; `session` opens a stream. A context manager."""

    name = "triton"

    def __init__(self, address: str, *, shared_memory: bool | None = None) -> None:
        """`address` is HOST[:PORT][/MODEL]; without MODEL it is the only one of ours that is served there.
        `shared_memory` None: where the host is this machine.

        Raises InvalidInputError if the server does not answer or does not have the model; MissingExtraError.
        """
        require_for("mtu-run --server")
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what it would write is raised besides
        from tritonclient import grpc

        self.grpc = grpc
        self.host, self.model = _parse(address)
        self.client = grpc.InferenceServerClient(self.host)
        self._streams: list[RemoteStream] = []
        try:
            self.model, found = self._find()
        except BaseException:
            self.client.close()
            raise
        self.interface = Interface.from_dict(json.loads(found["interface"]), f"the model of server {address}")
        self.device = f"{self.host}/{self.model}"
        self.arithmetic = found["precision"] if found["precision"] in ("fp32", "bf16") else self.interface.arithmetic
        self.frame_size = Sizes.parse(found["frame_size"]) if found["frame_size"] else None
        self.most_frames = int(found["most_frames"])
        self.remarks: list[str] = []
        self.is_here = _is_here(self.host) if shared_memory is None else shared_memory

    def _find(self) -> tuple[str, dict[str, str]]:
        """The name of the model, and the parameters of its configuration."""
        here = f"server {self.host}"
        try:
            index = self.client.get_model_repository_index(client_timeout=ANSWERS).models
            states = {each.name: (each.state, each.reason) for each in index}
            if self.model and self.model not in states:
                raise InvalidInputError(f"{here} has no model {self.model}, it has {some(states) or 'none'}")
            found = {}
            for name, (state, reason) in states.items():
                if state == "READY" and self.model in ("", name):
                    config = self.client.get_model_config(name, client_timeout=ANSWERS).config
                    found[name] = {key: each.string_value for key, each in config.parameters.items()}
                elif name == self.model:
                    raise InvalidInputError(f"{here}: model {name} is not ready ({reason or state or 'not loaded'})")
        except self.grpc.InferenceServerException as error:
            raise InvalidInputError(
                f"{here} does not answer ({_reason(error)}): is tritonserver running there, and is this its port for"
                f" gRPC, {PORT} by default?"
            ) from None
        ours = {name: each for name, each in found.items() if {"interface", "most_frames", "frame_size"} <= set(each)}
        if len(ours) == 1:
            return next(iter(ours.items()))
        if ours:
            raise InvalidInputError(f"{here} has several models, {some(ours)}: say which one, {self.host}/NAME")
        if self.model:
            raise InvalidInputError(f"{here}: model {self.model} was not written by mtu-export triton")
        raise InvalidInputError(f"{here} has no model that is ready and was written by mtu-export triton")

    def session(
        self,
        *,
        scene_threshold: float | None = SCENE_THRESHOLD,
        strict: bool = False,
        roles: Sequence[Role] = ROLES,
    ) -> RemoteStream:
        """For one stream; the arguments are those of `Session`. `roles` are those of the outputs that are wanted, where
        the model gives them."""
        stream = RemoteStream(self, scene_threshold, strict, [role for role in roles if self.interface.the(role)])
        self._streams.append(stream)
        return stream

    def check_frame(self, height: int, width: int) -> None:
        """Raises InvalidInputError for a size of frames that is not served."""
        only, padded = self.frame_size, self.interface.size.padded(height, width)
        if only is not None and padded != (only.height, only.width):
            raise InvalidInputError(
                f"frames of {width}x{height}: server {self.device} has an engine for {only} only; serve one that was"
                " built for these"
            )

    def failed(self, error: Any) -> MtuError:
        """What to raise for an exception of tritonclient."""
        if any(word in str(error.status()) for word in ("UNAVAILABLE", "CANCELLED", "UNKNOWN")):
            return InvalidInputError(
                f"server {self.device} has gone ({_reason(error)}): start it, and this again from the beginning"
            )
        if "must specify the START flag" in error.message():
            return InvalidInputError(
                f"server {self.device} has dropped the stream, which sent nothing for longer than the server waits"
                " (--idle of mtu-export triton): start this again from the beginning"
            )
        return InvalidInputError(f"server {self.device}: {_reason(error)}")

    def end_streams(self) -> None:
        """Ends those that are open; they cannot be used any more."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()

    def close(self) -> None:
        """Ends the streams and the connection."""
        self.end_streams()
        self.client.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reason(error: Any) -> str:
    """Of an exception of tritonclient, what gRPC has wrapped in words of its own."""
    text: str = error.message().rpartition("last error: ")[2]
    return text.strip()[:300]


def _parse(address: str) -> tuple[str, str]:
    place, _, model = address.partition("/")
    if "://" in address or not place or "/" in model:
        raise InvalidInputError(f"--server {address}: write HOST:PORT, the port for gRPC, or HOST:PORT/NAME of a model")
    has_port = ":" in place.rpartition("]")[2]
    return place if has_port else f"{place}:{PORT}", model


def _is_here(host: str) -> bool:
    name = host.rpartition(":")[0].strip("[]")
    return name in ("localhost", "::1", socket.gethostname()) or name.startswith("127.")


class RemoteStream(Stream):
    """Restores one stream on a server; used as `Session`, which see. See Note [requests under way]."""

    def __init__(self, server: Server, scene_threshold: float | None, strict: bool, roles: Sequence[Role]) -> None:
        """Scene cuts are found there."""
        self._server, self._roles = server, roles
        self._how = {"scene_threshold": as_text(scene_threshold), "strict": strict}
        self._redone: list[int] = []
        self._seconds = 0.0
        self._client: Any = None
        self._memory: SharedFrames | None = None
        self._prepared: Sides | None = None
        self.notes: list[str] = []
        """What a user should know of the way that frames take."""
        super().__init__(server.interface.streams, None)

    @property
    def redone(self) -> list[int]:
        """See `Stream.redone`."""
        return self._redone

    @property
    def inference_seconds(self) -> float:
        """See `Stream.inference_seconds`: what was spent on the server, or waiting for it."""
        return self._seconds

    def reset(self) -> None:
        """See `Stream.reset`."""
        super().reset()
        self._hang_up()

    def prepare(self, height: int, width: int) -> None:
        """Makes ready for frames of this size; else the first frame does. Raises as `Server.check_frame`."""
        self._server.check_frame(height, width)
        self._drop_memory()
        self._prepared = height, width
        if not self._server.is_here:
            return
        picture = self._server.interface.the("picture")
        given = 0 if picture is None else self._server.most_frames * math.prod(picture.tensor.at(height, width))
        sent = len(self.streams) * height * width * 3
        try:
            self._memory = SharedFrames(self._server.client, UNDER_WAY, sent, given)
        except (OSError, self._server.grpc.InferenceServerException) as error:
            said = error if isinstance(error, OSError) else error.message()
            self.notes.append(f"frames go through the connection, for no memory can be shared with the server ({said})")

    def _push(self, frames: Mapping[str, Picture]) -> list[Restored]:
        began = time.perf_counter()
        size = next(iter(frames.values())).shape[:2]
        if self._client is None:
            if self._prepared != size:
                self.prepare(*size)
            self._dial()
        restored = [] if len(self._waiting) < UNDER_WAY else self._receive()
        self._send(frames)
        self._seconds += time.perf_counter() - began
        return restored

    def flush(self) -> list[Restored]:
        """See `Stream.flush`."""
        if self._client is None:
            return []
        began, restored = time.perf_counter(), []
        while len(self._waiting) >= UNDER_WAY:
            restored += self._receive()
        self._send(None)
        while self._waiting:
            restored += self._receive()
        self._hang_up()
        self._seconds += time.perf_counter() - began
        return restored

    def _dial(self) -> None:
        """Opens the connection for the scenes up to the next `flush`."""
        self._base = self._pushed - 1
        self._number = secrets.randbits(63) or 1
        self._answers: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        self._waiting: deque[int] = deque()  # slots
        self._sent, self._is_open = 0, False
        answers = self._answers
        self._client = self._server.grpc.InferenceServerClient(self._server.host)
        self._client.start_stream(lambda result, error: answers.put((result, error)))

    def _send(self, frames: Mapping[str, Picture] | None) -> None:
        """A frame of each stream, or that there are no more."""
        grpc, memory, slot = self._server.grpc, self._memory, self._sent % UNDER_WAY
        inputs = []
        for number, name in enumerate(self.streams):
            frame = np.ascontiguousarray(frames[name]) if frames else np.empty((0, 0, 3), np.uint8)
            inputs.append(grpc.InferInput(name, [1, *frame.shape], "UINT8"))
            if memory is None or frames is None:
                inputs[-1].set_data_from_numpy(frame[None])
            else:
                offset = memory.place(slot)[0] + number * frame.nbytes
                memory.array(offset, frame.shape, np.uint8)[:] = frame
                inputs[-1].set_shared_memory(memory.name, frame.nbytes, offset)
        outputs = [grpc.InferRequestedOutput(name) for name in (INDEX, CUT, REDONE, *self._roles)]
        if memory is not None and "picture" in self._roles:
            outputs[3 + self._roles.index("picture")].set_shared_memory(
                memory.name, memory.given, memory.place(slot)[1]
            )
        how = {} if self._sent else {"sequence_start": True, "parameters": self._how}
        try:
            self._client.async_stream_infer(
                self._server.model,
                inputs,
                outputs=outputs,
                sequence_id=self._number,
                sequence_end=frames is None,
                **how,
            )
        except grpc.InferenceServerException as error:
            if self._answers.empty():  # else the reason is there
                raise self._server.failed(error) from None
        self._waiting.append(slot)
        self._sent += 1
        self._is_open = frames is not None

    def _receive(self) -> list[Restored]:
        """The frames of the oldest answer that is missing."""
        result, error = self._answers.get()
        if error is not None:
            self._hang_up()
            raise self._server.failed(error)
        slot, base = self._waiting.popleft(), self._base
        self.cuts += [base + int(number) for number in result.as_numpy(CUT)[0]]
        self._redone += [base + int(number) for number in result.as_numpy(REDONE)[0]]
        given = {role: self._values(result, role, slot) for role in self._roles}
        return [
            # Copies: what is kept of a frame does not hold the memory of all.
            Restored(
                base + int(index), **{role: np.array(given[role][place]) if role in given else None for role in ROLES}
            )
            for place, index in enumerate(result.as_numpy(INDEX)[0])
        ]

    def _values(self, result: Any, role: Role, slot: int) -> Any:
        """What an answer gives for each of its frames."""
        if role == "picture" and self._memory is not None:
            shape = tuple(result.get_output(role).shape)[1:]
            return self._memory.array(self._memory.place(slot)[1], shape, np.uint8)
        return result.as_numpy(role)[0]

    def _hang_up(self) -> None:
        """Drops the connection. The server is told that no more frames come, or it would keep the stream a while."""
        if self._client is None:
            return
        try:
            with contextlib.suppress(Exception):  # whatever is wrong, it is over
                if self._is_open:
                    self._send(None)
                while self._waiting and self._answers.get(timeout=ENDING)[1] is None:
                    self._waiting.popleft()
        finally:
            client, self._client = self._client, None
            with contextlib.suppress(Exception):
                client.stop_stream(cancel_requests=True)
            client.close()

    def _drop_memory(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()

    def close(self) -> None:
        """Drops connection and memory. May be called twice."""
        self._hang_up()
        self._drop_memory()
        self._prepared = None
