"""Biases of a few nodes of each row, which are added to the logits of the level heads.

Shapes: B rows, S nodes of a row, R slots, n_l nodes at level l.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class NodeBiases(NamedTuple):
    """What is added to the logits of some nodes of the trie.

    Attributes:
        nodes: for each level, int64 (B, S), ascending in each row and padded with n_l.
        values: for each level, float32 (B, S); 0 in padding.
    """

    nodes: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def of(self, rows: slice) -> "NodeBiases":
        return NodeBiases(tuple(nodes[rows] for nodes in self.nodes), tuple(values[rows] for values in self.values))

    def repeated(self, times: int) -> "NodeBiases":
        """Those of B · `times` rows, each repeated."""
        nodes, values = ([x.repeat_interleave(times, dim=0) for x in level] for level in self)
        return NodeBiases(tuple(nodes), tuple(values))

    def added_to(self, level: int, logits: Tensor, nodes: Tensor) -> Tensor:
        """The logits (B, R) of nodes int64 (B, R) of a level, ascending in each row, with their biases; float32."""
        slots = torch.searchsorted(nodes, self.nodes[level]).clamp_(max=nodes.shape[1] - 1)
        is_there = nodes.gather(1, slots) == self.nodes[level]
        return logits.float().scatter_add(1, slots, self.values[level].masked_fill(~is_there, 0.0))
