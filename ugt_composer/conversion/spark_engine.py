"""Converts the partitions as tasks of a Spark job, on any number of machines that share input and output.

Spark may run a task more than once: after a failure, when a machine is lost, or because it is slow. Each attempt writes
a part of its own, and the result that Spark returns names the one that counts.
"""

import os
import socket
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.conversion.partition import PartitionResult, convert_partition
from ugt_composer.conversion.parts import has_earlier_error, new_part, note_error, part_name
from ugt_composer.conversion.settings import FAIL, Settings
from ugt_composer.errors import RunError, UserError
from ugt_composer.jsonl.sources import Partition, Piece
from ugt_composer.spark.progress import job_progress
from ugt_composer.storage.s3_url import is_url

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class SparkEngine:
    """Runs partitions as the tasks of one job, and shows its progress."""

    def __init__(self, session: "SparkSession"):
        self.session = session

    def run(
        self, partitions: Sequence[Partition], place: str, settings: Settings, known: SemanticIdSet | None
    ) -> Generator[tuple[str, PartitionResult], None, None]:
        """Like `LocalEngine.run`, but all partitions are converted before the first is yielded."""
        if not partitions:
            return
        context = self.session.sparkContext
        shared = context.broadcast((settings, known))
        folder = os.getcwd()  # tasks run in another one
        tasks = [
            (number, tuple(replace(piece, folder=folder) if isinstance(piece, Piece) else piece for piece in partition))
            for number, partition in enumerate(partitions)
        ]
        with job_progress(self.session, "converting"):
            results = context.parallelize(tasks, len(tasks)).map(partial(_convert, place, shared)).collect()
        shared.destroy()
        for part, result in results:
            if isinstance(result, UserError):
                raise result
            yield part, result


def _convert(place: str, shared: Any, task: tuple[int, Partition]) -> tuple[str, PartitionResult | UserError]:
    """Converts a partition in a task. A UserError is returned, because it would fail again if Spark tried again."""
    from pyspark import TaskContext

    number, partition = task
    settings, known = shared.value
    context = TaskContext.get()
    assert context is not None
    part = f"{part_name(number)}.{context.taskAttemptId()}"
    _check_shared(place, partition)
    if settings.on_error == FAIL and has_earlier_error(place, number):
        return part, PartitionResult()
    result: PartitionResult | UserError
    try:
        with new_part(place, part) as folder:
            result = convert_partition(partition, folder, settings, known, lambda new: None)
    except UserError as error:
        result = error
    if isinstance(result, UserError) or result.error:
        note_error(place, number)
    return part, result


def _check_shared(place: str, partition: Partition) -> None:
    """Raises RunError if this machine does not see the folders of the input and of the output."""
    folders = [] if is_url(place) else [(place, os.path.dirname(os.path.dirname(place)))]
    files = [(piece.file, piece.path) for piece in partition if isinstance(piece, Piece) and piece.etag is None]
    for path, text in (*folders, *files):
        if not os.path.exists(path):
            raise RunError(
                f"{text} is not there on {socket.gethostname()}; Spark's machines must share the folders of the input "
                "and of --out, under the same paths"
            )
