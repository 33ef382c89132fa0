"""Next-token prediction: a weighted sum of the cross-entropies of the three levels of the next item.

Shapes: B rows, T target length, L = 3 levels, V_l codebook size of level l.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer.config.schema import LossConfig
from ugt_composer.losses.normalization import batch_mean
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
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        l1_logits, l2_logits, l3_logits: (B, T, V_l), -inf where there is no class
        labels: (B, T, L), -100 is ignored
        batch_totals: (6,) counts of the global batch, see `normalization`
        returns: loss (), and `ntp_l{1,2,3}_loss`, `ntp_l{1,2,3}_acc`
        """
        rows = labels.shape[0]
        loss = l1_logits.new_zeros((), dtype=torch.float32)
        metrics = {}
        for level, (logits, mean) in enumerate(zip((l1_logits, l2_logits, l3_logits), self.means, strict=True)):
            total, correct, count = self._sums(logits, labels[..., level])
            level_loss = batch_mean(total, count, rows, batch_totals, mean.counted_by)
            loss = loss + mean.weight * level_loss
            metrics[mean.name] = level_loss.detach()
            metrics[f"ntp_l{level + 1}_acc"] = batch_mean(correct, count, rows, batch_totals, mean.counted_by)
        return loss, metrics

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LossTerm`."""
        logits = (outputs["l1_logits"], outputs["l2_logits"], outputs["l3_logits"])
        classes = labels
        if "label_slots" in outputs:
            slots = outputs["label_slots"]
            classes = torch.where((labels != IGNORE_INDEX) & (slots >= 0), slots, IGNORE_INDEX)
        return self(*logits, classes, batch.get("batch_totals"))

    def _sums(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of logits (B, T, V_l) and labels (B, T): summed cross-entropy, correct labels, counted labels; each ()."""
        counted = labels != IGNORE_INDEX
        flat, targets = logits.flatten(0, 1).float(), labels.flatten()
        total = F.cross_entropy(flat, targets, ignore_index=IGNORE_INDEX, reduction="sum")
        if self.label_smoothing > 0:
            # Only over existing classes: PyTorch's label smoothing gives mass to those of -inf, too.
            log_probs, is_class = flat.log_softmax(dim=-1), flat > float("-inf")
            mean_log_probs = log_probs.masked_fill(~is_class, 0.0).sum(dim=-1) / is_class.sum(dim=-1)
            smoothing_total = torch.where(targets != IGNORE_INDEX, mean_log_probs, 0.0).sum()
            total = (1 - self.label_smoothing) * total - self.label_smoothing * smoothing_total
        correct = (logits.detach().argmax(dim=-1) == labels) & counted
        return total, correct.sum().float(), counted.sum()
