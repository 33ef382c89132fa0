"""A folder that appears complete or not at all: written under a temporary name, then renamed.

A lock file beside it has the temporary name too. The lock ends with the process, so that the next run for the same
folder can distinguish the leftovers of a killed run from the work of a running one.
"""

import errno
import glob
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType

from ugt_composer.errors import UserError
from ugt_composer.storage.array_file import arrays_beside
from ugt_composer.storage.file_lock import locked, locked_if_free

EARLIER, LOCK = ".earlier", ".lock"  # appended to the temporary name
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # of a file system that has none
NO_FOLDERS: Mapping[str, re.Pattern[str]] = MappingProxyType({})


@contextmanager
def new_folder(
    out: Path, files: Collection[str], overwrite: bool, folders: Mapping[str, re.Pattern[str]] = NO_FOLDERS
) -> Iterator[Path]:
    """Yields an empty temporary folder beside `out`, which takes its place when the block ends without an error.

    Removes what killed runs for the same folder left beside it.

    Args:
        out: the folder to create. An existing empty folder is used; one that is not empty needs `overwrite`.
        files: the names that the program writes. A folder that holds anything else is never overwritten: it
            may be somebody's home directory.
        overwrite: whether the files of an earlier run may be replaced.
        folders: the folders that the program writes into `out`, each with what the names of its files match.

    Raises:
        UserError: `out` is a file or an address, may not be replaced, or cannot be written.
    """
    if re.match(r"[a-z]\w+:/", str(out)):  # Path merges the two slashes into one
        raise UserError(f"--out {out} is an address; write to a folder, then copy it there")
    out = out.expanduser().resolve()
    _remove_leftovers(out)
    _check_replaceable(out, files, overwrite, folders)
    temporary = out.with_name(f".{out.name}.partial-{secrets.token_hex(4)}")
    with ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_lock_of(temporary))
            temporary.mkdir(0o700)
        except OSError as error:
            raise UserError(
                f"--out {out} cannot be written: {error.strerror}; name a folder that you may write"
            ) from None
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            _replace(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _lock_of(temporary: Path) -> Iterator[None]:
    """Holds the lock of a temporary folder; none if the file system has no locks: then its leftovers stay."""
    path = temporary.with_name(temporary.name + LOCK)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
        yield


def _remove_leftovers(out: Path) -> None:
    """Removes what killed runs left of the same folder, and restores an output that one of them had moved away."""
    for lock in out.parent.glob(f"{glob.escape(f'.{out.name}.partial-')}*{LOCK}"):
        temporary = lock.with_name(lock.name.removesuffix(LOCK))
        earlier = temporary.with_name(temporary.name + EARLIER)
        with locked_if_free(lock) as free:
            if not free:
                continue
            if temporary.exists() and earlier.exists() and not out.exists():
                os.rename(earlier, out)
            for folder in (earlier, temporary):
                shutil.rmtree(folder, ignore_errors=True)


def _check_replaceable(
    out: Path, files: Collection[str], overwrite: bool, folders: Mapping[str, re.Pattern[str]]
) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    names = sorted(path.name for path in out.iterdir())
    if names and not overwrite:
        raise UserError(f"--out {out} already holds {names[0]}; give --overwrite to replace it, or name another folder")
    own = {*files, *(arrays_beside(Path(name)).name for name in files)}  # these are made of the program's files
    foreign = [name for name in names if name not in own and name not in folders]
    foreign += [inner for name in names if name in folders for inner in _foreign_names(out / name, folders[name])]
    if foreign:
        raise UserError(f"--out {out} holds {foreign[0]}, which this program did not write; name another folder")


def _foreign_names(folder: Path, written: re.Pattern[str]) -> list[str]:
    """What is not `written` by the program in a folder of `out`, as seen from there."""
    if not folder.is_dir():
        return [folder.name]
    return sorted(f"{folder.name}/{path.name}" for path in folder.iterdir() if not written.fullmatch(path.name))


def _replace(temporary: Path, out: Path) -> None:
    """Replaces `out` with `temporary`; if that fails, restores the earlier folder."""
    earlier = temporary.with_name(temporary.name + EARLIER)
    try:
        if out.exists():
            os.rename(out, earlier)
        os.rename(temporary, out)
    except OSError as error:
        if earlier.exists() and not out.exists():
            os.rename(earlier, out)
        raise UserError(f"--out {out} cannot be replaced: {error.strerror}; name another folder") from None
    shutil.rmtree(earlier, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
