"""Improve a model in rounds of generate, align and evaluate, from a YAML file."""

import argparse
import sys
from pathlib import Path

EPILOG = """examples:
  ugt rounds yamls/rounds.yaml
  ugt rounds yamls/rounds.yaml rounds=5 init_from=checkpoints/stage3/best save_folder=checkpoints/more-rounds

Each round makes preference rows of the best model's own lists (ugt preferences), trains the preference stage on them
from that model (ugt train), and evaluates the result (ugt evaluate). A round that lowers the metric on the validation
rows is not kept, and no further round begins; <save_folder>/best is a link to the best model.

The same command resumes rounds that were stopped, without repeating what is finished. They run on one machine, each
training on all of its GPUs. Exit status: 0 done, 1 error, 2 bad config or input, 75 preempted: run again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("yaml", nargs="+", metavar="YAML|key=value", help="settings and overrides of single keys")


def main(arguments: argparse.Namespace) -> int:
    from ugt_composer.config.load import load_settings
    from ugt_composer.errors import EXIT_PREEMPTED
    from ugt_composer.job.child import Children, Preempted
    from ugt_composer.rounds.commands import Commands
    from ugt_composer.rounds.run import BEST, kept_model, print_table, run_rounds
    from ugt_composer.rounds.settings import RoundsSettings
    from ugt_composer.rounds.state import only_here

    words = arguments.yaml
    paths, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    settings = load_settings(RoundsSettings, *paths, overrides=overrides)
    commands = Commands(settings)
    with only_here(Path(settings.save_folder)):
        try:
            rounds = run_rounds(settings, commands, Children().run)
        except Preempted:
            print(f"{settings.save_folder}: preempted; run the same command again to resume", file=sys.stderr)
            return EXIT_PREEMPTED
        print_table(rounds, settings.metric)
        print(f"best model: {Path(settings.save_folder) / BEST}, which is {kept_model(rounds)}")
    return 0
