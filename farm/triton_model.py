"""What Triton's Python backend runs: `mtu.farm.streams` over the model that lies beside the script.

`mtu-export triton` writes that script, which imports the class here. Imports `triton_python_backend_utils`, which the
server brings, and what the backend needs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from mtu.core.errors import InvalidInputError, MtuError
from mtu.export.triton_files import COPY, CUT, INDEX, REDONE, Serving, read_threshold
from mtu.farm.streams import Answer, Asked, Streams
from mtu.runtime.backends import open_backend, open_model
from mtu.runtime.engine import Sizes
from mtu.runtime.session import ROLES

METRICS = {
    "frames": "Frames restored",
    "seconds": "Of all frames restored, the seconds from a frame's request to the answer that has it",
    "computing": "Seconds spent on requests",
    "batches": "How often requests came, alone or several streams together",
    "cuts": "Scene cuts found",
    "redone": "Frames restored without memory, because the model gave values that are not finite",
    "errors": "Streams ended by an error",
    "dropped": "Streams dropped because they were idle for too long",
}
"""Of `Figures`, on the server's page of metrics: mtu_frames_total and so on; mtu_streams is how many are open."""


class TritonPythonModel:
    """The interface that Triton's Python backend asks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the model. An exception makes Triton refuse it, with its message in the log."""
        config = json.loads(args["model_config"])
        serving = Serving.read(config)
        directory = Path(args["model_repository"]) / args["model_version"] / COPY
        model = open_model(directory)
        text = config["parameters"].get("frame_size", {}).get("string_value", "")
        size = Sizes.parse(text) if text else None
        self._backend = open_backend(
            serving.backend,
            model,
            serving.device,
            size=None if size is None else (size.height, size.width),
            precision=serving.precision,
            streams=serving.max_streams,
            say=lambda text: pb_utils.Logger.log_info(f"mtu: {text}"),
        )
        self._scene_threshold = serving.scene_threshold
        self._outputs = [
            (role, found.tensor) for role in ROLES if (found := self._backend.interface.the(role)) is not None
        ]
        # Triton drops a stream first, so that none is dropped here that may still be asked for.
        self._streams = Streams(
            self._backend,
            max_batch=serving.max_batch,
            idle=2 * serving.idle,
            frame_size=None if size is None else (size.height, size.width),
        )
        self._metrics = _Metrics(args["model_name"], self._streams)
        self._ended = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, args=(serving.idle,), name="mtu-idle", daemon=True)
        self._sweeper.start()
        pb_utils.Logger.log_info(
            f"mtu: {self._backend.interface.variant} {self._backend.arithmetic} on {self._backend.name}"
            f" {self._backend.device}"
        )

    def _sweep(self, idle: float) -> None:
        """In a thread of its own, for no request may come. It asks nothing of the server; see `_Metrics`."""
        while not self._ended.wait(min(idle / 2, 1.0)):
            self._streams.drop_idle()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request. Triton gives at most one request of a stream at a time."""
        asked: dict[int, Asked] = {}
        answers: dict[int, Answer | MtuError] = {}
        for number, request in enumerate(requests):
            try:
                asked[number] = self._asked(request)
            except MtuError as error:
                answers[number] = error
        answers.update(zip(asked, self._streams.answer(list(asked.values())), strict=True))
        self._metrics.show()
        return [self._response(request, answers[number]) for number, request in enumerate(requests)]

    def _asked(self, request: Any) -> Asked:
        flags = request.flags()
        frames = {
            name: np.array(pb_utils.get_input_tensor_by_name(request, name).as_numpy()[0])  # whose memory is Triton's
            for name in self._backend.interface.streams
        }
        how = json.loads(request.parameters() or "{}")
        threshold = how.get("scene_threshold")
        return Asked(
            request.correlation_id(),
            frames if any(frame.size for frame in frames.values()) else None,
            start=bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START),
            end=bool(flags & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END),
            scene_threshold=self._scene_threshold if threshold is None else read_threshold(str(threshold)),
            strict=bool(how.get("strict", False)),
        )

    def _response(self, request: Any, answer: Answer | MtuError) -> Any:
        if isinstance(answer, MtuError):
            is_theirs = isinstance(answer, InvalidInputError)
            code = pb_utils.TritonError.INVALID_ARG if is_theirs else pb_utils.TritonError.INTERNAL
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(answer), code))
        wanted = request.requested_output_names()
        numbers = {INDEX: [each.index for each in answer.restored], CUT: answer.cuts, REDONE: answer.redone}
        tensors = [pb_utils.Tensor(name, np.array([numbers[name]], np.int32)) for name in numbers if name in wanted]
        for role, tensor in self._outputs:
            if role not in wanted:
                continue
            if answer.restored:
                values = np.stack([getattr(each, role) for each in answer.restored])[None]
            else:
                values = np.empty((1, 0, *(3 if size == 3 else 0 for size in tensor.shape[1:])), tensor.dtype)
            tensors.append(pb_utils.Tensor(role, values))
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def finalize(self) -> None:
        """Frees the model."""
        self._ended.set()
        self._sweeper.join()
        self._backend.close()


class _Metrics:
    """The figures of the streams, on the server's page of metrics.

    Each that is shown is a message to the server, and one from another thread, beside a request, may end the server
    (SIGSEGV or lock_exception; Triton 2.51). So they are shown by the thread that answers requests, before it does.
    """

    def __init__(self, model: str, streams: Streams) -> None:
        self._streams, labels = streams, {"model": model}
        kinds = pb_utils.MetricFamily
        self._families = {
            name: kinds(name=f"mtu_{name}_total", description=text, kind=kinds.COUNTER)
            for name, text in METRICS.items()
        }
        self._families["open"] = kinds(name="mtu_streams", description="Streams that are open", kind=kinds.GAUGE)
        # Triton drops the figures of a family that nobody holds.
        self._metrics = {name: family.Metric(labels=labels) for name, family in self._families.items()}
        self._shown = dict.fromkeys(self._metrics, 0.0)

    def show(self) -> None:
        """As they are now."""
        for name, value in {**asdict(self._streams.figures), "open": len(self._streams)}.items():
            if value != self._shown[name]:
                self._metrics[name].increment(value - self._shown[name])
                self._shown[name] = value
