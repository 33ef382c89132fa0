"""Train one stage from YAML files: on this process, or on several that composer starts.

Several YAML files are merged: a later one overrides an earlier one, and key=value overrides all of them. The same
command resumes a run that was killed.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ugt_composer.command import parse
from ugt_composer.job.exit import exit_as_rank, has_launcher
from ugt_composer.job.start import begin_rank, begin_to_close, slow_imports
from ugt_composer.terminal import print_line

if TYPE_CHECKING:
    from ugt_composer.training.trainer import UGTTrainer

EPILOG = """examples:
  composer -c ugt train yamls/stage1.yaml              all GPUs of this machine; one process without GPUs
  composer -n 2 -c ugt train yamls/stage2.yaml loss.lambda_contrastive=0.2
  ugt train yamls/stage3.yaml --dry-run                one process: resolved config, parameters, memory, steps
  ugt train checkpoints/stage1/config.yaml             resume that run

The same program: composer train.py yamls/stage1.yaml (in the repository), composer -m ugt_composer.train (anywhere).
Exit status: 0 done, 1 error, 2 bad config or input, 75 preempted: run again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("yaml", nargs="+", metavar="YAML|key=value", help="config files and overrides of single keys")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print config, data, steps, parameters and memory, and exit without training",
    )


def main(arguments: argparse.Namespace) -> int:
    begin_rank()
    program = _program()  # before Composer makes each process look like one that a launcher started
    from ugt_composer.config.load import check_saved_config, load_config

    paths = [item for item in arguments.yaml if "=" not in item]
    overrides = [item for item in arguments.yaml if "=" in item]
    config = load_config(*paths, overrides=overrides)
    for path in paths:
        check_saved_config(path, config)
    if arguments.dry_run:
        from ugt_composer.training.dry_run import describe

        print(describe(config))
        return 0

    with slow_imports(compiles=config.compile):
        from ugt_composer.training.build import build_trainer

    trainer = build_trainer(config)
    is_first = os.environ.get("RANK", "0") == "0"
    trains, began = not trainer.is_finished, time.monotonic()
    if is_first and trains:
        _print_start(trainer)
    trainer.train()
    seconds = time.monotonic() - began
    begin_to_close()
    trainer.close()
    if is_first:
        _print_end(trainer, program, [*paths, *overrides], seconds if trains else None)
    return 0


def _print_start(trainer: "UGTTrainer") -> None:
    from ugt_composer.training.start_summary import weights_at_start

    config, batch = trainer.config, trainer.state.timestamp.batch.value
    begins = f"a new run begins, from {weights_at_start(config)}"
    print_line(f"{Path(config.save_folder).absolute()}: {f'resumes after batch {batch}' if batch else begins}")
    for line in trainer.start_summary:
        print_line(line)


def _print_end(trainer: "UGTTrainer", program: list[str], given: list[str], seconds: float | None) -> None:
    """seconds: that this process trained for; None: the run had ended before."""
    from ugt_composer.training.end_summary import end_line, what_now

    if seconds is not None:
        print_line(end_line(trainer.config, trainer.state.timestamp.batch.value, seconds, trainer.last_results()))
    for line in what_now(trainer.config, program, given):
        print_line(line)


def _program() -> list[str]:
    """The words by which this program was started, as a user types them."""
    path = Path(sys.argv[0])
    if path.absolute() == Path(__file__):
        script, is_python = ["-m", "ugt_composer.train"], True
    else:
        script, is_python = (["train.py"], True) if path.name == "train.py" else (["ugt", "train"], False)
    if not has_launcher():
        return ["python", *script] if is_python else script
    return ["composer", "-n", os.environ["LOCAL_WORLD_SIZE"], *(script if is_python else ["-c", *script])]


if __name__ == "__main__":
    from ugt_composer import train  # itself, by its name

    exit_as_rank(lambda: train.main(parse(train, "python -m ugt_composer.train")))
