"""Random numbers of rows that depend on seed, step and row id only: the same for every batch, rank and resumed run.

Computed on the device by integer hashing, so that nothing waits for it and no generator's state has to be saved.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_LOW_32_BITS = 0xFFFFFFFF
_LARGEST_BELOW_1 = 1 - 2**-24  # in float32


def row_keys(row_ids: Tensor, step: Tensor, seed: int) -> Tensor:
    """Numbers int64 below 2^32, one per row id, drawn anew in each step: row_ids (R,), step () int64."""
    salt = mix((step + seed * 0x9E3779B9) & _LOW_32_BITS)
    return mix(((row_ids ^ (row_ids >> 32)) & _LOW_32_BITS) ^ salt)


def mix(x: Tensor) -> Tensor:
    """A bijection of 32-bit numbers held in int64 whose output bits all depend on all input bits.

    The factor has 27 bits, so that no product overflows.
    """
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & _LOW_32_BITS
    return x ^ (x >> 16)


class RowNoise(NamedTuple):
    """Independent noise for the rows of a batch.

    Attributes:
        row_ids: (B,) int64.
        step: () int64, the number of the training step.
        seed: of the run.
    """

    row_ids: Tensor
    step: Tensor
    seed: int

    def gumbel(self, stream: int, draws: int, size: int) -> Tensor:
        """Standard Gumbel noise, float32 (B, draws, size): the argmax of log p + noise is a sample of p.

        Args:
            stream: tells apart what is drawn for the same rows in the same step, such as a level.
        """
        device = self.row_ids.device
        keys = mix(row_keys(self.row_ids, self.step, self.seed) ^ (stream + 1))
        keys = mix(keys[:, None] ^ torch.arange(draws, device=device))
        bits = mix(keys[:, :, None] ^ torch.arange(size, device=device))
        uniform = ((bits.float() + 0.5) * 2**-32).clamp(max=_LARGEST_BELOW_1)
        # -log1p(-u), exponentially distributed, is precise where it is small, which is where samples are decided.
        return -(-torch.log1p(-uniform)).log()
