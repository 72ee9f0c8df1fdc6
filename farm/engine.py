"""Units spread over workers by Ray Data: of this machine, or of a cluster. Queues, retries and placement are Ray's.

A worker that dies is started again and its unit is given out again; a unit that kills every worker that takes it is
left out after `TRIES` and named, and the rest goes on. What can be put right by the user (an `MtuError`) is not tried
again. Imports ray.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import re
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mtu.core.errors import InvalidInputError, MtuError
from mtu.core.release import VERSION
from mtu.runtime.stored_session import processor_units

TRIES = 3
"""How often a unit is given out that ends its worker."""
_ASK_SECONDS, _GONE = 5.0, 3
"""While nothing comes Ray is asked so often; it has gone if it does not answer so many times."""
_STORE_BYTES = 100 << 20
"""Of Ray's object store: only rows of a table are in it."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who works."""

    count: int = 1
    gpus: float = 0.0
    """Of each; a fraction shares one."""
    address: str | None = None
    """Of a cluster that is there: "HOST:PORT" or "auto"; None starts one on this machine."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidInputError(f"--workers {self.count}: at least 1")
        if not 0 <= self.gpus <= 64:
            raise InvalidInputError(
                f"--gpus-per-worker {self.gpus:g}: a number from 0 to 64, a fraction to share a GPU"
            )
        if self.address is not None and "://" in self.address:
            raise InvalidInputError(
                f"--address {self.address}: Ray Data does not run through Ray's client; run mtu-farm on a machine of"
                " the cluster, with HOST:6379 or auto"
            )


@dataclass(frozen=True, kw_only=True)
class Done:
    """A unit that a worker has ended."""

    film: int
    unit: int
    worker: str
    """Host and process."""
    seconds: float = 0.0
    frames: int = 0
    notes: tuple[str, ...] = ()
    error: str = ""
    """What the user can put right; "" if it is restored."""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Done:
        """From a row of Ray Data."""
        return cls(**{**row, "notes": tuple(row["notes"])})


class Restorer(Protocol):
    """What a worker has: made once in each, then called with the numbers of a film and of its unit."""

    def __call__(self, film: int, unit: int) -> Done:
        """Restores a unit. Raises MtuError for what the user can put right."""
        ...


def spread(
    units: Sequence[tuple[int, int]], make: Callable[[], Restorer], workers: Workers, done: Callable[[Done], None]
) -> list[tuple[int, int]]:
    """Gives out `units` (film, unit) inside of a `cluster`; `make` makes the `Restorer` of a worker, in that worker.
    `done` is called as they end, in any order. Returns those that no worker came back from."""
    import ray.data

    count = min(workers.count, len(units))  # Ray warns of workers that have nothing to do
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # the rest goes on
    rows = [{"film": film, "unit": unit} for film, unit in units]
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    worker: Any = _Worker
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Ray has no other way yet to say how often it tries
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            worker,
            fn_constructor_args=(make,),
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
            # A processor for each would leave none for what reads the rows, which then waits for ever.
            num_cpus=0.01,
            num_gpus=workers.gpus,
            max_restarts=-1,
            max_task_retries=TRIES - 1,
            scheduling_strategy="SPREAD",
        )
    missing = list(units)
    for row in _watched(results.iter_rows()):
        ended = Done.of(row)
        missing.remove((ended.film, ended.unit))
        done(ended)
    return missing


def _watched(rows: Iterable[Any]) -> Iterator[Any]:
    """`rows`, as they come. Raises MtuError if Ray has gone: its native code would end this program after a minute,
    without a word."""
    import ray

    given: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def take() -> None:
        try:
            for row in rows:
                given.put(("row", row))
            given.put(("end", None))
        except BaseException as error:
            given.put(("error", error))

    address = ray.get_runtime_context().gcs_address
    threading.Thread(target=take, daemon=True).start()
    failures = 0
    while failures < _GONE:
        try:
            kind, what = given.get(timeout=_ASK_SECONDS)
        except queue.Empty:
            failures = 0 if _answers(address) else failures + 1
            continue
        if kind == "error":
            raise what
        if kind == "end":
            return
        yield what
    raise MtuError(f"Ray at {address} has gone: start it, and give the same command again")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=10):
        return True
    return False


def everywhere(do: Callable[[Any], Any], given: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """What `do` gives for each, on any processors of the `cluster`, as they end; the number is the place in `given`.
    What ends every process that takes it gives a RayError, as a value."""
    import ray

    task: Any = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_call)
    waiting = {task.remote(do, each): number for number, each in enumerate(given)}
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        try:
            result = ray.get(ready)
        except ray.exceptions.RayError as error:
            result = error
        yield waiting.pop(ready), result


def _call(do: Callable[[Any], Any], given: Any) -> Any:
    return do(given)


@contextlib.contextmanager
def cluster(workers: Workers) -> Iterator[None]:
    """Ray, started or joined; quiet. Raises InvalidInputError if there is none at the address, or its machines are not
    what `workers` need."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    # Else it warns of what it does itself: "Actor ... has constructor arguments in the object store".
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ["RAY_TQDM_PATCH_PRINT"] = "0"  # else Ray puts a print of its own into builtins
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if workers.address is None:
        # "local": else Ray joins a cluster that runs here, or that RAY_ADDRESS names.
        options |= {"address": "local", "num_cpus": workers.count + 1}
        options |= {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    else:
        options |= {"address": workers.address}
    try:
        if found := re.search(r"([^/:]+):(\d+)$", workers.address or ""):
            # Ray itself tries for minutes.
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
        before = signal.getsignal(signal.SIGTERM)
        # Lines about the level of the log, and one a second of a token that is missing.
        with _without("logging.cc", "gcs_client.cc"):
            ray.init(**options)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray sets its own, which ends the program without a word
    except Exception as error:  # Ray raises a bare Exception too, where a slow machine makes it give up
        where = workers.address or "this machine"
        what = " ".join(str(error).split())[:400] or type(error).__name__
        token = "; a cluster that asks for a token needs RAY_AUTH_MODE=token here" * (workers.address is not None)
        raise InvalidInputError(f"no Ray {ray.__version__} at {where}: {what}{token}") from None
    try:
        there = _ask(ray.cluster_resources).get("GPU", 0)
        if workers.gpus and not there:
            raise InvalidInputError(
                f"--gpus-per-worker {workers.gpus:g}: Ray finds no GPU; leave it out to restore on processors"
            )
        if there < workers.gpus * workers.count:
            raise InvalidInputError(
                f"{workers.count} workers with {workers.gpus:g} GPUs each, and there are {there:g}: give fewer"
                " --workers, or a fraction as --gpus-per-worker"
            )
        if workers.address is not None:
            _check_machines(workers)
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _without(*words: str) -> Iterator[None]:
    """What is written to stderr meanwhile comes afterwards, but for lines of native code with one of `words`."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            with contextlib.suppress(OSError):
                os.write(2, b"".join(line for line in file if not any(word.encode() in line for word in words)))


def _check_machines(workers: Workers) -> None:
    """Raises InvalidInputError unless all machines that could work have this version of MTU, and are of one kind."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask: Any = ray.remote(num_cpus=0)(_machine)
    asked = []
    for node in _ask(ray.nodes):
        if node["Alive"] and (not workers.gpus or node["Resources"].get("GPU", 0) >= workers.gpus):
            cards = [name.partition(":")[2] for name in node["Resources"] if name.startswith("accelerator_type:")]
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append((node["NodeManagerHostname"], cards, ask.options(scheduling_strategy=place).remote()))
    machines = []
    for host, cards, said in asked:
        try:
            machines.append((host, cards, *ray.get(said)))
        except ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[-1]
            raise InvalidInputError(f"{host} cannot run MTU: {cause}; install it on every node") from None
    check_kinds(machines)


def check_kinds(machines: Sequence[tuple[str, Sequence[str], str, Sequence[str]]]) -> None:
    """Raises InvalidInputError unless all are alike: of each its name, its accelerators, and what `_machine` says."""
    kinds: dict[str, str] = {}
    for host, cards, version, units in machines:
        if version != VERSION:
            raise InvalidInputError(f"{host} has MTU {version}, and here it is {VERSION}: install the same everywhere")
        kinds.setdefault(f"a processor with {', '.join(units)}" + f" and {', '.join(cards)}" * bool(cards), host)
    if len(kinds) > 1:
        found = "; ".join(f"{host} has {kind}" for kind, host in kinds.items())
        raise InvalidInputError(
            f"the cluster has machines of {len(kinds)} kinds ({found}), and pictures could differ in the last bit with"
            " which of them restores them: give the --address of a cluster of one kind"
        )


def _machine() -> tuple[str, list[str]]:
    """Of where it is called: the version of MTU, and what of the processor matters."""
    return VERSION, processor_units()


def _ask(what: Any) -> Any:
    """What a function of Ray's says that has no types."""
    return what()


class _Worker:
    """A `Restorer` in a process of Ray's."""

    def __init__(self, make: Callable[[], Restorer]) -> None:
        self._restore = make()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        film, unit = int(row["film"]), int(row["unit"])
        try:
            ended = self._restore(film, unit)
        except MtuError as error:
            ended = Done(film=film, unit=unit, worker=worker_name(), error=str(error))
        return {**vars(ended), "notes": list(ended.notes)}


def worker_name() -> str:
    """Of this process."""
    return f"{os.uname().nodename}:{os.getpid()}"
