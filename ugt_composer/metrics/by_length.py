"""Ranking metrics by the length of the history. Shapes: B rows."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from ugt_composer.metrics.batch import RankedBatch

LONGEST = (0, 5, 10, 20, 50)  # longest history of each bucket, in items; the last bucket has no bound
NAMES = ("recall", "ndcg", "hit_rate_l1")


class ByLength(Metric):
    """Means over the rows of each bucket of history lengths.

    Args:
        k: cut-off.
    """

    full_state_update = False
    sums: Tensor

    def __init__(self, k: int):
        super().__init__()
        self.k = k
        zeros = torch.zeros(len(LONGEST) + 1, 1 + len(NAMES), dtype=torch.float64)
        # The number of rows that count, and the sums of NAMES over them.
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        return True  # keeps torchmetrics from warning if there were no rows: the result then has no buckets

    def update(self, ranked: RankedBatch, lengths: Tensor) -> None:
        """lengths int64 (B,): items in the history of each row."""
        bucket = sum((lengths > longest for longest in LONGEST), torch.zeros_like(lengths))
        values = [torch.ones_like(lengths), *(ranked.row_values[name][:, self.k - 1] for name in NAMES)]
        counted = torch.stack(values, dim=1).double().masked_fill(~ranked.counted.unsqueeze(1), 0)
        self.sums.index_add_(0, bucket, counted)

    def compute(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """One row per bucket that has users: `length` such as "6-10", `users`, and the means by name."""
        names = [f"{name}@{self.k}" for name in NAMES]
        return [
            {"length": length, "users": int(users), **{n: s / users for n, s in zip(names, sums, strict=True)}}
            for length, (users, *sums) in zip(_ranges(), self.sums.tolist(), strict=True)
            if users
        ]


def _ranges() -> list[str]:
    """ "0", "1-5", …, "51+"."""
    bounded = [f"{low + 1}-{high}" for low, high in pairwise(LONGEST)]
    return [str(LONGEST[0]), *bounded, f"{LONGEST[-1] + 1}+"]
