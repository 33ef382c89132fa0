"""Next-token prediction: a weighted sum of the cross-entropies of the three levels of the next item.

Shapes: B rows, T target length, M labelled tokens, L = 3 levels, V_l codebook size of level l.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer.config.schema import LossConfig
from ugt_composer.losses.normalization import batch_mean, labels_of_outputs
from ugt_composer.losses.term import level_means
from ugt_composer.vocabulary import IGNORE_INDEX

_SUM_TOLERANCE = 1e-6


class NextTokenPredictionLoss(nn.Module):
    """l1_weight * CE(level 1) + l2_weight * CE(level 2) + l3_weight * CE(level 3), each a mean over its own labels."""

    name = "ntp_loss"

    def __init__(
        self,
        l1_weight: float = LossConfig.l1_weight,
        l2_weight: float = LossConfig.l2_weight,
        l3_weight: float = LossConfig.l3_weight,
        label_smoothing: float = LossConfig.label_smoothing,
    ) -> None:
        super().__init__()
        weights = (l1_weight, l2_weight, l3_weight)
        if min(weights) < 0 or not abs(sum(weights) - 1) <= _SUM_TOLERANCE:
            found = f"{' + '.join(f'{weight:g}' for weight in weights)} = {sum(weights):g}"
            raise ValueError(f"l1_weight, l2_weight and l3_weight must be at least 0 and sum to 1, found {found}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), found {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.means = level_means("ntp", weights)

    def forward(
        self,
        l1_logits: Tensor,
        l2_logits: Tensor,
        l3_logits: Tensor,
        labels: Tensor,
        batch_totals: Tensor | None = None,
        rows: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        l1_logits, l2_logits, l3_logits: (B, T, V_l) or (M, V_l), -inf where there is no class
        labels: (B, T, L) or (M, L), -100 is ignored
        batch_totals: (6,) counts of the global batch, see `normalization`
        rows: B; None: the first dimension of `labels`
        returns: loss (), and `ntp_l{1,2,3}_loss`, `ntp_l{1,2,3}_acc`
        """
        levels = enumerate((l1_logits, l2_logits, l3_logits))
        values = zip(*(self._of_logits(logits, labels[..., level]) for level, logits in levels), strict=True)
        log_probs, hits, means = (torch.stack(of_levels, dim=-1) for of_levels in values)
        return self.of_log_probs(log_probs, hits, means, labels, batch_totals, rows)

    def of_log_probs(
        self,
        log_probs: Tensor,
        hits: Tensor,
        mean_log_probs: Tensor,
        labels: Tensor,
        batch_totals: Tensor | None = None,
        rows: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Like `forward`, given what `UGT.target_outputs` returns of the labels, in their shape, instead of logits."""
        rows = labels.shape[0] if rows is None else rows
        counted, losses = labels != IGNORE_INDEX, -log_probs
        if self.label_smoothing > 0:
            losses = (1 - self.label_smoothing) * losses - self.label_smoothing * mean_log_probs
        totals = torch.where(counted, losses, 0.0).flatten(0, -2).sum(dim=0)
        correct, counts = ((hits & counted).flatten(0, -2).sum(dim=0), counted.flatten(0, -2).sum(dim=0))
        loss, metrics = totals.new_zeros(()), dict[str, Tensor]()
        for level, mean in enumerate(self.means):
            level_loss = batch_mean(totals[level], counts[level], rows, batch_totals, mean.counted_by)
            accuracy = batch_mean(correct[level].float(), counts[level], rows, batch_totals, mean.counted_by)
            loss = loss + mean.weight * level_loss
            metrics |= {mean.name: level_loss.detach(), f"ntp_l{level + 1}_acc": accuracy}
        return loss, metrics

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LossTerm`."""
        classes, totals, rows = labels_of_outputs(outputs, batch, labels), batch.get("batch_totals"), labels.shape[0]
        if "label_logps" in outputs:
            log_probs, hits, means = (outputs[f"label_{name}"] for name in ("logps", "hits", "mean_logps"))
            return self.of_log_probs(log_probs, hits, means, classes, totals, rows)
        if "label_slots" in outputs:
            slots = outputs["label_slots"]
            classes = torch.where((labels != IGNORE_INDEX) & (slots >= 0), slots, IGNORE_INDEX)
        return self(outputs["l1_logits"], outputs["l2_logits"], outputs["l3_logits"], classes, totals, rows)

    def _of_logits(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `of_log_probs` reads of logits (…, V_l) and labels (…)."""
        flat, targets = logits.flatten(0, -2).float(), labels.flatten()
        log_probs = -F.cross_entropy(flat, targets, ignore_index=IGNORE_INDEX, reduction="none")
        hits, means = flat.detach().argmax(dim=-1) == targets, torch.zeros_like(log_probs)
        if self.label_smoothing > 0:
            # Only over existing classes: PyTorch's label smoothing gives mass to those of -inf, too.
            all_log_probs, is_class = flat.log_softmax(dim=-1), flat > float("-inf")
            means = all_log_probs.masked_fill(~is_class, 0.0).sum(dim=-1) / is_class.sum(dim=-1)
        return log_probs.view_as(labels), hits.view_as(labels), means.view_as(labels)
