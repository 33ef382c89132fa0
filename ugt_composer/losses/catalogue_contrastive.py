"""The contrastive term without sampling: each user against every item of the catalogue.

Shapes: B rows, n items of the catalogue, L = 3 levels, D width of the vectors.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ugt_composer.config.schema import LossConfig
from ugt_composer.float32_product import float32_matmul
from ugt_composer.generation.catalogue_vectors import CatalogueVectors
from ugt_composer.generation.item_scores import SeenItems, Similarity, comparable
from ugt_composer.losses.normalization import TARGETS, batch_mean, has_target
from ugt_composer.losses.term import Mean

LOGITS_BYTES = 256 * 2**20  # of one block of logits, (B, part of n); of several blocks only the results are kept
VECTORS_BYTES = 64 * 2**20  # of one block of vectors, (part of n, D), if they are not held


class CatalogueContrastiveLoss(nn.Module):
    """Cross-entropy of each row's item among all items: InfoNCE from user to item with the catalogue as negatives.

    Logits are similarities divided by the temperature. There is no item-to-user direction, because a catalogue contains
    no other users. The loss of a row depends on no other row, so the total is the same for any split into microbatches
    and ranks.

    Subtracting the same vector from all items does not change the softmax, so nothing limits the component that all
    items share: during training it may grow to thousands of times the differences between items. The mean of the items
    is therefore subtracted in float32, before products are rounded. This also removes the mean of their gradients,
    which is 0 except for rounding.

    Under autocast dot products are computed in autocast's dtype, like the logits of any softmax over a vocabulary.
    Cosines are float32: divided by a small temperature, half precision would be off by several hundredths.
    """

    name = "contrastive_loss"
    means = (
        Mean("contrastive_loss", TARGETS, weight=1.0),
        Mean("contrastive_u2i_acc", TARGETS, higher_is_better=True),
    )

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
        catalogue_repr: Tensor | CatalogueVectors,
        item_rows: Tensor,
        valid: Tensor,
        batch_totals: Tensor | None = None,
        seen: SeenItems | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        user_repr, item_repr: (B, D) vectors of each row's user and of its target item
        catalogue_repr: (n, D) vectors of all items, or `CatalogueVectors`, which are computed block by block
        item_rows: (B,) int64, the target's row in the catalogue; -1: not in the catalogue, the target is then added to
            the candidates of its row
        valid: (B,) bool, whether the row has a target item
        batch_totals: counts of the global batch, see `normalization`
        seen: of the B users; None: items of the history are like others
        returns: loss (), and `contrastive_u2i_acc`, the fraction of rows whose item scores above every other
        """
        device = user_repr.device.type
        in_half = self.similarity == "dot" and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if in_half else torch.float32
        users, targets = (comparable(x, self.similarity) for x in (user_repr, item_repr))
        users = users / self.temperature
        items: Tensor | _Blocks
        if isinstance(catalogue_repr, CatalogueVectors):
            # Any vector may be subtracted. A mean of cosines' vectors would take another pass over all items.
            is_dot = self.similarity == "dot"
            centre = catalogue_repr.mean() if is_dot else catalogue_repr.mean_direction()
            items = _Blocks(catalogue_repr, centre, self.similarity, dtype)
        else:
            items = comparable(catalogue_repr, self.similarity)
            centre = items.mean(dim=0)
            items = (items - centre).to(dtype)
        targets = (targets - centre).to(dtype)
        # Rounded like the matrix products, because the logits of the other items are compared with it.
        target_logits = (users.to(dtype).float() * targets.float()).sum(dim=-1).to(dtype).float()
        if seen is not None:
            is_seen = (seen.items == item_rows[:, None]).any(dim=1)
            target_logits = target_logits + torch.where(is_seen, seen.biases.squeeze(1), 0.0)
        log_sum, catalogue_logits, better_counts = _over_catalogue(
            users, items, target_logits.detach(), item_rows, seen
        )
        row_losses = torch.where(
            item_rows < 0, torch.logaddexp(log_sum, target_logits) - target_logits, log_sum - catalogue_logits
        )

        def mean(row_values: Tensor) -> Tensor:
            total = torch.where(valid, row_values, 0.0).sum()
            return batch_mean(total, valid.sum(), len(valid), batch_totals, TARGETS)

        return mean(row_losses), {"contrastive_u2i_acc": mean((better_counts == 0).float())}

    def of_batch(
        self, outputs: Mapping[str, Any], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LossTerm`."""
        vectors = outputs["user_repr"], outputs["item_repr"], outputs["catalogue_repr"]
        rows, valid = outputs["item_rows"], has_target(labels)
        return self(*vectors, rows, valid, batch.get("batch_totals"), outputs.get("seen_items"))


class _Blocks(NamedTuple):
    """The vectors of a large catalogue as they are compared: minus `centre`, in `dtype`."""

    vectors: CatalogueVectors
    centre: Tensor
    similarity: Similarity
    dtype: torch.dtype

    def of(self, first: int, size: int) -> Tensor:
        """(size, D), of fewer at the end."""
        vectors = self.vectors.at(self.vectors.ids[first : first + size])
        return (comparable(vectors, self.similarity) - self.centre).to(self.dtype)


def _over_catalogue(
    users: Tensor, items: Tensor | _Blocks, target_logits: Tensor, item_rows: Tensor, seen: SeenItems | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compares users (B, D) with n items, in the dtype of the items.

    Returns, (B,) each: log Σ exp(users · items), the logit of item `item_rows` (0 where that is -1), and how many other
    items have a logit of `target_logits` or more.
    """
    size = max(1, LOGITS_BYTES // (4 * max(1, len(users))))
    if isinstance(items, _Blocks):
        width, count = items.centre.shape[0], len(items.vectors.ids)
        size = max(1, min(size, VECTORS_BYTES // (4 * width)))
        return _sum_of_parts(
            [
                checkpoint(_over_block, users, items, target_logits, item_rows, seen, first, size, use_reentrant=False)
                for first in range(0, count, size)
            ]
        )
    if len(items) <= size:
        return _over_part(users, items, target_logits, item_rows, seen, 0)
    return _sum_of_parts(
        [
            checkpoint(_over_part, users, part, target_logits, item_rows, seen, number * size, use_reentrant=False)
            for number, part in enumerate(items.split(size))
        ]
    )


def _sum_of_parts(parts: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    log_sums, catalogue_logits, better_counts = (torch.stack(values) for values in zip(*parts, strict=True))
    return log_sums.logsumexp(dim=0), catalogue_logits.sum(dim=0), better_counts.sum(dim=0)


def _over_block(
    users: Tensor,
    items: _Blocks,
    target_logits: Tensor,
    item_rows: Tensor,
    seen: SeenItems | None,
    first: int,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`_over_part` of vectors that are computed here, so that none is kept for the backward pass."""
    return _over_part(users, items.of(first, size), target_logits, item_rows, seen, first)


def _over_part(
    users: Tensor, items: Tensor, target_logits: Tensor, item_rows: Tensor, seen: SeenItems | None, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`_over_catalogue` for the items (m, D) from row `first` of the catalogue on."""
    if items.dtype == torch.float32:
        logits = float32_matmul(users, items.T)
    else:
        logits = (users.to(items.dtype) @ items.T).float()
    if seen is not None:
        logits = seen.added_to(logits, slice(None), first)
    item_rows = item_rows - first
    is_better = logits.detach() >= target_logits[:, None]
    is_in_part = (item_rows >= 0) & (item_rows < len(items))
    column = item_rows.clamp(0, len(items) - 1)[:, None]
    is_better.scatter_(1, column, is_better.gather(1, column) & ~is_in_part[:, None])
    catalogue_logits = logits.gather(1, column).squeeze(1).masked_fill(~is_in_part, 0.0)
    return logits.logsumexp(dim=-1), catalogue_logits, is_better.sum(dim=-1)
