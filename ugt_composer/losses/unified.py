"""The training loss of every stage: next-token prediction plus the terms whose lambda is above 0.

Shapes: B rows, T target length, L = 3 levels, V_l codebook size of level l, D width of the user and item vectors,
n items of the catalogue, N rejected items, Y layers with a router, E experts.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ugt_composer.config.schema import LossConfig
from ugt_composer.losses.anchor import AnchorLoss
from ugt_composer.losses.catalogue_contrastive import CatalogueContrastiveLoss
from ugt_composer.losses.contrastive import ContrastiveLoss
from ugt_composer.losses.dpo import DPOLoss
from ugt_composer.losses.group import GroupLoss
from ugt_composer.losses.level_distillation import LevelDistillationLoss
from ugt_composer.losses.moe_balance import MoEBalanceLoss
from ugt_composer.losses.normalization import counted_labels
from ugt_composer.losses.ntp import NextTokenPredictionLoss
from ugt_composer.losses.term import Mean, WeightedTerm


class UnifiedLoss(nn.Module):
    """L_ntp + lambda_contrastive * L_contrastive + lambda_distillation * L_distillation + lambda_preference *
    L_preference + lambda_anchor * L_anchor + lambda_moe_balance * L_moe.

    L_preference is L_dpo or, with `preference_objective` group, L_group.

    A term whose lambda is 0 is not computed; it and its buffers exist even so, so that every stage has the same state
    dict.

    Args:
        repr_dim: D, width of the user and item vectors.
        seed: for the random order of in-batch negatives.
        settings: keys of `loss.*` except those of the reference, with the defaults of `LossConfig`.

    Raises:
        ValueError: a value is out of bounds; the message names its key.
        TypeError: a key does not exist.
    """

    def __init__(self, *, repr_dim: int = 512, seed: int = 42, **settings: Any) -> None:
        super().__init__()
        config = LossConfig(**settings)
        temperature, similarity = config.contrastive_temperature, config.contrastive_similarity
        self.ntp = NextTokenPredictionLoss(config.l1_weight, config.l2_weight, config.l3_weight, config.label_smoothing)
        self.contrastive = ContrastiveLoss(temperature, config.num_negatives, repr_dim, seed, similarity)
        self.catalogue_contrastive = CatalogueContrastiveLoss(temperature, similarity)
        self.level_distillation = LevelDistillationLoss()
        self.dpo = DPOLoss(config.dpo_beta, config.dpo_label_smoothing, config.dpo_reference_free, config.dpo_loss_type)
        self.group = GroupLoss(config.group_rewards, config.group_kl, config.group_scale_rewards)
        self.group_size = config.group_size if config.uses_group else 0
        self.anchor = AnchorLoss(config.l1_weight, config.l2_weight, config.l3_weight)
        self.has_anchor = config.anchor_weight > 0
        self.moe_balance = MoEBalanceLoss()
        self.has_catalogue_negatives = config.has_catalogue_negatives
        self.has_level_targets = config.lambda_distillation > 0
        self.terms = (
            WeightedTerm(1.0, self.ntp),
            WeightedTerm(
                config.lambda_contrastive,
                self.catalogue_contrastive if self.has_catalogue_negatives else self.contrastive,
                "lambda_contrastive",
            ),
            WeightedTerm(config.lambda_distillation, self.level_distillation, "lambda_distillation"),
            WeightedTerm(
                config.lambda_preference,
                self.group if config.preference_objective == "group" else self.dpo,
                "lambda_preference",
            ),
            WeightedTerm(config.anchor_weight, self.anchor, "lambda_anchor"),
            WeightedTerm(config.lambda_moe_balance, self.moe_balance, "lambda_moe_balance"),
        )

    @property
    def means(self) -> tuple[Mean, ...]:
        """All values that an evaluation averages: those of the terms that are computed."""
        return tuple(mean for weight, term, _ in self.terms if weight for mean in term.means)

    @property
    def not_computed(self) -> dict[str, str]:
        """The key of `loss.*` that is 0, by each value that an evaluation would average if it were not.

        In-batch negatives are no part of an evaluation, so the contrastive values are those of the whole catalogue.
        """
        terms = [(key, term) for weight, term, key in self.terms if not weight and key is not None]
        terms += [(key, self.catalogue_contrastive) for key, term in terms if term is self.contrastive]
        return {mean.name: key for key, term in terms for mean in term.means}

    def evaluation_losses(self) -> dict[str, dict[str, float]]:
        """The losses of an evaluation by name, each as a weighted sum of `means`: {loss: {mean: weight}}.

        `loss` is the sum of the terms that an evaluation can measure. These exclude the contrastive term with in-batch
        negatives, which depends on the rows that are evaluated together, and the balance of the experts.
        """
        return {
            "loss": {m.name: w * m.weight for w, term, _ in self.terms if w for m in term.means if m.weight},
            "ntp_loss": {mean.name: mean.weight for mean in self.ntp.means},
            **({self.anchor.name: {mean.name: mean.weight for mean in self.anchor.means}} if self.has_anchor else {}),
            **{mean.name: {mean.name: 1.0} for mean in self.means},
        }

    def forward(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """
        outputs: label_logps, label_hits, label_mean_logps (B, T, L) and, for the anchor, label_divergences (B, T, L),
            see `UGT.target_outputs`; or l1_logits, l2_logits, l3_logits (B, T, V_l), or logits of only the ids that the
            catalogue has below each prefix, and then label_slots (B, T, L), the labels' indices into them or -1; except
            for the latter, only of the batch's `label_tokens` if it has these, (M, L) and (M, V_l); user_repr and
            item_repr (B, D) for the contrastive term, and catalogue_repr (n items), item_rows (B,) and perhaps
            seen_items (`SeenItems`) if its negatives are the catalogue; l1_targets, l2_targets, l3_targets (B, C_l) for
            the distillation term; chosen_logps (B,), rejected_logps (B, N) and, unless reference-free,
            reference_chosen_logps and reference_rejected_logps for L_dpo, all absent if the batch has no rejected item;
            what `GroupLoss.of_batch` reads for L_group;
            reference_l1_logits, reference_l2_logits, reference_l3_logits (as the logits) for the anchor;
            router_counts, router_prob_sums (Y, E) for the balance of the experts
        batch: labels (B, T, L), row_mask (B,); row_ids (B,) for the contrastive term; rejected_mask (B, N),
            preference_score (B,) for the preference term; batch_totals (6,), optional, see `normalization`;
            label_tokens (M,), optional
        returns: total_loss, ntp_loss, ntp_l1_loss, ntp_l2_loss, ntp_l3_loss, contrastive_loss,
            distillation_loss, dpo_loss (or group_loss), anchor_loss and moe_balance_loss, each () float32 and without
            its lambda (0 where that is 0); `metrics`, a dict of ()
        """
        labels = counted_labels(batch["labels"], batch["row_mask"])
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        total: Any = 0.0
        for weight, term, _ in self.terms:
            if weight == 0:
                losses[term.name] = total.new_zeros(())
                continue
            loss, term_metrics = term.of_batch(outputs, batch, labels)
            losses[term.name] = loss
            losses |= {name: value for name, value in term_metrics.items() if name.endswith("_loss")}
            metrics |= {name: value for name, value in term_metrics.items() if not name.endswith("_loss")}
            total = total + weight * loss
        return {"total_loss": total, **losses, "metrics": metrics}
