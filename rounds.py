"""Runs rounds of generate, align, evaluate from YAML: `python rounds.py yamls/rounds.yaml save_folder=…`.

The same program as `ugt rounds`.
"""

from ugt_composer.cli import rounds
from ugt_composer.command import parse
from ugt_composer.errors import exit_on_user_error


def main() -> int:
    return rounds.main(parse(rounds, "rounds.py"))


if __name__ == "__main__":
    exit_on_user_error(main)
