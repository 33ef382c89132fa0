"""Show the content and validity of a model, checkpoint, run, data folder or catalogue."""

import argparse
import json
from typing import Any

from ugt_composer.errors import UserError

EPILOG = """examples:
  ugt inspect checkpoints/stage1/best                    a model: sizes, training config, validity
  ugt inspect checkpoints/stage1/ba00001000.pt           a training checkpoint
  ugt inspect checkpoints/stage1                         a run: which checkpoints are valid, its last step
  ugt inspect mds/train --catalogue data/catalogue.jsonl --rows 5
  ugt inspect data/catalogue.jsonl --json

Files are read completely to verify their hashes. Nothing is written. Exit status: 0 shown, 2 corrupted or unknown.
For a run the status is 0 even if a checkpoint is corrupted; the state of each checkpoint is shown."""

ROWS = 3
MOST_ITEMS = 8  # list items shown in a table cell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a file or folder; a model may be s3://…")
    parser.add_argument("--catalogue", metavar="FILE", help="names the items in the rows of a data folder")
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help=f"first rows of a data folder, or items of a catalogue, to show (default {ROWS})",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")


def main(arguments: argparse.Namespace) -> int:
    if arguments.rows is not None and arguments.rows < 0:
        raise UserError(f"--rows is {arguments.rows}; expected 0 or more")
    report = _report(arguments.path, arguments.catalogue, arguments.rows)
    print(json.dumps(report, indent=1, ensure_ascii=False)) if arguments.json else _print(report)
    return 0


def _report(place: str, catalogue_path: str | None, rows: int | None) -> dict[str, Any]:
    from ugt_composer.catalogue.catalogue import Catalogue
    from ugt_composer.checkpoint.remote import model_folder
    from ugt_composer.inspection import kinds, shards, trained

    path = model_folder(place)
    kind = kinds.kind_of(path)
    if catalogue_path is not None and kind != kinds.SHARD_FOLDER:
        raise UserError(f"--catalogue names the items of a folder of shards, but {place} is a {kind}")
    if rows is not None and kind not in (kinds.SHARD_FOLDER, kinds.CATALOGUE):
        raise UserError(f"--rows shows rows of a folder of shards or a catalogue, but {place} is a {kind}")
    rows = ROWS if rows is None else rows
    facts: dict[str, Any]
    if kind == kinds.CATALOGUE:
        facts = shards.catalogue_facts(Catalogue.load(path), rows)
    elif kind == kinds.SHARD_FOLDER:
        facts = shards.shard_facts(path, rows, None if catalogue_path is None else Catalogue.load(catalogue_path))
    else:
        show = {
            kinds.MODEL: trained.model_facts,
            kinds.CHECKPOINT: trained.checkpoint_facts,
            kinds.RUN: trained.run_facts,
        }
        facts = show[kind](path)
    return {"path": place, "kind": kind, **facts}


def _print(report: dict[str, Any]) -> None:
    """Prints single facts as one table, each object as a table, and each list of objects as a table with a row each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()

    def print_facts(title: str, facts: dict[str, Any]) -> None:
        table = Table("", "", title=Text(title), title_justify="left", show_header=False)
        table.columns[1].overflow = "fold"  # do not truncate fingerprints
        for name, value in facts.items():
            whole = ", ".join(map(_cell, value)) if name == "actions" else _cell(value)  # a name stands for its place
            table.add_row(Text(name), Text(whole))
        console.print(table)

    report = {name: value for name, value in report.items() if value not in ([], {})}
    single = {name: value for name, value in report.items() if not _is_table(value)}
    facts = {name: value for name, value in single.items() if name not in ("path", "kind")}
    heading = f"{report['path']}: {report['kind']}"
    print_facts(heading, facts) if facts else console.print(Text(heading))
    for title, value in report.items():
        if title in single:
            continue
        if isinstance(value, dict):
            print_facts(title, value)
            continue
        table = Table(title=Text(title), title_justify="left")
        headings = list(dict.fromkeys(name for row in value for name in row))
        for heading in headings:
            table.add_column(Text(heading))
        for row in value:
            table.add_row(*(Text(_cell(row.get(heading, ""))) for heading in headings))
        console.print(table)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and isinstance(value[0], dict))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        hidden = len(value) - MOST_ITEMS
        return ", ".join(([f"… {hidden} more"] if hidden > 0 else []) + [_cell(item) for item in value[-MOST_ITEMS:]])
    return str(value)
