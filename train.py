"""Trains one stage: `composer train.py yamls/stage1.yaml optimizer.lr=3e-4`, or `python train.py …` for one process."""

import argparse
import os
import sys
from pathlib import Path

from ugt_composer import __version__
from ugt_composer.config.load import check_saved_config, load_config
from ugt_composer.job.exit import exit_as_rank
from ugt_composer.job.start import begin_rank, begin_to_close, slow_imports

EPILOG = """examples:
  composer train.py yamls/stage1.yaml                          all GPUs of this machine; one process without GPUs
  composer -n 2 train.py yamls/stage2.yaml loss.lambda_contrastive=0.2
  python train.py yamls/stage3.yaml --dry-run                  resolved config, parameters, memory, steps
  composer train.py checkpoints/stage1/config.yaml             resume that run

Several YAML files are merged: a later one overrides an earlier one, and key=value overrides all of them. The same
command resumes a run that was killed. Exit status: 0 done, 1 error, 2 bad config or input, 75 preempted: run again."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="train.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("yaml", nargs="+", metavar="YAML|key=value", help="config files and overrides of single keys")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print config, data, steps, parameters and memory, and exit without training",
    )
    parser.add_argument("--version", action="version", version=f"ugt_composer {__version__}")
    return parser.parse_intermixed_args(argv)  # key=value may come after an option


def main() -> int:
    arguments = parse_arguments()
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
    exit_as_rank(main)
