"""Ranking metrics by the length of the history. Shapes: B rows."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ugt_composer.metrics.batch import RankedBatch
from ugt_composer.metrics.torch_metrics import Tally

LONGEST = (0, 5, 10, 20, 50)  # items of the longest history of each bucket; the last bucket has none
NAMES = ("recall", "ndcg", "hit_rate_l1")


class ByLength(Tally):
    """Means over the rows of each bucket of lengths.

    Args:
        k: cut-off.
    """

    sums: Tensor
    users: Tensor

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        buckets = len(LONGEST) + 1
        self.add_state("sums", torch.zeros(buckets, len(NAMES), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("users", torch.zeros(buckets, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ranked: RankedBatch, lengths: Tensor) -> None:
        """lengths int64 (B,): items in the history of each row."""
        bucket = torch.bucketize(lengths, torch.tensor(LONGEST, device=lengths.device))
        values = torch.stack([ranked.row_values[name][:, self.k - 1] for name in NAMES], dim=1).double()
        self.sums.index_add_(0, bucket, values.masked_fill(~ranked.counted.unsqueeze(1), 0))
        self.users.index_add_(0, bucket, ranked.counted.long())

    def compute(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """A bucket that has users a row: `length` such as "6-10", `users`, and the means by name."""
        names = [f"{name}@{self.k}" for name in NAMES]
        rows = zip(_ranges(), self.users.tolist(), self.sums.tolist(), strict=True)
        return [
            {"length": length, "users": users, **{n: s / users for n, s in zip(names, sums, strict=True)}}
            for length, users, sums in rows
            if users
        ]


def _ranges() -> list[str]:
    """ "0", "1-5", …, "51+"."""
    bounded = [f"{low + 1}-{high}" for low, high in pairwise(LONGEST)]
    return [str(LONGEST[0]), *bounded, f"{LONGEST[-1] + 1}+"]
