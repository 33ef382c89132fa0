"""Which items may be recommended: the files of --only and --exclude, and the lists of a history's object."""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.cli.options import MAX_UNMATCHED
from ugt_composer.data.history import SemanticId
from ugt_composer.errors import UserError, where_searched

ONLY, EXCLUDE = "only", "exclude"
SHOWN, LONGEST_SHOWN = 5, 60  # unknown item ids in a message, and the letters of each


class UserLists(NamedTuple):
    """The lists of one user, besides what the catalogue withholds from everybody.

    Attributes:
        only: the item ids that may be recommended; None: all.
        exclude: item ids that may not.
        unknown: by the key of the list, the item ids in it that are not in the catalogue.
    """

    only: frozenset[str] | None = None
    exclude: frozenset[str] = frozenset()
    unknown: dict[str, list[str]] = {}  # noqa: RUF012 - never changed

    @property
    def given(self) -> bool:
        return self.only is not None or bool(self.exclude)

    def allow(self, item_id: str) -> bool:
        return (self.only is None or item_id in self.only) and item_id not in self.exclude

    def only_ids(self, catalogue: Catalogue) -> list[SemanticId] | None:
        """The semantic IDs of which an item may be recommended; None: all that `excluded_ids` lacks."""
        if self.only is None:
            return None
        allowed = (item for item in self.only - self.exclude if not catalogue.is_withheld(item))
        return [catalogue.triple_of(item) for item in allowed]

    def excluded_ids(self, catalogue: Catalogue) -> list[SemanticId]:
        """The semantic IDs of which all items that may be recommended to others are in `exclude`."""
        ids = {catalogue.triple_of(item) for item in self.exclude}
        return [one for one in ids if one not in catalogue.shared_ids or not any(self._shown(one, catalogue))]

    def _shown(self, ids: SemanticId, catalogue: Catalogue) -> Iterator[bool]:
        for item in catalogue.items_of(ids):
            yield self.allow(item.item_id) and not catalogue.is_withheld(item.item_id)


@dataclass(frozen=True)
class ListFile:
    """The file of an option.

    Attributes:
        option: such as "--only".
        path: of the file.
        items: the different item ids in it that the catalogue has.
        unknown: those that it lacks.
        problem: a sentence that names the unknown ones; None if there are none.
    """

    option: str
    path: str
    items: Sequence[str]
    unknown: Sequence[str]
    problem: str | None

    @property
    def facts(self) -> dict[str, Any]:
        """For the JSON of a command."""
        return {"path": self.path, "items": len(self.items), "unknown_items": len(self.unknown)}


def unknown_items(item_ids: Sequence[str], catalogue: Catalogue | None) -> str:
    """Names item ids that are not in the catalogue, with a hint if the first is only written differently."""
    names = [item if len(item) <= LONGEST_SHOWN else f"{item[:LONGEST_SHOWN]}…" for item in item_ids[:SHOWN]]
    shown = ", ".join(names) + (f" and {len(item_ids) - SHOWN} more" if len(item_ids) > SHOWN else "")
    alike = None if catalogue is None else catalogue.alike(item_ids[0])
    hint = "" if alike is None else f"; {item_ids[0]} is perhaps {alike}, so write item ids as in the catalogue"
    return f"not in the catalogue, left out: {shown}{hint}"


def withhold(catalogue: Catalogue | None, arguments: argparse.Namespace) -> tuple[Catalogue | None, list[ListFile]]:
    """The catalogue without the items that --only and --exclude withhold, and what their files hold.

    Raises:
        UserError: there is no catalogue; --max-unmatched is given without a file, or is no fraction; a file cannot be
            read; --only names no item; more than --max-unmatched of the item ids of a file are not in the catalogue.
    """
    paths = {name: vars(arguments)[name] for name in (ONLY, EXCLUDE) if vars(arguments)[name] is not None}
    if not paths:
        if arguments.max_unmatched is not None:
            raise UserError(
                f"--max-unmatched {arguments.max_unmatched:g} is given without --only or --exclude, which it belongs to"
            )
        return catalogue, []
    if catalogue is None:
        raise UserError(f"--{next(iter(paths))} names items of a catalogue; expected --catalogue FILE too")
    max_unmatched = MAX_UNMATCHED if arguments.max_unmatched is None else arguments.max_unmatched
    if not 0 <= max_unmatched <= 1:
        raise UserError(f"--max-unmatched is {max_unmatched:g}; expected a fraction from 0 to 1")
    files = {name: _read(f"--{name}", path, catalogue, max_unmatched) for name, path in paths.items()}
    only = files[ONLY].items if ONLY in files else None
    return catalogue.withholding(only, files[EXCLUDE].items if EXCLUDE in files else ()), list(files.values())


def _read(option: str, path: str, catalogue: Catalogue, max_unmatched: float) -> ListFile:
    item_ids = read_item_ids(option, path)
    known = [item for item in item_ids if item in catalogue]
    unknown = [item for item in item_ids if item not in catalogue]
    if option == f"--{ONLY}" and not item_ids:
        raise UserError(f"--only {path}: found no item id, expected at least one; nothing could be recommended")
    if not unknown:
        return ListFile(option, path, known, unknown, None)
    number = f"{len(unknown):,} of {len(item_ids):,}"
    problem = f"{option} {path}: {number} item ids are {unknown_items(unknown, catalogue)}"
    if len(unknown) > max_unmatched * len(item_ids):
        raise UserError(
            f"{problem}; more than --max-unmatched {max_unmatched:g} of them, so they seem to be those of another "
            f"catalogue than {catalogue.source}"
        )
    return ListFile(option, path, known, unknown, problem)


def read_item_ids(option: str, path: str) -> list[str]:
    """The different item ids of a file: one a line, without blanks around it, or a JSON list of text."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{option} {path}: is not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise UserError(
            f"{option} {path}: cannot be read ({error.strerror}){where_searched(path)}; expected a file with one item "
            "id a line, or a JSON list of them"
        ) from None
    if not text.lstrip().startswith("["):
        return list(dict.fromkeys(filter(None, map(str.strip, text.splitlines()))))
    try:
        return list(dict.fromkeys(checked_ids(json.loads(text), f"{option} {path}")))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{option} {path}: begins with [ but is not a JSON list: {error}") from None


def user_lists(user: dict[str, Any], place: str, catalogue: Catalogue | None) -> UserLists:
    """Takes the lists `only` and `exclude` out of a history's object. UserError if one is not a list of item ids."""
    lists = {name: checked_ids(user.pop(name), f"{place}: {name}") for name in (ONLY, EXCLUDE) if name in user}
    if not lists:
        return UserLists()
    if catalogue is None:
        raise UserError(f"{place}: `{next(iter(lists))}` names items of a catalogue; expected --catalogue FILE")
    known = {name: frozenset(item for item in items if item in catalogue) for name, items in lists.items()}
    unknown = {name: [item for item in items if item not in catalogue] for name, items in lists.items()}
    return UserLists(
        known.get(ONLY), known.get(EXCLUDE, frozenset()), {n: items for n, items in unknown.items() if items}
    )


def checked_ids(value: Any, place: str) -> list[str]:
    """UserError unless the value is a list of text."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{place}: found {json.dumps(value)[:60]}, expected a list of item ids in quotes")
    return value
