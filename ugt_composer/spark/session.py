"""A Spark session for a program: started quietly, stopped at its end, its errors in one sentence.

pyspark is imported inside functions only: it is an optional dependency.
"""

import importlib.util
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from ugt_composer.errors import UserError
from ugt_composer.spark.failures import SparkError, failure

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOCAL = "local[*]"
MASTERS = re.compile(r"local(\[(\*|[1-9]\d*)(, *\d+)?\])?|local-cluster\[.+\]|spark://.+|yarn|k8s://.+")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
CONNECT_SECONDS = 5.0
KEPT_LOG_LINES = 50
LEAST_MEMORY, MOST_MEMORY = 1 << 30, 1 << 33  # of Spark's Java process, in bytes
# Unless the user's configuration sets them.
DEFAULTS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.session.timeZone": "UTC",
}
# What spark-submit sets for a shell, as which PySpark starts Java. The user did not choose it.
SHELL = {"spark.app.name": "pyspark-shell", "spark.ui.showConsoleProgress": "true"}


@contextmanager
def spark_session(master: str | None, name: str, conf: Mapping[str, str] | None = None) -> "Iterator[SparkSession]":
    """Yields a session, which is stopped after the block, with all its jobs.

    A session that is active already, as in a notebook, is used and left running, without the block's jobs. Otherwise
    the master is the first of: `master`, that of spark-submit or of Spark's configuration, all cores of this machine.

    Args:
        master: a URL of Spark such as local[4] or spark://host:7077; None if the user named none.
        name: the application's name.
        conf: settings of Spark, which the user's own take precedence over.

    Raises:
        UserError: pyspark or Java is missing, the master's name is invalid, or a task raised a UserError.
        SparkError: the master does not answer, Spark cannot start, or a job has failed.
    """
    _check_installed(master)
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        found = active.sparkContext.master
        if master not in (None, found):
            raise UserError(f"--master {master}: a Spark session with the master {found} is active; stop it first")
        with _translated_errors(), _jobs_cancelled(active):
            yield active
        return
    with _translated_errors():
        session = _start(master, name, conf or {})
        try:
            with _jobs_cancelled(session):
                yield session
        finally:
            with suppress(Exception):  # Java may have ended
                session.stop()


def _check_installed(master: str | None) -> None:
    if master is not None and not MASTERS.fullmatch(master):
        raise UserError(
            f"--master {master} is unknown; expected local[*], local[N], spark://HOST:PORT, yarn or k8s://…"
        )
    if importlib.util.find_spec("pyspark") is None:
        raise UserError("--engine spark needs PySpark: pip install 'ugt-composer[spark]'")
    home = os.environ.get("JAVA_HOME")
    if "PYSPARK_GATEWAY_PORT" not in os.environ and not shutil.which(f"{home}/bin/java" if home else "java"):
        where = f"JAVA_HOME={home} has no bin/java" if home else "there is no java in PATH"
        raise UserError(
            f"--engine spark needs Java 17 or newer, {where}; install it (Debian: apt install default-jre-headless)"
        )


def _start(master: str | None, name: str, conf: Mapping[str, str]) -> "SparkSession":
    # If pandas 3 is installed, PySpark 4.0 warns when it is imported; nothing here uses its pandas functions.
    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
    from pyspark import SparkConf, SparkContext
    from pyspark.sql import SparkSession

    java = _java()
    configured = {pair._1(): pair._2() for pair in java.gateway.jvm.org.apache.spark.SparkConf(True).getAll()}
    master = master or configured.get("spark.master", LOCAL)
    defaults = {**DEFAULTS, **conf}
    if master.startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", configured.get("spark.pyspark.python", sys.executable))
    if master.startswith("local") or urlsplit(master).hostname in LOOPBACK:
        defaults |= dict.fromkeys(("spark.driver.host", "spark.driver.bindAddress"), "127.0.0.1")
    _check_reachable(master)
    defaults["spark.app.name"] = name
    settings = {key: value for key, value in defaults.items() if configured.get(key, SHELL.get(key)) == SHELL.get(key)}
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        context = SparkContext(
            conf=SparkConf(False).setMaster(master).setAll(list(settings.items())), gateway=java.gateway
        )
    except Exception as error:
        raise failure(error, java.last_line()) from None
    finally:
        # SparkContext installs a handler that calls Java in the middle of another call.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)
    return SparkSession(context)


def _check_reachable(master: str) -> None:
    """Raises SparkError if no master at spark://host:port,host:port accepts a connection: Spark would wait a minute."""
    if not master.startswith("spark://"):
        return
    reasons = []
    for address in master.removeprefix("spark://").split(","):
        url = urlsplit(f"spark://{address}")
        try:
            if url.hostname is None or url.port is None:
                raise UserError(f"--master {master}: expected spark://HOST:PORT")
            with socket.create_connection((url.hostname, url.port), timeout=CONNECT_SECONDS):
                return
        except UserError:
            raise
        except (OSError, ValueError) as error:
            reasons.append(str(getattr(error, "strerror", None) or error))
    raise SparkError(f"--master {master} does not answer: {reasons[0]}")


class _Java:
    """Spark's Java process. Its log is drained and not shown, except under spark-submit, which started it.

    The process ends with this one: its standard input is a pipe from here.
    """

    def __init__(self) -> None:
        from pyspark.java_gateway import launch_gateway

        # Spark takes it if the user's configuration says nothing; its own 1 GB is little for all tasks of a machine.
        memory = min(max(psutil.virtual_memory().total // 4, LEAST_MEMORY), MOST_MEMORY)
        os.environ.setdefault("SPARK_DRIVER_MEMORY", f"{memory >> 20}m")
        self._lines: deque[str] = deque(maxlen=KEPT_LOG_LINES)
        read, write = os.pipe()
        drained = threading.Thread(target=self._drain, args=(read,), daemon=True)
        drained.start()
        try:
            self.gateway: Any = launch_gateway(None, {"stdout": write, "stderr": subprocess.STDOUT})
        except Exception as error:
            os.close(write)
            drained.join(1)
            raise SparkError(f"Spark's Java process does not start: {self.last_line() or error}") from None
        os.close(write)

    def _drain(self, descriptor: int) -> None:
        with open(descriptor, errors="replace") as log:
            self._lines.extend(log)

    def last_line(self) -> str | None:
        """The last line of the log that says something, None if there is none."""
        lines = [line.strip() for line in self._lines if line.strip() and not line.startswith(("\t", "    "))]
        errors = [line for line in lines if "ERROR" in line or "Exception" in line or "rror:" in line]
        return next(reversed(errors or lines), None)


@cache
def _java() -> _Java:
    """The one Java process of this process, for all its sessions."""
    return _Java()


@contextmanager
def _jobs_cancelled(session: "SparkSession") -> Iterator[None]:
    """Cancels jobs that this thread has started in the block and that an error or a signal ends."""
    context, tag = session.sparkContext, f"ugt-{secrets.token_hex(4)}"
    context.addJobTag(tag)
    try:
        yield
    except BaseException:
        with suppress(Exception):
            context.cancelJobsWithTag(tag)
        raise
    finally:
        with suppress(Exception):
            context.removeJobTag(tag)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Raises errors of Spark and Py4J as UserError and SparkError, in one sentence, without the tracebacks that Py4J
    logs."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    root, logger = logging.getLogger(), logging.getLogger("py4j")
    level = logger.level
    root.addFilter(_is_not_of_py4j)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except (Py4JError, PySparkException, ConnectionRefusedError) as error:  # the last if Java has ended
        raise _interrupt_before(error) or failure(error, None) from None
    finally:
        root.removeFilter(_is_not_of_py4j)
        logger.setLevel(level)


def _interrupt_before(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interrupt that led to an error: PySpark calls Java again when a call is interrupted, which may fail."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def _is_not_of_py4j(record: logging.LogRecord) -> bool:
    """Py4J logs an interrupted call, or one that Java does not answer, by the root logger."""
    return Path(record.pathname).parent.name != "py4j"
