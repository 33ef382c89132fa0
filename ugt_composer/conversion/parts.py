"""Where partitions are written until they are merged: a folder that all processes share, or a prefix in a store.

Each attempt at a partition has a name of its own there, so that a repeated one cannot mix with an earlier one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from ugt_composer.storage.s3 import Store
from ugt_composer.storage.s3_url import is_url

ERRORS = "errors"  # in the place: the numbers of partitions that end the conversion


_store = cache(Store)  # a client per process


def part_name(number: int) -> str:
    return f"part-{number:08}"


@contextmanager
def new_part(place: str, part: str) -> Iterator[Path]:
    """Yields an empty folder on this machine. What it holds after the block is the part.

    Args:
        place: a folder or s3://bucket/prefix.
    """
    if not is_url(place):
        folder = Path(place, part)
        folder.mkdir()
        yield folder
        return
    with TemporaryDirectory(prefix="ugt-part-") as name:
        yield Path(name)
        for file in sorted(Path(name).iterdir()):
            _store(place).put(f"{part}/{file.name}", file.open("rb"))


def note_error(place: str, number: int) -> None:
    """Notes that partition `number` ends the conversion, so that later partitions need not be converted."""
    if is_url(place):
        _store(place).put(f"{ERRORS}/{number}", b"")
        return
    folder = Path(place, ERRORS)
    with suppress(FileNotFoundError):  # the place is gone: the conversion has ended
        folder.mkdir(exist_ok=True)
        (folder / str(number)).touch()


def has_earlier_error(place: str, number: int) -> bool:
    """Whether a partition before `number` ends the conversion."""
    if is_url(place):
        names = list(_store(f"{place}/{ERRORS}").list())
    else:
        names = []
        with suppress(FileNotFoundError):
            names = os.listdir(Path(place, ERRORS))
    return any(int(name) < number for name in names)
