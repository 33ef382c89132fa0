"""The session of --engine spark: its settings, and what errors say."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.spark.spark_cases import MASTER, needs_java
from ugt_composer.errors import RunError, UserError
from ugt_composer.spark.failures import SparkError, failure
from ugt_composer.spark.progress import job_progress
from ugt_composer.spark.session import spark_session

pytest.importorskip("pyspark")
from py4j.protocol import Py4JJavaError, Py4JNetworkError


def raise_user_error(number: int) -> None:
    raise UserError(f"rows.jsonl:{number}: bad\n  user_id: 3 rows")


def raise_run_error(number: int) -> None:
    raise RunError("the disk is full")


def fill_disk(number: int) -> None:
    raise OSError(28, "No space left on device")


def end_process(number: int) -> None:
    os._exit(1)


def raise_in_an_interrupt() -> None:
    """As PySpark does."""
    try:
        raise KeyboardInterrupt
    finally:
        raise Py4JNetworkError("Answer from Java side is empty")


@pytest.fixture(scope="module")
def session():
    handler = signal.getsignal(signal.SIGINT)
    with spark_session(MASTER, "test") as session:
        assert signal.getsignal(signal.SIGINT) is handler
        yield session


@needs_java
def test_sessions_are_quiet_local_and_use_this_python(session, capfd):
    with spark_session(None, "inner") as inner:  # the active session is used, and left running
        assert inner is session
    conf = dict(session.sparkContext.getConf().getAll())
    assert conf["spark.master"] == MASTER
    assert conf["spark.driver.bindAddress"] == conf["spark.driver.host"] == "127.0.0.1"
    assert (conf["spark.ui.enabled"], conf["spark.sql.session.timeZone"]) == ("false", "UTC")
    assert session.sparkContext.parallelize([0]).map(lambda _: sys.executable).collect() == [sys.executable]
    assert capfd.readouterr() == ("", "")


@needs_java
@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        (raise_user_error, UserError, "rows.jsonl:7: bad\n  user_id: 3 rows"),
        (raise_run_error, SparkError, "the disk is full"),
        (fill_disk, SparkError, "a task of Spark failed: OSError: [Errno 28] No space left on device"),
        (end_process, SparkError, "Spark failed: org.apache.spark.SparkException: Python worker exited unexpectedly"),
    ],
)
def test_an_error_of_a_task_is_one_sentence(session, capfd, task, kind, message):
    with pytest.raises(kind) as error, spark_session(None, "inner") as inner, job_progress(inner, "testing"):
        inner.sparkContext.parallelize([7], 1).foreach(task)
    assert str(error.value).startswith(message)
    assert "\tat " not in str(error.value)
    assert capfd.readouterr() == ("", "")


@needs_java
def test_an_exception_of_java_says_its_first_cause(session):
    java = session.sparkContext._jvm.java.lang

    def raised(exception) -> Py4JJavaError:
        error = Py4JJavaError.__new__(Py4JJavaError)
        error.java_exception = exception
        return error

    cause = java.OutOfMemoryError("Java heap space")
    awaited = java.RuntimeException("Exception thrown in awaitResult: ", java.RuntimeException("broadcast", cause))
    assert "java.lang.OutOfMemoryError: Java heap space" in str(failure(raised(awaited)))
    assert str(failure(raised(java.RuntimeException("alone")))) == "Spark failed: java.lang.RuntimeException: alone"


@needs_java
def test_errors_of_spark_itself_and_of_the_block(session):
    with pytest.raises(SparkError, match="Path does not exist: file:/missing"), spark_session(None, "inner") as inner:
        inner.read.text("/missing")
    with pytest.raises(SparkError, match="Java process has ended"), spark_session(None, "inner"):
        raise ConnectionRefusedError(111, "Connection refused")
    with pytest.raises(KeyboardInterrupt), spark_session(None, "inner"):
        raise_in_an_interrupt()
    with pytest.raises(ZeroDivisionError), spark_session(None, "inner"):
        1 / 0  # noqa: B018 - raises
    with pytest.raises(UserError, match="the master local\\[2\\] is active"), spark_session("local[3]", "inner"):
        pass


@pytest.mark.parametrize(
    ("master", "kind", "message"),
    [
        ("lokal", UserError, "--master lokal is unknown; expected local"),
        ("sc://localhost", UserError, "is unknown"),
        ("local[0]", UserError, r"local\[0\] is unknown"),
    ],
)
def test_masters_that_spark_does_not_know(master, kind, message):
    with pytest.raises(kind, match=message), spark_session(master, "test"):
        pass


@needs_java
@pytest.mark.parametrize(
    ("master", "kind", "message"),
    [
        ("spark://127.0.0.1:1", SparkError, "--master spark://127.0.0.1:1 does not answer: Connection refused"),
        ("spark://127.0.0.1", UserError, "expected spark://HOST:PORT"),
    ],
)
def test_masters_that_do_not_answer(monkeypatch, master, kind, message):
    from pyspark.sql import SparkSession

    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)
    with pytest.raises(kind, match=message), spark_session(master, "test"):
        pass


def test_without_java_or_pyspark_the_message_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(UserError, match="apt install default-jre-headless"), spark_session(None, "test"):
        pass
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no java in PATH"), spark_session(None, "test"):
        pass
    paths = [path for path in sys.path if not (Path(path) / "pyspark").exists()]
    monkeypatch.setattr(sys, "path", paths)
    monkeypatch.delitem(sys.modules, "pyspark")
    with pytest.raises(UserError, match="pip install 'ugt-composer\\[spark\\]'"), spark_session(None, "test"):
        pass
