"""Turns codes of items into semantic IDs of three levels that fit the codebooks and differ between items.

n items. The ids of a level begin after the 5 special ones, so a codebook of V ids has a capacity of V − 5.
"""

import math
from collections.abc import Sequence

import numpy as np

from ugt_composer.errors import UserError
from ugt_composer.vocabulary import LEVELS, NUM_SPECIAL_IDS

ROUNDING = 1e-6  # of products with a fraction
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


def added_codes(
    bucket: np.ndarray, old_bucket: np.ndarray, old_codes: np.ndarray, capacity: int, largest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes of n items that are added to I items: int64 (n,), none of which an item of the same bucket has, and whether
    each is used by no other item, bool (n,).

    Items are numbered bucket after bucket, with the codes below `capacity` that no item has; then with those from
    `capacity` to `largest`; then with the codes that the fewest items have.

    Args:
        bucket, old_bucket: int64 (n,) and (I,), the L1 and L2 of each item as one number.
        old_codes: int64 (I,).
        capacity: usable ids of L3 now.
        largest: usable ids that it may grow to.

    Raises:
        UserError: more items share a bucket than `largest`.
    """
    size = int(np.unique(np.concatenate([bucket, old_bucket]), return_counts=True)[1].max())
    if size > largest:
        raise UserError(
            f"--extend: with the new items {size:,} items share their first two levels, and the third has room for "
            f"{largest:,}; give --codebook-sizes with a third size of at least {size + NUM_SPECIAL_IDS:,}, or make "
            "ids of all items again, with more --clusters"
        )
    used = np.bincount(old_codes, minlength=max(largest, capacity))
    free = np.flatnonzero(used == 0)
    codes, own = np.empty(len(bucket), np.int64), np.zeros(len(bucket), bool)
    order = np.argsort(bucket, kind="stable")
    fresh = order[: len(free)]
    codes[fresh], own[fresh] = free[: len(fresh)], True
    used[codes[fresh]] += 1
    taken: dict[int, set[int]] = {}
    for at, of_bucket in zip(order[len(free) :], bucket[order[len(free) :]].tolist(), strict=True):
        if of_bucket not in taken:
            taken[of_bucket] = {*old_codes[old_bucket == of_bucket].tolist(), *codes[fresh][bucket[fresh] == of_bucket]}
        counts = used.copy()
        counts[list(taken[of_bucket])] = np.iinfo(counts.dtype).max
        codes[at] = counts.argmin()
        used[codes[at]] += 1
        taken[of_bucket].add(int(codes[at]))
    return codes, own


def with_reserve(codes: int, reserve: float) -> int:
    """How many ids leave room for this fraction of more items."""
    return math.ceil(codes * (1 + reserve) - ROUNDING)


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


def compact_sizes(ids: np.ndarray, codebook_sizes: Sequence[int], reserve: float = 0.0) -> list[int]:
    """The sizes that (n, 3) ids need, rounded up, but at most `codebook_sizes`.

    Args:
        reserve: L3 has room for this fraction of more ids.

    Raises:
        UserError: `codebook_sizes` leave no such room.
    """
    needed = ids.max(axis=0) + 1
    needed[-1] = NUM_SPECIAL_IDS + with_reserve(needed[-1] - NUM_SPECIAL_IDS, reserve)
    if reserve and needed[-1] > codebook_sizes[-1]:
        raise UserError(
            f"--reserve {reserve:g}: the third level needs {needed[-1]:,} ids, and --codebook-sizes gives it "
            f"{codebook_sizes[-1]:,}; give a larger third size, or a smaller --reserve"
        )
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
