"""The files of an input: those of a folder, each given once."""

import os
from collections.abc import Sequence
from pathlib import Path

from ugt_composer.errors import UserError


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders, in the order of their names.

    Hidden and underscored names are left out: they are markers and temporary files of other programs.
    """
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    return [names[name] for name in sorted(names) if not any(part[0] in "._" for part in name.split("/"))]


def check_given_once(paths: Sequence[str | Path]) -> None:
    """UserError if two of the paths lead to the same file."""
    seen: dict[str, str | Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise UserError(f"{path}: given twice (first as {seen[real]}); its rows would be doubled")
        seen[real] = path
