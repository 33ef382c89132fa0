"""All semantic IDs that the codebooks allow: what generation may produce without a catalogue.

It has the interface of `ItemTrie`, so that beam search works with either. A node of level l is numbered by its code,
the mixed-radix number (..(l1 * V_2) + l2 ..); ids below 5 are special and never generated.
"""

import torch
from torch import Tensor

from ugt_composer.catalogue.open_nodes import NodeLimits, OnlyItems
from ugt_composer.catalogue.trie import Children
from ugt_composer.vocabulary import LEVELS, NUM_SPECIAL_IDS


class CodeSpace:
    """All triples of ids 5 .. V_l - 1. Shapes as in trie.py; V_l codebook size of level l."""

    def __init__(self, codebook_sizes: tuple[int, ...]):
        self.codebook_sizes = codebook_sizes

    def slots(self, level: int, width: int) -> int:
        return width * self.codebook_sizes[level]

    def children(self, level: int, nodes: Tensor, alive: Tensor) -> Children:
        """Every id of `level` under each of the codes int64 (B, W); R = W * V_l."""
        size = self.codebook_sizes[level]
        shape = (*nodes.shape, size)
        ids = torch.arange(size, device=nodes.device).expand(shape)
        beam = torch.arange(nodes.shape[1], device=nodes.device).unsqueeze(1).expand(shape)
        filled = (ids >= NUM_SPECIAL_IDS) & alive.unsqueeze(2)
        codes = nodes.unsqueeze(2) * size + ids
        return Children(beam.flatten(1), ids.flatten(1), codes.flatten(1), filled.flatten(1))

    def limits(self, exclude: Tensor | None, only: OnlyItems | None) -> list[NodeLimits]:
        """Which codes of each level may be chosen: no triple of exclude, int64 (B, X, 3); all prefixes.

        Raises:
            ValueError: `only` is given, which has items of a catalogue.
        """
        if only is not None:
            raise ValueError("`only` needs a trie, because it has items of a catalogue")
        if exclude is None:
            return [NodeLimits()] * LEVELS
        sizes = torch.tensor(self.codebook_sizes, device=exclude.device)
        possible = ((exclude >= 0) & (exclude < sizes)).all(-1)
        code = torch.zeros_like(exclude[..., 0])
        for level in range(LEVELS):
            code = code * self.codebook_sizes[level] + exclude[..., level]
        # Padding and impossible triples get code 0, which is never generated.
        return [NodeLimits(), NodeLimits(), NodeLimits(closed=code.masked_fill(~possible, 0).sort(1).values)]
