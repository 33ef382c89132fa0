"""Items drawn from the model, and the distributions that they were drawn from.

Shapes: B users, G items of a user, D width, L = 3 levels, C_l the most children that a node above level l has.

Each level's softmax runs over the ids that the catalogue has below the levels above, so p sums to 1 over the catalogue,
and drawing an id at each level (ancestral sampling) draws an item with exactly its probability. Here p is as if the
catalogue had only what may be recommended.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ugt_composer.catalogue.trie import Children, ItemTrie
from ugt_composer.generation.item_log_probs import LevelLogits, score_items
from ugt_composer.generation.node_biases import NodeBiases
from ugt_composer.row_random import RowNoise
from ugt_composer.vocabulary import LEVELS


class ItemSamples(NamedTuple):
    """Independent draws, with replacement; log-probabilities are differentiable.

    Attributes:
        ids: int64 (B, G, L).
        items: int64 (B, G) row of `trie.items`.
        log_probs: float32 (B, G, L) of each level's id, given the ids above it.
        distributions: for each level, float32 (B, 1, C_0), (B, G, C_1), (B, G, C_2): log-probabilities of the ids that
            could have been drawn, -inf in slots without one. The first level's is the same for all draws.
    """

    ids: Tensor
    items: Tensor
    log_probs: Tensor
    distributions: tuple[Tensor, ...]


def sample_items(
    heads: LevelLogits,
    hidden: Tensor,
    trie: ItemTrie,
    count: int,
    noise: RowNoise,
    biases: NodeBiases | None = None,
) -> ItemSamples:
    """Draws `count` items for each hidden state (B, D) at BOS, with biases of B rows.

    Each id is the argmax of its level's log-probabilities plus Gumbel noise (Gumbel 1954), so shapes do not depend on
    values. With the same noise the draws of a row do not depend on the other rows.
    """
    rows, device = hidden.shape[0], hidden.device
    ids = torch.empty(rows, 1, 0, dtype=torch.int64, device=device)
    nodes = torch.zeros(rows, 1, dtype=torch.int64, device=device)  # the root
    log_probs, distributions = [], []
    for level in range(LEVELS):
        log_softmax, children = _below(heads, hidden, trie, level, nodes, ids, biases)
        gumbel = noise.gumbel(level, count, log_softmax.shape[-1])
        slots = (log_softmax.detach() + gumbel).argmax(dim=-1, keepdim=True)  # (B, G, 1)

        def at(values: Tensor, slots: Tensor = slots) -> Tensor:
            return values.expand(-1, count, -1).gather(2, slots)

        ids = torch.cat([ids.expand(-1, count, -1), at(children.ids)], dim=2)
        nodes = at(children.nodes).squeeze(2)
        log_probs.append(at(log_softmax))
        distributions.append(log_softmax)
    return ItemSamples(ids, nodes, torch.cat(log_probs, dim=2), tuple(distributions))


def draw_group(
    heads: LevelLogits,
    hidden: Tensor,
    target: Tensor,
    trie: ItemTrie,
    count: int,
    noise: RowNoise,
    biases: NodeBiases | None = None,
) -> dict[str, Tensor]:
    """`count` items of the model for each hidden state (B, D), and its target (B, L), as a loss reads them.

    Returns:
        group_ids, group_items, group_log_probs: see `ItemSamples`.
        group_l1_log_probs, group_l2_log_probs, group_l3_log_probs: its `distributions`.
        group_target_log_probs: (B,) log p of the target.
        group_target_items: int64 (B,) the target's row of `trie.items`, -1 if it cannot be drawn.
    """
    found = trie.find(target)
    can_be_drawn = trie.open_among(LEVELS - 1, found.clamp(min=0), found >= 0)
    samples = sample_items(heads, hidden, trie, count, noise, biases)
    of_target = score_items(heads, hidden, target[:, None], trie, only_open=True, biases=biases)
    levels = {f"group_l{level}_log_probs": values for level, values in enumerate(samples.distributions, start=1)}
    return levels | {
        "group_ids": samples.ids,
        "group_items": samples.items,
        "group_log_probs": samples.log_probs,
        "group_target_log_probs": of_target.squeeze(1),
        "group_target_items": torch.where(can_be_drawn, found, -1),
    }


def distributions_at(
    heads: LevelLogits, hidden: Tensor, trie: ItemTrie, ids: Tensor, biases: NodeBiases | None = None
) -> tuple[Tensor, ...]:
    """`ItemSamples.distributions` of another model for the same draws, items ids (B, G, L) of the catalogue.

    Computed by the same operations on the same shapes, so that models with equal weights give bitwise equal results.
    """
    path = [torch.zeros_like(ids[:, :1, 0]), *trie.path(ids)]
    return tuple(
        _below(heads, hidden, trie, level, path[level], ids[:, : path[level].shape[1], :level], biases)[0]
        for level in range(LEVELS)
    )


def _below(
    heads: LevelLogits,
    hidden: Tensor,
    trie: ItemTrie,
    level: int,
    nodes: Tensor,
    prefix: Tensor,
    biases: NodeBiases | None,
) -> tuple[Tensor, Children]:
    """The distribution of a level's open ids below nodes (B, W) of the level above, whose ids are prefix (B, W, level).

    Returns log-probabilities (B, W, C), -inf in empty slots, and the children, each (B, W, C).
    """
    shape, flat = nodes.shape, nodes.flatten()[:, None]
    # One row per node, because the nodes of a user may repeat, and `children` expects different ones.
    children = trie.children(level, flat, torch.ones_like(flat, dtype=torch.bool))
    states = hidden.repeat_interleave(shape[1], dim=0)[:, None]
    logits = heads(level, states, prefix.flatten(0, 1)[:, None], children.beam, children.ids).float()
    if biases is not None:
        logits = biases.repeated(shape[1]).added_to(level, logits, children.nodes)
    is_open = trie.open_among(level, children.nodes, children.filled)
    log_softmax = logits.masked_fill(~is_open, float("-inf")).log_softmax(dim=-1)
    return log_softmax.unflatten(0, shape), Children(*(part.unflatten(0, shape) for part in children))
