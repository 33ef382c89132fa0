"""Ids of users and items as text: one form for the same id, and the values that stand for a missing one.

An id stays as it is written, except that blanks around it are removed and that `1.0` becomes `1` where all ids of the
column are whole numbers: integers with missing values are often stored as floating-point numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.storage.remote_files import InputPath

# What programs write for a missing value. Names that people have, such as Nan and Na, are not among them.
MISSING = (
    *("nan", "NaN", "NAN", "-nan", "-NaN", "null", "Null", "NULL", "<null>", "(null)", "[null]", "<NULL>", "(NULL)"),
    *("none", "None", "NONE", "<none>", "(none)", "<None>"),
    *("na", "NA", "n/a", "N/A", "#n/a", "#N/A", "#NA", "#N/A N/A"),
    *("<na>", "<NA>", "NaT", "nat", "nil", "NIL", "undefined", "UNDEFINED", "missing", "MISSING", "\\N", "#NULL!"),
    *("#REF!", "#VALUE!", "#DIV/0!", "#NAME?", "#NUM!"),  # errors of a spreadsheet
    *("(not set)", "(blank)", "(empty)", "<empty>", "<unset>"),
    *("1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "-", "--", "?", "."),
)
BLANKS = r"^[\s\u200b\u2060\ufeff]+|[\s\u200b\u2060\ufeff]+$"
NUMBER = r"^[+-]?\d+(\.\d+)?([eE][+-]?\d+)?$"
WHOLE = r"^[+-]?\d+(\.0+)?$"
POINT_ZERO = r"\.0+$"
ROUNDED = r"^[+-]?\d(\.\d+[eE][+-]?|[eE]\+)\d+$"  # 1.23457E+11: a spreadsheet's or a float's rounded number
FIRST = 3  # values and lines that a message lists


def without_zeros(ids: pl.Expr) -> pl.Expr:
    return ids.str.replace(r"^0+([0-9])", "$1")


def without_point(ids: pl.Expr) -> pl.Expr:
    return ids.str.replace(POINT_ZERO, "")


# In what the ids of the same item often differ.
VARIANTS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "upper and lower case": lambda ids: ids.str.to_lowercase(),
    "leading zeros": without_zeros,
    "a '.0' at the end": without_point,
}


@dataclass(frozen=True)
class IdForm:
    """How a column's text becomes ids.

    Attributes:
        numbers: all values are numbers.
        whole: all values are whole numbers, some of them with ".0", which is removed.
        keep_missing: values of MISSING are ids.
    """

    numbers: bool = False
    whole: bool = False
    keep_missing: bool = False

    def parse(self, text: pl.Expr) -> pl.Expr:
        """The ids as text; null where a value is missing, or a number that was rounded when it was written."""
        text = text.str.replace_all(BLANKS, "")
        valid = text.str.len_bytes() > 0
        if not self.keep_missing:
            valid &= ~text.is_in(MISSING)
        if self.numbers:
            valid &= ~text.str.contains(ROUNDED)
        if not self.whole:
            return pl.when(valid).then(text)
        digits = text.str.replace(POINT_ZERO, "")
        exact = (digits.cast(pl.Int64, strict=False).abs() < exact_below(pl.Float64())).fill_null(False)
        return pl.when(valid & (exact | (digits == text) | text.is_in(MISSING))).then(digits)


def exact_below(dtype: pl.DataType) -> int:
    """From this number on, a floating-point type cannot tell a whole number from its neighbours."""
    return 2**24 if dtype == pl.Float32 else 2**53


def id_text(column: str, dtype: pl.DataType) -> pl.Expr:
    """A column's values as text, null where there is none; of floating-point numbers only the exact whole ones."""
    if dtype.is_float():
        whole = pl.col(column).cast(pl.Int64, strict=False)
        exact = (whole.cast(dtype) == pl.col(column)) & (whole.abs() < exact_below(dtype))
        return pl.when(exact).then(whole.cast(pl.String))
    text = pl.col(column).cast(pl.String)
    return pl.when(text.str.len_bytes() > 0).then(text)


def id_form(distinct: pl.Series, keep_missing: bool) -> IdForm:
    """The form of the ids of a column with these distinct values."""
    text = distinct.drop_nulls().str.replace_all(BLANKS, "")
    text = text.filter((text.str.len_bytes() > 0) & ~text.is_in(MISSING))
    numbers = bool(len(text)) and bool(text.str.contains(NUMBER).all())
    whole = numbers and bool(text.str.contains(WHOLE).all()) and bool(text.str.contains(POINT_ZERO).any())
    return IdForm(numbers, whole, keep_missing)


def one_form(values: pl.Series, place: str, keep_missing: bool) -> tuple[pl.Series, IdForm, tuple[str, ...]]:
    """The ids of a column's values, null where a value is none; their form; and warnings that begin with `place`.

    Args:
        values: text (n,), with repeated ones.
    """
    distinct = values.drop_nulls().unique(maintain_order=True).alias("id")
    ids, form, warnings = one_form_of_distinct(distinct, place, keep_missing)
    unchanged = not ids.null_count() and bool((ids == distinct).all())
    if unchanged:
        return values, form, warnings
    return ids.gather(values.cast(pl.Enum(distinct)).to_physical()).alias(values.name), form, warnings


def one_form_of_distinct(
    distinct: pl.Series, place: str, keep_missing: bool
) -> tuple[pl.Series, IdForm, tuple[str, ...]]:
    """Like `one_form`, of different values that are not null."""
    form = id_form(distinct, keep_missing)
    ids = distinct.alias("id").to_frame().select(form.parse(pl.col("id"))).to_series()
    return ids, form, tuple(f"{place}: {text}" for text in _remarks(distinct, ids, form))


def no_id_message(
    path: InputPath, unit: str, column: str | None, numbers: pl.Series, values: pl.Series, is_float: bool
) -> str:
    """What a file has in the place of ids: where, how often, and what it probably is.

    Args:
        unit: "line" or "row", what `numbers` (n,) count.
        values: text (n,), null where there is nothing.
    """
    counts = values.fill_null("").str.replace_all(BLANKS, "").alias("id").value_counts(sort=True)
    shown = [repr(value) if value else "nothing" for value in counts["id"].head(FIRST)]
    if len(numbers) > 1:
        shown = [
            f"{text} ({count:,} times)" if count > 1 else f"{text} (once)"
            for text, count in zip(shown, counts["count"], strict=False)
        ]
    if len(counts) > FIRST:
        shown.append(f"{len(counts) - FIRST:,} other values")
    place = (
        f"{unit} {numbers[0]:,}" if numbers.n_unique() == 1 else f"{unit}s {listed(numbers.unique().sort().to_list())}"
    )
    where = f"{path}, {place}" if column is None else f"{path}, {place}: column {column!r}"
    reasons = []
    if not is_float and counts["id"].is_in(MISSING).any():
        reasons.append("; that usually stands for a missing id (if it is a real one, keep it with --missing-as-ids)")
    rounded = counts.filter((pl.col("id").str.len_bytes() > 0) & ~pl.col("id").is_in(MISSING))["id"]
    if is_float and len(rounded):
        reasons.append("; floating-point numbers hold ids exactly only if they are whole and not too large")
    elif len(rounded):
        reasons.append(f"; {rounded[0]!r} was rounded when it was written, so store the ids as text or as integers")
    found = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
    return f"{where}: found {found}, expected an id{''.join(reasons)}"


def distinct_ids(ids: pl.Series, place: str, keep_missing: bool) -> tuple[pl.Series, tuple[str, ...]]:
    """The ids of a list, each in one form, and warnings that begin with `place`.

    Args:
        ids: text (n,).

    Raises:
        UserError: a value is no id, or occurs again.
    """
    known, _, warnings = one_form(ids, place, keep_missing)
    if known.null_count():
        number = int(known.is_null().arg_max() or 0)
        raise UserError(
            f"{place}: item {number + 1} is {ids[number]!r} (such items: {known.null_count():,}), expected an id; "
            "fix it, or keep such ids with --missing-as-ids"
        )
    again = known.filter(~known.is_first_distinct())
    if len(again):
        written = ids.filter(known == again[0]).unique(maintain_order=True).to_list()
        forms = f" as {' and '.join(map(repr, written))}" if len(written) > 1 else ""
        raise UserError(f"{place}: item {again[0]!r} occurs twice{forms}; expected each item once")
    return known, warnings


def listed(values: Sequence[object]) -> str:
    """The first values, and how many more there are."""
    shown = ", ".join(f"{value:,}" if isinstance(value, int) else repr(value) for value in values[:FIRST])
    return f"{shown} and {len(values) - FIRST:,} more" if len(values) > FIRST else shown


def _remarks(distinct: pl.Series, ids: pl.Series, form: IdForm) -> list[str]:
    """Sentences about ids that were changed or merged, or that differ in case alone.

    Args:
        distinct, ids: text (n,), values and the ids they became.
    """
    table = pl.DataFrame({"value": distinct, "id": ids}).drop_nulls()
    remarks = []
    blank = table.filter(pl.col("value").str.contains(BLANKS))
    if len(blank):
        remarks.append(f"blanks around ids, such as {blank['value'][0]!r}, were removed (ids: {len(blank):,})")
    number = table.filter(pl.col("value").str.contains(r"\.0+\s*$")) if form.whole else table.clear()
    if len(number):
        value, id_ = number.row(0)
        remarks.append(f"all ids are whole numbers, so {value!r} means {id_!r} (ids written so: {len(number):,})")
    if merged := len(table) - table["id"].n_unique():
        remarks.append(f"ids that differ from another only in that were taken as the same id (ids: {merged:,})")
    known = table["id"].unique(maintain_order=True)
    kept = known.filter(known.is_in(MISSING)).to_list()
    if kept:
        remarks.append(f"{listed(kept)} {'is an id' if len(kept) == 1 else 'are ids'}, by --missing-as-ids")
    for name, form_of in VARIANTS.items():
        plain = known.to_frame("id").select(form_of(pl.col("id"))).to_series()
        variants = known.filter(plain.is_duplicated())
        if len(variants):
            alike = known.filter(plain == plain.filter(plain.is_duplicated())[0])
            remarks.append(
                f"some ids differ from another only in {name}, such as {' and '.join(map(repr, alike[:2]))}; they are "
                f"kept apart (ids: {len(variants):,})"
            )
    return remarks
