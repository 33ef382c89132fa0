"""The level heads learn the user-item score: distillation from the softmax over items to those over levels.

The user-item score ranks items better than the level heads alone, but has to compare a user with every item, where
generation evaluates three heads. The distribution that the score gives over the items of a catalogue has a marginal for
each node of the trie, so it gives every level exact soft targets: at each node on the path to the row's item, the
probabilities of the children. No second model is needed (Hinton et al., 2015, distil from one).

Shapes: B rows, n items, L = 3 levels, C_l slots for the children of a node at level l, D width of the vectors.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.generation.item_scores import ItemScores
from ugt_composer.losses.normalization import TARGETS, batch_mean, has_target
from ugt_composer.losses.term import Mean

PROBABILITIES_BYTES = 256 * 2**20  # of the rows that are compared with the catalogue at once, (b, n) float32


class LevelDistillationLoss(nn.Module):
    """Σ over levels of KL(soft targets ‖ softmax of the level head), at the nodes on the path to the row's item.

    The targets have no gradient: the user-item score learns from the items alone. Rows whose item is not in the
    catalogue have no path and add 0.
    """

    name = "distillation_loss"
    means = (Mean("distillation_loss", TARGETS, weight=1.0),)

    def forward(
        self,
        logits: Sequence[Tensor],
        targets: Sequence[Tensor],
        valid: Tensor,
        batch_totals: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        logits: (B, C_l) per level, of the row's first label, -inf in slots without a child
        targets: (B, C_l) per level, see `level_targets`
        valid: (B,) bool, whether the row has a target item
        batch_totals: counts of the global batch, see `normalization`
        returns: loss (), and no metrics
        """
        row_losses = torch.zeros(len(valid), device=valid.device)
        for level_logits, level_targets in zip(logits, targets, strict=True):
            log_probs = level_logits.float().log_softmax(dim=-1)
            log_probs = log_probs.masked_fill(level_targets == 0, 0.0)  # 0 · -inf would be NaN
            row_losses = row_losses + torch.special.xlogy(level_targets, level_targets).sum(dim=-1)
            row_losses = row_losses - (level_targets * log_probs).sum(dim=-1)
        total = torch.where(valid, row_losses, 0.0).sum()
        return batch_mean(total, valid.sum(), len(valid), batch_totals, TARGETS), {}

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LossTerm`."""
        levels = range(1, labels.shape[-1] + 1)
        logits = [outputs[f"l{level}_logits"][:, 0] for level in levels]
        targets = [outputs[f"l{level}_targets"] for level in levels]
        return self(logits, targets, has_target(labels), batch.get("batch_totals"))


@torch.no_grad()
def level_targets(scores: ItemScores, ids: Tensor, trie: ItemTrie) -> dict[str, Tensor]:
    """The probabilities that the user-item score gives to the children of the nodes on the path to an item.

    Args:
        scores: of B users, with weight 1.
        ids: int64 (B, 3), the item of each user.

    Returns:
        l1_targets, l2_targets, l3_targets: float32 (B, C_l) in the slots of `child_logits`; all 0 below a prefix that
        does not exist, and where no child has a probability above 0.
    """
    path = trie.path(ids)
    parents = [torch.zeros_like(path[0]), *path[:-1]]
    size = max(1, PROBABILITIES_BYTES // (4 * len(trie)))
    blocks = []
    for start in range(0, len(ids), size):
        rows = slice(start, start + size)
        blocks.append(_of_children(scores(rows).exp(), [nodes[rows] for nodes in parents], trie))
    return {f"l{level + 1}_targets": torch.cat(parts) for level, parts in enumerate(zip(*blocks, strict=True))}


def _of_children(probs: Tensor, parents: Sequence[Tensor], trie: ItemTrie) -> list[Tensor]:
    """The probabilities (b, C_l) of the children of `parents`, (b,) for each level, given those of the items (b, n)."""
    masses = [probs]
    for here in reversed(trie.levels[1:]):
        empty = probs.new_zeros(len(probs), len(here.first) - 1)
        masses.append(empty.index_add(1, here.parents, masses[-1]))
    targets = []
    for level, (mass, nodes) in enumerate(zip(reversed(masses), parents, strict=True)):
        children = trie.children(level, nodes.clamp(min=0)[:, None], (nodes >= 0)[:, None])
        of_children = mass.gather(1, children.nodes).masked_fill(~children.filled, 0.0)
        total = of_children.sum(dim=1, keepdim=True)
        targets.append(of_children / torch.where(total > 0, total, 1.0))
    return targets
