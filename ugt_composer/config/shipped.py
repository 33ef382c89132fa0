"""The YAML files that come with the package: those of the repository's folder yamls/.

In the repository ugt_composer/yamls is a link to that folder, so that each file exists once; a wheel has the files.
"""

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

FOLDER = "yamls"
DATA_YAML, PREFERENCES_YAML = "data.yaml", "preferences.yaml"  # of an import
WRITTEN_BY_IMPORT = {
    DATA_YAML: "`ugt import` writes it into its --out",
    PREFERENCES_YAML: "`ugt import` writes it into its --out, if the table has ratings or actions for preferences",
}


@cache
def shipped_yamls() -> dict[str, str]:
    """Their texts by name, such as stage1.yaml."""
    found = (path for path in files("ugt_composer").joinpath(FOLDER).iterdir() if path.name.endswith(".yaml"))
    return {path.name: path.read_text("utf-8") for path in sorted(found, key=_order)}


def _order(path: Traversable) -> tuple[bool, str]:
    return not path.name.startswith("stage"), path.name  # the stages first


def how_to_get(path: str | Path) -> str | None:
    """How to get a file that is missing, if it has the name of a file that comes with the package or that an import
    writes; None if not."""
    path = Path(path)
    if path.name in WRITTEN_BY_IMPORT:
        return WRITTEN_BY_IMPORT[path.name]
    if path.name not in shipped_yamls():
        return None
    in_folder = Path(FOLDER) / path.name
    if path != in_folder and in_folder.exists():
        return f"did you mean {in_folder}?"
    project = path.parent.parent if path.parent.name == FOLDER else Path()
    return f"`ugt init {project}` writes {project / in_folder}"
