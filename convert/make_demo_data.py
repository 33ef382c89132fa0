"""Makes the demo's data: the program `ugt demo-data`."""

from collections.abc import Sequence

from ugt_composer.cli import demo_data
from ugt_composer.command import parse
from ugt_composer.errors import exit_on_user_error
from ugt_composer.job.cpus import share_cpus


def main(arguments: Sequence[str] | None = None) -> int:
    return demo_data.main(parse(demo_data, "python convert/make_demo_data.py", arguments))


if __name__ == "__main__":
    share_cpus()
    exit_on_user_error(main)
