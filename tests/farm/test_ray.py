"""mtu-farm with a real Ray on this machine: whatever happens to workers, nodes and the driver, the films are those of
one mtu-run."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys

import pytest
from tests import cli
from tests.farm.made_films import COUNTS, jobs, same, words
from tests.processes import environment, wait_until

from mtu.core.errors import InvalidInputError
from mtu.farm import engine
from mtu.farm.engine import Done, Workers, cluster, spread
from mtu.farm.films import Watch, restore_films
from mtu.farm.planning import plan_film, plan_films
from mtu.runtime.stored_session import store_beside

FARM = [sys.executable, "-c", "from mtu.farm.cli import main\nmain()"]


class Told(Watch):
    def __init__(self, unit):
        self.unit = unit


@pytest.fixture(scope="class")
def two():
    """A Ray for two workers."""
    workers = Workers(count=2)
    with cluster(workers):
        yield workers


@pytest.mark.needs_library("ray", "pyarrow")
@pytest.mark.timeout(120)
class TestRay:
    def test_a_worker_that_is_killed_loses_nothing(self, films, two):
        planned = [plan_film(job, 20) for job in jobs(films, "killed")]
        ended = []

        def done(unit: Done):
            ended.append((unit.film, unit.unit))
            if len(ended) in (1, 4):
                os.kill(int(unit.worker.split(":")[1]), signal.SIGKILL)

        outcomes = restore_films(planned, two, Told(done))
        assert [outcome.error for outcome in outcomes] == ["", ""]
        assert sorted(ended) == [(film, unit) for film in (0, 1) for unit in range(len(planned[film].plan.units))]
        assert same(films, "killed") and same(films, "killed", "b.mp4")
        assert [outcome.report.frames for outcome in outcomes] == [sum(COUNTS), sum(COUNTS[:4])]
        assert not list((films / "killed").glob("*.resume"))

    def test_a_unit_that_ends_every_worker_is_named_and_the_rest_goes_on(self, two):
        def make():
            def restore(film, unit):
                if unit == 1:
                    os._exit(1)
                if unit == 3:
                    raise InvalidInputError("not this one")
                return Done(film=film, unit=unit, worker="")

            return restore

        ended = {}
        missing = spread([(7, unit) for unit in range(5)], make, two, lambda done: ended.update({done.unit: done}))
        assert missing == [(7, 1)]
        assert sorted(ended) == [0, 2, 3, 4]
        assert [unit for unit, done in ended.items() if done.error] == [3] and ended[3].error == "not this one"


@pytest.mark.needs_library("ray", "pyarrow")
@pytest.mark.timeout(120)
def test_a_node_that_goes(films):
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20})
    try:
        node = nodes.add_node(num_cpus=2, object_store_memory=100 << 20)
        ended = []

        def done(unit: Done):
            ended.append(unit.unit)
            if len(ended) == 2:
                nodes.remove_node(node)

        workers = Workers(count=2, address=nodes.address)
        wanted = jobs(films, "node")
        wanted.append(dataclasses.replace(wanted[0], source=str(films / "none.mp4")))
        with cluster(workers):
            planned, (failed,) = plan_films(wanted, 10, all_over=True)
            outcomes = restore_films(planned, workers, Told(done))
    finally:
        nodes.shutdown()
    assert failed.job == wanted[2] and "none.mp4" in failed.error and "Traceback" not in failed.error
    assert [outcome.error for outcome in outcomes] == ["", ""]
    assert same(films, "node") and same(films, "node", "b.mp4")


@pytest.mark.needs_library("ray", "pyarrow")
@pytest.mark.timeout(120)
def test_a_driver_that_is_killed_goes_on(films, capsys):
    given = words(films, "driver", "--unit", "10", "--workers", "2", "--no-progress")
    command = [*FARM, "run", *given]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    store = store_beside(str(films / "driver" / "a.mp4"))
    wait_until(lambda: list(store.glob("0*.json")), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (films / "driver" / "a.mp4").exists()
    ended = cli.run(capsys, "mtu-farm", "run", *given)
    assert ended.code == 0 and "Warning" not in ended.err, ended.err
    assert "1 input: 1 done" in ended.err and "fps" in ended.err
    assert same(films, "driver")


@pytest.mark.needs_library("ray", "pyarrow")
@pytest.mark.timeout(120)
def test_a_driver_that_is_asked_to_end(films):
    command = [*FARM, "run", *words(films, "ended", "--unit", "10", "--no-progress")]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, start_new_session=True)
    store = store_beside(str(films / "ended" / "a.mp4"))
    wait_until(lambda: list(store.glob("0*.json")), process)
    process.terminate()
    said = process.communicate()[1].decode()
    assert process.returncode == 143 and "terminated" in said and "the same command goes on" in said, said
    assert sorted(path.name for path in (films / "ended").iterdir()) == [".a.mp4.resume"]
    assert not (store / "lock").exists()


HEAD_THAT_GOES = """
import os, time
from ray.cluster_utils import Cluster
from mtu.core.errors import MtuError
from mtu.farm import engine
from mtu.farm.engine import Done, Workers, cluster, spread

engine._ASK_SECONDS = 0.5
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 100 << 20})
workers = Workers(address=nodes.address)

def make():
    def restore(film, unit):
        time.sleep(300 * (unit == 3))  # Ray Data gives a row when it has the next one
        return Done(film=film, unit=unit, worker="")
    return restore

def done(unit):
    if unit.unit == 0:
        nodes.head_node.kill_gcs_server()

try:
    with cluster(workers):
        spread([(0, unit) for unit in range(4)], make, workers, done)
except MtuError as error:
    print(str(error).replace(workers.address, "ADDRESS"), flush=True)
finally:
    nodes.shutdown()
"""


@pytest.mark.needs_library("ray", "pyarrow")
@pytest.mark.timeout(120)
def test_a_head_that_goes():
    # In a process of its own: a minute after its head has gone Ray ends the process that had joined it.
    ended = subprocess.run(
        [sys.executable, "-c", HEAD_THAT_GOES], env=environment(), capture_output=True, text=True, timeout=110
    )
    assert "Ray at ADDRESS has gone: start it, and give the same command again" in ended.stdout, ended.stderr


def test_ray_client_is_refused():
    for address in ("ray://127.0.0.1:10001", "https://127.0.0.1:6379"):
        with pytest.raises(InvalidInputError, match="on a machine of the cluster, with HOST:6379 or auto"):
            Workers(address=address)


def test_one_line_of_native_code_is_left_out(capfd):
    with pytest.raises(RuntimeError), engine._without("logging.cc", "gcs_client.cc"):
        os.write(2, b"before\n[I] logging.cc:303: level\n[W] gcs_client.cc:210: token\nan error\n")
        raise RuntimeError
    assert capfd.readouterr().err == "before\nan error\n"


@pytest.mark.needs_library("ray")
def test_no_cluster_at_the_address():
    with pytest.raises(InvalidInputError, match="no Ray"), cluster(Workers(address="127.0.0.1:1")):
        pass


@pytest.mark.needs_library("ray")
def test_gpus_that_there_are_not(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(engine, "_ask", lambda what: {"GPU": 1.0})
    for count, gpus in ((3, 0.5), (1, 2)):
        with pytest.raises(InvalidInputError, match="and there are 1: give fewer --workers"):
            cluster(Workers(count=count, gpus=gpus)).__enter__()
    with cluster(Workers(count=2, gpus=0.5)):
        pass
    monkeypatch.setattr(engine, "_ask", lambda what: {"CPU": 2.0})
    with pytest.raises(InvalidInputError, match="--gpus-per-worker 1: Ray finds no GPU; leave it out"):
        cluster(Workers(gpus=1)).__enter__()
