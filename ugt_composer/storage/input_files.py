"""The files of an input: those of a folder, each given once."""

import os
from collections.abc import Sequence
from pathlib import Path

from ugt_composer.errors import UserError
from ugt_composer.storage.s3_url import Address


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders that are visible, in the order of their names. Links are followed.

    Raises:
        UserError: a link leads to nothing, or a folder cannot be read.
    """
    files: dict[str, Path] = {}
    for root, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = [name for name in folders if is_visible(name) and not _is_above(root, name)]
        for path in (Path(root, name) for name in names if is_visible(name)):
            check_link(path)
            files[path.relative_to(folder).as_posix()] = path
    return [files[name] for name in sorted(files)]


def check_link(path: Path) -> None:
    """UserError if this is a link to a file that is not there."""
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: is a link to {os.readlink(path)}, which does not exist")


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror})")


def _is_above(folder: str, name: str) -> bool:
    """Whether a folder in `folder` is a link to one that the walk came through: it would not end."""
    inner, here = os.path.join(folder, name), Path(os.path.abspath(folder))
    return os.path.islink(inner) and any(os.path.samefile(inner, above) for above in (here, *here.parents))


def is_visible(name: str) -> bool:
    """Whether no part of a name is hidden or underscored: such files are markers and temporary files of other programs.

    Args:
        name: below the folder that the user named.
    """
    return not any(part.startswith((".", "_")) for part in name.split("/"))


def check_given_once(paths: Sequence[str | Path | Address]) -> None:
    """UserError if two of the paths lead to the same file."""
    seen: dict[str, str | Path | Address] = {}
    for path in paths:
        real = str(path) if isinstance(path, Address) else os.path.realpath(path)
        if real in seen:
            raise UserError(f"{path}: given twice (first as {seen[real]}); its rows would be doubled")
        seen[real] = path
