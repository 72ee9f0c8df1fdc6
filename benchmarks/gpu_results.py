"""What the GPU check found, as figures that are reached or not and as a table. Standard library only, reads no file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mtu.benchmarks.gpu_report import Record
from mtu.runtime.tensorrt_library import LIBRARIES

Results = Mapping[str, Any]
"""The content of the JSON file."""


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


def skipped(section: Mapping[str, Any]) -> str:
    """Why a section was left out as a whole; "" if it checked or measured anything."""
    records = section["records"]
    if section["ended"] or any(record["kind"] not in ("skip", "fact") for record in records):
        return ""
    return next((str(record["reason"]) for record in records if record["kind"] == "skip"), "it found nothing")


def section_failures(name: str, section: Mapping[str, Any], *, asked: bool) -> list[str]:
    """One line for each check that failed, and one if the section broke, or was asked for and is left out."""
    lines = []
    for record in section["records"]:
        if record["kind"] == "check" and not record["passed"]:
            lines.append(f"{name}: {record['name']}: {record['detail'] or 'no'}")
        elif record["kind"] == "error":
            lines.append(f"{name}: {record['name']}: {record['message']} ({record['where']})")
    if section["ended"]:
        lines.append(f"{name}: {section['ended']}")
    if asked and (reason := skipped(section)):
        lines.append(f"{name}: asked for and left out: {reason}")
    return lines


def failures(results: Results) -> list[str]:
    """The failures of all sections."""
    asked = results["asked"]
    return [
        line
        for name, section in results["sections"].items()
        for line in section_failures(name, section, asked=name in asked)
    ]


def verdict(name: str, section: Mapping[str, Any], proves: str, *, asked: bool) -> str:
    """One line: what is proved now, or what is not and why."""
    failed = section_failures(name, section, asked=asked)
    if failed:
        return f"NOT PROVED: {proves}: {failed[0].removeprefix(f'{name}: ')}"
    if reason := skipped(section):
        return f"left out: {proves}: {reason}"
    parts = [f"{record['name']}: {record['reason']}" for record in section["records"] if record["kind"] == "skip"]
    return f"PROVED: {proves}" + (f" (but not {'; '.join(parts)})" if parts else "")


def shown(milliseconds: float) -> str:
    """A time as people read it."""
    return f"{1000 * milliseconds:.1f} us" if milliseconds < 1 else f"{milliseconds:.3f} ms"


def as_markdown(results: Results) -> str:
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
