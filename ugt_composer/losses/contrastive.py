"""Contrastive alignment of users with their target items: symmetric InfoNCE over the rows of all ranks.

Shapes: B rows of this rank, R rows of all ranks, C candidates taken from them, M = num_negatives remembered items,
L = 3 levels, D width of the vectors.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ugt_composer.config.schema import LossConfig
from ugt_composer.float32_product import float32_matmul
from ugt_composer.generation.item_scores import Similarity, comparable
from ugt_composer.losses.normalization import has_target
from ugt_composer.losses.ranks import gather_rows, rank, sum_over_ranks, world_size
from ugt_composer.losses.term import Mean
from ugt_composer.row_random import row_keys
from ugt_composer.vocabulary import LEVELS


class ContrastiveLoss(nn.Module):
    """Symmetric InfoNCE (van den Oord et al. 2018; symmetric as in Radford et al. 2021) of users and their items.

    The negatives of a row are the other items of the batch on all ranks, then remembered items of earlier batches,
    newest first, up to `num_negatives` in total. If the batch has more than enough items, they are taken in a random
    order that is drawn from the seed in each step and is the same on every rank. Items with the same ids as the row's
    own item are masked. The negatives of an item are the users of the same rows; users are not remembered.

    Between the ranks go the ids of all rows, of which the candidates are chosen, and then the vectors of these alone.

    The result does not depend on which rank holds a row, or at which index: rows are first sorted by row id.
    """

    name = "contrastive_loss"
    means: tuple[Mean, ...] = ()  # none: they would depend on which rows are evaluated together
    memory_vectors: Tensor
    memory_ids: Tensor
    memory_valid: Tensor
    memory_pointer: Tensor
    step: Tensor

    def __init__(
        self,
        temperature: float = LossConfig.contrastive_temperature,
        num_negatives: int = LossConfig.num_negatives,
        dim: int = 512,
        seed: int = 0,
        similarity: Similarity = LossConfig.contrastive_similarity,
    ) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, found {temperature}")
        if num_negatives < 1:
            raise ValueError(f"num_negatives must be at least 1, found {num_negatives}")
        self.temperature = temperature
        self.similarity: Similarity = similarity
        self.num_negatives = num_negatives
        self.seed = seed
        self.register_buffer("memory_vectors", torch.zeros(num_negatives, dim))
        self.register_buffer("memory_ids", torch.zeros(num_negatives, LEVELS, dtype=torch.int64))
        self.register_buffer("memory_valid", torch.zeros(num_negatives, dtype=torch.bool))
        self.register_buffer("memory_pointer", torch.zeros((), dtype=torch.int64))  # the next slot to write
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(
        self, user_repr: Tensor, item_repr: Tensor, item_ids: Tensor, row_ids: Tensor, valid: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        user_repr, item_repr: (B, D) vectors of each row's user and of its target item
        item_ids: (B, L) the target item
        row_ids: (B,) int64, the row's index in the dataset
        valid: (B,) bool, whether the row has a target item; None: all. Rows without one are neither queries nor
            candidates
        returns: loss (), and `contrastive_u2i_acc`, `contrastive_i2u_acc`; the average of each over ranks is the mean
            over the valid rows of all ranks
        """
        if valid is None:
            valid = torch.ones_like(row_ids, dtype=torch.bool)
        users, items = comparable(user_repr, self.similarity), comparable(item_repr, self.similarity)
        pool = _gather_pool(item_ids, row_ids, valid)
        candidates = self._candidates(pool)
        vectors = _take(torch.cat([users, items], dim=1), pool.gathered_rows[candidates])
        u2i, i2u = self._logits(users, items, item_ids, pool, candidates, vectors)
        row_losses = ((u2i.logsumexp(dim=-1) - u2i[:, 0]) + (i2u.logsumexp(dim=-1) - i2u[:, 0])) / 2

        def mean(row_values: Tensor) -> Tensor:
            # This rank's sum / valid rows of all ranks * ranks: the average over ranks is the mean over all rows.
            return torch.where(valid, row_values, 0.0).sum() * world_size() / pool.valid.sum().clamp(min=1)

        # Strictly greater: a model that gives all pairs the same score has an accuracy of 0.
        metrics = {
            "contrastive_u2i_acc": mean((u2i[:, 0] > u2i[:, 1:].amax(dim=-1)).float()),
            "contrastive_i2u_acc": mean((i2u[:, 0] > i2u[:, 1:].amax(dim=-1)).float()),
        }
        loss = mean(row_losses)
        if self.training:
            self._remember(pool, items)
        return loss, metrics

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LossTerm`."""
        vectors = outputs["user_repr"], outputs["item_repr"]
        return self(*vectors, labels[:, 0, :], batch["row_ids"], has_target(labels))

    def _candidates(self, pool: "_Pool") -> Tensor:
        """Indices (C,) into the pool, in the order in which rows take them as negatives; the invalid come last."""
        rows = len(pool.row_ids)
        if rows <= self.num_negatives + 1:
            return torch.arange(rows, device=pool.row_ids.device)
        # One more than the negatives of a row: the row's own item may be among them.
        keys = torch.where(pool.valid, row_keys(pool.row_ids, self.step, self.seed), _INT64_MAX)
        return torch.argsort(keys, stable=True)[: self.num_negatives + 1]

    def _logits(
        self, users: Tensor, items: Tensor, item_ids: Tensor, pool: "_Pool", candidates: Tensor, vectors: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Similarities divided by the temperature: the row's own pair first, -inf for what is no negative of the row.

        They are float32 products: divided by a small temperature, half precision would be off by several hundredths.
        Subtracting the same vector from all candidates changes neither softmax. So the mean of the candidates is
        subtracted, and a large common component does not use up float32's digits.

        vectors: (C, 2 D) user and item vectors of the candidates
        returns: user to items (B, 1 + C + M), item to users (B, 1 + C)
        """
        local_rows = torch.arange(len(users), device=users.device) + rank() * len(users)
        is_own = local_rows[:, None] == pool.gathered_rows[candidates][None, :]
        # Positions among the candidates without the row's own item.
        positions = torch.arange(len(candidates), device=users.device) - is_own.cumsum(dim=1)
        is_negative = pool.valid[candidates] & (positions < self.num_negatives)
        is_negative = is_negative & ~_same_item(item_ids, pool.item_ids[candidates])

        ages = (self.memory_pointer - 1 - torch.arange(self.num_negatives, device=users.device)) % self.num_negatives
        open_slots = self.num_negatives - (pool.valid.sum() - 1)  # not filled by the other items of the batch
        is_remembered = (self.memory_valid & (ages < open_slots)) & ~_same_item(item_ids, self.memory_ids)

        their_users, their_items = vectors.split(users.shape[1], dim=1)
        user_mean, item_mean = (_mean_of_valid(x, pool.valid[candidates]) for x in (their_users, their_items))
        # A new tensor, because the buffer is overwritten before the backward pass reads it.
        memory = self.memory_vectors.float() - item_mean
        own_item_logits = (users * (items - item_mean)).sum(dim=-1, keepdim=True)
        own_user_logits = (items * (users - user_mean)).sum(dim=-1, keepdim=True)
        to_items = float32_matmul(users, (their_items - item_mean).T)
        to_users = float32_matmul(items, (their_users - user_mean).T)
        to_items = to_items.masked_fill(~is_negative, float("-inf"))
        to_users = to_users.masked_fill(~is_negative, float("-inf"))
        to_memory = float32_matmul(users, memory.T).masked_fill(~is_remembered, float("-inf"))
        u2i = torch.cat([own_item_logits, to_items, to_memory], dim=1) / self.temperature
        i2u = torch.cat([own_user_logits, to_users], dim=1) / self.temperature
        return u2i, i2u

    @torch.no_grad()
    def _remember(self, pool: "_Pool", items: Tensor) -> None:
        """Overwrites the oldest remembered items with the valid items of the pool, and counts the step.

        The number of valid items is known only on the device, so each slot looks up which item it receives.
        """
        count = pool.valid.sum()
        offsets = (torch.arange(self.num_negatives, device=count.device) - self.memory_pointer) % self.num_negatives
        written = offsets < count
        # With more items than slots, a slot receives the last of its items. Valid items come first in the pool.
        laps = torch.div(count - 1 - offsets, self.num_negatives, rounding_mode="floor")
        source = (offsets + laps * self.num_negatives).clamp(0, len(pool.row_ids) - 1)
        vectors = _take(items, pool.gathered_rows[source]).to(self.memory_vectors.dtype)
        self.memory_vectors.copy_(torch.where(written[:, None], vectors, self.memory_vectors))
        self.memory_ids.copy_(torch.where(written[:, None], pool.item_ids[source], self.memory_ids))
        self.memory_valid.logical_or_(written)
        self.memory_pointer.copy_((self.memory_pointer + count) % self.num_negatives)
        self.step.add_(1)


class _Pool(NamedTuple):
    """The rows of all ranks, without their vectors: the valid ones sorted by row id, then the others."""

    item_ids: Tensor  # (R, L)
    row_ids: Tensor  # (R,)
    valid: Tensor  # (R,)
    gathered_rows: Tensor  # (R,) rank * B + the row's index on its rank


def _gather_pool(item_ids: Tensor, row_ids: Tensor, valid: Tensor) -> _Pool:
    numbers = gather_rows(torch.cat([item_ids, row_ids[:, None], valid[:, None].long()], dim=1))
    order = torch.argsort(torch.where(numbers[:, -1].bool(), numbers[:, -2], _INT64_MAX), stable=True)
    numbers = numbers[order]
    return _Pool(numbers[:, :LEVELS], numbers[:, -2], numbers[:, -1].bool(), order)


def _take(vectors: Tensor, rows: Tensor) -> Tensor:
    """Rows (P,), numbered as `_Pool.gathered_rows`, of the vectors (B, W) of all ranks, on every rank: (P, W).

    Only these are sent. Each is a sum over the ranks of which all but one are zero, so it is exact.
    """
    if len(rows) >= world_size() * len(vectors):
        return gather_rows(vectors).index_select(0, rows)
    own = rows - rank() * len(vectors)
    is_own = (own >= 0) & (own < len(vectors))
    mine = vectors.index_select(0, own.clamp(0, len(vectors) - 1))
    return sum_over_ranks(torch.where(is_own[:, None], mine, 0.0))


def _mean_of_valid(vectors: Tensor, valid: Tensor) -> Tensor:
    """The mean (D,) of the vectors (R, D) whose valid (R,) is true, without a gradient; 0 if there are none."""
    return torch.where(valid[:, None], vectors.detach(), 0.0).sum(dim=0) / valid.sum().clamp(min=1)


def _same_item(item_ids: Tensor, others: Tensor) -> Tensor:
    """Whether items (B, L) and others (X, L) have the same ids: (B, X) bool."""
    return (item_ids[:, None, :] == others[None, :, :]).all(dim=-1)


_INT64_MAX = torch.iinfo(torch.int64).max
