"""Settings of an import, named like the command-line options."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ugt_composer.catalogue.tensor_file import SUFFIXES
from ugt_composer.errors import UserError
from ugt_composer.importing.code_array import is_array_file
from ugt_composer.importing.date_formats import check_formats
from ugt_composer.importing.file_format import ITEMS_BY_EXTENSION, FileFormat, extension
from ugt_composer.importing.interactions import Columns
from ugt_composer.importing.repeats import KEEP
from ugt_composer.importing.signals import ALL
from ugt_composer.importing.splits import LEAVE_ONE_OUT
from ugt_composer.storage.remote_files import InputPath
from ugt_composer.vocabulary import DEFAULT_CODEBOOK_SIZES, LEVELS, MAX_HISTORY, NUM_SPECIAL_IDS

MOST_RESERVE = 10
POSITIVE, EVERYTHING = "positive", "all"  # what histories hold


@dataclass(frozen=True)
class SourceSettings:
    """The input tables, and which interactions form the histories."""

    interactions: tuple[InputPath, ...]
    columns: Columns = field(default_factory=Columns)
    format: str | None = None
    separator: str | None = None
    encoding: str | None = None
    names: tuple[str, ...] | None = None
    file_order: bool = False
    skip_bad: bool = False
    min_rating: float | None = None
    missing_ratings: tuple[float, ...] | None = None
    positive_actions: tuple[str, ...] | None = None
    keep_duplicates: bool = False
    repeats: str = KEEP
    k_core: int | None = None
    items: InputPath | None = None
    items_format: str | None = None
    items_separator: str | None = None
    items_encoding: str | None = None
    items_names: tuple[str, ...] | None = None
    items_column: str | None = None
    text_columns: tuple[str, ...] | None = None
    name_column: str | None = None
    only_seen_items: bool = False
    max_unmatched: float = 0.5
    missing_as_ids: bool = False
    time_format: tuple[str, ...] | None = None
    preferences: bool = True  # whether preference rows are made, so that messages name their options

    def __post_init__(self) -> None:
        if self.time_format is not None:
            check_formats(self.time_format)
            if self.file_order:
                raise UserError("--time-format and --file-order: expected only one; the latter ignores timestamps")
        _check_positive({"--k-core": self.k_core})
        if not 0 <= self.max_unmatched <= 1:
            raise UserError(f"--max-unmatched {self.max_unmatched:g}: expected a fraction from 0 to 1")

    @property
    def written(self) -> FileFormat:
        """How the interactions are written."""
        return FileFormat(self.format, self.separator, self.encoding, self.names)

    @property
    def items_written(self) -> FileFormat:
        """How the items are written: if no format is given, like interactions with the same extension."""
        items = replace(
            ITEMS_BY_EXTENSION,
            kind=self.items_format,
            separator=self.items_separator,
            encoding=self.items_encoding,
            names=self.items_names,
        )
        alike = (
            self.items
            and self.items_format is None
            and any(extension(path) == extension(self.items) for path in self.interactions)
        )
        return items.inherit(self.written) if alike else items


@dataclass(frozen=True)
class SplitSettings:
    """Which users and interactions are held out. `validation_from` and `test_from` are as the user typed them."""

    split: str = LEAVE_ONE_OUT
    min_interactions: int = 3
    validation_from: str = "0.8"
    test_from: str = "0.9"
    held_out_users: float = 0.0
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_users < 1:
            raise UserError(f"--held-out-users {self.held_out_users}: expected a fraction from 0 to below 1")
        useless = {"--min-interactions": "min_interactions"}
        if self.split == LEAVE_ONE_OUT:
            useless = {"--validation-from": "validation_from", "--test-from": "test_from"}
        if given := [option for option, name in useless.items() if getattr(self, name) != getattr(type(self), name)]:
            raise UserError(f"--split {self.split}: not together with {', '.join(given)}")


@dataclass(frozen=True)
class IdSettings:
    """Where semantic IDs come from: a file of codes, else a file of vectors, else texts and training interactions."""

    codes: Path | None = None
    code_items: Path | None = None
    vectors: Path | None = None
    vector_items: Path | None = None
    missing_as_ids: bool = False
    drop_items_without: bool = False
    clusters: tuple[int, ...] | None = None
    dimensions: int = 64
    window: int = 5
    text_weight: float = 0.3
    reserve: float = 0.0
    codebook_sizes: tuple[int, ...] = DEFAULT_CODEBOOK_SIZES
    seed: int = 42

    def __post_init__(self) -> None:
        if self.codes is not None and self.vectors is not None:
            raise UserError("--codes and --vectors: expected only one of them")
        if self.code_items is not None and (self.codes is None or not is_array_file(self.codes)):
            raise UserError(
                f"--code-items {self.code_items}: expected --codes with an array ({', '.join(SUFFIXES)}) too; the file "
                "names the items of its rows"
            )
        if self.vector_items is not None and self.vectors is None:
            raise UserError(
                f"--vector-items {self.vector_items}: expected --vectors too; the file names the items of its rows"
            )
        if len(self.codebook_sizes) != LEVELS or min(self.codebook_sizes) <= NUM_SPECIAL_IDS:
            sizes = " ".join(map(str, self.codebook_sizes))
            raise UserError(
                f"--codebook-sizes {sizes}: expected {LEVELS} sizes above {NUM_SPECIAL_IDS}, the number of special ids"
            )
        if not 0 <= self.text_weight <= 1:
            raise UserError(f"--text-weight {self.text_weight} is outside 0..1")
        if not 0 <= self.reserve <= MOST_RESERVE:
            raise UserError(f"--reserve {self.reserve:g}: expected a fraction of more items, 0 to {MOST_RESERVE}")
        _check_positive({"--dimensions": self.dimensions, "--window": self.window})


@dataclass(frozen=True)
class RowSettings:
    """How histories become rows. `cuts_per_user` is None for all cuts.

    `history` is POSITIVE or EVERYTHING, `signals` is one of SIGNALS.
    """

    cuts_per_user: int | None = 20
    max_targets: int = 5
    max_history: int = MAX_HISTORY - 1  # with the user token, as many as the conversion keeps
    every_target: bool = False
    history: str = POSITIVE
    signals: str = ALL
    seed: int = 42

    def __post_init__(self) -> None:
        numbers = {"--max-targets": self.max_targets, "--max-history": self.max_history}
        _check_positive({**numbers, "--cuts-per-user": self.cuts_per_user})


@dataclass(frozen=True)
class PreferenceSettings:
    """What is chosen and rejected. Thresholds of None follow the largest rating; `pairs_per_user` is None for all.

    With a `rating_gap` there are no thresholds: items are chosen over those that the user rated lower by it or more.
    """

    off: bool = False
    chosen_min: float | None = None
    rejected_max: float | None = None
    rating_gap: float | None = None
    chosen_actions: tuple[str, ...] | None = None
    rejected_actions: tuple[str, ...] | None = None
    window: int = 20
    rejected_per_chosen: int = 3
    pairs_per_user: int | None = 20
    seed: int = 42

    def __post_init__(self) -> None:
        numbers = {"--preference-window": self.window, "--rejected-per-chosen": self.rejected_per_chosen}
        _check_positive({**numbers, "--pairs-per-user": self.pairs_per_user})
        if (self.chosen_actions is None) != (self.rejected_actions is None):
            raise UserError("--chosen-actions and --rejected-actions: expected both of them")
        if self.rating_gap is not None and not self.rating_gap > 0:
            raise UserError(f"--rating-gap {self.rating_gap:g}: expected a number above 0")
        self._check_useless()

    def rating_options(self) -> list[str]:
        """The options in use that decide by ratings."""
        options = {"--chosen-min": "chosen_min", "--rejected-max": "rejected_max", "--rating-gap": "rating_gap"}
        return self._in_use(options)

    def _check_useless(self) -> None:
        """UserError if an option would have no effect beside another one."""
        thresholds = [option for option in self.rating_options() if option != "--rating-gap"]
        actions = self._in_use({"--chosen-actions": "chosen_actions", "--rejected-actions": "rejected_actions"})
        limits = {"--preference-window": "window", "--rejected-per-chosen": "rejected_per_chosen"}
        limits["--pairs-per-user"] = "pairs_per_user"
        for option, is_used, useless in (
            ("--no-preferences", self.off, [*self.rating_options(), *actions, *self._in_use(limits)]),
            ("--rating-gap", self.rating_gap is not None, [*thresholds, *actions]),
            ("--chosen-actions", bool(actions), thresholds),
        ):
            if is_used and useless:
                raise UserError(f"{option}: not together with {', '.join(useless)}")

    def _in_use(self, options: Mapping[str, str]) -> list[str]:
        """The options, of {option: field}, that differ from their default."""
        return [option for option, name in options.items() if getattr(self, name) != getattr(type(self), name)]


def _check_positive(numbers: Mapping[str, int | None]) -> None:
    for option, number in numbers.items():
        if number is not None and number < 1:
            raise UserError(f"{option} {number}: expected at least 1")
