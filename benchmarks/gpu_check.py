"""Everything that only a GPU can show, in one run: `python -m mtu.benchmarks.gpu_check`. Imports nothing heavy itself.

A host needs Python and an NVIDIA driver; a section that lacks a library says so and is left out, which is a failure if
it was asked for. Nothing is downloaded, and no setting of the GPU is touched.
"""

from __future__ import annotations

import argparse
import datetime
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtu.benchmarks.gpu_processes import ROOT, collect, commit, write_results
from mtu.benchmarks.gpu_report import Record
from mtu.benchmarks.gpu_results import as_markdown, failures, figures, verdict
from mtu.benchmarks.gpu_sections import ALL, FIRST_RUN, REFERENCE, SECTIONS, Options, run_section
from mtu.core.errors import MtuError
from mtu.runtime.gpu import find_gpu

PROGRAM = "gpu-check"
ALONE = "first-run"


def say(text: str) -> None:
    """A line for the user."""
    print(f"{PROGRAM}: {text}", file=sys.stderr, flush=True)


def check(parsed: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Runs the sections and writes the results; 0 if every check passed, 1 if not, 2 if nothing can be checked."""
    gpu = find_gpu()
    if gpu is None:
        say("error: no NVIDIA GPU answers: this measures one; mtu-doctor says more")
        return 2
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-") + ("-first-run" if parsed.first_run else "")
    path = parsed.output or ROOT / "benchmarks" / "results" / f"{slug}.json"
    results: dict[str, Any] = {
        "format": 1,
        "gpu": gpu.name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "arguments": list(arguments),
        "asked": parsed.asked,
        "sections": {},
        "figures": [],
    }
    try:
        write_results(path, results)
    except OSError as error:
        say(f"error: {path} cannot be written ({error.strerror}): give another with -o")
        return 2
    began, total = time.monotonic(), 60 * parsed.minutes
    with tempfile.TemporaryDirectory(prefix="mtu-gpu-check-") as folder:
        for name in parsed.sections:
            seconds = min(total * ALL[name].share, total - (time.monotonic() - began))
            section: dict[str, Any] = {"seconds": 0.0, "ended": "", "records": []}
            results["sections"][name] = section
            started = time.monotonic()

            def found(record: Record, section: dict[str, Any] = section) -> None:
                section["records"].append(record)
                write_results(path, results)

            if seconds < 5:
                found({"kind": "skip", "name": name, "reason": "no time is left: --minutes gives more"})
            else:
                say(f"{name}, up to {seconds:.0f} s")
                child = ["--child", name, str(seconds), folder]
                command = [sys.executable, "-m", "mtu.benchmarks.gpu_check", *arguments, *child]
                section["ended"] = collect(command, seconds, found)
            section["seconds"] = time.monotonic() - started
            section["verdict"] = verdict(name, section, ALL[name].proves, asked=name in parsed.asked)
            say(f"{name}: {section['verdict']}")
            records = [record for each in results["sections"].values() for record in each["records"]]
            results["figures"] = [asdict(figure) for figure in figures(records, gpu.name)]
            write_results(path, results)
    print(as_markdown(results), end="")
    say(f"{time.monotonic() - began:.0f} s, results in {path}")
    return 1 if failures(results) else 0


def save(parsed: argparse.Namespace) -> int:
    """Writes the pictures that --only first-run compares with; needs no GPU."""
    from mtu.benchmarks.gpu_first_run import save_reference
    from mtu.benchmarks.gpu_precision import CLIP

    try:
        held = save_reference(parsed.clip or CLIP, parsed.save_reference)
    except (MtuError, OSError) as error:
        say(f"error: {error}")
        return 2
    say(f"{parsed.save_reference}: {held}")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line, with `sections` to run, those `asked` for by name, and whether it is the `first_run`."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Checks and times everything that needs a GPU.")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: benchmarks/results/<gpu>.json")
    parser.add_argument("--quick", action="store_true", help="one size, mtu2 only, two minutes")
    parser.add_argument(
        "--minutes", type=float, help=f"time for everything, about (default: 8; 2 with --quick, 9 for {ALONE})"
    )
    parser.add_argument("--only", metavar="A,B", help=f"{ALONE}, or sections: {', '.join(ALL)}")
    parser.add_argument("--clip", type=Path, metavar="FILE", help="video, or uint8 [T, H, W, 3] in .npy (needs no av)")
    parser.add_argument("--plugin-library", type=Path, metavar="FILE", help="C++ plugin, which TensorRT 8.6 needs")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE", default=REFERENCE, help=f"pictures that {ALONE} compares with"
    )
    parser.add_argument(
        "--save-reference", type=Path, metavar="FILE", help="write these pictures, with onnxruntime and no GPU, and end"
    )
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.asked = parsed.only.split(",") if parsed.only else []
    parsed.first_run = parsed.asked == [ALONE]
    if parsed.first_run:
        parsed.asked = list(FIRST_RUN)
    parsed.sections = parsed.asked or list(SECTIONS)
    unknown = [name for name in parsed.sections if name not in ALL]
    if unknown:
        parser.error(f"unknown section '{unknown[0]}': choose {ALONE} alone, or from {', '.join(ALL)}")
    if parsed.minutes is None:
        parsed.minutes = 9 if parsed.first_run else 2 if parsed.quick else 8
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parse(arguments)
    if parsed.child:
        name, seconds, folder = parsed.child
        options = Options(parsed.quick, parsed.clip, parsed.plugin_library, parsed.reference, Path(folder))
        run_section(name, options, float(seconds))
        return 0
    if parsed.save_reference:
        return save(parsed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return check(parsed, arguments)
    except KeyboardInterrupt:
        say("interrupted; what was found is in the results")
        return 130


if __name__ == "__main__":
    sys.exit(main())
