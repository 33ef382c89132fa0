"""The CPUs that this process may use, and threads that share them with other processes.

Between parallel operations OpenMP's threads wait in a loop, by default for milliseconds. On a core that another process
uses too, a thread spends its part of the core's time in that loop, and when there is work to do the other process is
running: with one of two cores busy, a step takes many times as long. A thread that sleeps instead is run at once when
it is woken. Waking takes time, so threads loop for about as long as most pauses of a step last, and then sleep.
"""

import math
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path

# Turns of the waiting loop of GNU's OpenMP, which PyTorch's wheels contain, before a thread sleeps; its default is
# 300,000. With fewer than 20,000 an idle machine is slower (2,000: by 14 to 20%), with more a busy one is. See
# benchmarks/busy_machine.py.
SPIN_TURNS = 24_000
BLOCK_TIME = 0  # milliseconds; the same for LLVM's and Intel's OpenMP, whose default is 200
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def share_cpus(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets the number of threads and how they wait, unless the user's environment does.

    OpenMP reads the environment when it is loaded, so this has to be called before PyTorch, or NumPy with OpenMP, is
    imported. Processes started later inherit the settings.
    """
    ranks = max(1, int(environment.get("LOCAL_WORLD_SIZE", "1")))
    environment.setdefault("OMP_NUM_THREADS", str(threads_per_rank(ranks)))
    if not any(name in environment for name in WAIT_VARIABLES):
        environment["GOMP_SPINCOUNT"] = str(SPIN_TURNS)
        environment["KMP_BLOCKTIME"] = str(BLOCK_TIME)


def threads_per_rank(ranks: int) -> int:
    """Threads of each of the `ranks` processes of this machine, so that together they do not exceed its CPUs."""
    return max(1, available_cpus() // ranks)


def available_cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """The number of CPUs that this process may use: by its affinity (taskset, cpusets) and by the CPU quotas of its
    control groups, such as those of a container. At least 1; a fraction of a CPU counts as one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cpus, *(math.ceil(quota) for quota in _quotas(cgroups, membership))]))


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """The CPUs that the quotas allow: of the process's group and of all groups above it."""
    for folder in _folders(cgroups, membership):
        if (limit := _read(folder / "cpu.max")) is not None:  # version 2: "max 100000" or "150000 100000"
            quota, _, period = limit.partition(" ")
        else:  # version 1: -1 means none
            quota, period = _read(folder / "cpu.cfs_quota_us") or "-1", _read(folder / "cpu.cfs_period_us") or "0"
        if quota.isdecimal() and period.isdecimal() and int(quota) > 0 and int(period) > 0:
            yield int(quota) / int(period)


def _folders(cgroups: Path, membership: Path) -> Iterator[Path]:
    """The folders of the process's groups that may have a CPU quota, from /proc/self/cgroup: lines such as
    "0::/user.slice/job" (version 2) and "4:cpu,cpuacct:/docker/1f2e" (version 1)."""
    for line in (_read(membership) or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            roots = [cgroups, cgroups / "unified"]
        elif "cpu" in controllers.split(","):
            roots = [cgroups / controllers, cgroups / "cpu"]
        else:
            continue
        # In a container, the path may be the host's, whose folders do not exist here; then the root is the container's.
        for root in roots:
            folder = root / group.strip("/")
            yield from (place for place in (folder, *folder.parents) if place.is_relative_to(root) and place.is_dir())


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return None
