"""Write one HTML file about one or several runs: curves, results, semantic IDs, users, settings."""

import argparse
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ugt_composer.cli.options import check_writable
from ugt_composer.errors import UserError

if TYPE_CHECKING:
    from ugt_composer.catalogue.catalogue import Catalogue
    from ugt_composer.report.results import Result
    from ugt_composer.report.run_folder import Run
    from ugt_composer.report.semantic_ids import SemanticIds

EPILOG = """examples:
  ugt report checkpoints/stage1 checkpoints/stage2 checkpoints/stage3 --out report.html
  ugt report checkpoints/stage3 --data mds/test --rows 5000 --out test.html
  ugt report runs/a runs/b --no-evaluation --out curves.html
  ugt report checkpoints/stage3 --json test.json --out report.html   what ugt evaluate --json has written

The file needs no network: it can be mailed, or opened from a disk. Runs that started from each other's model are shown
as stages, side by side; others over each other. A run may still be training.
Exit status: 0 done, 2 bad input."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the save_folder of a run, such as checkpoints/stage1")
    parser.add_argument("--out", required=True, metavar="FILE.html", help="the file to write; an older one is replaced")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of shards to evaluate on; may be given several times (default: data.eval of each run)",
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=1000,
        metavar="N",
        help="rows to evaluate each run on, drawn at random (default 1000)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="which rows and users are drawn at random (default 0)"
    )
    parser.add_argument(
        "--json",
        action="append",
        default=[],
        metavar="FILE",
        help="results of ugt evaluate --json for the model of a run, which is then not evaluated here",
    )
    parser.add_argument("--no-evaluation", action="store_true", help="evaluate nothing: curves and settings only")


def main(arguments: argparse.Namespace) -> int:
    from ugt_composer.report.build import build

    out = Path(arguments.out)
    _check(arguments, out)
    from ugt_composer.report.run_folder import read_runs

    runs = read_runs(arguments.runs)
    results = _given_results(arguments.json, runs)
    problems: dict[int, str] = {}
    catalogues, ids, without_ids = _catalogues(runs)
    for number, run in enumerate(runs):
        if number in results:
            continue
        if arguments.no_evaluation:
            problems[number] = "not evaluated, because of --no-evaluation"
            continue
        try:
            from ugt_composer.report.evaluated import evaluate_run  # loads PyTorch

            given = catalogues[number], arguments.data, arguments.rows, arguments.seed
            results[number] = evaluate_run(run, *given)
        except UserError as error:
            if arguments.data:
                raise  # the user named the data
            problems[number] = f"not evaluated: {error}"
    for number, text in problems.items():
        if not arguments.no_evaluation:
            print(f"warning: {runs[number].name} was {text}", file=sys.stderr)
    for run in runs:
        for text in run.notes:
            print(f"warning: {run.name}: {text}", file=sys.stderr)
    html = build(runs, dict(sorted(results.items())), problems, ids, without_ids, arguments.seed, datetime.now(UTC))
    with _replaced(out) as temporary:
        temporary.write_text(html, "utf-8")
    print(f"{out}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, {out.stat().st_size / 1e6:.1f} MB")
    return 0


def _check(arguments: argparse.Namespace, out: Path) -> None:
    """Raises UserError before any work for options that cannot be used."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; expected the name of a file, such as {out / 'report.html'}")
    check_writable("--out", out)
    if arguments.rows < 1:
        raise UserError(f"--rows is {arguments.rows}; expected at least 1")
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}; expected 0 or more")
    if arguments.no_evaluation and (arguments.data or arguments.json):
        option = "--data" if arguments.data else "--json"
        raise UserError(f"{option} and --no-evaluation are both given; expected one of them")


def _given_results(files: Sequence[str], runs: "Sequence[Run]") -> "dict[int, Result]":
    from ugt_composer.report.results import read_result

    results: dict[int, Result] = {}
    for file in files:
        model, result = read_result(file)
        number = next((n for n, run in enumerate(runs) if model.resolve().parent == run.folder.resolve()), None)
        if number is None:
            given = ", ".join(str(run.folder) for run in runs)
            raise UserError(f"--json {file}: results of {model}, which is a model of none of the runs ({given})")
        if number in results:
            raise UserError(f"--json {file}: the second one with results of {runs[number].folder}; expected one")
        results[number] = result
    return results


def _catalogues(
    runs: "Sequence[Run]",
) -> "tuple[dict[int, Catalogue | None], list[SemanticIds], dict[int, str]]":
    """The catalogue of each run, their semantic IDs, each catalogue once, and why runs have none."""
    from ugt_composer.report.semantic_ids import catalogue_of, semantic_ids

    catalogues: dict[int, Catalogue | None] = {}
    problems: dict[int, str] = {}
    same: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        catalogues[number] = None
        try:
            catalogue = catalogue_of(run)
            if run.config is not None:
                catalogue.check(run.config.model.codebook_sizes)
        except UserError as error:
            problems[number] = str(error)
            continue
        same.setdefault(catalogue.fingerprint, []).append(number)
        catalogues[number] = catalogues[same[catalogue.fingerprint][0]] or catalogue
    found = []
    for numbers in same.values():
        items, config = catalogues[numbers[0]], runs[numbers[0]].config
        assert items is not None  # those with a fingerprint
        sizes = tuple(items.triples.max(0) + 1) if config is None else config.model.codebook_sizes
        found.append(semantic_ids(items, sizes, numbers))
    return catalogues, found, problems


@contextmanager
def _replaced(out: Path) -> Iterator[Path]:
    """A temporary file beside `out`, which takes its name at the end; after an error an older `out` is unchanged."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.replace(out)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)
