"""Users against every item of the catalogue: the contrastive term without sampling.

Shapes: B rows, n items of the catalogue, L = 3 levels, D width of the vectors.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ugt_composer.config.schema import LossConfig
from ugt_composer.float32_product import float32_matmul
from ugt_composer.generation.item_scores import Similarity, comparable
from ugt_composer.losses.normalization import TARGETS, batch_mean, has_target
from ugt_composer.losses.term import Mean

LOGITS_BYTES = 256 * 2**20  # of one (B, part of n) block of logits; several are kept by their results only


class CatalogueContrastiveLoss(nn.Module):
    """Cross-entropy of each row's item among all items: InfoNCE from user to item whose negatives are the catalogue.

    Logits are similarities over the temperature. There is no sum from item to user: a catalogue knows no other users.
    Each row stands for itself, so the loss is the same for any split into microbatches and ranks.

    The softmax does not change when all items lose the same vector, so nothing keeps what they have in common small:
    the training may let it grow to thousands of times what tells items apart. They lose their mean in float32, before
    products are rounded, and with it its gradient, which is 0 but for rounding.

    Under autocast dot products are then made in its dtype, like the logits of any softmax over a vocabulary. Cosines
    are float32: divided by a small temperature, half precision would be off by several hundredths.
    """

    name = "contrastive_loss"
    means = (Mean("contrastive_loss", TARGETS), Mean("contrastive_u2i_acc", TARGETS, higher_is_better=True))

    def __init__(
        self,
        temperature: float = LossConfig.contrastive_temperature,
        similarity: Similarity = LossConfig.contrastive_similarity,
    ):
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
        device = user_repr.device.type
        in_half = self.similarity == "dot" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if in_half else torch.float32
        users, own_items, items = (comparable(x, self.similarity) for x in (user_repr, item_repr, catalogue_repr))
        users, centre = users / self.temperature, items.mean(dim=0)
        items, own_items = (items - centre).to(dtype), (own_items - centre).to(dtype)
        # Rounded as products of matrices are: other items are compared with it.
        own = (users.to(dtype).float() * own_items.float()).sum(dim=-1).to(dtype).float()
        log_sum, own_logits, better = _over_catalogue(users, items, own.detach(), item_rows)
        row_losses = torch.where(item_rows < 0, torch.logaddexp(log_sum, own) - own, log_sum - own_logits)

        def mean(row_values: Tensor) -> Tensor:
            total = torch.where(valid, row_values, 0.0).sum()
            return batch_mean(total, valid.sum(), len(valid), batch_totals, TARGETS)

        return mean(row_losses), {"contrastive_u2i_acc": mean((better == 0).float())}

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LossTerm`."""
        vectors = outputs["user_repr"], outputs["item_repr"], outputs["catalogue_repr"]
        return self(*vectors, outputs["item_rows"], has_target(labels), batch.get("batch_totals"))

    def evaluation_weights(self) -> dict[str, float]:
        return {self.name: 1.0}


def _over_catalogue(users: Tensor, items: Tensor, own: Tensor, item_rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of users (B, D) against items (n, D), whose dtype the products have, (B,) each: log Σ exp(users · items), the
    logit of item `item_rows` (0 where that is -1), and how many other items have a logit of `own` or more."""
    size = max(1, LOGITS_BYTES // (4 * max(1, len(users))))
    if len(items) <= size:
        return _over_part(users, items, own, item_rows)
    parts = [
        checkpoint(_over_part, users, part, own, item_rows - number * size, use_reentrant=False)
        for number, part in enumerate(items.split(size))
    ]
    log_sums, own_logits, better = (torch.stack(values) for values in zip(*parts, strict=True))
    return log_sums.logsumexp(dim=0), own_logits.sum(dim=0), better.sum(dim=0)


def _over_part(users: Tensor, items: Tensor, own: Tensor, item_rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if items.dtype == torch.float32:
        logits = float32_matmul(users, items.T)
    else:
        logits = (users.to(items.dtype) @ items.T).float()
    is_better = logits.detach() >= own[:, None]
    is_here = (item_rows >= 0) & (item_rows < len(items))
    place = item_rows.clamp(0, len(items) - 1)[:, None]
    is_better.scatter_(1, place, is_better.gather(1, place) & ~is_here[:, None])
    own_logits = logits.gather(1, place).squeeze(1).masked_fill(~is_here, 0.0)
    return logits.logsumexp(dim=-1), own_logits, is_better.sum(dim=-1)
