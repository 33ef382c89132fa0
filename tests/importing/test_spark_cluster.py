"""The import on a cluster whose executors are killed while they read, count and write: the same files."""

import sys
import threading

import psutil
import pytest

from convert.interactions_to_jsonl import main
from tests.importing.test_spark import CHOICES, events, write_csv
from tests.spark.cluster import running_cluster, wait_until
from tests.spark.spark_cases import needs_java
from ugt_composer.importing import spark_engine, spark_reader
from ugt_composer.spark.session import spark_session

pytest.importorskip("pyspark")
pytestmark = [needs_java, pytest.mark.processes, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster with an active session."""
    with pytest.MonkeyPatch.context() as patch, running_cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        with spark_session(cluster.master, "test", cluster.conf()):
            yield cluster


def test_executors_are_killed_in_the_middle(cluster, tmp_path, monkeypatch):
    """One while blocks are read and users are brought together, another one while rows are written."""
    monkeypatch.setattr(spark_reader, "SPAN_BYTES", 9000)
    monkeypatch.setattr(spark_reader, "PARTITION_ROWS", 200)
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "log.csv", events(900))
    assert main(["log.csv", "--out", "local", *CHOICES]) == 0
    killed: list[psutil.Process] = []
    reads, writes = threading.Event(), threading.Event()
    read, write = spark_reader._partitions, spark_engine.SparkEngine.write

    def noted_read(*arguments):
        reads.set()
        return read(*arguments)

    def noted_write(*arguments):
        writes.set()
        return write(*arguments)

    monkeypatch.setattr(spark_reader, "_partitions", noted_read)
    monkeypatch.setattr(spark_engine.SparkEngine, "write", noted_write)

    def kill() -> None:
        for moment in (reads, writes):
            moment.wait()
            wait_until(lambda: cluster.executor(0) or cluster.executor(1), "a worker has an executor")
            executor = cluster.executor(0) or cluster.executor(1)
            executor.kill()
            killed.append(executor)

    killer = threading.Thread(target=kill)
    killer.start()
    assert main(["log.csv", "--out", "spark", "--engine", "spark", *CHOICES]) == 0
    killer.join()
    assert len(killed) == 2
    names = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert sorted(path.name for path in (tmp_path / "spark").iterdir()) == names
    for name in names:
        content = (tmp_path / "spark" / name).read_bytes()
        if name.endswith(".yaml"):  # names its folder
            content = content.replace(b"spark/", b"local/")
        assert content == (tmp_path / "local" / name).read_bytes(), name
