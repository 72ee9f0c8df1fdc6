"""The fused kernel on a GPU: against the truth, then its time against torch and against its floors. Imports torch."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mtu.benchmarks.gpu_cases import CHANNELS, SIZES, Call
from mtu.benchmarks.gpu_device import Device, Enqueue, interleaved
from mtu.benchmarks.gpu_report import GpuReport
from mtu.plugins.correlation_argmax_warp import cuda_op, torch_op
from mtu.plugins.correlation_argmax_warp.cases import MIN_GAP
from mtu.plugins.kernel import Layout

LAYOUTS: Mapping[torch.dtype, tuple[Layout, ...]] = {
    torch.float16: ("linear", "hwc8"),
    torch.float32: ("linear",),
}
SETS = 3
"""Sets of inputs and outputs that the timings go round. One is 108 MB at 1280x720 in fp16, more than any L2 cache."""
LEAST_EQUAL = 0.9999
"""Share of the displacements that must be those of torch in fp32, ties left aside."""
CHECKED_TIES = 20000

PREDICTED_US: Mapping[str, float] = {"kernel 1280x720 fp16 linear": 75}
"""What docs/kernel.md predicts for an H200 (the middle), in microseconds, by the name of the timing."""


def random_maps(device: Device, sizes: Sequence[int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """motion and motion_prev [B, C, h, w], never negative: the upper half has moved and is noisy, the lower is new."""
    generator = torch.Generator(device.name).manual_seed(seed)
    motion_prev, noise = (torch.randn(*sizes, generator=generator, device=device.name) for _ in range(2))
    motion = motion_prev.relu().roll((3, -5), (2, 3)) + 0.5 * noise
    motion[:, :, sizes[2] // 2 :] = noise[:, :, sizes[2] // 2 :]
    return motion.relu().to(dtype), motion_prev.relu().to(dtype)


def random_inputs(
    device: Device, h: int, w: int, dtype: torch.dtype, *, batch: int = 1, channels: int = CHANNELS, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """motion, motion_prev and detail_prev."""
    generator = torch.Generator(device.name).manual_seed(seed + 1)
    shape = (batch, channels // 2, 4 * h, 4 * w)
    detail = torch.randn(shape, generator=generator, device=device.name).to(dtype)
    return *random_maps(device, (batch, channels, h, w), dtype, seed), detail


def call_of(device: Device, inputs: Sequence[Tensor], max_displacement: int = 10, **how: Any) -> Call:
    """The kernel with copies of these inputs."""
    arrays = [each.cpu().numpy() for each in inputs]
    motion, _, detail = arrays
    outputs = [detail, np.empty((len(motion), *motion.shape[2:]), np.int32)]
    attributes = {"max_displacement": max_displacement}
    return Call(device, cuda_op.KERNEL, arrays, outputs, attributes, **how)


# --- against the truth ----------------------------------------------------------------------------------------------


def check_kernel(report: GpuReport, device: Device, *, sizes: Mapping[str, tuple[int, int]] = SIZES) -> None:
    """Random maps against torch in fp32, the same twice, and in a CUDA graph."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for size, (h, w) in sizes.items():
        for dtype in (torch.float16, torch.float32):
            for layout in LAYOUTS[dtype]:
                name = f"random maps {size} {_short(dtype)} {layout}"
                inputs = partial(random_inputs, device, h, w, dtype)
                report.run(name, partial(_check_random, report, device, name, inputs, layout))
    h, w = (size // 4 for size in next(iter(sizes.values())))
    for dtype in (torch.float16, torch.float32):
        name = f"batch of 2, D = 20, 96 channels, {_short(dtype)}"
        inputs = partial(random_inputs, device, h, w, dtype, batch=2, channels=96)
        report.run(name, partial(_check_random, report, device, name, inputs, "linear", max_displacement=20))
    report.run("repeated and captured", lambda: _check_repeated(report, device, *next(iter(sizes.values()))))


def _short(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.float32: "fp32"}[dtype]


def _check_random(
    report: GpuReport,
    device: Device,
    name: str,
    make_inputs: Callable[[], tuple[Tensor, Tensor, Tensor]],
    layout: Layout,
    max_displacement: int = 10,
) -> None:
    inputs = motion, motion_prev, detail = make_inputs()
    found = call_of(device, inputs, max_displacement, layout=layout).run()
    warped, displacement = (torch.from_numpy(array).to(device.name) for array in found)
    expected = torch_op.correlation_argmax_warp(*inputs, max_displacement=max_displacement)[1]
    differ, wrong = disagreement(motion, motion_prev, displacement, expected, max_displacement)
    total = displacement.numel()
    detail_text = f"{differ} of {total} displacements differ from torch in fp32, {wrong} of them by no tie"
    report.check(name, 1 - wrong / total >= LEAST_EQUAL, detail_text)
    same = torch.equal(warped, gather(detail, displacement, max_displacement))
    report.check(f"{name}: warped as displaced", same)


def gather(detail: Tensor, displacement: Tensor, max_displacement: int, scale: int = 4) -> Tensor:
    """detail_prev moved by a displacement index."""
    span = 2 * max_displacement + 1
    dy, dx = displacement.long() // span - max_displacement, displacement.long() % span - max_displacement
    source = torch_op._source_elements(dy, dx, scale).expand(-1, detail.shape[1], -1)
    return F.pad(detail.flatten(2), (0, 1)).gather(2, source).reshape(detail.shape)


def disagreement(
    motion: Tensor, motion_prev: Tensor, ours: Tensor, theirs: Tensor, max_displacement: int = 10, pool_size: int = 5
) -> tuple[int, int]:
    """At how many positions two displacement indices differ, and at how many of these it is no tie.

    It is a tie where the two displacements' pooled costs, in double precision, are less than MIN_GAP apart. Where more
    than CHECKED_TIES differ, only so many are looked at, and the rest counts as no ties.
    """
    where = (ours != theirs).nonzero()
    looked_at = where[:CHECKED_TIES]
    if not len(looked_at):
        return 0, 0
    n, y, x = looked_at.unbind(1)
    span = 2 * max_displacement + 1
    inside = (ours >= 0) & (ours < span**2)
    a, b = (F.normalize(tensor.double(), dim=1, eps=1e-12) for tensor in (motion, motion_prev))
    costs = [
        pooled_cost(a, b, (n, y, x), index[n, y, x].long().clamp(0, span**2 - 1), max_displacement, pool_size)
        for index in (ours, theirs)
    ]
    ties = ((costs[0] - costs[1]).abs() < MIN_GAP) & inside[n, y, x]
    return len(where), len(where) - int(ties.sum())


def pooled_cost(
    a: Tensor, b: Tensor, where: tuple[Tensor, Tensor, Tensor], index: Tensor, max_displacement: int, pool_size: int
) -> Tensor:
    """The pooled cost of displacement `index` at positions `where` (batch, y, x), all [K]; a, b of unit length."""
    (_, _, h, w), (n, y, x) = a.shape, where
    span, r = 2 * max_displacement + 1, pool_size // 2
    dy, dx = index // span - max_displacement, index % span - max_displacement
    total = torch.zeros(len(index), dtype=a.dtype, device=a.device)
    for j in range(-r, r + 1):
        for i in range(-r, r + 1):
            ya, xa, yb, xb = y + j, x + i, y + j + dy, x + i + dx
            inside = (ya >= 0) & (ya < h) & (xa >= 0) & (xa < w) & (yb >= 0) & (yb < h) & (xb >= 0) & (xb < w)
            first = a[n, :, ya.clamp(0, h - 1), xa.clamp(0, w - 1)]
            second = b[n, :, yb.clamp(0, h - 1), xb.clamp(0, w - 1)]
            total += (first * second).sum(1) * inside
    return total / pool_size**2


def _check_repeated(report: GpuReport, device: Device, h: int, w: int) -> None:
    call = call_of(device, random_inputs(device, h, w, torch.float16))
    once, again = call.run(), call.run()
    report.check("the same twice", all(map(np.array_equal, once, again)))
    replay = device.graph(call.launch)
    call.spoil()
    replay()
    report.check("the same in a CUDA graph", all(map(np.array_equal, once, call.results())))


# --- time -----------------------------------------------------------------------------------------------------------


def unfused(motion: Tensor, motion_prev: Tensor, detail_prev: Tensor, max_displacement: int = 10) -> tuple[Tensor, ...]:
    """The op as published: the whole cost volume [B, 441, h, w] in memory, then pooling, argmax and gather.

    In the type of `motion`, with pool_size 5 and scale 4. The correlation takes one row of displacements at a time,
    which is the fastest that was found with torch alone.
    """
    d, span, h = max_displacement, 2 * max_displacement + 1, motion.shape[2]
    a, b = (F.normalize(m.float(), dim=1, eps=1e-12).to(m.dtype) for m in (motion, motion_prev))
    # [B, C, 2D + 1, h + 2D, w]: every column displacement of every row, a view
    b = F.pad(b, (d, d, d, d)).unfold(3, motion.shape[3], 1).transpose(2, 3)
    cost = torch.cat([(a[:, :, None] * b[:, :, :, row : row + h]).sum(1) for row in range(span)], 1)
    index = F.avg_pool2d(cost, 5, 1, 2).argmax(1)
    return gather(detail_prev, index, d), index.int()


def least_bytes(problem: cuda_op.Problem) -> int:
    """Bytes that the two kernels must move at least: maps, workspace twice (the packed maps), detail twice, index."""
    p = problem
    sizes = {"float16": 2, "float32": 4}
    positions = p.batch * p.height * p.width
    maps = 2 * positions * p.motion_channels * sizes[p.motion_type]
    detail = positions * p.scale**2 * p.detail_channels * sizes[p.detail_type]
    return maps + 2 * cuda_op.workspace_bytes(p) + 2 * detail + 4 * positions


def useful_operations(problem: cuda_op.Problem) -> int:
    """Multiplications and additions of the correlation."""
    p = problem
    return 2 * (2 * p.max_displacement + 1) ** 2 * p.batch * p.height * p.width * p.motion_channels


def measure_rates(report: GpuReport, device: Device, copied: int = 2**30, side: int = 8192) -> dict[str, float]:
    """Bytes a second of a copy of `copied` bytes, read and written, and operations a second of square products."""
    source, target = (torch.empty(copied // 4, device=device.name).normal_() for _ in range(2))
    rates = {"copy": 2 * copied / _seconds(device, lambda: target.copy_(source))}
    for dtype in (torch.float16, torch.float32):
        a, b = (torch.randn(side, side, device=device.name).to(dtype) for _ in range(2))
        rates[_short(dtype)] = 2 * side**3 / _seconds(device, partial(torch.mm, a, b))
    report.fact("copy, TB/s read and written", rates["copy"] / 1e12)
    report.fact("matrix product fp16, TFLOP/s", rates["fp16"] / 1e12)
    report.fact("matrix product fp32 without TF32, TFLOP/s", rates["fp32"] / 1e12)
    return rates


def _seconds(device: Device, call: Enqueue) -> float:
    device.intervals(call, 3)
    return statistics.median(device.intervals(call, 11)[1:]) / 1000


def time_kernel(
    report: GpuReport,
    device: Device,
    rates: Mapping[str, float],
    *,
    sizes: Mapping[str, tuple[int, int]] = SIZES,
    compiler: Callable[..., Callable[..., Any]] | None = torch.compile,
    rounds: int = 50,
    launches: int = 10,
) -> None:
    """Times the kernel, the op unfused in torch (also compiled), and the project's torch op, in turns at each size.

    A sample of the kernel is a CUDA graph that goes `launches` times round SETS sets of memory, over its launches.
    `rates` are those of `measure_rates`; `compiler` None leaves the compiled version out.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    for size, (h, w) in sizes.items():
        report.run(f"times {size}", partial(_time_size, report, device, rates, size, h, w, compiler, rounds, launches))
    size, (h, w) = next(iter(sizes.items()))
    name = f"kernel {size} fp16 linear"

    def repeat() -> None:
        kernels = [call_of(device, random_inputs(device, h, w, torch.float16, seed=seed)) for seed in range(SETS)]
        rounded = _rounds(device, [kernel.launch for kernel in kernels], launches)
        report.time(f"{name}, again at the end", "repeat", interleaved(device, {name: rounded}, rounds)[name])

    report.run(f"{name}, again", repeat)


def _rounds(device: Device, calls: Sequence[Enqueue], rounds: int) -> tuple[Enqueue, int]:
    """One thing to start that does all calls so many times, and how many that makes."""
    return device.graph(lambda: [call() for _ in range(rounds) for call in calls]), rounds * len(calls)


def _cycle(function: Callable[..., Any], sets: Sequence[Sequence[Tensor]]) -> tuple[Enqueue, int]:
    """One call of a torch function, with the next set each time."""
    turns = itertools.cycle(sets)
    return lambda: function(*next(turns)), 1


def _time_size(
    report: GpuReport,
    device: Device,
    rates: Mapping[str, float],
    size: str,
    h: int,
    w: int,
    compiler: Callable[..., Callable[..., Any]] | None,
    rounds: int,
    launches: int,
) -> None:
    calls: dict[str, tuple[Enqueue, int]] = {}
    kernels: dict[str, list[Call]] = {}
    for dtype in (torch.float16, torch.float32):
        kind = _short(dtype)
        sets = [random_inputs(device, h, w, dtype, seed=seed) for seed in range(SETS)]
        for layout in LAYOUTS[dtype]:
            name = f"{size} {kind} {layout}"
            chosen = kernels[name] = [call_of(device, inputs, layout=layout) for inputs in sets]
            calls[f"kernel {name}"] = _rounds(device, [kernel.launch for kernel in chosen], launches)
            prepares = [partial(kernel.launch_first, 1) for kernel in chosen]
            calls[f"prepare {name}"] = _rounds(device, prepares, launches)
        calls[f"unfused {size} {kind}"] = _cycle(unfused, sets)
        calls[f"torch op {size} {kind}"] = _cycle(torch_op.correlation_argmax_warp, sets)
        if kind == "fp32":
            same = np.mean(unfused(*sets[0])[1].cpu().numpy() == chosen[0].run()[1])
            report.check(f"unfused {size} does what the kernel does", same > 0.99, f"{same:.2%} equal displacements")
        if compiler is not None:
            compiled = compiler(unfused, dynamic=False)
            if report.run(f"unfused compiled {size} {kind}", partial(compiled, *sets[0]), seconds=30) is not None:
                calls[f"unfused compiled {size} {kind}"] = _cycle(compiled, sets)
    samples = interleaved(device, calls, rounds)
    for name, (kernel, *_) in kernels.items():
        kind, problem = name.split()[1], kernel.problem
        prepare = statistics.median(samples[f"prepare {name}"])
        report.time(
            f"kernel {name}",
            f"kernel {size} {kind}",
            samples[f"kernel {name}"],
            prepare_us=1000 * prepare,
            match_us=1000 * (statistics.median(samples[f"kernel {name}"]) - prepare),
            floor_bytes_us=1e6 * least_bytes(problem) / rates["copy"],
            floor_operations_us=1e6 * useful_operations(problem) / rates[kind],
            **({"predicted_us": PREDICTED_US[f"kernel {name}"]} if f"kernel {name}" in PREDICTED_US else {}),
        )
    for name, values in samples.items():
        if not name.startswith(("kernel ", "prepare ")):
            report.time(name, name, values)
