"""Turns codes of items into semantic ids of three levels that fit the codebooks and differ between items.

n items. The ids of a level begin after the 5 special ones, so a codebook of V ids has room for V − 5.
"""

from collections.abc import Sequence

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.vocabulary import LEVELS, NUM_SPECIAL_IDS

ROUNDED_TO = 64  # GPUs compute faster with sizes that are multiples of this


def rooms(codebook_sizes: Sequence[int]) -> list[int]:
    return [size - NUM_SPECIAL_IDS for size in codebook_sizes]


def instance_codes(bucket: np.ndarray, room: int) -> np.ndarray:
    """int64 (n,), 0 to room − 1: different within a bucket, and all codes are used about equally often.

    Items are counted bucket after bucket, modulo the room. If there is room, every item gets a code of its own.

    Raises:
        UserError: a bucket is larger than the room.
    """
    largest = int(np.unique(bucket, return_counts=True)[1].max(initial=0))
    if largest > room:
        raise UserError(
            f"--codebook-sizes: {largest:,} items share their first two levels, and the third has room for {room:,}; "
            f"give it at least {largest + NUM_SPECIAL_IDS:,}, or raise --clusters"
        )
    codes = np.empty(len(bucket), np.int64)
    codes[np.argsort(bucket, kind="stable")] = np.arange(len(bucket)) % room
    return codes


def fitted(values: np.ndarray, room: int, level: int) -> np.ndarray:
    """The values (n,) of a level unchanged if they fit into the room, else replaced by their ranks."""
    if values.max(initial=0) < room:
        return values
    distinct, ranks = np.unique(values, return_inverse=True)
    if len(distinct) > room:
        raise UserError(
            f"--codebook-sizes: level {level} has {len(distinct):,} different codes and room for {room:,}; give it at "
            f"least {len(distinct) + NUM_SPECIAL_IDS:,}"
        )
    return ranks


def triples_of_codes(codes: Sequence[tuple[int, ...]], codebook_sizes: Sequence[int]) -> np.ndarray:
    """int64 (n, 3) semantic ids of items with any number of codes; codes are 0 or larger.

    Codes from the third on are folded into L3: numbered if there is room for all of them, else made different within
    each L1 and L2. So different codes get different semantic ids. Missing levels are filled so that items differ.
    """
    room = rooms(codebook_sizes)
    shortest = min(map(len, codes))
    if shortest < LEVELS and shortest != max(map(len, codes)):
        raise UserError(
            f"codes: some items have {shortest}, others {max(map(len, codes))}; expected the same number "
            "for all items, or at least 3 for each"
        )
    l1 = fitted(np.array([code[0] for code in codes]), room[0], 1)
    if shortest == 1:
        size = np.unique(l1, return_counts=True)[1].max()
        l2 = _rank_within(l1) % min(room[1], int(np.ceil(np.sqrt(size))))
    else:
        l2 = fitted(np.array([code[1] for code in codes]), room[1], 2)
    bucket = l1 * room[1] + l2
    l3 = (
        instance_codes(bucket, room[2]) if shortest < LEVELS else _folded([code[2:] for code in codes], bucket, room[2])
    )
    return np.stack([l1, l2, l3], axis=1) + NUM_SPECIAL_IDS


def compact_sizes(ids: np.ndarray, codebook_sizes: Sequence[int]) -> list[int]:
    """The sizes that (n, 3) ids need, rounded up, but at most `codebook_sizes`."""
    needed = ids.max(axis=0) + 1
    return [
        min(-(-int(need) // ROUNDED_TO) * ROUNDED_TO, size) for need, size in zip(needed, codebook_sizes, strict=True)
    ]


def _folded(tails: Sequence[tuple[int, ...]], bucket: np.ndarray, room: int) -> np.ndarray:
    if all(len(tail) == 1 for tail in tails) and max(tails)[0] < room:
        return np.array([tail[0] for tail in tails])
    number = {tail: at for at, tail in enumerate(sorted(set(tails)))}
    ranks = np.array([number[tail] for tail in tails])
    if len(number) <= room:
        return ranks
    pairs, pair_of_item = np.unique(np.stack([bucket, ranks], axis=1), axis=0, return_inverse=True)
    return instance_codes(pairs[:, 0], room)[pair_of_item]


def _rank_within(group: np.ndarray) -> np.ndarray:
    """int64 (n,): how many earlier elements are in the same group."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    ranks = np.empty(len(group), np.int64)
    ranks[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered)
    return ranks
