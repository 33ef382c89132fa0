"""The frozen model that a preference loss compares with."""

import torch
from torch import Tensor, nn

from ugt_composer.data.batch import Batch
from ugt_composer.generation.trie import ItemTrie
from ugt_composer.model.ugt import UGT


class Reference(nn.Module):
    """Scores the chosen and rejected items of a batch. All that needs weights happens in `forward`, so that it may be
    sharded like any module."""

    def __init__(self, model: UGT):
        super().__init__()
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, batch: Batch, trie: ItemTrie | None = None) -> Tensor:
        """log p(item), (B, 1 + N) float32, of each row's chosen item and its N rejected ones."""
        ids = torch.cat((batch["labels"][:, :1].clamp(min=0), batch["rejected_ids"]), dim=1)
        return self.model.item_logps(self.model.start(batch), ids, trie)
