"""Conversion on a cluster whose executors are killed, whose tasks fail, hang and are run twice: the same bytes."""

import os
import random
import signal
import sys
import threading

import pytest

from tests.conversion.conversion_cases import SMALL, contents, main, recommend_row, siblings, write_rows
from tests.conversion.executors import Faults
from tests.spark.cluster import running_cluster, wait_until
from tests.spark.spark_cases import needs_java
from ugt_composer.spark.failures import SparkError
from ugt_composer.spark.session import spark_session

pytest.importorskip("pyspark")
pytestmark = [needs_java, pytest.mark.processes, pytest.mark.slow]
OPTIONS = ["--kind", "recommend", "--range-bytes", "30000", "--size-limit", "4096", *SMALL]
# A second attempt starts, on the other worker, as soon as a task takes twice as long as half of them.
SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "100ms",
    "spark.speculation.quantile": "0.5",
    "spark.speculation.multiplier": "2",
    "spark.speculation.minTaskRuntime": "100ms",
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return Faults(tmp_path_factory.mktemp("executors") / "faults")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, faults):
    """A cluster with an active session."""
    with pytest.MonkeyPatch.context() as patch, running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        conf = {**SPECULATION, **cluster.conf(PYTHONPATH=str(faults.folder))}
        with spark_session(cluster.master, "test", conf):
            yield cluster


@pytest.fixture
def source(tmp_path):
    rng = random.Random(6)
    return write_rows(tmp_path / "rows.jsonl", [recommend_row(rng, f"u{at}") for at in range(1500)])


def convert_on_spark(source, *options) -> dict[str, bytes]:
    """Converts by both engines, and compares."""
    out, local = source.parent / "out", source.parent / "local"
    assert main([str(source), "--out", str(local), *OPTIONS, *options]) == 0
    assert main([str(source), "--out", str(out), "--engine", "spark", *OPTIONS, *options]) == 0
    assert contents(out) == contents(local)
    assert siblings(out) == []
    return contents(out)


def test_tasks_that_fail_or_hang_once(cluster, faults, source):
    faults.inject("once", seconds=0.05, fail_once=(0, 5, 6, 17), hang_once=(9,))
    made = convert_on_spark(source)
    faults.release()  # an attempt that hangs would keep an executor busy
    attempts = faults.attempts()
    assert len(attempts) > 20
    assert all(attempts[number] >= 2 for number in (0, 5, 6, 17, 9))
    assert sum(name.startswith("shard") for name in made) > len(attempts)  # several shards of each


def test_an_executor_and_a_worker_that_are_killed(cluster, faults, source):
    """The executor at once, while its task runs; the other worker with its executor when the first is back."""
    faults.inject("killed", seconds=0.1, hold_from=6)
    begun: list[int] = []

    def kill() -> None:
        try:
            kill_both()
        finally:
            faults.release()

    def kill_both() -> None:
        # Each executor holds one, so that what a killed one has begun is begun again.
        wait_until(lambda: faults.attempts().keys() >= {6, 7} and cluster.executor(0), "both executors have a task")
        begun.append(len(faults.attempts()))
        executor = cluster.executor(0)
        executor.kill()
        wait_until(lambda: cluster.executor(0) not in (None, executor), "the executor is replaced")
        begun.append(len(faults.attempts()))
        wait_until(lambda: cluster.executor(1), "the other worker has an executor")
        for process in (cluster.workers[1], cluster.executor(1)):
            process.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    convert_on_spark(source)
    killer.join()
    attempts = faults.attempts()
    assert 3 < begun[0] <= begun[1] < len(attempts)  # both in the middle
    assert sum(attempts.values()) > len(attempts)


def test_a_task_that_always_fails_ends_the_job_and_leaves_nothing(cluster, faults, source, capfd):
    faults.inject("failing", fail=(7,))
    out = source.parent / "out"
    with pytest.raises(SparkError) as error:
        main([str(source), "--out", str(out), "--engine", "spark", *OPTIONS])
    assert str(error.value) == "a task of Spark failed: OSError: [Errno 28] No space left on device"
    assert faults.attempts()[7] == 4
    assert os.listdir(source.parent) == [source.name]
    assert capfd.readouterr() == ("", "")


def test_input_that_only_the_driver_has_is_named(cluster, faults, source, monkeypatch):
    """As on machines that share no folder; here, the executors find no file of that name."""
    faults.inject("missing")
    monkeypatch.chdir(source.parent)
    monkeypatch.setattr("ugt_composer.conversion.spark_engine.os.getcwd", lambda: "/elsewhere")
    with pytest.raises(
        SparkError, match=r"^rows\.jsonl is not there on .*machines must share the folders of the input"
    ):
        main(["rows.jsonl", "--out", "out", "--engine", "spark", *OPTIONS])
    assert os.listdir(source.parent) == [source.name]
