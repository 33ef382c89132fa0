"""One timeout for all process groups, those that libraries make for themselves too."""

import datetime

import torch.distributed as dist
from torch.distributed import distributed_c10d


def limit_groups(seconds: float) -> None:
    """Gives every process group that this rank is in the timeout; a new one has PyTorch's, half an hour with gloo."""
    if dist.is_initialized():
        for group in list(distributed_c10d._world.pg_map):
            if distributed_c10d._rank_not_in_group(group) is False:
                distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), group)
