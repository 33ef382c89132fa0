"""The catalogue: which items exist, their semantic IDs and their names.

JSON Lines, one item per line; other keys are ignored, and the file may be compressed (.gz, .zst):

    {"item_id": "B000142FVW", "l1_id": 17, "l2_id": 803, "l3_id": 5, "name": "OPI Nail Lacquer"}

Ids begin at 5 at every level, because 0 to 4 are the special ones; `name` is optional. With `"retired": true` an item
keeps its semantic ID, so that histories and models that have it stay valid, but it is not recommended.
"""

import hashlib
import re
from bisect import bisect
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from ugt_composer.catalogue.item_columns import DuplicateItem, Item, ItemColumns, ItemRows, in_chunks
from ugt_composer.catalogue.item_file import kept_columns, read_columns
from ugt_composer.data.history import SemanticId
from ugt_composer.errors import UserError
from ugt_composer.jsonl.bad_row import shown
from ugt_composer.jsonl.schema import ITEM_KEYS
from ugt_composer.storage.remote_files import InputFile
from ugt_composer.terminal import counted

__all__ = ["Catalogue", "Collisions", "Item"]

EXAMPLES = 3  # colliding triples shown in a message
HINT_CANDIDATES = 20_000  # item ids compared to find a hint; comparing a million takes a minute


@dataclass(frozen=True)
class Collisions:
    """Triples that several items share, so that a recommendation of one means all of them.

    Attributes:
        count: how many such triples there are.
        items: how many items have one.
        largest: how many items share the most frequent triple; 1 if none is shared.
        examples: the first few in file order, each a triple and its item ids.
    """

    count: int
    items: int
    largest: int
    examples: list[tuple[SemanticId, list[str]]]

    def __str__(self) -> str:
        examples = "; ".join(f"{triple} is {', '.join(map(shown, ids))}" for triple, ids in self.examples)
        return f"{self.items} items share {counted(self.count, 'semantic ID')}" + (f": {examples}" if examples else "")


class Catalogue:
    """The items of a catalogue, in file order.

    Args:
        items: at least one item, with distinct item ids; or the columns of a file.
        source: the file's name, for messages.

    Attributes:
        columns: the items as arrays.
        items: the items, in file order, made when they are asked for.
        triples: int64 (n, 3) semantic IDs, in the order of items.
        withheld: bool (n,) items that are not recommended: those that are retired, and see `withholding`.
    """

    def __init__(self, items: Sequence[Item] | ItemColumns, source: str = "catalogue"):
        self.source = source
        self._from_file = isinstance(items, ItemColumns)
        if not isinstance(items, ItemColumns):
            try:
                items = ItemColumns.of(in_chunks(items))
            except DuplicateItem as error:
                raise _duplicate(error, source, from_file=False) from None
        if not len(items):
            raise UserError(f"{source}: found no item, expected at least one line")
        self.columns = items
        self.items = ItemRows(items)
        self.triples = items.triples
        self.withheld = items.retired

    @classmethod
    def load(cls, path: str | InputFile, keep_arrays: bool = True) -> "Catalogue":
        """Reads a file.

        Args:
            keep_arrays: those of a large file are kept beside it, or read from there, see `item_file`; not of one in a
                store.

        Raises:
            UserError: names file, line, field, what was found and what was expected.
        """
        try:
            file = Path(path) if isinstance(path, str) else path
            if keep_arrays and isinstance(file, Path):
                columns, fingerprint = kept_columns(file, _fingerprint)
            else:
                columns, fingerprint = read_columns(file)
        except DuplicateItem as error:
            raise _duplicate(error, str(path), from_file=True) from None
        catalogue = cls(columns, str(path))
        if fingerprint is not None:
            catalogue.fingerprint = fingerprint
        return catalogue

    def __len__(self) -> int:
        return len(self.columns)

    def __contains__(self, item_id: str) -> bool:
        return self.columns.row_of(item_id) is not None

    def withholding(self, only: Collection[str] | None = None, exclude: Collection[str] = ()) -> "Catalogue":
        """The same items, of which others are recommended to nobody: besides those withheld here, all that are not in
        `only`, and all in `exclude`. Both are item ids; unknown ones are ignored."""
        withheld = self.withheld.copy()
        if only is not None:
            withheld |= ~self._among(only)
        withheld |= self._among(exclude)
        other = copy(self)
        other.withheld = withheld
        return other

    def is_withheld(self, item_id: str) -> bool:
        """Whether an item of the catalogue is not recommended."""
        return bool(self.withheld[self._row_of(item_id)])

    def _among(self, item_ids: Collection[str]) -> np.ndarray:
        found = np.zeros(len(self), dtype=bool)
        found[[row for item_id in item_ids if (row := self.columns.row_of(item_id)) is not None]] = True
        return found

    @cached_property
    def retired(self) -> int:
        """How many items are retired."""
        return int(self.columns.retired.sum())

    @cached_property
    def retired_set(self) -> str:
        """The number of retired items and a hash of which they are; "none" if there are none."""
        ids = sorted(self.columns.ids[row] for row in np.flatnonzero(self.columns.retired).tolist())
        return f"{len(ids):,} ({hashlib.sha256(msgspec.json.encode(ids)).hexdigest()[:8]})" if ids else "none"

    def items_of(self, triple: Sequence[int]) -> list[Item]:
        """The items with this semantic id: none, one, or several that collide, in the order of their item ids, so that
        it does not depend on the order of the file."""
        low, high = 0, len(self)
        for column, level_id in zip(self.columns.ordered, triple, strict=True):
            part = column[low:high]
            low, high = (low + int(np.searchsorted(part, level_id, side)) for side in ("left", "right"))
        rows = self.columns.by_triple[low:high].tolist()
        return sorted((self.items[row] for row in rows), key=lambda item: item.item_id)

    def triple_of(self, item_id: str) -> SemanticId:
        """The semantic id of an item. Raises UserError, with the nearest item id, for an unknown one."""
        l1, l2, l3 = self.triples[self._row_of(item_id)].tolist()
        return l1, l2, l3

    def _row_of(self, item_id: str) -> int:
        row = self.columns.row_of(item_id)
        if row is None:
            raise UserError(f"{self.source} has no item_id {shown(item_id)}{self._hint(item_id)}")
        return row

    def check(self, codebook_sizes: Sequence[int]) -> None:
        """Raises UserError if an id does not fit into its level's codebook."""
        outside = self.triples >= np.asarray(codebook_sizes)
        if outside.any():
            row, level = np.argwhere(outside)[0]
            place = _place(self.columns, self.source, row, self._from_file)
            raise UserError(
                f"{place}: {ITEM_KEYS[level]}: found {self.triples[row, level]}, expected at most "
                f"{codebook_sizes[level] - 1}, because model.codebook_sizes is {list(codebook_sizes)}; "
                "`ugt extend` enlarges a trained model for new items and prints the model.codebook_sizes that it then "
                "has, which the next stage needs; ids made with --reserve leave room for new items"
            )

    @cached_property
    def collisions(self) -> Collisions:
        """The items that share a semantic ID with others."""
        same = self.columns.is_repeated
        joined = np.concatenate([[False], same])  # equal to the row before
        starts = np.flatnonzero(~joined & np.concatenate([same, [False]]))
        first = self.columns.by_triple[starts]  # the sort is stable: the first of its triple in the file
        shown_rows = first[np.argsort(first)[:EXAMPLES]]
        examples = [self.items[row].triple for row in shown_rows.tolist()]
        return Collisions(
            count=len(starts),
            items=int(joined.sum()) + len(starts),
            largest=int(np.diff(np.flatnonzero(~joined), append=len(self)).max()),
            examples=[(triple, [item.item_id for item in self.items_of(triple)]) for triple in examples],
        )

    @cached_property
    def shared_ids(self) -> frozenset[SemanticId]:
        """The semantic IDs that several items share."""
        shared = self.columns.ordered[:, 1:][:, self.columns.is_repeated]
        return frozenset((l1, l2, l3) for l1, l2, l3 in shared.T.tolist())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the lines `[item_id,l1,l2,l3]` as JSON, sorted by item id. It depends neither on names nor on what
        is retired, so models and shards of the catalogue stay valid when items are."""
        return _fingerprint(self.columns)

    def alike(self, item_id: str) -> str | None:
        """An item id that differs from an unknown one only in blanks, ".0", leading zeros or case, or None."""
        stripped = item_id.strip()
        whole = re.sub(r"\.0+$", "", stripped)
        forms = (stripped, whole, whole.lstrip("0"), f"{whole}.0", whole.upper(), whole.lower())
        return next((form for form in forms if form in self), None)

    def _hint(self, item_id: str) -> str:
        if (alike := self.alike(item_id)) is not None:
            return f"; did you mean {shown(alike)}?"
        ids, by_id = self.columns.ids, self.columns.by_id
        at = bisect(by_id, item_id, key=ids.__getitem__) if len(self) > HINT_CANDIDATES else 0
        near = by_id[max(0, at - HINT_CANDIDATES // 2) : max(0, at - HINT_CANDIDATES // 2) + HINT_CANDIDATES]
        close = get_close_matches(item_id, [ids[row] for row in near.tolist()], n=1)
        if close:
            return f"; did you mean {shown(close[0])}?"
        return f"; it has {len(self)} others, such as {shown(self.items[0].item_id)}"


def _fingerprint(columns: ItemColumns) -> str:
    digest = hashlib.sha256()
    for lines in _lines_by_id(columns):
        digest.update(lines)
    return digest.hexdigest()


def _lines_by_id(columns: ItemColumns) -> Iterator[bytes]:
    """The lines `[item_id,l1,l2,l3]`, sorted by item id, some thousands at a time."""
    encoder = msgspec.json.Encoder()
    for ids, triples in columns.chunks(columns.by_id):
        yield encoder.encode_lines([(item_id, *triple) for item_id, triple in zip(ids, triples, strict=True)])


def _duplicate(error: DuplicateItem, source: str, from_file: bool) -> UserError:
    place, first = (_place(error.columns, source, row, from_file) for row in (error.row, error.earlier))
    return UserError(
        f"{place}: item_id: found {shown(error.columns.ids[error.row])} a second time, expected each item once "
        f"(first at {first})"
    )


def _place(columns: ItemColumns, source: str, row: int, from_file: bool) -> str:
    """Of an item, for messages: the line of its file."""
    if not from_file:
        return f"{source}: item {row + 1}"
    return f"{source}:{columns.lines[row] if len(columns.lines) else row + 1}"
