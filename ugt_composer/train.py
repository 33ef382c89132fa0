"""Train one stage from YAML files: on this process, or on several that composer starts.

Several YAML files are merged: a later one overrides an earlier one, and key=value overrides all of them. The same
command resumes a run that was killed.
"""

import argparse
import os
import sys
from pathlib import Path

from ugt_composer.command import parse
from ugt_composer.config.load import check_saved_config, load_config
from ugt_composer.job.exit import exit_as_rank
from ugt_composer.job.start import begin_rank, begin_to_close, slow_imports

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
    folder, batch = Path(config.save_folder).absolute(), trainer.state.timestamp.batch.value
    if trainer.ended_because is not None:
        print(f"{config.save_folder}: ended after batch {batch}, because {trainer.ended_because}", file=sys.stderr)
    elif trainer.is_finished:
        print(f"{config.save_folder}: already trained for {config.max_duration}; nothing to do", file=sys.stderr)
    elif os.environ.get("RANK", "0") == "0":
        print(f"{folder}: {f'resumes after batch {batch}' if batch else 'a new run begins'}", file=sys.stderr)
    trainer.train()
    begin_to_close()
    trainer.close()
    return 0


if __name__ == "__main__":
    from ugt_composer import train  # itself, by its name

    exit_as_rank(lambda: train.main(parse(train, "python -m ugt_composer.train")))
