"""Numbers that all ranks agree on, over the hosts: no GPU has to finish its work for it."""

import datetime

import torch
import torch.distributed as dist


class HostAgreement:
    """The largest of each rank's numbers, or their sums. Begun early and read late, it costs no waiting.

    Has a process group of its own: collectives of one group must come in the same order on all ranks, and these run
    beside the training's. To be made on all ranks together.
    """

    def __init__(self, timeout: float, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.MAX):
        self._operation = operation
        self._group = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(seconds=timeout))
        self._values = torch.zeros(0)
        self._work: dist.Work | None = None

    def begin(self, *values: float) -> None:
        self._values = torch.tensor(values, dtype=torch.float64)
        if self._group is not None:
            self._work = dist.all_reduce(self._values, op=self._operation, group=self._group, async_op=True)

    def agreed(self) -> list[float]:
        """The same on every rank, for what was begun last."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._values.tolist()
