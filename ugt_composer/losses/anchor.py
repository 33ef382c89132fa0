"""Keeps the policy's next-item distribution near the reference's, so that learning preferences does not undo ranking.

Shapes: B rows, T target length, M labelled tokens, L = 3 levels, V_l classes of level l.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ugt_composer.config.schema import LossConfig
from ugt_composer.losses.normalization import batch_mean, labels_of_outputs
from ugt_composer.losses.term import level_means
from ugt_composer.vocabulary import IGNORE_INDEX


class AnchorLoss(nn.Module):
    """l1_weight * KL(level 1) + l2_weight * KL(level 2) + l3_weight * KL(level 3), each a mean over its own labels.

    KL(level) is the divergence KL(reference ‖ policy) of the level's softmax, given the label's ids of the levels above
    (as in Ziegler et al. 2019 and RLHF, with the reference in front: the policy has to cover all that the reference
    would recommend). It is 0 for a policy that equals its reference, and its gradient with respect to the policy's
    logits is softmax(policy) - softmax(reference).
    """

    name = "anchor_loss"

    def __init__(
        self,
        l1_weight: float = LossConfig.l1_weight,
        l2_weight: float = LossConfig.l2_weight,
        l3_weight: float = LossConfig.l3_weight,
    ) -> None:
        super().__init__()
        self.means = level_means("anchor", (l1_weight, l2_weight, l3_weight))

    def forward(
        self,
        logits: tuple[Tensor, Tensor, Tensor],
        reference_logits: tuple[Tensor, Tensor, Tensor],
        labels: Tensor,
        batch_totals: Tensor | None = None,
        rows: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """
        logits, reference_logits: (B, T, V_l) or (M, V_l) of each level, -inf where there is no class
        labels: (B, T, L) or (M, L); -100 is ignored
        batch_totals: (6,) counts of the global batch, see `normalization`
        rows: B; None: the first dimension of `labels`
        returns: loss (), and `anchor_l{1,2,3}_loss`
        """
        pairs = zip(reference_logits, logits, strict=True)
        values = torch.stack([divergence(reference, policy) for reference, policy in pairs], dim=-1)
        return self.of_divergences(values, labels, batch_totals, rows)

    def of_divergences(
        self, divergences: Tensor, labels: Tensor, batch_totals: Tensor | None = None, rows: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Like `forward`, given the divergences, in the shape of the labels, instead of logits."""
        rows = labels.shape[0] if rows is None else rows
        loss, metrics = divergences.new_zeros((), dtype=torch.float32), {}
        for level, mean in enumerate(self.means):
            counted = labels[..., level] != IGNORE_INDEX
            total = torch.where(counted, divergences[..., level], 0.0).sum()
            level_loss = batch_mean(total, counted.sum(), rows, batch_totals, mean.counted_by)
            loss = loss + mean.weight * level_loss
            metrics[mean.name] = level_loss.detach()
        return loss, metrics

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `LossTerm`."""
        of_outputs, totals = labels_of_outputs(outputs, batch, labels), batch.get("batch_totals")
        if "label_divergences" in outputs:
            return self.of_divergences(outputs["label_divergences"], of_outputs, totals, labels.shape[0])
        policy = outputs["l1_logits"], outputs["l2_logits"], outputs["l3_logits"]
        reference = tuple(outputs[f"reference_l{level}_logits"] for level in (1, 2, 3))
        return self(policy, reference, of_outputs, totals, labels.shape[0])


def divergence(reference: Tensor, policy: Tensor) -> Tensor:
    """KL(softmax(reference) ‖ softmax(policy)) of logits (..., V), -inf in the same places: (...,) float32."""
    reference_log_probs = reference.detach().float().log_softmax(dim=-1)
    difference = reference_log_probs - policy.float().log_softmax(dim=-1)
    is_class = reference_log_probs > float("-inf")
    return (reference_log_probs.exp() * difference.masked_fill(~is_class, 0.0)).sum(dim=-1)
