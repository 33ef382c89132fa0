"""Batches that know what all ranks hold, and microbatches of them, as narrow as their rows allow."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from composer.devices import Device
from composer.utils import dist

from ugt_composer.data.batch import Batch
from ugt_composer.job.cpu_all_reduce import CpuAllReduce
from ugt_composer.losses.normalization import ROWS, batch_counts

INPUTS = ("ids", "positions", "token_types", "mask")
WIDE_AS = {  # the tensors that are padded to the longest row of a side
    "encoder": [f"encoder_{name}" for name in INPUTS],
    "decoder": [*(f"decoder_{name}" for name in INPUTS), "labels"],
}


class Uncopied(dict):
    """A microbatch that Composer, which copies each one whole before it is used, gets for a copy of itself: nothing
    writes into its tensors."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopied":
        return self


class GlobalCounts:
    """What a batch holds over all ranks: the counts that losses divide by, and the number of rows.

    Counted and summed on the host, one all-reduce a batch: the device has nothing to wait for, and NCCL, which refuses
    host tensors, is not asked. To be made on all ranks together.

    Attributes:
        rows: of the batch over all ranks, from when it was summed.
    """

    def __init__(self, timeout: Callable[[], float]):
        self._all_reduce = CpuAllReduce(timeout, torch.distributed.ReduceOp.SUM)
        self.rows = 0

    def add(self, batch: Batch, device: Device) -> Batch:
        """The batch on the device, in one copy, with `batch_totals`.

        A loss that divides by its own microbatch's count would weight a label by its neighbours; divided by the count
        of the whole batch, over all ranks, the sum of the microbatches' gradients is the batch's own.

        Raises:
            RuntimeError: the ranks hold different numbers of rows: collectives over rows would mix them up.
        """
        own = rows_in_batch(batch)
        self._all_reduce.begin(*batch_counts(batch).tolist(), own * own)
        on_device = device.batch_to_device(batch)  # meanwhile
        *totals, squares = self._all_reduce.result()
        self.rows, ranks = int(totals[ROWS]), dist.get_world_size()
        if squares * ranks != self.rows * self.rows:  # equal numbers, and only they, reach Cauchy and Schwarz' bound
            raise RuntimeError(
                f"rank {dist.get_global_rank()} holds {own} rows of a batch, the {ranks} ranks together {self.rows}; "
                "expected equally many on each"
            )
        return {**on_device, "batch_totals": device.tensor_to_device(torch.tensor(totals, dtype=torch.float32))}


def rows_in_batch(batch: Batch) -> int:
    return len(batch["row_ids"])


def split_batch(batch: Batch, microbatch_size: int | float) -> list[Batch]:
    """Cuts a device's batch into microbatches: views of it, each with the counts of the global batch.

    Where the host knows the rows' lengths, padding that none of a microbatch's rows needs is cut.
    """
    rows, size = rows_in_batch(batch), max(1, int(microbatch_size))
    starts = range(0, math.ceil(rows / size) * size, size)
    return [_piece(batch, slice(start, start + size)) for start in starts]


def _piece(batch: Batch, rows: slice) -> Batch:
    piece = {key: value if key == "batch_totals" else value[rows] for key, value in cast(dict[str, Any], batch).items()}
    for side, keys in WIDE_AS.items():
        if lengths := piece.pop(f"{side}_lengths", None):
            piece |= {key: piece[key][:, : max(lengths)] for key in keys}
    return cast(Batch, piece)
