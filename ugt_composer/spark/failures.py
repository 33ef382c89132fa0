"""What a failed job says: the exception that a task raised in Python, or the first line of Java's."""

import re

from ugt_composer.errors import RunError, UserError, first_line

TRACEBACK = "Traceback (most recent call last):"
# What Spark appends to the text of an exception in a worker.
APPENDED = re.compile(
    r"\s*(?:SQLSTATE: \w+\s*)?(?:\n+(?:JVM stacktrace:|Driver stacktrace:|\tat |Caused by: ).*)?\Z", re.S
)
LOST = re.compile(r"most recent failure: Lost task .*?\): (.*)", re.S)
MOST_CAUSES = 20  # of an exception of Java that are looked at
NAME = re.compile(r"([\w.]+)(?:: (.*))?", re.S)


class SparkError(RunError):
    """Spark cannot start, or a job has failed. The message is one sentence with the cause."""


def failure(error: Exception, log: str | None = None) -> UserError | RunError:
    """The error to raise for one of pyspark or Py4J.

    A UserError that a task raised comes back as a UserError with its message.

    Args:
        log: a line of the log of Spark's Java process, for an error that says nothing.
    """
    if isinstance(error, UserError | RunError):
        return error
    text = _text(error)
    if TRACEBACK in text:
        name, message = _python_exception(text)
        if name == f"{UserError.__module__}.{UserError.__qualname__}":
            return UserError(message)
        if name.startswith("ugt_composer."):  # one of this package's: the message is a sentence
            return SparkError(message)
        if name == "ModuleNotFoundError" and "ugt_composer" in message:
            return SparkError(
                "the Python of Spark's executors has no package ugt_composer; install it on every machine, or set "
                "PYSPARK_PYTHON to a Python that has it"
            )
        return SparkError(f"a task of Spark failed: {name}{message and f': {message}'}")
    lost = LOST.search(text)
    sentence = first_line(Exception(lost[1] if lost else text))
    if type(error).__name__ in ("Py4JNetworkError", "ConnectionRefusedError"):
        sentence = log or "its Java process has ended, perhaps because memory ran out"
    return SparkError(f"Spark failed: {sentence}")


def _text(error: Exception) -> str:
    """What the error says, or, if it is one of Java's that says nothing of a task, its first cause."""
    java = getattr(error, "java_exception", None)
    if java is None:
        return str(error)
    texts: list[str] = []
    while java is not None and len(texts) < MOST_CAUSES:
        texts.append(str(java.toString()))
        java = java.getCause()
    return next((text for text in texts if TRACEBACK in text or LOST.search(text)), texts[-1])


def _python_exception(text: str) -> tuple[str, str]:
    """The qualified name and the message of the last exception of a text with tracebacks."""
    lines = text[text.rindex(TRACEBACK) :].split("\n")[1:]
    at = next((at for at, line in enumerate(lines) if line and not line.startswith(" ")), 0)
    match = NAME.match(APPENDED.sub("", "\n".join(lines[at:])))
    return (match[1], match[2] or "") if match else ("Exception", first_line(Exception(text)))
