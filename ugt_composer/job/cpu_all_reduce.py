"""Numbers that all ranks agree on, over the hosts: no GPU has to finish its work for it."""

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist


class HostAgreement:
    """The largest of each rank's numbers, or their sums. Begun early and read late, it costs no waiting.

    Has a process group of its own: collectives of one group must come in the same order on all ranks, and these run
    beside the training's. To be made on all ranks together.

    Args:
        timeout: gives the seconds that `agreed` waits for the other ranks; they may change from call to call, which
            the timeout of a gloo group does not in PyTorch 2.7.
        operation: of the ranks' numbers.
    """

    def __init__(self, timeout: Callable[[], float], operation: dist.ReduceOp.RedOpType = dist.ReduceOp.MAX):
        self._timeout = timeout
        self._operation = operation
        self._group = None
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout()))
        self._values = torch.zeros(0)
        self._work: dist.Work | None = None

    def begin(self, *values: float) -> None:
        self._values = torch.tensor(values, dtype=torch.float64)
        if self._group is not None:
            self._work = dist.all_reduce(self._values, op=self._operation, group=self._group, async_op=True)

    def agreed(self) -> list[float]:
        """The same on every rank, for what was begun last.

        Raises:
            RuntimeError: another rank is gone, or has not begun within the timeout.
        """
        if self._work is not None:
            self._work.wait(timedelta(seconds=self._timeout()))
            self._work = None
        return self._values.tolist()
