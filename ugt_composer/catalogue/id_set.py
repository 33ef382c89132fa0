"""Which semantic IDs exist: answers for millions of them per second, in the conversion's inner loop."""

import numpy as np

LARGEST_BITS = 63  # of a key
SLOTS_PER_KEY = 8
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, odd: Fibonacci hashing


class SemanticIdSet:
    """A set of semantic IDs.

    A triple is packed into one integer, its key. A table of slots holds one key per hash value, which answers for more
    than nine keys of ten with a single read; only the others are searched for in the sorted keys.

    Args:
        triples: int64 (n, 3), ids of at most 31 bits; at least one.
    """

    def __init__(self, triples: np.ndarray):
        self._bits = [int(level.max()).bit_length() for level in triples.T]
        self._prefixes: np.ndarray | None = None
        if sum(self._bits) > LARGEST_BITS:
            self._prefixes = np.unique(triples[:, 0] << self._bits[1] | triples[:, 1])
            self._bits = [len(self._prefixes).bit_length(), self._bits[1], self._bits[2]]
        self._keys = np.unique(self._key(*triples.T))
        slot_bits = max((SLOTS_PER_KEY * len(self._keys)).bit_length(), 8)
        self._shift = np.uint64(64 - slot_bits)
        self._slots = np.full(1 << slot_bits, -1, np.int64)
        self._slots[self._slot(self._keys)] = self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def contains(self, triples: np.ndarray) -> np.ndarray:
        """bool (n,): whether each of (n, 3) integers of any dtype is in the set."""
        columns = [triples[:, level].astype(np.int64) for level in range(triples.shape[1])]
        fits = (columns[1] >> self._bits[1] == 0) & (columns[2] >> self._bits[2] == 0)
        keys = self._key(*columns)
        found = self._slots[self._slot(keys)] == keys
        rest = np.flatnonzero(~found)
        at = np.searchsorted(self._keys, keys[rest])
        found[rest] = self._keys[np.minimum(at, len(self._keys) - 1)] == keys[rest]
        return found & fits

    def _key(self, l1: np.ndarray, l2: np.ndarray, l3: np.ndarray) -> np.ndarray:
        """int64 (n,) keys; -2 for a prefix that no triple of the set has, where prefixes are numbered."""
        if self._prefixes is None:
            return (l1 << self._bits[1] | l2) << self._bits[2] | l3
        prefix = l1 << self._bits[1] | l2
        number = np.minimum(np.searchsorted(self._prefixes, prefix), len(self._prefixes) - 1)
        return np.where(self._prefixes[number] == prefix, number << self._bits[2] | l3, -2)

    def _slot(self, keys: np.ndarray) -> np.ndarray:
        return ((keys.view(np.uint64) * MULTIPLIER) >> self._shift).view(np.int64)
