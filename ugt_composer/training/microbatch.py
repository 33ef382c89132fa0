"""Batches with their counts over all ranks, and microbatches without unnecessary padding."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from composer.devices import Device
from composer.utils import dist
from torch import Tensor

from ugt_composer.data.batch import Batch
from ugt_composer.job.cpu_all_reduce import CpuAllReduce
from ugt_composer.losses.normalization import ROWS, batch_counts

INPUTS = ("ids", "positions", "token_types", "mask", "times")
TOKENS = {  # places of tokens of all rows: the side that they are on, and the numbers of them in each row
    "encoder_tokens": ("encoder", "encoder_lengths"),
    "label_tokens": ("decoder", "label_counts"),
}
WIDE_AS = {  # the tensors that are padded to the longest row of a side
    "encoder": [*(f"encoder_{name}" for name in INPUTS), "encoder_actions"],
    "decoder": [*(f"decoder_{name}" for name in INPUTS), "labels"],
}
OF_THE_BATCH = ("batch_totals", "step")  # the same for all microbatches of a batch


class Uncopied(dict):
    """A batch that is its own deep copy. Composer deep-copies every microbatch; ours are never modified, so the copy is
    skipped."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Uncopied":
        return self


class GlobalCounts:
    """Counts of a batch over all ranks: those that losses divide by, and the number of rows.

    They are counted and summed on the CPU, in one all-reduce per batch without NCCL, so that nothing waits for the
    device. All ranks have to create it together.

    Attributes:
        rows: rows over all ranks of the batch last passed to `add`.
    """

    def __init__(self, timeout: Callable[[], float]):
        self._all_reduce = CpuAllReduce(timeout, torch.distributed.ReduceOp.SUM)
        self.rows = 0

    def add(self, batch: Batch, device: Device) -> Batch:
        """Returns the batch, moved to the device as a whole, with `batch_totals`.

        A loss that divided by the count of its own microbatch would weight each label by how many others are in it.
        Divided by the count of the whole batch over all ranks, the microbatches' gradients add up to the batch's.

        Raises:
            RuntimeError: the ranks have different numbers of rows: collectives over rows would mix them up.
        """
        rows = rows_in_batch(batch)
        self._all_reduce.begin(*batch_counts(batch).tolist(), rows * rows)
        on_device = device.batch_to_device(batch)  # while the counts are summed
        *totals, squares = self._all_reduce.result()
        self.rows, ranks = int(totals[ROWS]), dist.get_world_size()
        if squares * ranks != self.rows * self.rows:  # Cauchy-Schwarz: equal only if all numbers are
            raise RuntimeError(
                f"rank {dist.get_global_rank()} holds {rows} rows of a batch, the {ranks} ranks together {self.rows}; "
                "expected equally many on each"
            )
        return {**on_device, "batch_totals": device.tensor_to_device(torch.tensor(totals, dtype=torch.float32))}


def rows_in_batch(batch: Batch) -> int:
    return len(batch["row_ids"])


def split_batch(batch: Batch, microbatch_size: int | float) -> list[Batch]:
    """Cuts a device's batch into microbatches: views of it, each with the counts of the global batch.

    The batch is one with lengths (`collate`); padding that no row of a microbatch needs is cut off.
    """
    rows, size = rows_in_batch(batch), max(1, int(microbatch_size))
    starts = range(0, math.ceil(rows / size) * size, size)
    return [_piece(batch, slice(start, start + size)) for start in starts]


def _piece(batch: Batch, rows: slice) -> Batch:
    whole = cast(dict[str, Any], batch)
    apart = (*OF_THE_BATCH, *TOKENS)
    piece = {key: value if key in apart else value[rows] for key, value in whole.items()}
    widths = {side: max(piece.pop(f"{side}_lengths")) for side in WIDE_AS}
    for side, keys in WIDE_AS.items():
        piece |= {key: piece[key][:, : widths[side]] for key in keys}
    for key, (side, numbers) in TOKENS.items():
        first, after = sum(whole[numbers][: rows.start]), sum(whole[numbers][: rows.stop])
        piece[key] = _moved(whole[key][first:after], rows.start, whole[f"{side}_mask"].shape[1], widths[side])
    del piece["label_counts"]
    return cast(Batch, piece)


def _moved(places: Tensor, first_row: int, width: int, new_width: int) -> Tensor:
    """The places of tokens in rows of another width, counted from another first row."""
    places = places - first_row * width
    return places if new_width == width else places // width * new_width + places % width
