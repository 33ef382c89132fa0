"""A toy model of a few linear maps with the outputs that the losses read, and batches for it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ugt_composer.losses.unified import UnifiedLoss

SIZES = (9, 9, 9)  # codebooks: few, so that rows often have the same item
LENGTH, REJECTED, FEATURES, WIDTH, EXPERTS, LAYERS = 4, 3, 6, 8, 4, 2


class ToyModel(nn.Module):
    """Computes each row and position independently, so that only the losses can depend on how a batch is split."""

    def __init__(self, **loss_arguments):
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleList(nn.Linear(FEATURES, size) for size in SIZES)
        self.user, self.router = nn.Linear(FEATURES, WIDTH), nn.Linear(FEATURES, LAYERS * EXPERTS)
        self.item_embedding, self.item = nn.Embedding(sum(SIZES), WIDTH), nn.Linear(WIDTH, WIDTH)
        self.loss = UnifiedLoss(repr_dim=WIDTH, seed=1, **loss_arguments)

    def forward(self, batch: dict[str, Tensor]) -> dict:
        return self.loss(self.outputs(batch), batch)

    def outputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = batch["features"]
        levels = [head(features) for head in self.heads]
        logps = features[:, 0] @ self.item_vectors(batch["rejected_ids"]).flatten(0, 1).T[:FEATURES]
        rejected_logps = logps.view(len(features), len(features), REJECTED).diagonal().T
        chosen_logps = (features[:, 0] * self.item_vectors(batch["labels"][:, 0])[:, :FEATURES]).sum(-1)
        probabilities = self.router(features).unflatten(-1, (LAYERS, EXPERTS)).softmax(dim=-1)
        counts = F.one_hot(probabilities.argmax(dim=-1), EXPERTS).sum(dim=(0, 1))
        return {
            "l1_logits": levels[0],
            "l2_logits": levels[1],
            "l3_logits": levels[2],
            **{f"reference_l{level + 1}_logits": 0.5 * logits.detach() for level, logits in enumerate(levels)},
            "user_repr": self.user(features[:, 0]),
            "item_repr": self.item(self.item_vectors(batch["labels"][:, 0])),
            "router_counts": counts,
            "router_prob_sums": probabilities.sum(dim=(0, 1)),
            "chosen_logps": chosen_logps,
            "rejected_logps": rejected_logps,
            "reference_chosen_logps": 0.5 * chosen_logps.detach() - 0.1,
            "reference_rejected_logps": 0.7 * rejected_logps.detach(),
        }

    def item_vectors(self, ids: Tensor) -> Tensor:
        offsets = torch.tensor([0, SIZES[0], SIZES[0] + SIZES[1]], device=ids.device)
        return self.item_embedding(ids.clamp(min=0) + offsets).sum(dim=-2)


def make_batch(rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Rows with few and many labels, duplicate items, rows without an item or a preference, and two filler rows."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, 9, (rows, LENGTH, 3), generator=generator)
    lengths = torch.randint(0, LENGTH + 1, (rows,), generator=generator)
    lengths[: rows // 2] = lengths[: rows // 2].clamp(max=1)  # a half with far fewer labels
    labels[torch.arange(LENGTH) >= lengths[:, None]] = -100
    labels[rows // 3, :, 1] = -100
    rejected_mask = torch.rand(rows, REJECTED, generator=generator) < 0.4
    rejected_mask[rows // 2 :: 2] = False
    row_mask = torch.ones(rows, dtype=torch.bool)
    row_mask[-2:] = False
    return {
        "features": torch.randn(rows, LENGTH, FEATURES, generator=generator),
        "labels": labels,
        "rejected_ids": torch.randint(5, 9, (rows, REJECTED, 3), generator=generator),
        "rejected_mask": rejected_mask & (lengths > 0)[:, None],
        "preference_score": torch.rand(rows, generator=generator) * 0.9 + 0.1,
        "row_ids": torch.randperm(10_000, generator=generator)[:rows],
        "row_mask": row_mask,
    }


def take(batch: dict[str, Tensor], rows: Tensor | slice) -> dict[str, Tensor]:
    return {key: value[rows] for key, value in batch.items()}
