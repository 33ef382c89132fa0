"""However a rank ends, the whole job ends soon, with that rank's message and exit status."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.shop import ROOT
from ugt_composer.errors import EXIT_BAD_INPUT, EXIT_ERROR, EXIT_PREEMPTED
from ugt_composer.job.exit import device_advice, has_timed_out, lost_contact

slow = pytest.mark.slow
WORKER = Path(__file__).with_name("job_worker.py")
STALLED = "another rank stalled: it did not answer within dist_timeout"


def run_job(deed: str, rank: int) -> tuple[subprocess.CompletedProcess, float]:
    command = [Path(sys.executable).parent / "composer", "-n", "2", WORKER, deed, str(rank)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    return result, time.monotonic() - started


@pytest.mark.parametrize(
    ("deed", "rank", "status", "words"),
    [
        ("mistake", 1, EXIT_BAD_INPUT, "rank 1 ended first: error: shard 7 is gone"),
        pytest.param("wrong key", 1, EXIT_BAD_INPUT, "did you mean optimizer.lr?", marks=slow),
        pytest.param("raise", 1, EXIT_ERROR, "rank 1 ended first: ZeroDivisionError: by rank 1", marks=slow),
        ("die", 1, EXIT_ERROR, "another rank was killed or lost"),
        pytest.param("stop", 1, EXIT_ERROR, STALLED, marks=slow),
        pytest.param("stop", 0, EXIT_ERROR, "rank 1 ended first: error: " + STALLED, marks=slow),
        pytest.param("sleep", 0, EXIT_ERROR, "rank 1 ended first: error: " + STALLED, marks=slow),
        pytest.param("sleep", 0, EXIT_ERROR, "rank 0 is at job/job_worker.py", marks=slow),
        pytest.param("switch", 1, EXIT_ERROR, STALLED, marks=slow),
        ("device", 0, EXIT_ERROR, "no progress within dist_start_timeout (3 s); the main thread is at "),
        pytest.param("warn", 1, EXIT_PREEMPTED, "preempted before the first batch", marks=slow),
    ],
)
def test_the_job_ends_as_its_first_rank_did(deed, rank, status, words):
    result, seconds = run_job(deed, rank)
    assert result.returncode == status, result.stdout + result.stderr
    assert words in result.stderr
    assert "Connection closed by peer" not in result.stderr
    assert seconds < 90


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [
        ("return None", 0, ""),
        ("raise SystemExit(75)", EXIT_PREEMPTED, ""),
        ("raise SystemExit('no more')", EXIT_ERROR, "no more\n"),
        ("raise ValueError('oh')", EXIT_ERROR, "ValueError: oh\n"),
    ],
)
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_program_exits_with_its_status_after_the_atexit_handlers(ranks, end, status, said):
    program = (
        "import atexit\nfrom ugt_composer.job.exit import exit_as_rank\natexit.register(print, 'closed')\n"
        f"def main():\n    print('begun')\n    {end}\nexit_as_rank(main)"
    )
    environment = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": ranks, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == status
    assert result.stdout == "begun\nclosed\n"
    assert result.stderr.endswith(said)


def test_the_note_of_an_earlier_start_is_deleted():
    program = (
        "import sys\nfrom ugt_composer.job.exit import *\n"
        "def main():\n    end_with_launcher()\n    print(first_end())\n    raise ValueError(sys.argv[1])\n"
        "exit_as_rank(main)"
    )
    environment = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    for attempt in ("1", "2"):
        command = [sys.executable, "-c", program, attempt]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (EXIT_ERROR, "None\n")
        assert f"ValueError: {attempt}" in result.stderr


@pytest.mark.parametrize(
    ("error", "is_lost", "words"),
    [
        (torch.distributed.DistNetworkError("connection reset"), True, None),
        (
            torch.distributed.DistBackendError(
                "NCCL error in: NCCLUtils.cpp:94, remote process exited or there was a network error, NCCL version "
                "2.26.2\nncclRemoteError: A call failed possibly due to a network error\nLast error:\nsocket closed"
            ),
            True,
            "NCCL failed (NCCL error in:",
        ),
        (
            torch.distributed.DistBackendError(
                "NCCL error in: NCCLUtils.cpp:94, unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"
            ),
            False,
            "Last error: Cuda failure 2 'out of memory'); run the same command with NCCL_DEBUG=WARN",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 79 GiB."),
            False,
            "memory is full (Tried to allocate 2.00 GiB. GPU 0 has 79 GiB.); halve device_train_microbatch_size",
        ),
        (
            RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be …"),
            False,
            "failed (CUDA error: an illegal memory access was encountered); kernels run asynchronously",
        ),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:3"), True, None),
        (RuntimeError("shape '[2]' is invalid"), False, None),
    ],
)
def test_gpu_and_nccl_errors_are_distinguished(error, is_lost, words):
    assert lost_contact(error) == is_lost
    advice = device_advice(error)
    assert advice is None if words is None else words in advice


def test_an_nccl_timeout_is_a_stalled_rank():
    error = torch.distributed.DistBackendError(
        "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7) ran for 600001 milliseconds"
    )
    assert has_timed_out(error)


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_an_out_of_memory_error_names_what_to_change(ranks):
    program = (
        "import torch\nfrom ugt_composer.job.exit import exit_as_rank\n"
        "def main():\n    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')\n"
        "exit_as_rank(main)"
    )
    environment = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": ranks, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert result.returncode == EXIT_ERROR
    assert "line 4, in main" in result.stderr
    assert "rank 0: error: the GPU's memory is full (Tried to allocate 2.00 GiB.); halve device" in result.stderr
