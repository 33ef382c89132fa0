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
from typing import Annotated

import msgspec
import numpy as np
import xxhash

from ugt_composer.data.history import SemanticId
from ugt_composer.errors import UserError, where_searched
from ugt_composer.jsonl.bad_row import BadRow, shown
from ugt_composer.jsonl.json_text import parse_object
from ugt_composer.jsonl.lines import TruncatedStream, read_blocks
from ugt_composer.jsonl.schema import ITEM_KEYS
from ugt_composer.jsonl.sources import Piece
from ugt_composer.vocabulary import LEVELS, NUM_SPECIAL_IDS

LARGEST_ID = 2**31 - 1
MAX_LINE_BYTES = 1 << 20
EXAMPLES = 3  # colliding triples shown in a message
HINT_CANDIDATES = 20_000  # item ids compared to find a hint; comparing a million takes a minute
UTF8_BOM = b"\xef\xbb\xbf"

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
        return f"{self.items} items share {self.count} semantic IDs" + (f": {examples}" if examples else "")


class Catalogue:
    """The items of a catalogue, in file order.

    Args:
        items: at least one item, with distinct item ids.
        source: the file's name, for messages.
        lines: the line number of each item in the file.

    Attributes:
        items: the items, in file order.
        triples: int64 (n, 3) semantic IDs, in the order of items.
        withheld: bool (n,) items that are not recommended: those that are retired, and see `withholding`.
    """

    def __init__(self, items: Sequence[Item], source: str = "catalogue", lines: Sequence[int] | None = None):
        self.items = items
        self.source = source
        self._lines = lines
        if not items:
            raise UserError(f"{source}: found no item, expected at least one line")
        self._row_of = {item.item_id: row for row, item in enumerate(items)}
        if len(self._row_of) < len(items):
            self._raise_duplicate()
        self.triples = np.array([item.triple for item in items], dtype=np.int64)
        self.withheld = np.array([item.retired for item in items], dtype=bool)

    @classmethod
    def load(cls, path: str | Path) -> "Catalogue":
        """Reads a file. Raises UserError naming file, line, field, what was found and what was expected."""
        items: list[Item] = []
        lines: list[int] = []
        decoder = msgspec.json.Decoder(Item)
        for number, line in enumerate(_read_lines(str(path)), start=1):
            if not line or line.isspace():
                continue
            try:
                item = decoder.decode(line)
            except (ValueError, RecursionError) as error:  # ValueError: msgspec's and UnicodeDecodeError
                raise UserError(f"{path}:{number}: {_explain(line, error)}") from None
            # msgspec would silently keep the last of duplicate keys; those that matter are `retired` and end in _id.
            if line.count(b'_id"') > LEVELS + 1 or line.count(b'"retired"') > 1:
                _parse(line, f"{path}:{number}")
            items.append(item)
            lines.append(number)
        return cls(items, str(path), lines)

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._row_of

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
        return bool(self.withheld[self._row_of[item_id]])

    def _among(self, item_ids: Collection[str]) -> np.ndarray:
        found = np.zeros(len(self), dtype=bool)
        found[[self._row_of[item_id] for item_id in item_ids if item_id in self._row_of]] = True
        return found

    @cached_property
    def retired(self) -> int:
        """How many items are retired."""
        return sum(item.retired for item in self.items)

    @cached_property
    def retired_set(self) -> str:
        """The number of retired items and a hash of which they are; "none" if there are none."""
        ids = sorted(item.item_id for item in self.items if item.retired)
        return f"{len(ids):,} ({hashlib.sha256(msgspec.json.encode(ids)).hexdigest()[:8]})" if ids else "none"

    def items_of(self, triple: Sequence[int]) -> list[Item]:
        """The items with this semantic id: none, one, or several that collide, in the order of their item ids, so that
        it does not depend on the order of the file."""
        low, high = 0, len(self)
        for level, level_id in enumerate(triple):
            column = self._sorted[low:high, level]
            low, high = (low + int(np.searchsorted(column, level_id, side)) for side in ("left", "right"))
        return sorted((self.items[row] for row in self._order[low:high]), key=lambda item: item.item_id)

    def triple_of(self, item_id: str) -> SemanticId:
        """The semantic id of an item. Raises UserError, with the nearest item id, for an unknown one."""
        row = self._row_of.get(item_id)
        if row is None:
            raise UserError(f"{self.source} has no item_id {shown(item_id)}{self._hint(item_id)}")
        return self.items[row].triple

    def check(self, codebook_sizes: Sequence[int]) -> None:
        """Raises UserError if an id does not fit into its level's codebook."""
        outside = self.triples >= np.asarray(codebook_sizes)
        if outside.any():
            row, level = np.argwhere(outside)[0]
            raise UserError(
                f"{self._place(row)}: {ITEM_KEYS[level]}: found {self.triples[row, level]}, expected at most "
                f"{codebook_sizes[level] - 1}, because model.codebook_sizes is {list(codebook_sizes)}; "
                "`ugt extend` enlarges a trained model for new items and prints the model.codebook_sizes that it then "
                "has, which the next stage needs; ids made with --reserve leave room for new items"
            )

    @cached_property
    def collisions(self) -> Collisions:
        same = (self._sorted[1:] == self._sorted[:-1]).all(axis=1)
        joined = np.concatenate([[False], same])  # equal to the row before
        starts = np.flatnonzero(~joined & np.concatenate([same, [False]]))
        first = self._order[starts]  # the sort is stable: the first of its triple in the file
        shown_rows = first[np.argsort(first)[:EXAMPLES]]
        examples = [self.items[row].triple for row in shown_rows]
        return Collisions(
            count=len(starts),
            items=int(joined.sum()) + len(starts),
            largest=int(np.diff(np.flatnonzero(~joined), append=len(self)).max()),
            examples=[(triple, [item.item_id for item in self.items_of(triple)]) for triple in examples],
        )

    @cached_property
    def shared_ids(self) -> frozenset[SemanticId]:
        """The semantic IDs that several items share."""
        same = (self._sorted[1:] == self._sorted[:-1]).all(axis=1)
        return frozenset((l1, l2, l3) for l1, l2, l3 in self._sorted[1:][same].tolist())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the lines `[item_id,l1,l2,l3]` as JSON, sorted by item id. It depends neither on names nor on what
        is retired, so models and shards of the catalogue stay valid when items are."""
        digest = hashlib.sha256()
        for item in sorted(self.items, key=lambda item: item.item_id):
            digest.update(msgspec.json.encode([item.item_id, *item.triple]) + b"\n")
        return digest.hexdigest()

    @cached_property
    def _order(self) -> np.ndarray:
        return np.lexsort(self.triples.T[::-1])

    @cached_property
    def _sorted(self) -> np.ndarray:
        return self.triples[self._order]

    def _place(self, row: int) -> str:
        return f"{self.source}:{self._lines[row]}" if self._lines else f"{self.source}: item {row + 1}"

    def _raise_duplicate(self) -> None:
        first: dict[str, int] = {}
        for row, item in enumerate(self.items):
            if item.item_id in first:
                raise UserError(
                    f"{self._place(row)}: item_id: found {shown(item.item_id)} a second time, expected each item once "
                    f"(first at {self._place(first[item.item_id])})"
                )
            first[item.item_id] = row

    def alike(self, item_id: str) -> str | None:
        """An item id that differs from an unknown one only in blanks, ".0", leading zeros or case, or None."""
        stripped = item_id.strip()
        whole = re.sub(r"\.0+$", "", stripped)
        forms = (stripped, whole, whole.lstrip("0"), f"{whole}.0", whole.upper(), whole.lower())
        return next((form for form in forms if form in self), None)

    def _hint(self, item_id: str) -> str:
        if (alike := self.alike(item_id)) is not None:
            return f"; did you mean {shown(alike)}?"
        candidates = list(self._row_of)
        if len(candidates) > HINT_CANDIDATES:
            candidates.sort()
            at = bisect(candidates, item_id)
            candidates = candidates[max(0, at - HINT_CANDIDATES // 2) : at + HINT_CANDIDATES // 2]
        close = get_close_matches(item_id, candidates, n=1)
        if close:
            return f"; did you mean {shown(close[0])}?"
        return f"; it has {len(self)} others, such as {shown(self.items[0].item_id)}"


def _read_lines(path: str) -> Iterator[bytes]:
    """The lines of a plain or compressed file, without their ends and without a byte order mark."""
    if not Path(path).is_file():
        raise UserError(f"{path}: found no such file{where_searched(path)}, expected a catalogue in JSON Lines")
    size = Path(path).stat().st_size
    start = UTF8_BOM
    try:
        for block in read_blocks(Piece(0, path, 0, size, size), MAX_LINE_BYTES, xxhash.xxh3_128()):
            if block.too_long:
                raise UserError(
                    f"{path}: found a line of {block.too_long} bytes, expected JSON Lines with one item each"
                )
            yield from block.data.removeprefix(start).removesuffix(b"\n").split(b"\n")
            start = b""
    except TruncatedStream as error:
        raise UserError(f"{path}: found {error}, expected a complete file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _parse(line: bytes, place: str) -> dict:
    try:
        return parse_object(line)
    except BadRow as error:
        raise UserError(f"{place}: {error}") from None


def _explain(line: bytes, error: Exception) -> str:
    """What is wrong with a line that cannot be decoded, as «field: found …, expected …»."""
    try:
        row = parse_object(line)
    except BadRow as bad:
        return str(bad)
    for key in ("item_id", *ITEM_KEYS):
        if key not in row:
            near = get_close_matches(key, [other for other in row if other not in Item.__struct_fields__], n=1)
            return f"{key}: found no such key{f' but {shown(near[0])}' if near else ''}, expected it in every line"
    if not isinstance(row["item_id"], str) or not row["item_id"]:
        return f"item_id: found {shown(row['item_id'])}, expected text that is not empty"
    for key in ITEM_KEYS:
        value = row[key]
        if type(value) is not int or not NUM_SPECIAL_IDS <= value <= LARGEST_ID:
            return f"{key}: found {shown(value)}, expected an integer of {NUM_SPECIAL_IDS} to {LARGEST_ID}"
    if not isinstance(row.get("name"), str | None):
        return f"name: found {shown(row['name'])}, expected text"
    if not isinstance(row.get("retired", False), bool):
        return f"retired: found {shown(row['retired'])}, expected true or false"
    return f"line: found {error}, expected one JSON object"
