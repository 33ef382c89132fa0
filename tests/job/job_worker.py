"""A job that only runs all-reduces, until one rank misbehaves as the argument says. Started by the launcher."""

import ctypes
import datetime
import os
import signal
import sys
import time

from ugt_composer.errors import UserError
from ugt_composer.job.exit import end_with_launcher, exit_as_rank
from ugt_composer.job.signals import warning

ROUNDS = 400
OF_ALL_RANKS = ("switch", "device")


def misbehave(deed: str, rank: int) -> None:
    import torch.distributed as dist

    from ugt_composer.job.cpu_all_reduce import CpuAllReduce

    if deed == "mistake":
        raise UserError("shard 7 is gone")
    if deed == "raise":
        raise ZeroDivisionError("by rank 1")
    if deed == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "sleep":
        time.sleep(100)
    if deed == "switch":  # from the start timeout to that of training
        limits = [60.0]
        agreement = CpuAllReduce(lambda: limits[-1])
        limits.append(4.0)
        time.sleep(100 if dist.get_rank() == rank else 0)
        agreement.begin(1.0)
        agreement.result()
    if deed == "device":  # like a wait for the GPU: blocked in C, without the GIL
        ctypes.CDLL(None).pause()
    if deed == "warn":
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(100)


def watch_closely() -> None:
    """Starts a watchdog as in training, with a timeout of three seconds."""
    from ugt_composer.job import watchdog

    watchdog.BEHIND = 0.0
    watchdog.Watchdog(start_timeout=3.0, timeout=3.0).watch()


def train_with_a_wrong_key() -> int:
    """Runs the training program with a wrong key, with a rank 0 that reads the config later than rank 1."""
    from ugt_composer import train
    from ugt_composer.command import parse
    from ugt_composer.config import load as loading

    load = loading.load_config

    def load_later(*arguments, **options):
        time.sleep(3 if os.environ["RANK"] == "0" else 0)
        return load(*arguments, **options)

    loading.load_config = load_later
    sys.argv = ["train.py", "yamls/stage1.yaml", "optimizer.lrr=1"]
    return train.main(parse(train, "train.py"))


def main() -> int:
    if sys.argv[1] == "wrong key":
        return train_with_a_wrong_key()
    import torch
    import torch.distributed as dist

    warning.listen()
    end_with_launcher()
    deed, rank = sys.argv[1], int(sys.argv[2])
    timeout = datetime.timedelta(seconds=4 if deed in ("stop", "sleep") else 60)
    dist.init_process_group("gloo", timeout=timeout)
    warning.training = deed != "warn"
    if deed == "device":
        watch_closely()
    for step in range(ROUNDS):
        if step == 5 and (dist.get_rank() == rank or deed in OF_ALL_RANKS):
            print("starts", deed, flush=True)
            misbehave(deed, rank)
        dist.all_reduce(torch.ones(()))
        time.sleep(0.05)
    return 0


if __name__ == "__main__":
    exit_as_rank(main)
