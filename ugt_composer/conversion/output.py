"""The output folder: complete or absent, even if the program is killed.

The work is done in a hidden folder beside it, which is locked while the program runs. The lock ends with the process,
so that the next run can distinguish the leftovers of a killed run from the work of a running one.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from ugt_composer.conversion.partition import QUARANTINE_NAME
from ugt_composer.data.integrity import CATALOGUE_COPY, INDEX_NAME, MANIFEST_NAME
from ugt_composer.errors import UserError
from ugt_composer.storage.array_file import arrays_beside

FIXED_NAMES = (INDEX_NAME, MANIFEST_NAME, QUARANTINE_NAME, CATALOGUE_COPY, arrays_beside(Path(CATALOGUE_COPY)).name)
PARTS = "parts"
OUTPUT_NAMES = re.compile(rf"shard\.\d+\.mds(\.\w+)?|{'|'.join(map(re.escape, FIXED_NAMES))}")


class OutputFolder:
    """The work folder of a conversion, which `publish` makes its output.

    Attributes:
        parts: a folder in it for partitions, see `parts.py`. It does not become a part of the output.
    """

    def __init__(self, out: Path, work: Path):
        self.out, self.work = out, work

    @cached_property
    def parts(self) -> str:
        folder = self.work / PARTS
        folder.mkdir()
        return str(folder)

    def quarantined(self, part: str) -> list[str]:
        """The quarantined rows of a part, one entry per line."""
        return Path(self.parts, part, QUARANTINE_NAME).read_text("ascii").splitlines()

    def add_shard(self, part: str, basename: str, size: int, name: str) -> None:
        """Makes a shard of a part the shard `name` of the output."""
        file = Path(self.parts, part, basename)
        if file.stat().st_size != size:
            raise OSError(f"{file}: {file.stat().st_size} bytes were written, {size} expected")
        os.rename(file, self.work / name)

    def end_part(self, part: str) -> None:
        """Removes a part whose shards were added."""
        shutil.rmtree(Path(self.parts, part), ignore_errors=True)

    def keep_quarantine(self) -> str:
        """Moves the quarantined rows beside the output, which is not written. Returns their path."""
        quarantine = self.out.with_name(f"{self.out.name}.{QUARANTINE_NAME}")
        os.replace(self.work / QUARANTINE_NAME, quarantine)
        return str(quarantine)

    def remove_parts(self) -> None:
        """Removes the parts, first their name: an attempt that still runs on a lost machine can write no more files."""
        if (self.work / PARTS).exists():
            unused = self.work.with_name(f".{self.out.name}.converting-{secrets.token_hex(4)}")
            os.rename(self.work / PARTS, unused)
            shutil.rmtree(unused, ignore_errors=True)

    def publish(self) -> None:
        """Renames the work folder to `out`; an earlier `out` is removed only after that."""
        self.remove_parts()
        earlier = self.out.with_name(f".{self.out.name}.earlier-{secrets.token_hex(4)}")
        lock = None
        if self.out.exists():
            lock = _try_lock(self.out)
            os.rename(self.out, earlier)
        try:
            os.rename(self.work, self.out)
        except OSError:
            if lock is not None:
                os.rename(earlier, self.out)
            raise
        if lock is not None:
            shutil.rmtree(earlier, ignore_errors=True)
            os.close(lock)


@contextmanager
def output_folder(out: Path, overwrite: bool) -> Iterator[OutputFolder]:
    """Yields a new work folder, which is removed after the block unless it was published.

    Raises:
        UserError: `out` may not be replaced.
    """
    if re.match(r"[a-z]\w+:/", str(out)):  # Path merges the two slashes into one
        raise UserError(f"--out {out} is not a local folder; convert to one, then copy it there")
    out_option, out = out, Path(os.path.abspath(out.expanduser()))
    if not out.name:
        raise UserError(f"--out {out_option} cannot be replaced; name a folder in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clean(out)
        _check_replaceable(out_option, overwrite)
        work = out.with_name(f".{out.name}.converting-{secrets.token_hex(4)}")
        work.mkdir()
    except OSError as error:
        raise UserError(
            f"--out {out_option} cannot be written: {error.strerror}; name a folder that you may write"
        ) from None
    lock = _try_lock(work)
    if lock is None:
        raise UserError(f"{work} cannot be locked; --out must lie on a file system with locks")
    output = OutputFolder(out, work)
    try:
        yield output
    finally:
        output.remove_parts()
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """Raises UserError unless `out` is missing, empty or, with `overwrite`, an output of this program."""
    out = out.expanduser()
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"--out {out} is not a folder; name a folder that does not exist yet")
    names = sorted(os.listdir(out))
    if names and not overwrite:
        raise UserError(f"--out {out} exists already; give --overwrite to replace it, or name another folder")
    foreign = [name for name in names if not OUTPUT_NAMES.fullmatch(name)]
    if foreign:
        raise UserError(f"--out {out} holds {foreign[0]}, which no conversion wrote, so it is not replaced")


def _clean(out: Path) -> None:
    """Removes leftovers of killed runs for the same folder, and restores an output that one of them had moved."""
    for leftover in sorted(out.parent.iterdir()):
        match = re.fullmatch(rf"\.{re.escape(out.name)}\.(converting|earlier)-[0-9a-f]{{8}}", leftover.name)
        if not match or not leftover.is_dir():
            continue
        lock = _try_lock(leftover)
        if lock is None:
            continue
        if match[1] == "earlier" and not out.exists():
            os.rename(leftover, out)
        else:
            shutil.rmtree(leftover, ignore_errors=True)
        os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """Locks a folder. Returns the file descriptor that holds the lock, or None if another process holds it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
