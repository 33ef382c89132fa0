"""The text format `user item item …`: one line per user, items oldest first, separated by white space."""

import polars as pl

from ugt_composer.importing.damage import Damage
from ugt_composer.importing.inputs import Part
from ugt_composer.importing.table import PART, ROW
from ugt_composer.importing.text_lines import encoding_problem, text_lines, undecoded

EXPECTED = "expected lines of a user and then items, oldest first (if it is a table, give --format or --separator)"


def read_sequences(parts: tuple[Part, ...]) -> tuple[pl.DataFrame, Damage]:
    """One row per interaction, in the order of the files, and the lines that are none.

    The columns are PART and ROW, the numbers of the file and line; user and item, both text.
    """
    problems: list[tuple[int, int, str]] = []  # number of the file, line, what is wrong with it
    words = pl.concat([_words(number, part, problems) for number, part in enumerate(parts)])
    users = words.select(PART, ROW, user=pl.col("words").list.first(), item=pl.col("words").list.slice(1))
    alone = users.filter(pl.col("item").list.len() == 0)
    problems += [(part, line, f"found {user!r} alone, {EXPECTED}") for part, line, user, _ in alone.iter_rows()]
    users = users.filter(pl.col("item").list.len() > 0)
    is_first = pl.col("user").is_first_distinct()
    again = users.filter(~is_first)
    users = users.filter(is_first)
    if len(again):
        first = again.head(1).join(users.select("user", first_part=PART, first=ROW), on="user").row(0, named=True)
        place = f"line {first['first']}"
        if first["first_part"] != first[PART]:
            place += f" of {parts[first['first_part']].path}"
        problem = f"found user {first['user']!r} again, first in {place}; expected one line per user"
        problem += " (if it is a table, give --format or --separator)"
        problems += [(part, line, problem) for part, line in again.select(PART, ROW).iter_rows()]
    damage = Damage()
    for number, line, problem in sorted(problems):
        damage.add(parts[number], line, problem)
    return users.explode("item"), damage


def _words(number: int, part: Part, problems: list[tuple[int, int, str]]) -> pl.DataFrame:
    """The words of each line that has some; what is wrong with others is added to the problems."""
    texts: list[str] = []
    lines: list[int] = []
    for line, text in enumerate(text_lines(part), start=1):
        if undecoded(text):
            problems.append((number, line, encoding_problem(part)))
        else:
            texts.append(text)
            lines.append(line)
    frame = pl.DataFrame(
        {PART: pl.Series([number] * len(lines), dtype=pl.Int32), ROW: pl.Series(lines, dtype=pl.UInt32)}
    )
    words = pl.Series(texts, dtype=pl.String).str.extract_all(r"\S+")
    return frame.with_columns(words.alias("words")).filter(pl.col("words").list.len() > 0)
