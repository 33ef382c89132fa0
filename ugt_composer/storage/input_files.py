"""The files of an input: those of a folder, each given once."""

import os
from collections.abc import Sequence
from pathlib import Path

from ugt_composer.errors import UserError
from ugt_composer.storage.s3_url import Address


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders that are visible, in the order of their names."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    return [names[name] for name in sorted(names) if is_visible(name)]


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
