"""Turns codes of items into semantic IDs of three levels that fit the codebooks and differ between items.

n items. The ids of a level begin after the 5 special ones, so a codebook of V ids has a capacity of V − 5.
"""

from collections.abc import Sequence

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.vocabulary import LEVELS, NUM_SPECIAL_IDS

ROUNDED_TO = 64  # GPUs compute faster with sizes that are multiples of this


def capacities(codebook_sizes: Sequence[int]) -> list[int]:
    """Usable ids per level: the size of a codebook without the special ids."""
    return [size - NUM_SPECIAL_IDS for size in codebook_sizes]


def instance_codes(bucket: np.ndarray, capacity: int) -> np.ndarray:
    """int64 (n,) codes below `capacity`: different for items of the same bucket, and all used about equally often.

    Items are numbered bucket after bucket, modulo the capacity. With at most `capacity` items, all codes differ.

    Args:
        bucket: int64 (n,), the L1 and L2 of each item as one number.
        capacity: usable ids of L3.

    Raises:
        UserError: a bucket has more items than the capacity.
    """
    largest = int(np.unique(bucket, return_counts=True)[1].max(initial=0))
    if largest > capacity:
        raise UserError(
            f"--codebook-sizes: {largest:,} items share their first two levels, and the third has room for "
            f"{capacity:,}; give it at least {largest + NUM_SPECIAL_IDS:,}, or raise --clusters"
        )
    codes = np.empty(len(bucket), np.int64)
    codes[np.argsort(bucket, kind="stable")] = np.arange(len(bucket)) % capacity
    return codes


def fitted(values: np.ndarray, capacity: int, level: int) -> np.ndarray:
    """The values (n,) of a level: unchanged if all are below `capacity`, else replaced by their ranks.

    Raises:
        UserError: there are more distinct values than the capacity.
    """
    if values.max(initial=0) < capacity:
        return values
    distinct, ranks = np.unique(values, return_inverse=True)
    if len(distinct) > capacity:
        raise UserError(
            f"--codebook-sizes: level {level} has {len(distinct):,} different codes and room for {capacity:,}; "
            f"give it at least {len(distinct) + NUM_SPECIAL_IDS:,}"
        )
    return ranks


def triples_of_codes(codes: Sequence[tuple[int, ...]], codebook_sizes: Sequence[int]) -> np.ndarray:
    """int64 (n, 3) semantic IDs of items with any number of codes; codes are 0 or larger.

    The codes from the third on become one L3 id. If the capacity of L3 allows, each distinct tail of codes gets a
    number of its own; otherwise tails are numbered within their (L1, L2) only. So different codes get different
    semantic IDs. With fewer than three codes, the missing levels are numbered so that every item is unique.

    Raises:
        UserError: the numbers of codes differ, or the capacity of a level is too small.
    """
    capacity = capacities(codebook_sizes)
    shortest = min(map(len, codes))
    if shortest < LEVELS and shortest != max(map(len, codes)):
        found = "1 code" if shortest == 1 else f"{shortest} codes"
        raise UserError(
            f"--codes: some items have {found}, others {max(map(len, codes))}; expected the same number for all items, "
            "or at least 3 for each"
        )
    l1 = fitted(np.array([code[0] for code in codes]), capacity[0], 1)
    if shortest == 1:
        size = np.unique(l1, return_counts=True)[1].max()
        l2 = _rank_within(l1) % min(capacity[1], int(np.ceil(np.sqrt(size))))
    else:
        l2 = fitted(np.array([code[1] for code in codes]), capacity[1], 2)
    bucket = l1 * capacity[1] + l2
    l3 = (
        instance_codes(bucket, capacity[2])
        if shortest < LEVELS
        else _folded([code[2:] for code in codes], bucket, capacity[2])
    )
    return np.stack([l1, l2, l3], axis=1) + NUM_SPECIAL_IDS


def compact_sizes(ids: np.ndarray, codebook_sizes: Sequence[int]) -> list[int]:
    """The sizes that (n, 3) ids need, rounded up, but at most `codebook_sizes`."""
    needed = ids.max(axis=0) + 1
    return [
        min(-(-int(need) // ROUNDED_TO) * ROUNDED_TO, size) for need, size in zip(needed, codebook_sizes, strict=True)
    ]


def _folded(tails: Sequence[tuple[int, ...]], bucket: np.ndarray, capacity: int) -> np.ndarray:
    if all(len(tail) == 1 for tail in tails) and max(tails)[0] < capacity:
        return np.array([tail[0] for tail in tails])
    number = {tail: at for at, tail in enumerate(sorted(set(tails)))}
    ranks = np.array([number[tail] for tail in tails])
    if len(number) <= capacity:
        return ranks
    pairs, pair_of_item = np.unique(np.stack([bucket, ranks], axis=1), axis=0, return_inverse=True)
    return instance_codes(pairs[:, 0], capacity)[pair_of_item]


def _rank_within(group: np.ndarray) -> np.ndarray:
    """int64 (n,): how many earlier elements are in the same group."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    ranks = np.empty(len(group), np.int64)
    ranks[order] = np.arange(len(group)) - np.searchsorted(ordered, ordered)
    return ranks
