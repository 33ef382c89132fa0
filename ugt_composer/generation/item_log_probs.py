"""log p of given items, and the conditional distributions that it is made of.

Shapes: B users, N items or prefixes, D width, L = 3 levels, V_l codebook size of level l, C slots.

    log p(item) = log p(l1 | h) + log p(l2 | h, l1) + log p(l3 | h, l1, l2)

Each term is a log-softmax over the whole codebook of its level, or over the ids that the catalogue has below the
prefix, so that the probabilities of its items sum to 1. A model is trained with one or the other.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.vocabulary import LEVELS

UNKNOWN_LOG_PROB = -20.0  # of an item that the catalogue lacks, where the softmax runs over the catalogue


class LevelHeads(Protocol):
    """The model's output heads, each conditional on the ids chosen above.

    Called with level 0, 1 or 2, hidden (..., D) and prefix int64 (..., level); returns logits (..., V_level). The
    leading dimensions may be empty: a call with no rows is how V_level is asked for. With `beam`, ascending in each
    row, and `ids`, int64 (B, R), hidden is (B, W, D), and only the logits (B, R) of these ids below these of the W
    prefixes are returned.
    """

    def __call__(
        self, level: int, hidden: Tensor, prefix: Tensor, beam: Tensor | None = None, ids: Tensor | None = None
    ) -> Tensor: ...


class ChildLogits(NamedTuple):
    """What may come after a prefix, and its logits. N prefixes, C slots.

    Attributes:
        logits: (N, C), -inf in slots without a child; all 0 where the prefix does not exist.
        slots: int64 (N,) of the id that did come, -1 where the catalogue does not have it.
    """

    logits: Tensor
    slots: Tensor


def child_logits(heads: LevelHeads, hidden: Tensor, ids: Tensor, trie: ItemTrie) -> list[ChildLogits]:
    """Of each level, the logits of the ids that the catalogue has below the levels above it.

    hidden (N, D), ids int64 (N, 3), of which each level conditions those below it.
    """
    found = []
    parents = torch.zeros_like(ids[:, 0])  # the root
    for level, nodes in enumerate(trie.path(ids)):
        exists = parents >= 0
        above = parents.clamp(min=0)
        children = trie.children(level, above[:, None], exists[:, None])
        prefix = ids[:, None, :level].clamp(min=0)
        logits = heads(level, hidden[:, None], prefix, children.beam, children.ids)
        logits = logits.masked_fill(~children.filled & exists[:, None], float("-inf"))
        logits = logits.masked_fill(~exists[:, None], 0.0)
        slots = torch.where(nodes >= 0, nodes - trie.levels[level].first[above], -1)
        found.append(ChildLogits(logits, slots))
        parents = nodes
    return found


def score_items(heads: LevelHeads, hidden: Tensor, ids: Tensor, trie: ItemTrie | None = None) -> Tensor:
    """Log-probabilities of given items, differentiable: hidden (B, D), ids int64 (B, N, 3) -> float32 (B, N).

    Level 1 does not depend on the item, so it costs one head evaluation a row. The other two make (B, N, V_l) logits:
    to rank a whole catalogue, `beam_search` with `beam_width` at least the number of prefixes gives the same scores
    with one evaluation a prefix. Ids must be valid ones (0 <= id < V_l); what padding scores is for the caller to
    ignore.

    With a trie each level's softmax runs over the ids that it has below the levels above; an item that it lacks scores
    UNKNOWN_LOG_PROB.
    """
    if trie is not None:
        return _over_catalogue(heads, hidden, ids, trie)
    # Products of matrices: of three dimensions, PyTorch would choose between two ways by whether a gradient is wanted,
    # and a policy would differ from an equal reference in the last bits.
    per_item, flat = hidden.repeat_interleave(ids.shape[1], dim=0), ids.flatten(0, 1)
    total = _log_softmax_at(heads(0, hidden, ids.new_empty(ids.shape[0], 0)), ids[..., 0])
    for level in range(1, LEVELS):
        logits = heads(level, per_item, flat[:, :level])
        total = total + _log_softmax_at(logits, flat[:, level, None]).view_as(total)
    return total


def _over_catalogue(heads: LevelHeads, hidden: Tensor, ids: Tensor, trie: ItemTrie) -> Tensor:
    states = hidden.unsqueeze(1).expand(-1, ids.shape[1], -1)
    total = torch.zeros_like(ids[..., 0].flatten(), dtype=torch.float32)
    for logits, slots in child_logits(heads, states.flatten(0, 1), ids.flatten(0, 1), trie):
        here = logits.float()
        own = here.gather(1, slots.clamp(min=0)[:, None]).squeeze(1) - here.logsumexp(1)
        total = torch.where(slots >= 0, total + own, UNKNOWN_LOG_PROB)
    return total.view_as(ids[..., 0])


def _log_softmax_at(logits: Tensor, ids: Tensor) -> Tensor:
    """log_softmax (B, V) at ids (B, N), without the full log-softmax in memory."""
    logits, rows = logits.float(), torch.arange(logits.shape[0], device=logits.device)
    # Not gather: items share their first level, and its gradient adds what falls on one place in any order.
    return logits[rows[:, None], ids] - logits.logsumexp(-1, keepdim=True)
