"""The frozen reference model of a preference loss, one class for each of the two that there are."""

from typing import Any

import torch
from torch import Tensor, nn

from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.data.batch import Batch
from ugt_composer.generation.item_samples import distributions_at
from ugt_composer.model.ugt import UGT


class Reference(nn.Module):
    """Scores the chosen and rejected items of a batch. Weights are used only in `forward`, so that it can be sharded
    like any module.

    Scores depend neither on the other rows nor on the expert capacity (`UGT.decode`), except for rounding, so they can
    be stored. Rounding depends on the operations, so these are the policy's too: over the complete target, with the
    policy's expert capacity for the other tokens in training, and in the policy's gradient mode, because some
    operations use another kernel without gradients. So a policy and a reference with equal weights give bitwise equal
    results, and the margins of a preference loss begin at exactly 0.

    Args:
        model: without dropout, and with the policy's expert capacity.
    """

    def __init__(self, model: UGT):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.eval()

    def forward(self, batch: Batch, trie: ItemTrie | None = None, for_anchor: bool = False) -> dict[str, Any]:
        """
        logps: log p(item), (B, 1 + N) float32, of each row's chosen item and its N rejected ones
        softmaxes: only `for_anchor`; see `UGT.label_softmaxes`. If `level_softmax` is catalogue, there are l1_logits,
            l2_logits, l3_logits and label_slots of `UGT.target_outputs` instead
        """
        ids = torch.cat((batch["labels"][:, :1].clamp(min=0), batch["rejected_ids"]), dim=1)
        hidden, _ = self.model.decode(batch, self.model.encode(batch))
        seen = self.model.seen_nodes(batch, trie)
        biases = self.model.repeat_biases(hidden[:, :1], seen)
        scores: dict[str, Any] = {"logps": self.model.item_logps(hidden[:, 0], ids, trie, biases)}
        if not for_anchor:
            return scores
        if self.model.is_over_catalogue:
            return scores | self.model.target_outputs(hidden, batch, trie, seen)
        return scores | {"softmaxes": self.model.label_softmaxes(hidden, batch)}


class GroupReference(nn.Module):
    """Gives the distributions that a group's items would be drawn from in the reference; otherwise like `Reference`."""

    def __init__(self, model: UGT):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.eval()

    def forward(self, batch: Batch, trie: ItemTrie, ids: Tensor, for_anchor: bool = False) -> dict[str, Tensor]:
        """
        ids: (B, G, 3), the items that the policy drew
        group_l1_log_probs, group_l2_log_probs, group_l3_log_probs: see `distributions_at`
        l1_logits, l2_logits, l3_logits: only `for_anchor`; see `UGT.target_outputs`
        """
        hidden, _ = self.model.decode(batch, self.model.encode(batch), scores_items=True)
        seen = self.model.seen_nodes(batch, trie)
        biases = self.model.repeat_biases(hidden[:, :1], seen)
        levels = distributions_at(self.model.level_logits, hidden[:, 0], trie, ids, biases)
        scores = {f"group_l{level}_log_probs": values for level, values in enumerate(levels, start=1)}
        return scores | (self.model.target_outputs(hidden, batch, trie, seen) if for_anchor else {})
