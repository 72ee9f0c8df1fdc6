"""Workers of one machine take shares of its processor."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mtu.farm.cores import share_cores

CODE = """
import os, sys
from mtu.farm.cores import share_cores
held = share_cores(int(sys.argv[1]))
print(held is not None, sorted(os.sched_getaffinity(0)), flush=True)
sys.stdin.read()
"""
pytestmark = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells a process its cores")


def test_each_process_has_a_share_of_its_own_until_it_ends() -> None:
    count, cores = 5, sorted(os.sched_getaffinity(0))
    shares = [set(cores[part * len(cores) // count : (part + 1) * len(cores) // count]) for part in range(count)]

    def begin() -> tuple[subprocess.Popen[str], str]:
        worker = subprocess.Popen(
            [sys.executable, "-c", CODE, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        return worker, worker.stdout.readline().strip()

    begun = [begin() for _ in range(count + 1)]
    try:
        said = [line for _, line in begun]
        assert said[:count] == [f"True {sorted(share or set(cores))}" for share in shares]
        assert said[count] == f"False {cores}"  # one too many has all
        begun[1][0].kill()
        begun[1][0].wait()
        begun.append(begin())
        assert begun[-1][1] == said[1]  # what a killed one had
    finally:
        for worker, _ in begun:
            worker.kill()
            worker.communicate()


def test_alone_a_worker_has_all() -> None:
    before = os.sched_getaffinity(0)
    assert share_cores(1) is None and os.sched_getaffinity(0) == before
