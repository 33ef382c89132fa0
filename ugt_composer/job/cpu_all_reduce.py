"""All-reduce of a few numbers on the CPU (gloo): it does not wait for work that is queued on the GPU."""

from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist


class CpuAllReduce:
    """Asynchronous CPU-side all-reduce of numbers: their maximum or sum over all ranks. Started early and read late, it
    costs no waiting.

    It has its own process group: collectives of one group must run in the same order on all ranks, and these run beside
    those of the training. Must be created on all ranks together.

    Args:
        timeout: returns the seconds that `result` waits for the other ranks. A function, because they change during
            a run, and PyTorch 2.7 cannot change the timeout of a gloo group.
        operation: of the all-reduce.
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
        """Starts the all-reduce of this rank's values. A collective."""
        self._values = torch.tensor(values, dtype=torch.float64)
        if self._group is not None:
            self._work = dist.all_reduce(self._values, op=self._operation, group=self._group, async_op=True)

    def result(self) -> list[float]:
        """The results of the last `begin`, the same on every rank.

        Raises:
            RuntimeError: another rank is gone, or did not call `begin` within the timeout.
        """
        if self._work is not None:
            self._work.wait(timedelta(seconds=self._timeout()))
            self._work = None
        return self._values.tolist()
