"""log p of given items, and the conditional distributions that it is the product of.

Shapes: B users, N items or prefixes, K ids, D width, L = 3 levels, V_l codebook size of level l, C slots.

    log p(item) = log p(l1 | h) + log p(l2 | h, l1) + log p(l3 | h, l1, l2)

Each term is a log-softmax over the whole codebook of its level, or over the ids that the catalogue has below the
prefix, so that the probabilities of its items sum to 1. A model is trained with one or the other.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation.node_biases import NodeBiases
from ugt_composer.vocabulary import LEVELS

UNKNOWN_LOG_PROB = -20.0  # of an item outside the catalogue, if the softmax runs over the catalogue


class LevelLogits(Protocol):
    """The model's output heads, each conditional on the ids of the levels above.

    Called with level 0, 1 or 2, hidden (..., D) and prefix int64 (..., level); returns logits (..., V_level). The
    leading dimensions may be empty: a call with no rows tells V_level by its shape. With `beam` and `ids`, int64
    (B, R), hidden is (B, W, D), and only the logits (B, R) of these ids are returned; `beam`, ascending in each row,
    is the number of the prefix that an id is below.
    """

    def __call__(
        self, level: int, hidden: Tensor, prefix: Tensor, beam: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor: ...


class LevelLogProbs(Protocol):
    """The same heads, for some ids: called with level 0, 1 or 2, hidden (N, D), prefix int64 (N, level) and ids int64
    (N, K); returns their log-probabilities over the whole codebook, float32 (N, K)."""

    def __call__(self, level: int, hidden: Tensor, prefix: Tensor, ids: Tensor) -> Tensor: ...


class ChildLogits(NamedTuple):
    """The logits of the ids that the catalogue has below a prefix. N prefixes, C slots.

    Attributes:
        logits: (N, C), -inf in slots without a child; all 0 if the prefix does not exist.
        slots: int64 (N,) slot of the given id, -1 if the catalogue does not have it below the prefix.
    """

    logits: Tensor
    slots: Tensor


def child_logits(
    heads: LevelLogits,
    hidden: Tensor,
    ids: Tensor,
    trie: ItemTrie,
    only_open: bool = False,
    biases: NodeBiases | None = None,
) -> list[ChildLogits]:
    """For each level, the logits of the ids that the catalogue has below the given ids of the levels above.

    hidden (N, D), ids int64 (N, 3), biases of N rows. With `only_open` as if the catalogue had only what may be
    recommended.
    """
    per_level = []
    parents = torch.zeros_like(ids[:, 0])  # the root
    for level, nodes in enumerate(trie.path(ids)):
        if only_open:
            nodes = torch.where(trie.open_among(level, nodes.clamp(min=0), nodes >= 0), nodes, -1)
        exists = parents >= 0
        parent_nodes = parents.clamp(min=0)
        children = trie.children(level, parent_nodes[:, None], exists[:, None])
        prefix = ids[:, None, :level].clamp(min=0)
        logits = heads(level, hidden[:, None], prefix, children.beam, children.ids)
        if biases is not None:
            logits = biases.added_to(level, logits, children.nodes)
        filled = trie.open_among(level, children.nodes, children.filled) if only_open else children.filled
        logits = logits.masked_fill(~filled & exists[:, None], float("-inf"))
        logits = logits.masked_fill(~exists[:, None], 0.0)
        slots = torch.where(nodes >= 0, nodes - trie.levels[level].first[parent_nodes], -1)
        per_level.append(ChildLogits(logits, slots))
        parents = nodes
    return per_level


def score_over_codebooks(heads: LevelLogProbs, hidden: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of given items, differentiable: hidden (B, D), ids int64 (B, N, 3) -> float32 (B, N).

    Level 1 does not depend on the item, so it takes one head evaluation per row; the other two take B · N. To rank a
    whole catalogue, `beam_search` with `beam_width` at least the number of prefixes gives the same scores with one
    evaluation per prefix. Ids must be valid (0 <= id < V_l); the caller has to ignore the scores of padding.
    """
    per_item, flat = hidden.repeat_interleave(ids.shape[1], dim=0), ids.flatten(0, 1)
    total = heads(0, hidden, ids.new_empty(ids.shape[0], 0), ids[..., 0])
    for level in range(1, LEVELS):
        total = total + heads(level, per_item, flat[:, :level], flat[:, level, None]).view_as(total)
    return total


def score_items(
    heads: LevelLogits,
    hidden: Tensor,
    ids: Tensor,
    trie: ItemTrie,
    only_open: bool = False,
    biases: NodeBiases | None = None,
) -> Tensor:
    """Like `score_over_codebooks`, but each level's softmax runs over the ids that the catalogue has below the levels
    above.

    The log-probability of an item that it does not have is UNKNOWN_LOG_PROB. With `only_open` as if it had only what
    may be recommended. The biases are of B rows.
    """
    # Copies, even of a single row: PyTorch chooses the kernel for a view by whether a gradient is needed, and a policy
    # and a reference with equal weights would differ in the last bits.
    states = hidden.repeat_interleave(ids.shape[1], dim=0)
    per_item = None if biases is None else biases.repeated(ids.shape[1])
    total = torch.zeros_like(ids[..., 0].flatten(), dtype=torch.float32)
    for logits, slots in child_logits(heads, states, ids.flatten(0, 1), trie, only_open, per_item):
        logits = logits.float()
        log_probs = logits.gather(1, slots.clamp(min=0)[:, None]).squeeze(1) - logits.logsumexp(1)
        total = torch.where(slots >= 0, total + log_probs, UNKNOWN_LOG_PROB)
    return total.view_as(ids[..., 0])
