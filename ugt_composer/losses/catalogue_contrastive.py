"""Users against every item of the catalogue: the contrastive term without sampling.

Shapes: B rows, n items of the catalogue, L = 3 levels, D width of the vectors.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ugt_composer.generation.item_scores import Similarity, comparable
from ugt_composer.losses.normalization import TARGETS, batch_mean

LOGITS_BYTES = 256 * 2**20  # of one (B, part of n) block of logits; several are kept by their results only


class CatalogueContrastiveLoss(nn.Module):
    """Cross-entropy of each row's item among all items: InfoNCE from user to item whose negatives are the catalogue.

    Logits are similarities over the temperature. There is no sum from item to user: a catalogue knows no other users.
    Each row stands for itself, so the loss is the same for any split into microbatches and ranks.
    """

    def __init__(self, temperature: float = 0.07, similarity: Similarity = "cosine"):
        super().__init__()
        self.temperature = temperature
        self.similarity: Similarity = similarity

    def forward(
        self,
        user_repr: Tensor,
        item_repr: Tensor,
        catalogue_repr: Tensor,
        item_rows: Tensor,
        valid: Tensor,
        batch_totals: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        user_repr, item_repr: (B, D) vectors of each row's user and of its target item
        catalogue_repr: (n, D) vectors of all items
        item_rows: (B,) int64, the target's row in the catalogue; -1: it is in none, and joins the others for its row
        valid: (B,) bool, whether the row has a target item
        batch_totals: counts of the global batch, see `normalization`
        returns: loss (), and `contrastive_u2i_acc`, the share of rows whose item scores above every other
        """
        with torch.autocast(user_repr.device.type, enabled=False):
            users, own_items, items = (comparable(x, self.similarity) for x in (user_repr, item_repr, catalogue_repr))
            users = users / self.temperature
            own = (users * own_items).sum(dim=-1)
            log_sum, better = _over_catalogue(users, items, own.detach(), item_rows)
            row_losses = torch.where(item_rows < 0, torch.logaddexp(log_sum, own), log_sum) - own

        def mean(row_values: Tensor) -> Tensor:
            total = torch.where(valid, row_values, 0.0).sum()
            return batch_mean(total, valid.sum(), len(valid), batch_totals, TARGETS)

        return mean(row_losses), {"contrastive_u2i_acc": mean((better == 0).float())}


def _over_catalogue(users: Tensor, items: Tensor, own: Tensor, item_rows: Tensor) -> tuple[Tensor, Tensor]:
    """users (B, D), items (n, D), own and item_rows (B,) -> log Σ exp(users · items) and how many other items have a
    logit of `own` or more, (B,) each."""
    size = max(1, LOGITS_BYTES // (4 * max(1, len(users))))
    if len(items) <= size:
        return _over_part(users, items, own, item_rows)
    log_sums, better = [], []
    for start in range(0, len(items), size):
        part = items[start : start + size]
        sums = checkpoint(_over_part, users, part, own, item_rows - start, use_reentrant=False)
        log_sums.append(sums[0])
        better.append(sums[1])
    return torch.stack(log_sums).logsumexp(dim=0), torch.stack(better).sum(dim=0)


def _over_part(users: Tensor, items: Tensor, own: Tensor, item_rows: Tensor) -> tuple[Tensor, Tensor]:
    logits = users @ items.T
    is_better = logits.detach() >= own[:, None]
    is_here = (item_rows >= 0) & (item_rows < len(items))
    place = item_rows.clamp(0, len(items) - 1)[:, None]
    is_better.scatter_(1, place, is_better.gather(1, place) & ~is_here[:, None])
    return logits.logsumexp(dim=-1), is_better.sum(dim=-1)
