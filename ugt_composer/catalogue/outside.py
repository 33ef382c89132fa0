"""Counts the items of rows whose semantic IDs a catalogue lacks.

Such a target is never recommended; a preferred one has a constant log-probability where the softmax runs over the
catalogue. Many of them mean that the rows come from another import than the catalogue.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.data.codec import IDS, LABELS, TOKEN_TYPE
from ugt_composer.data.history import SemanticId
from ugt_composer.data.row_batch import RowBatch
from ugt_composer.vocabulary import ITEM, NUM_SPECIAL_IDS

HISTORY, TARGET, CHOSEN, REJECTED = ITEM_KINDS = "history items", "targets", "chosen items", "rejected items"


@dataclass
class ItemCounts:
    """Items of rows by kind: all, and those that the catalogue lacks. Special ids and other tokens are not items."""

    items: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)

    def add(self, other: "ItemCounts") -> None:
        self.items.update(other.items)
        self.outside.update(other.outside)

    def above(self, max_fraction: float) -> bool:
        """Whether the catalogue lacks a larger fraction of any kind of item."""
        return any(self.outside[kind] > max_fraction * self.items[kind] for kind in ITEM_KINDS)

    def __str__(self) -> str:
        """Such as "3 of 320 targets and 12 of 2,560 history items"; only kinds with items outside."""
        parts = [f"{self.outside[kind]:,} of {self.items[kind]:,} {kind}" for kind in ITEM_KINDS if self.outside[kind]]
        return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"


@dataclass(frozen=True)
class OutsideItem:
    """An item that the catalogue lacks, the first of its kind in some rows.

    Attributes:
        kind: one of ITEM_KINDS.
        row: its row's number among those rows.
        ids: its semantic ID.
    """

    kind: str
    row: int
    ids: SemanticId

    def __str__(self) -> str:
        return f"{self.kind.removesuffix('s')} {'/'.join(map(str, self.ids))}"


def outside_items(batch: RowBatch, known: SemanticIdSet) -> tuple[ItemCounts, list[OutsideItem]]:
    """Counts the items of some rows of one kind, and finds the first of each kind of item that is not `known`."""
    counts, first = ItemCounts(), []
    for kind, ids, is_item, lengths in _items(batch):
        counts.items[kind] = int(np.count_nonzero(is_item))
        outside = np.flatnonzero(is_item & ~known.contains(ids))
        counts.outside[kind] = len(outside)
        if len(outside):
            row = int(np.searchsorted(np.cumsum(lengths), outside[0], side="right"))
            l1, l2, l3 = ids[outside[0]].tolist()
            first.append(OutsideItem(kind, row, (l1, l2, l3)))
    return counts, first


def _items(batch: RowBatch) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """Per kind of item: the ids (n, 3) of all tokens, which of them are items, bool (n,), and the tokens per row."""
    history, labels = batch.encoder[:, IDS], batch.decoder[:, LABELS]
    yield HISTORY, history, (batch.encoder[:, TOKEN_TYPE] == ITEM) & _not_special(history), batch.encoder_lengths
    labelled = (labels != np.iinfo(labels.dtype).max).all(axis=1)  # as the codec stores ignored labels
    kind = CHOSEN if len(batch.rejected) else TARGET
    yield kind, labels, labelled & _not_special(labels), batch.decoder_lengths
    if len(batch.rejected):
        yield REJECTED, batch.rejected, _not_special(batch.rejected), batch.rejected_lengths


def _not_special(ids: np.ndarray) -> np.ndarray:
    """bool (n,): false for special ids, and for ignored labels of a decoded row, which are negative."""
    return (ids[:, 0] >= NUM_SPECIAL_IDS) & (ids[:, 1] >= NUM_SPECIAL_IDS) & (ids[:, 2] >= NUM_SPECIAL_IDS)
