"""The seeds that every generator accepts: those of NumPy, PyTorch and Composer."""

import re
from argparse import ArgumentTypeError

LARGEST_SEED = 2**32 - 2


def seed_of(text: str) -> int:
    """The value of an option. ArgumentTypeError if it is no seed, or has a leading zero, which is octal to some."""
    if not re.fullmatch("0|[1-9][0-9]{0,9}", text) or int(text) > LARGEST_SEED:
        raise ArgumentTypeError(
            f"found {text[:40]!r}, expected a whole number from 0 to {LARGEST_SEED}, without leading zeros"
        )
    return int(text)
