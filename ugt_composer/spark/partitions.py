"""Values in the executors of Spark, one in each partition of an RDD."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from pyspark import RDD

T = TypeVar("T")


class SparkPartitions(Generic[T]):
    """Numbered partitions. Functions are called as those of `importing.partitions.Partitions`.

    What `transform` returns is computed again for each pass over it, unless it is `kept`; then it lies on the
    executors' disks, and only what is lost with an executor is computed again. Spark broadcasts functions with large
    arguments by itself.
    """

    def __init__(self, rdd: "RDD[tuple[int, T]]", count: int):
        """Args:
        rdd: (number, partition), one element in each of Spark's partitions.
        """
        self._rdd, self._count = rdd, count

    def map(self, function: Callable[..., Any], *arguments: Any, each: Sequence[Any] | None = None) -> list[Any]:
        found = self._apply(function, arguments, each).collect()
        return [value for _, value in sorted(found, key=operator.itemgetter(0))]

    def sum(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._apply(function, arguments, None).values().treeReduce(operator.add)

    def sum_pieces(self, function: Callable[..., list[Any]], *arguments: Any) -> list[Any]:
        pieces = self._apply(function, arguments, None).flatMap(lambda element: enumerate(element[1]))
        sums: Iterable[tuple[int, Any]] = pieces.reduceByKey(operator.add).sortByKey().toLocalIterator()
        return [total for _, total in sums]

    def transform(
        self, function: Callable[..., Any], *arguments: Any, each: Sequence[Any] | None = None
    ) -> "SparkPartitions[Any]":
        return SparkPartitions(self._apply(function, arguments, each), self._count)

    def shuffled(
        self,
        split: Callable[[int, T], Iterator[tuple[int, bytes]]],
        join: Callable[[int, list[bytes]], Any],
        count: int,
    ) -> "SparkPartitions[Any]":
        """Other partitions, by Spark's shuffle.

        Args:
            split: called with a partition's number and the partition; yields numbers of new partitions with data for
                them.
            join: called with a new partition's number and the list of its data, in the order of the partitions that
                it comes from.
            count: of new partitions.
        """

        def sent(element: tuple[int, Any]) -> Iterator[tuple[int, tuple[int, bytes]]]:
            number, partition = element
            for target, data in split(number, partition):
                yield target, (number, data)

        def joined(number: int, received: Iterable[tuple[int, tuple[int, bytes]]]) -> Iterator[tuple[int, Any]]:
            data = sorted((pair for _, pair in received), key=operator.itemgetter(0))
            yield number, join(number, [one for _, one in data])

        # Numbers of partitions are used as they are.
        by_number = self._rdd.flatMap(sent).partitionBy(count, int)
        return SparkPartitions(by_number.mapPartitionsWithIndex(joined), count)

    def kept(self) -> "SparkPartitions[T]":
        from pyspark import StorageLevel

        self._rdd.persist(StorageLevel.DISK_ONLY)
        return self

    def __len__(self) -> int:
        return self._count

    def _apply(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], each: Sequence[Any] | None
    ) -> "RDD[tuple[int, Any]]":
        def apply(element: tuple[int, Any]) -> tuple[int, Any]:
            number, partition = element
            own = () if each is None else (each[number],)
            return number, function(partition, *own, *arguments)

        return self._rdd.map(apply)


def attempt_name() -> str:
    """A name, in a task, that no other attempt at any task has."""
    from pyspark import TaskContext

    task = TaskContext.get()
    assert task is not None
    return f"{task.stageId()}-{task.partitionId()}-{task.taskAttemptId()}"
