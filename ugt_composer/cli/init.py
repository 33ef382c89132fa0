"""Write the YAML files of the three stages, with a comment on each key, into a folder.

They are written into DIR/yamls. Paths in them, such as mds/train and checkpoints/stage1, are relative to the folder
that a command is run in: run the commands in DIR.
"""

import argparse
import shlex
from pathlib import Path

from ugt_composer.errors import UserError

EPILOG = """examples:
  ugt init .
  ugt init my-shop

Files of this name that differ, because you have changed them or because they are those of another version, are not
replaced without --overwrite. Exit status: 0 done, 2 bad input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="DIR", help="your project's folder; made if it does not exist")
    parser.add_argument("--overwrite", action="store_true", help="replace files of these names that differ")


def main(arguments: argparse.Namespace) -> int:
    from ugt_composer.config.shipped import FOLDER, shipped_yamls

    folder = arguments.folder.expanduser() / FOLDER
    texts = {folder / name: text for name, text in shipped_yamls().items()}
    try:
        missing = [path for path in texts if not path.exists()]
        differing = [path for path in texts if path not in missing and path.read_text("utf-8") != texts[path]]
        if differing and not arguments.overwrite:
            raise UserError(
                f"{', '.join(map(str, differing))}: differ from the files of this version, nothing was written; "
                "--overwrite replaces them"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for path in (*missing, *differing):
            path.write_text(texts[path], "utf-8")
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}: {error.filename})") from None
    _print(arguments.folder, folder, texts, len(missing), len(differing))
    return 0


def _print(project: Path, folder: Path, texts: dict[Path, str], new: int, replaced: int) -> None:
    counts = {"written": new, "replaced": replaced, "unchanged": len(texts) - new - replaced}
    print(f"{folder}: {', '.join(f'{count} {what}' for what, count in counts.items() if count)}")
    width = max(len(path.name) for path in texts)
    for path, text in texts.items():
        print(f"  {path.name:{width}}  {_title(text)}")
    change = "" if project.resolve() == Path.cwd() else f"  cd {shlex.quote(str(project))}\n"
    print(
        f"\nNext:\n{change}"
        "  ugt demo                                     all steps on generated data, a few minutes on a CPU\n"
        "  ugt import ratings.csv --out data/ratings    your own data; prints the commands that follow"
    )


def _title(text: str) -> str:
    """The first sentence of a file's first comment."""
    line = text.split("\n", 1)[0].removeprefix("#").strip()
    return line.split(". ", 1)[0].split(": ugt", 1)[0].rstrip(".:")
