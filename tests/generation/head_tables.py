"""Level heads without a network: every conditional distribution is an entry of a random table."""

import itertools

import numpy as np
import torch
from torch import Tensor

from ugt_composer.catalogue.trie import ItemTrie


class TableHeads:
    """Logits that depend on the user and on all ids chosen at the levels above. hidden (..., 1) has the user's number.

    `step` rounds the logits, so that many of them are equal. `widths` records the leading shape of every call.
    """

    def __init__(self, sizes: tuple[int, int, int], users: int, seed: int = 0, step: float = 0.0, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        shapes = ((users, sizes[0]), (users, sizes[0], sizes[1]), (users, *sizes))
        self.tables = [torch.randn(shape, generator=generator) * 2 for shape in shapes]
        if step:
            self.tables = [(table / step).round() * step for table in self.tables]
        self.tables = [table.to(dtype) for table in self.tables]
        self.widths: list[tuple[int, torch.Size]] = []

    def __call__(
        self, level: int, hidden: Tensor, prefix: Tensor, beam: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor:
        assert prefix.shape == (*hidden.shape[:-1], level)
        assert prefix.dtype == torch.int64
        self.widths.append((level, hidden.shape[:-1]))
        logits = self.tables[level][(hidden[..., 0].long(), *prefix.unbind(-1))]
        if ids is None:
            return logits
        rows = torch.arange(len(ids))[:, None]
        return logits[rows, beam, ids]

    def of_ids(self, level: int, hidden: Tensor, prefix: Tensor, ids: Tensor) -> Tensor:
        """The log-probabilities (N, K) of ids (N, K)."""
        return self(level, hidden, prefix).float().log_softmax(-1).gather(1, ids)

    def log_probs(self) -> Tensor:
        """log p of every triple, (users, V_1, V_2, V_3): each level normalised over its whole codebook."""
        first, second, third = (table.float().log_softmax(-1) for table in self.tables)
        return first[:, :, None, None] + second[:, :, :, None] + third


def users(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32).unsqueeze(1)


def random_trie(sizes: tuple[int, int, int], items: int, seed: int = 0) -> ItemTrie:
    """`items` different triples of ids from 5 on, in random order."""
    every = np.array(list(itertools.product(*(range(5, size) for size in sizes))))
    chosen = np.random.default_rng(seed).permutation(len(every))[:items]
    return ItemTrie.from_triples(every[chosen])


def brute_force(heads: TableHeads, ids: Tensor, k: int, banned: list[set] | None = None) -> list[list[tuple]]:
    """For each user the k best of ids (n, 3), as (index, score), by score and then by index."""
    scores = heads.log_probs()[:, ids[:, 0], ids[:, 1], ids[:, 2]]
    best = []
    for user, row in enumerate(scores.tolist()):
        allowed = [n for n, item in enumerate(ids.tolist()) if not banned or tuple(item) not in banned[user]]
        best.append([(n, row[n]) for n in sorted(allowed, key=lambda n: (-row[n], n))[:k]])
    return best
