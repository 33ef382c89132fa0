"""The items of a catalogue as arrays, one entry per item: ten million items take about a gigabyte, and no objects.

n items. Rows are numbered in the order of the file.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated

import msgspec
import numpy as np
import xxhash

from ugt_composer.data.history import SemanticId
from ugt_composer.vocabulary import LEVELS, NUM_SPECIAL_IDS

LARGEST_ID = 2**31 - 1
CHUNK = 1 << 16  # items that exist as objects at once
FEW = 100_000  # items that Python sorts faster than Polars is imported

LevelId = Annotated[int, msgspec.Meta(ge=NUM_SPECIAL_IDS, le=LARGEST_ID)]


class Item(msgspec.Struct, frozen=True, gc=False):
    """One line of the catalogue."""

    item_id: Annotated[str, msgspec.Meta(min_length=1)]
    l1_id: LevelId
    l2_id: LevelId
    l3_id: LevelId
    name: str | None = None
    retired: bool = False

    @property
    def triple(self) -> SemanticId:
        return self.l1_id, self.l2_id, self.l3_id


class _PickledWithoutViews:
    """Caches views of its arrays, whose numbers are read faster than those of an array, but which cannot be pickled."""

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if not isinstance(value, memoryview)}


@dataclass(frozen=True, eq=False)
class Texts(_PickledWithoutViews, Sequence[str]):
    """n texts, one after the other in UTF-8.

    Attributes:
        data: uint8 (bytes,).
        ends: int64 (n,) where each text ends in `data`.
    """

    data: np.ndarray
    ends: np.ndarray

    @cached_property
    def _data(self) -> memoryview:
        return self.data.data

    @cached_property
    def _ends(self) -> memoryview:
        return self.ends.data

    @classmethod
    def of(cls, chunks: Iterable[Sequence[str]]) -> "Texts":
        """The texts of all chunks, which are read one at a time."""
        parts, sizes = [], []
        for texts in chunks:
            data = "".join(texts).encode()
            lengths = np.fromiter(map(len, texts), np.int64, len(texts))
            if len(data) > lengths.sum():  # not all of it is ASCII
                lengths = np.fromiter((len(text.encode()) for text in texts), np.int64, len(texts))
            parts.append(np.frombuffer(data, np.uint8))
            sizes.append(lengths)
        return cls(_joined(parts, np.uint8), _joined(sizes, np.int64).cumsum())

    def __len__(self) -> int:
        return len(self.ends)

    def encoded(self, row: int) -> bytes:
        return bytes(self._data[self._ends[row - 1] if row else 0 : self._ends[row]])

    def __getitem__(self, row: int) -> str:  # type: ignore[override]
        return self.encoded(row).decode()


class DuplicateItem(Exception):
    """Two items have the same item id: the one of `row`, and an earlier one."""

    def __init__(self, columns: "ItemColumns", row: int, earlier: int):
        super().__init__(f"rows {earlier} and {row} have the same item id")
        self.columns, self.row, self.earlier = columns, row, earlier


@dataclass(frozen=True, eq=False)
class ItemColumns(_PickledWithoutViews):
    """
    Attributes:
        triples: int64 (n, 3) semantic IDs.
        ids, names: of the items; the name is empty where there is none.
        has_name, retired: bool (n,).
        lines: int64 (n,) each item's line in the file; empty if these are 1 .. n.
        by_hash: int32 (n,) rows in the order of the hashes of their item ids.
        buckets: int32 (2^b + 1,): the rows whose hash begins with the bits i are by_hash[buckets[i] : buckets[i + 1]].
        by_triple: int32 (n,) rows in the order of their semantic IDs, in that of the file if these are equal.
        ordered: int64 (3, n) the semantic IDs in that order.
        by_id: int32 (n,) rows in the order of their item ids.
    """

    triples: np.ndarray
    ids: Texts
    names: Texts
    has_name: np.ndarray
    retired: np.ndarray
    lines: np.ndarray
    by_hash: np.ndarray
    buckets: np.ndarray

    @classmethod
    def of(cls, chunks: Iterable[tuple[Sequence[Item], Sequence[int]]]) -> "ItemColumns":
        """The columns of chunks of items with their lines, which are read one at a time.

        Raises:
            DuplicateItem: two items have the same item id.
        """
        triples: list[np.ndarray] = []
        ids: list[Texts] = []
        names: list[Texts] = []
        has_name: list[np.ndarray] = []
        retired: list[np.ndarray] = []
        lines: list[np.ndarray] = []
        hashes: list[np.ndarray] = []
        for items, numbers in chunks:
            levels = [item.l1_id for item in items], [item.l2_id for item in items], [item.l3_id for item in items]
            triples.append(np.array(levels, np.int64).T)
            ids.append(Texts.of([[item.item_id for item in items]]))
            names.append(Texts.of([[item.name or "" for item in items]]))
            has_name.append(np.array([item.name is not None for item in items]))
            retired.append(np.array([item.retired for item in items]))
            lines.append(np.asarray(numbers, np.int64))
            hashes.append(
                np.fromiter((xxhash.xxh3_64_intdigest(item.item_id.encode()) for item in items), np.uint64, len(items))
            )
        of_lines = _joined(lines, np.int64)
        if (of_lines == np.arange(1, len(of_lines) + 1)).all():
            of_lines = of_lines[:0]
        of_items = np.concatenate([np.empty((0, LEVELS), np.int64), *triples])
        by_hash, buckets, suspects = _hash_table(_joined(hashes, np.uint64))
        columns = cls(
            of_items,
            _all_texts(ids),
            _all_texts(names),
            _joined(has_name, np.bool_),
            _joined(retired, np.bool_),
            of_lines,
            by_hash,
            buckets,
        )
        first: dict[str, int] = {}
        for row in suspects.tolist():
            if (earlier := first.setdefault(columns.ids[row], row)) != row:
                raise DuplicateItem(columns, row, earlier)
        return columns

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "ItemColumns":
        """The columns of `arrays`."""
        ids, names = (Texts(arrays[f"{name}_data"], arrays[f"{name}_ends"]) for name in ("ids", "names"))
        others = ("has_name", "retired", "lines", "by_hash", "buckets")
        columns = cls(arrays["triples"], ids, names, *(arrays[name] for name in others))
        for name in _ORDERS:
            columns.__dict__[name] = arrays[name]  # where cached_property keeps it
        return columns

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All of it, by name."""
        arrays: dict[str, np.ndarray] = {}
        for name in (*(column.name for column in fields(self)), *_ORDERS):
            value = getattr(self, name)
            if isinstance(value, Texts):
                arrays |= {f"{name}_data": value.data, f"{name}_ends": value.ends}
            else:
                arrays[name] = value
        return arrays

    def __len__(self) -> int:
        return len(self.triples)

    def row_of(self, item_id: str) -> int | None:
        """The row of an item id, or None."""
        text = _encoded(item_id)
        bucket = xxhash.xxh3_64_intdigest(text) >> self._shift
        for place in range(self._buckets[bucket], self._buckets[bucket + 1]):
            if self.ids.encoded(row := self._by_hash[place]) == text:
                return row
        return None

    def item(self, row: int) -> Item:
        l1, l2, l3 = self.triples[row].tolist()
        name = self.names[row] if self.has_name[row] else None
        return Item(self.ids[row], l1, l2, l3, name, bool(self.retired[row]))

    def chunks(self, rows: np.ndarray | None = None) -> Iterator[tuple[list[str], list[list[int]]]]:
        """Item ids and semantic IDs of these rows, or of all, some thousands at a time."""
        for start in range(0, len(self) if rows is None else len(rows), CHUNK):
            part = np.arange(start, min(start + CHUNK, len(self))) if rows is None else rows[start : start + CHUNK]
            yield [self.ids[row] for row in part.tolist()], self.triples[part].tolist()

    @cached_property
    def by_triple(self) -> np.ndarray:
        return np.lexsort(self.triples.T[::-1]).astype(np.int32)

    @cached_property
    def ordered(self) -> np.ndarray:
        return np.ascontiguousarray(self.triples[self.by_triple].T)

    @property
    def is_repeated(self) -> np.ndarray:
        """bool (n - 1,): whether the semantic ID after each of the ordered ones is the same."""
        return (self.ordered[:, 1:] == self.ordered[:, :-1]).all(axis=0)

    @property
    def by_triple_and_id(self) -> np.ndarray:
        """int32 (n,) rows in the order of their semantic IDs, in that of their item ids if these are equal."""
        repeated = np.concatenate([[False], self.is_repeated])
        shared = np.flatnonzero(repeated | np.append(repeated[1:], False))  # places of semantic IDs of several items
        order = self.by_triple.copy()
        rank = np.empty_like(order)
        rank[self.by_id] = np.arange(len(self), dtype=np.int32)
        order[shared] = order[shared][np.lexsort((rank[order[shared]], (~repeated).cumsum()[shared]))]
        return order

    @cached_property
    def by_id(self) -> np.ndarray:
        if len(self) <= FEW:
            return np.array(sorted(range(len(self)), key=list(self.ids).__getitem__), np.int32)
        import polars as pl

        starts = range(0, len(self), CHUNK)
        parts = ([self.ids[row] for row in range(at, min(at + CHUNK, len(self)))] for at in starts)
        ids = pl.concat([pl.Series(part, dtype=pl.String) for part in parts])
        return ids.arg_sort().cast(pl.Int32).to_numpy()

    @cached_property
    def _by_hash(self) -> memoryview:
        return self.by_hash.data

    @cached_property
    def _buckets(self) -> memoryview:
        return self.buckets.data

    @cached_property
    def _shift(self) -> int:
        return 65 - len(self.buckets).bit_length()


_ORDERS = ("by_triple", "ordered", "by_id")


class ItemRows(Sequence[Item]):
    """The items of columns, made when they are asked for."""

    def __init__(self, columns: ItemColumns):
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, row):  # type: ignore[no-untyped-def]
        if isinstance(row, slice):
            return [self._columns.item(at) for at in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"found row {row} of {len(self)} items")
        return self._columns.item(int(row) % len(self))

    def __iter__(self) -> Iterator[Item]:
        return map(self._columns.item, range(len(self)))


def in_chunks(items: Sequence[Item]) -> Iterator[tuple[Sequence[Item], Sequence[int]]]:
    """Items, and the numbers of their lines in a file without blank lines."""
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK], range(start + 1, min(start + CHUNK, len(items)) + 1)


def _encoded(item_id: str) -> bytes:
    """In UTF-8; half a surrogate pair, which no item of a catalogue has, is no error."""
    return item_id.encode("utf-8", "surrogatepass")


def _hash_table(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`by_hash`, `buckets` (about one per row) and the rows that share a hash, given the hashes uint64 (n,)."""
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    bits = max(1, len(hashes).bit_length())
    sizes = np.bincount((hashes >> np.uint64(64 - bits)).astype(np.int64), minlength=1 << bits)
    same = hashes[1:] == hashes[:-1]
    shared = np.union1d(order[1:][same], order[:-1][same])
    return order.astype(np.int32), np.concatenate([[0], sizes.cumsum()]).astype(np.int32), shared


def _all_texts(parts: Sequence[Texts]) -> Texts:
    offsets = np.cumsum([0, *(len(part.data) for part in parts)])
    ends = [part.ends + offset for part, offset in zip(parts, offsets[:-1], strict=True)]
    return Texts(_joined([part.data for part in parts], np.uint8), _joined(ends, np.int64))


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts])
