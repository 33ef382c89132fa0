"""A standalone cluster of Spark on loopback: a master and two workers, each an own address and one core."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.shop import ROOT
from tests.storage.s3_server import free_port

DEADLINE = 120.0  # seconds that anything may take on a busy machine
DEPLOY = "org.apache.spark.deploy"


class Cluster:
    """Its master's URL, and the processes of its workers."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.master = f"spark://127.0.0.1:{free_port()}"
        self._started: list[psutil.Popen] = []
        port = self.master.rpartition(":")[2]
        self._start("master.Master", "--host", "127.0.0.1", "--port", port)
        self.workers = [
            self._start(
                *("worker.Worker", "--host", host, "--cores", "1", "--memory", "600m"),
                *("--work-dir", str(folder / host), self.master),
            )
            for host in ("127.0.0.1", "127.0.0.2")
        ]

    def conf(self, **environment: str) -> dict[str, str]:
        """Settings of a session that uses both workers; `environment` is that of the executors."""
        path = ":".join(filter(None, (environment.pop("PYTHONPATH", ""), str(ROOT))))
        return {
            "spark.executor.memory": "450m",
            "spark.executor.cores": "1",
            **{f"spark.executorEnv.{name}": value for name, value in {**environment, "PYTHONPATH": path}.items()},
        }

    def executor(self, worker: int) -> psutil.Process | None:
        """The executor that a worker runs now, if any."""
        for child in self.workers[worker].children():
            with suppress(psutil.NoSuchProcess):
                if any("CoarseGrainedExecutorBackend" in argument for argument in child.cmdline()):
                    return child
        return None

    def close(self) -> None:
        for process in reversed(self._started):
            with suppress(psutil.NoSuchProcess):
                family = [process, *process.children(recursive=True)]
                for member in family:
                    with suppress(psutil.NoSuchProcess):
                        member.kill()
                psutil.wait_procs(family, timeout=DEADLINE)
            process.wait(DEADLINE)

    def _start(self, name: str, *arguments: str) -> psutil.Popen:
        import pyspark

        home = str(Path(pyspark.__file__).parent)
        environment = {
            **os.environ,
            "SPARK_HOME": home,
            "SPARK_DAEMON_MEMORY": "200m",
            "PYSPARK_PYTHON": sys.executable,
        }
        command = [f"{home}/bin/spark-class", f"{DEPLOY}.{name}", "--webui-port", "0", *arguments]
        with (self.folder / f"{name}-{len(self._started)}.log").open("wb") as log:
            process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.folder)
        self._started.append(process)
        return process


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """A cluster whose workers have registered."""
    cluster = Cluster(folder)
    try:
        wait_until(lambda: registered(folder) == 2, "both workers have registered")
        yield cluster
    finally:
        cluster.close()


def registered(folder: Path) -> int:
    return sum("Successfully registered with master" in log.read_text() for log in folder.glob("worker*.log"))


def wait_until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE:g} s: {what}"
        time.sleep(0.05)
