"""The frozen reference model of a preference loss, one class for each of the two that there are."""

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

    def forward(self, batch: Batch, trie: ItemTrie | None = None, with_logits: bool = False) -> dict[str, Tensor]:
        """
        logps: log p(item), (B, 1 + N) float32, of each row's chosen item and its N rejected ones
        l1_logits, l2_logits, l3_logits: only `with_logits`; see `UGT.target_outputs`
        """
        ids = torch.cat((batch["labels"][:, :1].clamp(min=0), batch["rejected_ids"]), dim=1)
        hidden, _ = self.model.decode(batch, self.model.encode(batch))
        seen = self.model.seen_nodes(batch, trie)
        biases = self.model.repeat_biases(hidden[:, :1], seen)
        scores = {"logps": self.model.item_logps(hidden[:, 0], ids, trie, biases)}
        return scores | (self.model.target_outputs(hidden, batch, trie, seen, True) if with_logits else {})


class GroupReference(nn.Module):
    """Gives the distributions that a group's items would be drawn from in the reference; otherwise like `Reference`."""

    def __init__(self, model: UGT):
        super().__init__()
        self.model = model.requires_grad_(False)
        self.eval()

    def forward(self, batch: Batch, trie: ItemTrie, ids: Tensor, with_logits: bool = False) -> dict[str, Tensor]:
        """
        ids: (B, G, 3), the items that the policy drew
        group_l1_log_probs, group_l2_log_probs, group_l3_log_probs: see `distributions_at`
        l1_logits, l2_logits, l3_logits: only `with_logits`; see `UGT.target_outputs`
        """
        hidden, _ = self.model.decode(batch, self.model.encode(batch), scores_items=True)
        seen = self.model.seen_nodes(batch, trie)
        biases = self.model.repeat_biases(hidden[:, :1], seen)
        levels = distributions_at(self.model.level_logits, hidden[:, 0], trie, ids, biases)
        scores = {f"group_l{level}_log_probs": values for level, values in enumerate(levels, start=1)}
        return scores | (self.model.target_outputs(hidden, batch, trie, seen, True) if with_logits else {})
