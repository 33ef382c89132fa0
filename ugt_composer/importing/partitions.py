"""Partitions of an import: each holds all interactions of some users, and they are in the order of the users.

An import is written once, as functions of a partition, and as functions that merge what these return. An engine says
where they run: `InMemory` here, or the executors of Spark (`spark/`).
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Partitions(Protocol[T_co]):
    """Functions are called as `function(partition, *arguments)`; with `each`, a sequence with one value for each
    partition, as `function(partition, value, *arguments)`. They must be importable, so that other processes can call
    them, and must return the same when they are called again, as Spark does after a failure."""

    def map(self, function: Callable[..., T], *arguments: Any, each: Sequence[Any] | None = None) -> list[T]:
        """What the function returns for each partition, in their order: something small."""
        ...

    def sum(self, function: Callable[..., T], *arguments: Any) -> T:
        """The sum, by `+`, of what the function returns for each partition."""
        ...

    def sum_pieces(self, function: Callable[..., list[T]], *arguments: Any) -> list[T]:
        """The sums of the first, the second, … of what the function returns: as many for each partition, together too
        large to be handled at once."""
        ...

    def transform(
        self, function: Callable[..., T], *arguments: Any, each: Sequence[Any] | None = None
    ) -> "Partitions[T]":
        """The partitions that the function returns."""
        ...

    def kept(self) -> "Partitions[T_co]":
        """The same, so that several passes over them do not compute them again."""
        ...

    def __len__(self) -> int: ...


class InMemory(Generic[T]):
    """Partitions of this process: all interactions in one."""

    def __init__(self, *partitions: T):
        self._partitions = partitions

    def map(self, function: Callable[..., Any], *arguments: Any, each: Sequence[Any] | None = None) -> list[Any]:
        values = [()] * len(self) if each is None else [(value,) for value in each]
        return [function(one, *value, *arguments) for one, value in zip(self._partitions, values, strict=True)]

    def sum(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return functools.reduce(operator.add, self.map(function, *arguments))

    def sum_pieces(self, function: Callable[..., list[Any]], *arguments: Any) -> list[Any]:
        return [functools.reduce(operator.add, pieces) for pieces in zip(*self.map(function, *arguments), strict=True)]

    def transform(
        self, function: Callable[..., Any], *arguments: Any, each: Sequence[Any] | None = None
    ) -> "InMemory[Any]":
        return InMemory(*self.map(function, *arguments, each=each))

    def kept(self) -> "InMemory[T]":
        return self

    def __len__(self) -> int:
        return len(self._partitions)
