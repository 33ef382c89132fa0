from pathlib import Path

import pytest

from ugt_composer.errors import UserError
from ugt_composer.importing.file_format import MIND, FileFormat
from ugt_composer.importing.interactions import Columns, Interactions, read_interactions

BEHAVIORS = FileFormat(MIND)
LINES = [
    "1\tU1\t11/13/2019 8:36:57 AM\tN1 N2 N1\tN5-0 N6-1",
    "2\tU2\t11/11/2019 12:52:13 PM\t\tN5-1 N7-0",
    "3\tU1\t11/11/2019 9:05:58 PM\tN1 N2 N1\tN8-0 N9-1 N5-0",
]


def read(tmp_path: Path, lines: list[str], written: FileFormat = BEHAVIORS, **options) -> Interactions:
    path = tmp_path / "behaviors.tsv"
    path.write_text("\n".join(lines) + "\n")
    return read_interactions(path, file_format=written, **options)


def test_impressions_are_interactions_and_the_history_earlier_clicks_once_per_user(tmp_path):
    log = read(tmp_path, LINES)
    rows = list(zip(log.users[log.user], log.items[log.item], log.action, strict=True))
    assert [row for row in rows if row[0] == "U1"] == [
        *(("U1", item, "click") for item in ("N1", "N2", "N1")),
        *(("U1", "N8", "impression"), ("U1", "N9", "click"), ("U1", "N5", "impression")),
        *(("U1", "N5", "impression"), ("U1", "N6", "click")),
    ]
    assert [row for row in rows if row[0] == "U2"] == [("U2", "N5", "click"), ("U2", "N7", "impression")]
    assert log.time_form.facts(log.time.min(), log.time.max())["last"] == "2019-11-13 08:36:57"
    assert len(set(log.time[log.user == 0][:4])) == 4, "clicks of the history are no duplicates of one another"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("4\tU3\t11/11/2019 9:05:58 AM\tN1\tN5 N6", "line 4: found the impressions 'N5 N6', expected news with -1"),
        ("4\tU3\t2019-11-11\tN1\tN5-1", "line 4: found the time '2019-11-11', expected one like 11/15/2019 9:05:58 AM"),
        ("4\tU3\t11/11/2019 9:05:58 AM\tN1\t", "found the impressions ''"),
        ("4\tU3\t11/11/2019 9:05:58 AM", "line 4: found 3 fields, expected 5"),
        ("4\t\t11/11/2019 9:05:58 AM\tN1\tN5-1", "line 4: column 'user': found nothing"),
    ],
)
def test_other_lines_are_named_and_can_be_skipped(tmp_path, line, said):
    with pytest.raises(UserError) as error:
        read(tmp_path, [*LINES, line])
    assert said in str(error.value)
    log = read(tmp_path, [*LINES, line], skip_bad=True)
    assert len(log) == len(read(tmp_path, LINES))
    assert log.skipped > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"written": FileFormat()}, "has MIND's lists of impressions; give --format mind"),
        ({"columns": Columns(user="u")}, "--user-column is for tables, but this file is read as MIND's impressions"),
        ({"file_order": True}, "--file-order is for tables"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, said):
    with pytest.raises(UserError) as error:
        read(tmp_path, LINES, **options)
    assert said in str(error.value)


NEWS = "N1\tsports\tgolf\tA title\tText\thttps://a\t[]\t[]\n"


@pytest.mark.parametrize(
    ("text", "written", "said"),
    [
        (NEWS, FileFormat(), "has MIND's news; give it as --items with --items-format mind"),
        (NEWS, BEHAVIORS, "line 1 has 8 columns, expected MIND's 5: impression_id, user, time, history, impressions"),
        (
            "impression_id\tuser_id\ttime\thistory\timpressions\n" + LINES[0],
            FileFormat(),
            "has MIND's lists of impressions; give --format mind",
        ),
        (
            "impression_id\tuser_id\ttime\thistory\timpressions\n" + LINES[0],
            BEHAVIORS,
            "line 1 has the column name 'impression_id'; MIND's files have no header line, so remove it",
        ),
    ],
)
def test_other_files_are_named(tmp_path, text, written, said):
    with pytest.raises(UserError) as error:
        read(tmp_path, [text], written)
    assert said in str(error.value)
