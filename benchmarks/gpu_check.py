"""Everything that only a GPU can show, in one run: `python -m mtu.benchmarks.gpu_check`. Imports nothing heavy itself.

Each section runs in a process of its own, so that one that fails, crashes or hangs costs the others nothing, and hands
its findings over one by one; the results are written after each. A host needs Python and an NVIDIA driver; a section
that lacks a library says so and is skipped. Nothing is downloaded, and no setting of the GPU is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mtu.benchmarks.gpu_report import Record, Report, Skip
from mtu.runtime.gpu import find_gpu
from mtu.runtime.tensorrt_library import LIBRARIES, is_importable

PROGRAM = "gpu-check"
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("mtu-trt", "numpy", "torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"),
    *("pycuda", "cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "av", "pytest"),
)
LIBRARIES_OF_TESTS = ("onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "cuda.core", "cuda.bindings", "onnx", "av")
GRACE = 60.0
"""Seconds that a section may take longer than it was given before it is ended."""


# --- sections -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What the sections are told."""

    quick: bool = False
    clip: Path | None = None
    plugin_library: Path | None = None


def environment(report: Report, options: Options) -> None:
    """What the figures depend on."""
    gpu = find_gpu()
    if gpu is not None:
        report.fact("GPU", f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory / 2**30:.1f} GiB")
    report.fact("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    report.fact("Python", platform.python_version())
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            report.fact(package, importlib.metadata.version(package))
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit,temperature.gpu"
    for name, command in {
        query: ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", "0"],
        "nvcc": ["nvcc", "--version"],
    }.items():
        with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            report.fact(name, done.stdout.strip().splitlines()[-1])
    report.run("torch", lambda: _torch_facts(report))
    report.run("onnxruntime providers", lambda: _onnxruntime_facts(report))


def _torch_facts(report: Report) -> None:
    import torch

    cudnn: Any = torch.backends.cudnn
    report.fact("torch CUDA, cuDNN", f"{torch.version.cuda}, {cudnn.version()}")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        report.fact("multiprocessors", properties.multi_processor_count)
        report.fact("L2 cache, MiB", getattr(properties, "L2_cache_size", 0) / 2**20)


def _onnxruntime_facts(report: Report) -> None:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    report.fact("onnxruntime providers", ", ".join(onnxruntime.get_available_providers()))


def tests(report: Report, options: Options, folder: Path = ROOT / "tests") -> None:
    """Every test marked needs_cuda. One that is skipped failed, unless it misses a library that is not here."""
    if importlib.util.find_spec("pytest") is None:
        raise Skip("the package pytest is not installed")
    files = [path for path in sorted(folder.glob("test_*.py")) if "mark.needs_cuda" in path.read_text("utf-8")]
    if not files:
        raise Skip(f"no tests in {folder}: run it in a checkout")
    with tempfile.TemporaryDirectory() as temporary:
        xml = Path(temporary) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "needs_cuda", "-p", "no:cacheprovider"]
        command += ["--continue-on-collection-errors", f"--junitxml={xml}", *map(str, files)]
        done = subprocess.run(
            command, env={**os.environ, "MTU_REQUIRE_CUDA": "1"}, cwd=folder.parent, stdout=sys.stderr, check=False
        )
        if not xml.exists():
            raise RuntimeError(f"pytest ended with {done.returncode} and no results")
        outcomes = list(read_junit(xml))
    for name, outcome, message in outcomes:
        if outcome != "passed" and lacks_library(outcome, message):
            report.skip(name, message)
        else:
            report.check(name, outcome == "passed", "" if outcome == "passed" else f"{outcome}: {message}")
    if not outcomes:
        report.check("tests were found", False, f"pytest ended with {done.returncode} and ran none")


def read_junit(path: Path) -> Iterator[tuple[str, str, str]]:
    """Name, outcome (passed, failed, error, skipped) and message of each test in a JUnit file."""
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name')}".removeprefix(".")
        found = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if found is None:
            yield name, "passed", ""
            continue
        lines = [*(found.get("message") or "").splitlines(), *(found.text or "").splitlines()]
        # A test or a fixture that cannot be imported says why on its last lines only.
        chosen = next((line for line in lines if "ModuleNotFoundError" in line), lines[0] if lines else "")
        yield name, {"failure": "failed"}.get(found.tag, found.tag), chosen


def lacks_library(outcome: str, message: str) -> bool:
    """Whether a test was skipped, or could not be loaded, because of a library that is truly not here."""
    absent = re.search(r"No module named '([\w.]+)'", message)
    if absent is not None and not _works_on_cuda(absent[1]):
        return True
    words = set(re.findall(r"[a-z][a-z_.-]*[a-z]", message.lower()))
    named = [name for name in LIBRARIES_OF_TESTS if words & {name, name.replace("_", "-"), name.replace(".", "-")}]
    return outcome == "skipped" and any(not _works_on_cuda(name) for name in named)


def _works_on_cuda(name: str) -> bool:
    if not is_importable(name):
        return False
    if name != "onnxruntime":
        return True
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def kernel(report: Report, options: Options) -> None:
    """The kernel against the truth."""
    _need_cuda_core()
    from mtu.benchmarks.gpu_device import Cuda
    from mtu.benchmarks.gpu_kernel import SIZES, check_kernel

    check_kernel(report, Cuda(), sizes=dict(list(SIZES.items())[:1]) if options.quick else SIZES)


def kernel_time(report: Report, options: Options) -> None:
    """The kernel's time, the floors, and torch's."""
    _need_cuda_core()
    import torch

    from mtu.benchmarks.gpu_device import Cuda
    from mtu.benchmarks.gpu_kernel import SIZES, measure_rates, time_kernel

    device = Cuda()
    rates = measure_rates(report, device)
    compiler = torch.compile if _can_compile(report, options) else None
    sizes = dict(list(SIZES.items())[:1]) if options.quick else SIZES
    time_kernel(report, device, rates, sizes=sizes, compiler=compiler)


def _can_compile(report: Report, options: Options) -> bool:
    if options.quick:
        report.skip("torch.compile", "takes long: leave out --quick")
    elif importlib.util.find_spec("triton") is None:
        report.skip("torch.compile", "the package triton is not installed")
    else:
        return True
    return False


def _need_cuda_core() -> None:
    for name in ("torch", "cuda.core", "cuda.bindings"):
        if not is_importable(name):
            raise Skip(f"{name} is not installed: pip install torch cuda-core cuda-bindings nvidia-cuda-nvrtc")


def step_torch(report: Report, options: Options) -> None:
    """The network's step in torch."""
    import torch

    from mtu.benchmarks.gpu_device import Cuda
    from mtu.benchmarks.gpu_network import MODELS, time_torch

    device = Cuda()
    models = MODELS[:1] if options.quick else MODELS
    time_torch(report, device, models=models, compiler=torch.compile if _can_compile(report, options) else None)


def step_onnxruntime(report: Report, options: Options) -> None:
    """The network's step in onnxruntime."""
    from mtu.benchmarks.gpu_network import MODELS, time_onnxruntime

    time_onnxruntime(report, models=MODELS[:1] if options.quick else MODELS)


def precision_torch(report: Report, options: Options) -> None:
    """Fp16 against fp32 in torch."""
    from mtu.benchmarks.gpu_device import Cuda
    from mtu.benchmarks.gpu_network import CLIP, compare_torch

    compare_torch(report, device=Cuda.name, clip=options.clip or CLIP)


def _step_tensorrt(library: Any) -> Callable[[Report, Options], None]:
    def step(report: Report, options: Options) -> None:
        from mtu.benchmarks.gpu_network import CLIP, MODELS, time_tensorrt

        models = MODELS[:1] if options.quick else MODELS
        time_tensorrt(report, library, models=models, plugin_library=options.plugin_library, clip=options.clip or CLIP)

    return step


SECTIONS: Mapping[str, tuple[Callable[[Report, Options], None], float]] = {
    # name: (what it does, its share of the time at most)
    "environment": (environment, 0.1),
    "kernel": (kernel, 0.25),
    "kernel-time": (kernel_time, 0.3),
    "tests": (tests, 0.25),
    **{name: (_step_tensorrt(name), 0.45) for name in LIBRARIES},
    "torch": (step_torch, 0.45),
    "precision": (precision_torch, 0.1),
    "onnxruntime": (step_onnxruntime, 0.2),
}
"""In this order, which is that of their worth: where the time runs out, the last get none."""


def run_section(name: str, options: Options, seconds: float) -> None:
    """The process of a section: findings go to stdout, a line of JSON each, whatever else is printed to stderr."""
    findings = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def emit(record: Record) -> None:
        findings.write(json.dumps(record) + "\n")

    report = Report(emit, time.monotonic() + seconds)
    report.run(name, lambda: SECTIONS[name][0](report, options))


# --- the run --------------------------------------------------------------------------------------------------------


def collect(command: Sequence[str], seconds: float, found: Callable[[Record], None]) -> str:
    """Runs a section's process and hands its findings on as they come; how it ended, "" if well."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    ended = threading.Event()

    def end() -> None:
        ended.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(seconds + GRACE, end)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found(json.loads(line))
        code = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            end()
            process.wait()
    if ended.is_set():
        return f"ended because it took more than {seconds + GRACE:.0f} s"
    return "" if code == 0 else f"died of signal {-code}" if code < 0 else f"ended with exit code {code}"


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Replaces the file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def commit() -> str | None:
    """The commit of the checkout, with "+" where files differ from it; None where git does not say."""
    git = shutil.which("git")
    if git is None:
        return None
    answers = []
    for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain"]):
        done = subprocess.run([git, "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return None
        answers.append(done.stdout.strip())
    return answers[0] + ("+" if answers[1] else "")


# --- figures and tables ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A figure to reach, and what became of it."""

    name: str
    target: str
    value: float | None
    outcome: Literal["reached", "not reached", "not measured"]


def figures(records: Sequence[Record], gpu: str) -> list[Figure]:
    """The figures that the project set itself. Each takes the fastest of the ways that were timed, on both sides."""

    def best(group: str) -> float | None:
        return min((r["median_ms"] for r in records if r["kind"] == "time" and r["group"] == group), default=None)

    def worst(group: str) -> float | None:
        # What TensorRT gives is what counts; torch stands in for it where there is none.
        found = [r for r in records if r["kind"] == "value" and r["group"] == group]
        engines = [r for r in found if r["name"].startswith("tensorrt")]
        return min((r["value"] for r in engines or found), default=None)

    def ratio(a: float | None, b: float | None) -> float | None:
        return a / b if a is not None and b is not None else None

    def figure(name: str, value: float | None, limit: float, unit: str, *, at_most: bool = False) -> Figure:
        target = f"{'<=' if at_most else '>='} {limit:g} {unit}".rstrip()
        if value is None:
            return Figure(name, target, None, "not measured")
        return Figure(
            name, target, value, "reached" if (value <= limit) == at_most or value == limit else "not reached"
        )

    fused = best("kernel 1280x720 fp16")
    engines = [time for time in (best(f"mtu2 {library} fp16") for library in LIBRARIES) if time is not None]
    step = min(engines, default=None)
    return [
        figure(
            "kernel, 1280x720 fp16, on an H200",
            1000 * fused if fused is not None and "H200" in gpu else None,
            60,
            "us",
            at_most=True,
        ),
        figure("kernel against unfused torch", ratio(best("unfused 1280x720 fp16"), fused), 10, "x"),
        figure("mtu2 step, 1280x720 fp16 engine", step, 1.5, "ms", at_most=True),
        figure("mtu2 step against PyTorch AMP eager", ratio(best("mtu2 torch eager AMP"), step), 8, "x"),
        figure("mtu2 step against torch.compile", ratio(best("mtu2 torch.compile AMP"), step), 2.5, "x"),
        figure("fp16 against fp32, demo clip, PSNR", worst("fp16 PSNR"), 50, "dB"),
        figure("fp16 against fp32, equal displacements", worst("fp16 equal displacements"), 99.5, "%"),
    ]


def failures(results: Mapping[str, Any]) -> list[str]:
    """One line for each check that failed and each section that broke."""
    lines = []
    for name, section in results["sections"].items():
        for record in section["records"]:
            if record["kind"] == "check" and not record["passed"]:
                lines.append(f"{name}: {record['name']}: {record['detail'] or 'no'}")
            elif record["kind"] == "error":
                lines.append(f"{name}: {record['name']}: {record['message']} ({record['where']})")
        if section["ended"]:
            lines.append(f"{name}: {section['ended']}")
    return lines


def shown(milliseconds: float) -> str:
    """A time as people read it."""
    return f"{1000 * milliseconds:.1f} us" if milliseconds < 1 else f"{milliseconds:.3f} ms"


def as_markdown(results: Mapping[str, Any]) -> str:
    """The results for people."""
    lines = [f"# {results['gpu']}", "", f"{results['date']}, commit {results['commit'] or 'unknown'}.", ""]
    records = [(name, record) for name, section in results["sections"].items() for record in section["records"]]
    lines += [f"- {r['name']}: {r['value']}" for _, r in records if r["kind"] == "fact"]
    lines += ["", "| what | median | p90 | samples | beside it |", "|---|---|---|---|---|"]
    usual = {"kind", "name", "group", "median_ms", "p90_ms", "samples"}
    for _, r in records:
        if r["kind"] == "time":
            beside = ", ".join(f"{key} {value:.1f}" for key, value in r.items() if key not in usual)
            times = f"{shown(r['median_ms'])} | {shown(r['p90_ms'])}"
            lines.append(f"| {r['name']} | {times} | {r['samples']} | {beside} |")
    lines += [f"| {r['name']} | {r['value']:.2f} | | | |" for _, r in records if r["kind"] == "value"]
    lines += ["", "| figure | target | measured | |", "|---|---|---|---|"]
    for figure in results["figures"]:
        value = "" if figure["value"] is None else f"{figure['value']:.2f}"
        lines.append(f"| {figure['name']} | {figure['target']} | {value} | {figure['outcome']} |")
    lines.append("")
    lines += [f"SKIPPED {name}: {r['name']}: {r['reason']}" for name, r in records if r["kind"] == "skip"]
    for name, section in results["sections"].items():
        count = sum(record["kind"] == "check" and record["passed"] for record in section["records"])
        if count:
            lines.append(f"PASSED {name}: {count} checks")
    lines += [f"FAILED {line}" for line in failures(results)]
    return "\n".join(lines) + "\n"


# --- command line ---------------------------------------------------------------------------------------------------


def check(path: Path | None, minutes: float, only: Sequence[str], arguments: Sequence[str]) -> int:
    """Runs the sections and writes the results; 0 if every check passed, 1 if not, 2 if nothing can be checked."""
    gpu = find_gpu()
    if gpu is None:
        print(f"{PROGRAM}: error: no NVIDIA GPU answers: this measures one; mtu-doctor says more", file=sys.stderr)
        return 2
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    path = path or ROOT / "benchmarks" / "results" / f"{slug}.json"
    results: dict[str, Any] = {
        "format": 1,
        "gpu": gpu.name,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "arguments": list(arguments),
        "sections": {},
        "figures": [],
    }
    try:
        write_results(path, results)
    except OSError as error:
        print(f"{PROGRAM}: error: {path} cannot be written ({error.strerror}): give another with -o", file=sys.stderr)
        return 2
    began = time.monotonic()
    for name in only:
        seconds = min(60 * minutes * SECTIONS[name][1], 60 * minutes - (time.monotonic() - began))
        section: dict[str, Any] = {"seconds": 0.0, "ended": "", "records": []}
        results["sections"][name] = section
        started = time.monotonic()

        def found(record: Record, section: dict[str, Any] = section) -> None:
            section["records"].append(record)
            write_results(path, results)

        if seconds < 5:
            found({"kind": "skip", "name": name, "reason": "no time is left: --minutes gives more"})
            continue
        print(f"{PROGRAM}: {name}, up to {seconds:.0f} s", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "mtu.benchmarks.gpu_check", *arguments, "--child", name, str(seconds)]
        section["ended"] = collect(command, seconds, found)
        section["seconds"] = time.monotonic() - started
        records = [record for each in results["sections"].values() for record in each["records"]]
        results["figures"] = [asdict(figure) for figure in figures(records, gpu.name)]
        write_results(path, results)
    print(as_markdown(results), end="")
    print(f"{PROGRAM}: {time.monotonic() - began:.0f} s, results in {path}", file=sys.stderr)
    return 1 if failures(results) else 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Checks and times everything that needs a GPU.")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: benchmarks/results/<gpu>.json")
    parser.add_argument("--quick", action="store_true", help="one size, mtu2 only, two minutes")
    parser.add_argument("--minutes", type=float, help="time for everything, about (default: 8, or 2 with --quick)")
    parser.add_argument("--only", metavar="A,B", help=f"sections: {', '.join(SECTIONS)}")
    parser.add_argument("--clip", type=Path, metavar="FILE", help="video, or uint8 [T, H, W, 3] in .npy (needs no av)")
    parser.add_argument("--plugin-library", type=Path, metavar="FILE", help="C++ plugin, which TensorRT 8.6 needs")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    parsed.only = parsed.only.split(",") if parsed.only else list(SECTIONS)
    unknown = [name for name in parsed.only if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section '{unknown[0]}': choose from {', '.join(SECTIONS)}")
    if parsed.minutes is None:
        parsed.minutes = 2 if parsed.quick else 8
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = parse(arguments)
    if parsed.child:
        options = Options(parsed.quick, parsed.clip, parsed.plugin_library)
        run_section(parsed.child[0], options, float(parsed.child[1]))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return check(parsed.output, parsed.minutes, parsed.only, arguments)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; what was found is in the results", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
