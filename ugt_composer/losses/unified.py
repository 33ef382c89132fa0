"""The training loss of every stage: next-token prediction plus the parts whose lambda is above 0.

Shapes: B rows, T target length, L = 3 levels, V_l codebook size of level l, D width of the user and item vectors,
n items of the catalogue, N rejected items, Y layers with a router, E experts.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ugt_composer.errors import UserError
from ugt_composer.generation.item_scores import Similarity
from ugt_composer.losses.catalogue_contrastive import CatalogueContrastiveLoss
from ugt_composer.losses.contrastive import ContrastiveLoss
from ugt_composer.losses.dpo import DPOLoss
from ugt_composer.losses.moe_balance import MoEBalanceLoss
from ugt_composer.losses.normalization import counted_labels, has_target
from ugt_composer.losses.ntp import NextTokenPredictionLoss
from ugt_composer.vocabulary import IGNORE_INDEX

Losses = dict[str, Any]


class UnifiedLoss(nn.Module):
    """L_ntp + lambda_contrastive * L_contrastive + lambda_preference * L_dpo + lambda_moe_balance * L_moe.

    A lambda of 0 skips the computation; the part and its buffers exist all the same, so that every stage has the same
    state dict. The arguments are the keys of `loss.*`, and `repr_dim`, the width D of the user and item vectors.
    """

    def __init__(
        self,
        *,
        l1_weight: float = 0.5,
        l2_weight: float = 0.3,
        l3_weight: float = 0.2,
        label_smoothing: float = 0.0,
        lambda_contrastive: float = 0.0,
        contrastive_temperature: float = 0.07,
        contrastive_similarity: Similarity = "cosine",
        contrastive_negatives: str = "in_batch",
        num_negatives: int = 127,
        lambda_preference: float = 0.0,
        dpo_beta: float = 0.1,
        dpo_label_smoothing: float = 0.0,
        dpo_reference_free: bool = False,
        dpo_loss_type: str = "sigmoid",
        lambda_moe_balance: float = 0.01,
        repr_dim: int = 512,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.lambda_contrastive = _checked("lambda_contrastive", lambda_contrastive)
        self.lambda_preference = _checked("lambda_preference", lambda_preference)
        self.lambda_moe_balance = _checked("lambda_moe_balance", lambda_moe_balance)
        self.ntp = NextTokenPredictionLoss(l1_weight, l2_weight, l3_weight, label_smoothing)
        self.has_catalogue_negatives = lambda_contrastive > 0 and contrastive_negatives == "catalogue"
        self.catalogue_contrastive = CatalogueContrastiveLoss(contrastive_temperature, contrastive_similarity)
        self.contrastive = ContrastiveLoss(
            contrastive_temperature, num_negatives, repr_dim, seed, contrastive_similarity
        )
        self.dpo = DPOLoss(dpo_beta, dpo_label_smoothing, dpo_reference_free, dpo_loss_type)
        self.moe_balance = MoEBalanceLoss()

    def forward(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Losses:
        """
        outputs: l1_logits, l2_logits, l3_logits (B, T, V_l), or of what the catalogue has below each prefix, and then
            label_slots (B, T, L), the labels' places in them or -1; user_repr, item_repr (B, D) for the contrastive
            part, and where its negatives are the catalogue catalogue_repr (n, D) and item_rows (B,);
            chosen_logps (B,), rejected_logps (B, N) and, unless reference-free, reference_chosen_logps and
            reference_rejected_logps for the preference part, all absent where the batch has no rejected item;
            router_counts, router_prob_sums (Y, E) for the balance
        batch: labels (B, T, L), row_mask (B,); row_ids (B,) for the contrastive part; rejected_mask (B, N),
            preference_score (B,) for the preference part; batch_totals (6,), optional, see `normalization`
        returns: total_loss, ntp_loss, ntp_l1_loss, ntp_l2_loss, ntp_l3_loss, contrastive_loss, dpo_loss and
            moe_balance_loss, each () float32 and without its lambda (0 where that is 0); `metrics`, a dict of ()
        """
        labels = counted_labels(batch["labels"], batch["row_mask"])
        logits = (outputs["l1_logits"], outputs["l2_logits"], outputs["l3_logits"])
        classes = labels
        if "label_slots" in outputs:
            slots = outputs["label_slots"]
            classes = torch.where((labels != IGNORE_INDEX) & (slots >= 0), slots, IGNORE_INDEX)
        ntp_loss, metrics = self.ntp(*logits, classes, batch.get("batch_totals"))
        contrastive_loss, dpo_loss, moe_balance_loss = ntp_loss.new_zeros(3).unbind()
        if self.lambda_contrastive > 0:
            contrastive_loss, new = self._contrastive(outputs, batch, labels)
            metrics |= new
        if self.lambda_preference > 0:
            dpo_loss, new = self._preference(outputs, batch)
            metrics |= new
        if self.lambda_moe_balance > 0:
            moe_balance_loss, new = self.moe_balance(outputs["router_counts"], outputs["router_prob_sums"])
            metrics |= new
        return {
            "total_loss": ntp_loss
            + self.lambda_contrastive * contrastive_loss
            + self.lambda_preference * dpo_loss
            + self.lambda_moe_balance * moe_balance_loss,
            "ntp_loss": ntp_loss,
            **{f"ntp_{level}_loss": metrics.pop(f"ntp_{level}_loss") for level in ("l1", "l2", "l3")},
            "contrastive_loss": contrastive_loss,
            "dpo_loss": dpo_loss,
            "moe_balance_loss": moe_balance_loss,
            "metrics": metrics,
        }

    def _contrastive(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        users, items, valid = outputs["user_repr"], outputs["item_repr"], has_target(labels)
        if self.has_catalogue_negatives:
            catalogue, rows = outputs["catalogue_repr"], outputs["item_rows"]
            return self.catalogue_contrastive(users, items, catalogue, rows, valid, batch.get("batch_totals"))
        return self.contrastive(users, items, labels[:, 0, :], batch["row_ids"], valid)

    def _preference(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rejected_mask = batch["rejected_mask"] & batch["row_mask"][:, None]
        if rejected_mask.shape[1] == 0:
            # The metrics are there all the same: their averages run over microbatches and ranks that have preferences.
            loss, accuracy, margin = batch["preference_score"].new_zeros(3, dtype=torch.float32).unbind()
            return loss, {"dpo_accuracy": accuracy, "dpo_reward_margin": margin}
        return self.dpo(
            outputs["chosen_logps"],
            outputs["rejected_logps"],
            outputs.get("reference_chosen_logps"),
            outputs.get("reference_rejected_logps"),
            rejected_mask,
            batch["preference_score"],
            batch.get("batch_totals"),
        )


def _checked(key: str, value: float) -> float:
    if value < 0:
        raise UserError(f"loss.{key} must be at least 0, found {value}")
    return value
