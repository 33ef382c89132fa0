"""Training on a fake GPU that computes nothing: a preloaded CUDA library runs PyTorch's GPU code on any machine.

Devices, dtypes, shapes, streams, process groups and host waits are real; numbers have no meaning. Without the driver
these tests are skipped.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal.driver import environment, on_driver
from tests.rehearsal.jobs import COMMANDS, FAST, SLOW
from tests.shop import ROOT, stage_arguments

SECONDS_PER_JOB = 60

Lines = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def driver() -> list[str]:
    return on_driver()


@pytest.fixture(scope="session")
def trained(shop, tmp_path_factory) -> Path:
    """A folder with stage1 and stage2, trained one from the other for two batches on the CPU."""
    from ugt_composer.config.load import load_config
    from ugt_composer.training.build import build_trainer

    folder = tmp_path_factory.mktemp("trained")
    for stage in (1, 2):
        yaml, *rest = stage_arguments(shop, folder / f"stage{stage}", stage, folder / f"stage{stage - 1}" / "best")
        trainer = build_trainer(load_config(yaml, overrides=[*rest, "max_duration=2ba", "precision=fp32"]))
        trainer.train()
        trainer.close()
    return folder


@pytest.fixture(scope="session")
def rehearsed(driver, shop, trained, tmp_path_factory) -> Lines:
    """The results of the fast jobs and of the commands, by name."""
    return rehearse([*FAST, *COMMANDS], driver, shop, trained, tmp_path_factory.mktemp("rehearsed"))


@pytest.fixture(scope="session")
def all_rehearsed(rehearsed, driver, shop, trained, tmp_path_factory) -> Lines:
    out = tmp_path_factory.mktemp("all-rehearsed")
    return {**rehearsed, **rehearse(SLOW, driver, shop, trained, out)}


def rehearse(
    names: Sequence[str],
    driver: list[str],
    shop: Path,
    trained: Path,
    out: Path,
    ranks: int = 1,
    batches: int | None = None,
) -> Lines:
    """Runs all jobs in one process, because imports take longer than a job. Results are missing if the process died."""
    options = ["--shop", shop, "--trained", trained, "--out", out]
    if batches is not None:
        options += ["--batches", batches]
    words = [*driver, sys.executable, "-m", "tests.rehearsal.stages", *options, *names]
    if ranks > 1:
        words = [*on_ranks(ranks), *words]
    with (out / "output").open("w") as output:
        status = subprocess.run(
            [str(word) for word in words],
            cwd=ROOT,
            env=environment(NULLGPU_COUNT=str(ranks)),
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            timeout=120 + SECONDS_PER_JOB * len(names) * ranks,
        ).returncode
    written = out / "lines.jsonl"
    lines = [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
    end = (out / "output").read_text()[-3000:]
    found = {line["name"]: line for line in lines}
    if status and len(found) == len(names) and all(line["error"] is None for line in lines):
        raise RuntimeError(f"all jobs ended well, the processes with {status}:\n{end}")
    lost = {name: {"error": f"the processes ended with {status} before the job did:\n{end}"} for name in names}
    return {**lost, **found}


def on_ranks(ranks: int) -> list[str]:
    """The start of a command line that runs a command on several ranks by Composer's launcher. The launcher itself
    computes nothing and runs without the driver."""
    return [str(Path(sys.executable).parent / "composer"), "-n", str(ranks), "--command_mode"]
