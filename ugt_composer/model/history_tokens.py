"""The tokens of a batch's histories that the encoder computes: the valid ones only, or padding too.

B rows, S tokens of the longest history, N valid tokens of all rows together, D width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ugt_composer.data.batch import Batch
from ugt_composer.model.row_moves import take_rows


class HistoryTokens(NamedTuple):
    """Where the tokens of the encoder's tensors belong. These are packed, (N, …), row after row without padding, or
    padded, (B, S, …).

    Attributes:
        mask: (B, S) bool, True on valid tokens, at least one in every row.
        places: (N,) int64, the place b·S + s of each packed token, ascending; None: tensors are padded.
        numbers: (B·S,) int64, the number of the packed token at each place, and of any other where there is none; None
            as `places`.
        starts: (B + 1,) int64, the first packed token of each row, and N; None as `places`.
    """

    mask: Tensor
    places: Tensor | None = None
    numbers: Tensor | None = None
    starts: Tensor | None = None

    @classmethod
    def of(cls, batch: Batch) -> "HistoryTokens":
        """Packed if the batch says which tokens are valid, by `encoder_tokens`; nothing waits for the device."""
        mask, places = batch["encoder_mask"], batch.get("encoder_tokens")
        if places is None:
            return cls(mask)
        return cls(mask, places, (mask.flatten().cumsum(0) - 1).clamp(min=0), F.pad(mask.sum(1).cumsum(0), (1, 0)))

    def offsets(self) -> Tensor:
        """(B + 1,) int64, the first token of each row if the encoder's tensor is one sequence, and its end."""
        if self.starts is not None:
            return self.starts
        rows, length = self.mask.shape
        return torch.arange(0, (rows + 1) * length, max(length, 1), device=self.mask.device)

    def select(self, values: Tensor) -> Tensor:
        """The values of the tokens that are computed: (B, S, …), without gradient → as the encoder's tensors."""
        return values if self.places is None else values.flatten(0, 1).index_select(0, self.places)

    def pad(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The encoder's tensor as (B, S, D); what is on padding is undefined, and its gradient is not read.

        Args:
            dtype: of the result if it was packed; None: that of matrix products.
        """
        if self.places is None or self.numbers is None:
            return x
        padded = take_rows(x, (self.numbers, None), (self.places, None), dtype=dtype)
        return padded.unflatten(0, self.mask.shape)

    def pack(self, x: Tensor) -> Tensor:
        """(B, S, D), in the dtype of matrix products → as the encoder's tensors."""
        if self.places is None or self.numbers is None:
            return x
        return take_rows(x.flatten(0, 1), (self.places, None), (self.numbers, self.mask.flatten()))

    def first(self, x: Tensor) -> Tensor:
        """The encoder's tensor at the first token of each row, (B, D)."""
        return x[:, 0] if self.starts is None else self._at(x, self.starts[:-1])

    def last(self, x: Tensor) -> Tensor:
        """The encoder's tensor at the last valid token of each row, (B, D)."""
        if self.starts is not None:
            return self._at(x, self.starts[1:] - 1)
        place = (self.mask.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[-1])
        return x.gather(1, place).squeeze(1)

    def _at(self, x: Tensor, numbers: Tensor) -> Tensor:
        """One packed token of each row, by its number: (B,) → (B, D)."""
        assert self.places is not None
        row = self.places // self.mask.shape[1]
        is_one = numbers[row] == torch.arange(len(row), device=row.device)
        return take_rows(x, (numbers, None), (row, is_one), dtype=x.dtype)

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the valid tokens of each row, (B, D) float32."""
        padded = self.pad(x, x.dtype)
        total = (padded * self.mask.unsqueeze(-1)).sum(1, dtype=torch.float32)
        return total / self.mask.sum(1, keepdim=True).clamp(min=1)


class EncodedHistory(NamedTuple):
    """The encoder's output, (N, D) or (B, S, D), and where its tokens belong."""

    vectors: Tensor
    tokens: HistoryTokens

    def padded(self) -> Tensor:
        """(B, S, D); what is on padding is undefined."""
        return self.tokens.pad(self.vectors, self.vectors.dtype)
