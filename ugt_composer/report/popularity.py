"""How often each item is a target in the training data, and the groups from popular items to the long tail.

An item is a semantic ID here, packed into one integer (`ItemKeys`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ugt_composer.config.schema import StreamConfig
from ugt_composer.data.codec import LABELS, decode_row
from ugt_composer.data.evaluation_dataset import RowFolder
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError
from ugt_composer.jsonl.schema import RECOMMEND
from ugt_composer.vocabulary import IGNORE_INDEX

GROUPS = 5  # of equally many targets
MOST_ROWS = 100_000  # training rows that are counted, in whole shards


@dataclass(frozen=True)
class ItemKeys:
    """Packs semantic IDs into integers. `codebook_sizes` are those of the model that the rows were checked against."""

    codebook_sizes: tuple[int, int, int]

    def of(self, ids: np.ndarray) -> np.ndarray:
        """int64 (…) for ids int (…, 3)."""
        _, l2, l3 = self.codebook_sizes
        ids = ids.astype(np.int64)
        return (ids[..., 0] * l2 + ids[..., 1]) * l3 + ids[..., 2]


@dataclass(frozen=True)
class Popularity:
    """n items, ordered by key.

    Attributes:
        keys: int64 (n,), ascending.
        counts: int64 (n,) how often each is a target in the rows that were read.
        groups: int64 (n,) 0 for the most popular items … GROUPS - 1 for the long tail, GROUPS for items that are no
            target. Each of the first GROUPS has about as many targets as the others.
        rows_read, rows: of the training data.
    """

    keys: np.ndarray
    counts: np.ndarray
    groups: np.ndarray
    rows_read: int
    rows: int

    def group_of(self, keys: np.ndarray) -> np.ndarray:
        """The groups of items int64 (…); GROUPS for unknown ones."""
        if not len(self.keys):
            return np.full(keys.shape, GROUPS)
        at = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[at] == keys, self.groups[at], GROUPS)

    @property
    def items(self) -> np.ndarray:
        """int64 (GROUPS + 1,): items in each group."""
        return np.bincount(self.groups, minlength=GROUPS + 1)

    @property
    def targets(self) -> np.ndarray:
        """int64 (GROUPS + 1,): targets of the items of each group."""
        return np.bincount(self.groups, self.counts, GROUPS + 1).astype(np.int64)


def popularity(targets: np.ndarray, catalogue: np.ndarray, rows_read: int, rows: int) -> Popularity:
    """
    Args:
        targets: int64 (m,) keys of the training targets, one for each time that an item is one.
        catalogue: int64 (n,) keys of all items, which may be no target; empty if there is no catalogue.
    """
    found, found_counts = np.unique(targets, return_counts=True)
    keys = np.union1d(found, catalogue)
    counts = np.zeros(len(keys), dtype=np.int64)
    counts[np.searchsorted(keys, found)] = found_counts
    order = np.argsort(-counts, kind="stable")
    sorted_counts = counts[order]
    before = sorted_counts.cumsum() - sorted_counts / 2  # an item belongs where the middle of its targets is
    groups = np.empty(len(keys), dtype=np.int64)
    groups[order] = (before * GROUPS / max(1, counts.sum())).astype(np.int64).clip(max=GROUPS - 1)
    groups[counts == 0] = GROUPS
    return Popularity(keys, counts, groups, rows_read, rows)


def recommend_folders(folders: Sequence[StreamConfig]) -> tuple[StreamConfig, ...]:
    """The folders of recommend rows: the pairs of the others were not drawn as users take items.

    Raises:
        UserError: a folder is missing or corrupted, or there are no recommend rows.
    """
    found = []
    for folder in folders:
        manifest = read_manifest(str(folder.local), complete=folder.remote is None)
        if manifest.kind == RECOMMEND and manifest.rows:
            found.append(folder)
    if not found:
        names = ", ".join(str(folder.local) for folder in folders)
        raise UserError(f"{names}: no recommend rows, whose targets could be counted")
    return tuple(found)


def count_targets(folders: Sequence[StreamConfig], keys: ItemKeys, catalogue: np.ndarray) -> Popularity:
    """Counts the targets of `recommend_folders`. Of large data, shards at equal distances are read, about MOST_ROWS
    rows.

    Raises:
        UserError: a shard is missing or corrupted.
    """
    opened = [RowFolder(str(folder.local), folder.remote) for folder in folders]
    rows = sum(len(folder) for folder in opened)
    step = -(-rows // MOST_ROWS)
    targets: list[np.ndarray] = []
    read = 0
    for folder in opened:
        ends = np.cumsum([shard.rows for shard in folder.files.shards.values()]).tolist()
        for begin, end in list(zip([0, *ends], ends, strict=False))[::step]:
            read += end - begin
            for row in range(begin, end):
                labels = decode_row(folder[row]).decoder[:, LABELS]
                targets.append(labels[(labels != IGNORE_INDEX).all(1)])
    return popularity(keys.of(np.concatenate(targets)), catalogue, read, rows)


def concentration(order_by: np.ndarray, counts: np.ndarray, points: int = 200) -> tuple[list[float], list[float]]:
    """The fraction of `counts` that falls on the first items, by the fraction of items, most popular ones first.

    Args:
        order_by: (n,) popularity.
        counts: (n,) what is added up.

    Returns:
        (fractions of items, fractions of counts), both from 0 to 1 and ascending.
    """
    order = np.argsort(-order_by, kind="stable")
    summed = np.concatenate([[0], counts[order].cumsum()]) / max(1, counts.sum())
    at = np.unique(np.linspace(0, len(counts), points + 1).round().astype(np.int64))
    return (at / max(1, len(counts))).tolist(), summed[at].tolist()
