"""Several sources in one go: which target each gets, what is done already, one opened model for all.

Writes the targets, and with `skip_done` a hidden record beside each.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtu.core.errors import InvalidInputError, MissingFileError, MtuError, OutputError, some
from mtu.core.files import fingerprint, hidden_beside, write_whole
from mtu.core.release import VERSION
from mtu.runtime.job import Job, RunReport
from mtu.runtime.opened import Models

_OF_FILMS = frozenset({".mp4", ".mov", ".mkv", ".webm"})


@dataclass(frozen=True)
class Outcome:
    """What became of one source."""

    job: Job
    report: RunReport | None = None
    """None: it failed, or was done before."""
    error: str = ""
    """Why it failed: a message for what the user can put right, a traceback for a bug."""


def read_list(path: Path) -> list[str]:
    """The sources that a file names, one a line; empty lines and those that begin with # are left out.

    Raises MissingFileError, InvalidInputError.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # Windows writes a mark first
    except FileNotFoundError:
        raise MissingFileError(f"--list {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"--list {path} cannot be read ({error}): give a text with a source a line") from None
    found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    if not found:
        raise InvalidInputError(f"--list {path} names no source: write one a line")
    return found


def jobs_for(job: Job, sources: Sequence[str], suffix: str, skip_done: bool) -> list[Job]:
    """A job for each source, whose target has its name, with `suffix` before the ending, in the directory `job.target`.

    Raises what can be known before the first of them: sources that are not there, targets that are, or that two
    sources would have.
    """
    out = Path(job.target)
    for option, given in (
        ("--stream", job.streams),
        ("--save-motion", job.save_motion),
        ("--save-maps", job.save_maps),
    ):
        if given:
            raise InvalidInputError(f"{option} is for one source, and there are {len(sources)}: leave it out")
    if "/" in suffix:
        raise InvalidInputError(f"--suffix {suffix}: is a part of a file name, and has no /")
    if job.target == "-" or out.is_file():
        raise InvalidInputError(f"-o {job.target}: several sources need a directory")
    named_as_film = out.suffix.lower() in _OF_FILMS | {Path(source).suffix.lower() for source in sources} - {""}
    if named_as_film and not out.is_dir() and not job.target.endswith("/"):
        raise InvalidInputError(
            f"-o {job.target}: is the directory in which each input has an output of its name; give a directory, or"
            f" write {job.target}/ if it is to be called so"
        )
    for source in sources:
        if source == "-" or "://" in source:
            raise InvalidInputError(f"{source}: only files and directories can be among several sources")
        if not Path(source).exists():
            raise MissingFileError(f"{source} does not exist")
    jobs = [dataclasses.replace(job, source=source, target=_target(source, out, suffix)) for source in sources]
    paths = [Path(each.target).resolve() for each in jobs]
    by_target: dict[Path, str] = {}
    for each, path in zip(jobs, paths, strict=True):
        if path in by_target and Path(by_target[path]).resolve() == Path(each.source).resolve():
            raise InvalidInputError(f"{each.source} is given twice: give it once")
        if path in by_target:
            raise InvalidInputError(
                f"{by_target[path]} and {each.source} would both become {each.target}: give them in two runs"
            )
        by_target[path] = each.source
    inputs: dict[Path, str] = {}  # and the directories that they lie in
    for source in sources:
        given = Path(source).resolve()
        for place in (given, *given.parents):
            inputs.setdefault(place, source)
    for each, path in zip(jobs, paths, strict=True):
        if path in inputs:
            raise InvalidInputError(
                f"{each.target}, the output of {each.source}, would take the place of the input {inputs[path]}: give"
                " another directory, or --suffix"
            )
    there = [each.target for each in jobs if Path(each.target).exists()]
    if there and not job.overwrite and not skip_done:
        leave = ", or leave out what is done (--skip-done)" if any(record_of(path).exists() for path in there) else ""
        raise OutputError(f"{some(there)} exist{'s' if len(there) == 1 else ''}: replace with --overwrite{leave}")
    return jobs


def _target(source: str, out: Path, suffix: str) -> str:
    path = Path(source)
    if path.is_dir():
        return f"{out / (path.resolve().name + suffix)}/"
    return str(out / (path.stem + suffix + path.suffix))


def run_all(
    jobs: Sequence[Job], run: Callable[[Job, Models], RunReport], models: Models, *, skip_done: bool
) -> Iterator[Outcome]:
    """Runs them one after the other, over `models`. What fails stops no other.

    With `skip_done` each that ends well is recorded, and one is left out whose target was made by the same source,
    model and options before. Raises OutputError if the directory of the targets cannot be made.
    """
    for job in jobs[:1]:
        try:
            Path(job.target).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{Path(job.target).parent} cannot be made ({error.strerror})") from None
    for job in jobs:
        try:
            if skip_done and is_done(job, models):
                yield Outcome(job)
                continue
            made = made_by(job, models) if skip_done else ""  # before: the source may change meanwhile
            report = run(job, models)
            if skip_done:
                record_done(job, made)
        except Exception as error:
            yield Outcome(job, error=why(error))
        else:
            yield Outcome(job, report)


def why(error: Exception) -> str:
    """Called while an error is handled: a message for what the user can put right, a traceback for a bug."""
    if isinstance(error, MtuError):
        return str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC):
        return f"{error.filename or 'writing'}: {error.strerror}"
    if isinstance(error, MemoryError):
        return "out of memory: use smaller frames, or a machine with more memory"
    return traceback.format_exc().rstrip()


def made_by(job: Job, models: Models | None = None) -> str:
    """sha256 of what the target of a job depends on: source, models, options, version; not on how they are named.

    `models` are those that it is run with, None where they are on this machine.
    """
    digests = (models or Models()).made_by(job)
    named: dict[str, Any] = {"source": "", "target": "", "model": None, "where": None}
    options = dataclasses.replace(job, **named, build=None, overwrite=False, resume=False, resume_bytes=None)
    made = f"{VERSION} {digests} {fingerprint(job.source)} {options}"
    return hashlib.sha256(made.encode()).hexdigest()


def record_of(target: str) -> Path:
    """Where it is recorded what a target was made of."""
    return hidden_beside(Path(target), "done")


def record_done(job: Job, made: str, **more: Any) -> None:
    """Records that a target is whole, and that its `made_by` was `made`; `more` is kept with it. Raises OSError."""
    record = {"made_by": made, "result": fingerprint(job.target), **more}
    write_whole(record_of(job.target), json.dumps(record).encode())


def is_done(job: Job, models: Models | None = None) -> bool:
    """Whether the target was made of the same source, model and options. Raises OutputError for one that is there and
    was not, unless it may be replaced."""
    if not Path(job.target).exists():
        return False
    made, record_path = made_by(job, models), record_of(job.target)
    try:
        record = json.loads(record_path.read_bytes())
        if record["made_by"] == made and record["result"] == fingerprint(job.target):
            return True
    except (OSError, ValueError, TypeError, KeyError):
        pass
    if not job.overwrite:
        why_not = (
            "was not made by this source, model and options"
            if record_path.exists()
            else f"nothing says what it was made of (mtu-farm and --skip-done write that down: {record_path.name})"
        )
        raise OutputError(f"{job.target} exists, and {why_not}: replace it with --overwrite")
    return False
