import csv
import io

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.errors import UserError
from ugt_composer.importing.csv_records import is_regular, records
from ugt_composer.importing.file_format import FileFormat
from ugt_composer.importing.inputs import find_parts
from ugt_composer.importing.interactions import read_interactions
from ugt_composer.importing.items import read_items
from ugt_composer.importing.table import open_table

HEADER = "user,item,rating,timestamp\n"


def part_of(path, **written):
    return find_parts([path], FileFormat(**written))[0]


def written(folder, text: str | bytes, name: str = "r.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("u1,b,2,7,8", "found 5 fields, expected 4"),
        ("u1,b,2,7,", "found 5 fields, expected 4"),
        ("u1,b,2", "found 3 fields, expected 4"),
        ("u1", "found 1 field, expected 4"),
        (",,,", "column 'user': found nothing, expected an id"),
        ('u1,"b,2,7', "a quoted field is not closed"),
        ('u1,b,2,"7', "a quoted field is not closed"),
        ('u1,"b"c,2,7', "text follows it"),
        ('u1,b,2,7" tab', "column 'timestamp': found '7\" tab', expected a time"),
        ("u1,\udcff,2,7", "found bytes that are not UTF-8"),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 3])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_damaged_line_is_named_by_its_number_and_can_be_skipped(tmp_path, line, said, position, end):
    good = ["u2,c,3,4", 'u2,"d, e",3,5', "u3,c,1,6"]
    lines = [*good[:position], line, *good[position:]]
    path = written(tmp_path, end.join([HEADER.strip(), *lines, ""]).encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        read_interactions(path)
    assert f"{path}, line {position + 2}: " in str(error.value)
    assert said in str(error.value)
    assert "--on-error skip (1 of 4" in str(error.value)
    log = read_interactions(path, skip_bad=True)
    assert sorted(zip(log.users[log.user], log.items[log.item], strict=True)) == [
        ("u2", "c"),
        ("u2", "d, e"),
        ("u3", "c"),
    ]
    assert log.skipped == 1
    assert f"line {position + 2}: " in log.first_skipped


def test_several_damaged_lines_are_counted_and_their_numbers_listed(tmp_path):
    path = written(tmp_path, HEADER + "u,i,1,1\nu,i\n" * 7)
    with pytest.raises(UserError, match=r"line 3: found 2 fields.*\(7 of 14 rows: 3, 5, 7, 9, 11 …\)"):
        read_interactions(path)


def test_line_numbers_count_line_breaks_inside_of_fields_and_blank_lines(tmp_path):
    path = written(tmp_path, HEADER + 'u1,"a\nb",2,7\n\n"u\r\n2",c,3,x\n')
    with pytest.raises(UserError, match=r"r\.csv, line 5: column 'timestamp': found 'x'"):
        read_interactions(path)


@pytest.mark.parametrize("line", ["3,a,b,c", "3", '3,"a', '3,"a"b'])
def test_damaged_lines_of_items_are_named_and_can_be_skipped(tmp_path, line):
    path = written(tmp_path, f'movieId,title\n1,"a, ""b"""\n{line}\n2,7" tablet\n', "items.csv")
    with pytest.raises(UserError, match=r"items\.csv, line 3: found .*--on-error skip \(1 of 3 rows\)"):
        read_items(path)
    items = read_items(path, skip_bad=True)
    assert items.names.to_list() == ['a, "b"', '7" tablet']
    assert "skipped damaged rows: 1; the first: " in items.warnings[0]
    assert items.table.facts["skipped_rows"] == 1


def test_a_quote_that_is_not_closed_does_not_swallow_the_lines_that_follow(tmp_path):
    lines = ['u1,"abc,2,7', "u2,c,3,4", 'u3,"d",3,4', 'u4,e",3,4', "u5,f,3,4"]
    path = written(tmp_path, HEADER + "\n".join(lines) + "\n")
    log = read_interactions(path, skip_bad=True)
    assert log.users.to_list() == ["u2", "u3", "u4", "u5"]
    assert log.skipped == 1


def test_two_stray_quotes_in_columns_of_ids_do_not_make_one_record(tmp_path):
    path = written(tmp_path, HEADER + 'u1,"b,2,7\nu2,c",3,4\nu3,"d\ne",3,4\n')
    with pytest.raises(UserError, match=r"line 2: found 'u1,\"b,2,7', where a quoted field is not closed"):
        read_interactions(path)
    log = read_interactions(path, skip_bad=True)
    assert log.items.to_list() == ['c"', "d\ne"]
    items = written(tmp_path, 'item,title,text\n"1,a,b\n2",c,"d, e\nf, g"\n3,"a, b\nc, d",e\n', "items.csv")
    found = read_items(items, skip_bad=True)
    assert found.ids.to_list() == ['2"', "3"]
    assert found.names.to_list() == ["c", "a, b\nc, d"], "texts may have lines"


texts = st.text(st.sampled_from('ab",\n é;\t'), max_size=6)


@given(st.lists(st.lists(texts, min_size=2, max_size=2), min_size=1, max_size=8), st.booleans())
def test_what_pythons_csv_writes_is_read_back(tmp_path_factory, rows, quote_all):
    rows = [["a", "b"], *([first + "x", second] for first, second in rows)]
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL, lineterminator="\n").writerows(rows)
    path = written(tmp_path_factory.mktemp("csv"), text.getvalue())
    read = list(records(part_of(path), 2))
    assert [record.fields for record in read] == rows
    assert all(record.problem is None for record in read)


lines = st.text(st.sampled_from('ab",\n\r '), max_size=40)


@given(lines, st.sampled_from([2, 3]))
def test_a_regular_file_is_read_alike_by_polars_and_record_by_record(tmp_path_factory, text, width):
    header = ",".join("xyz"[:width])
    part = part_of(written(tmp_path_factory.mktemp("csv"), f"{header}\n{text}"))
    if not is_regular(part, width):
        return
    names = list("xyz"[:width])
    frame = open_table((part,)).read(names, ()).select(names).collect()
    expected = [record.fields for record in list(records(part, width))[1:]]
    assert [[value or "" for value in row] for row in frame.rows()] == expected


@pytest.mark.parametrize(
    ("text", "regular"),
    [
        ("a,b\n1,2\n3,4", True),
        ("a,b\r\n1,2\r\n", True),
        ('"a","b"\n"1",2\n3,""\n', True),
        ("a,b\né,2\n", True),
        ("a,b\n1,2\n\n", False),
        ("a,b\n1,2,3\n", False),
        ("a,b\n1\n", False),
        ('a,b\n1,2"\n', False),
        ('a,b\n1,x"y"\n', False),
        ('a,b\n1,"x"y\n', False),
        ('a,b\n1,"x""y"\n', False),
        ('a,b\n1,"x,y"\n', False),
        (b"a,b\n1,\xff\n", False),
    ],
)
def test_only_files_of_one_pattern_are_regular(tmp_path, text, regular):
    assert is_regular(part_of(written(tmp_path, text)), 2) == regular


def test_a_regular_file_of_many_blocks_is_read_with_its_line_numbers(tmp_path):
    count = 200_000
    frame = pl.DataFrame({"user": ["u"] * count, "item": range(count), "timestamp": range(count)})
    frame.write_csv(tmp_path / "r.csv")
    with (tmp_path / "r.csv").open("a") as file:
        file.write("u,1,x\nu,1,5\n")
    with pytest.raises(UserError, match=rf"line {count + 2}: column 'timestamp': found 'x'"):
        read_interactions(tmp_path / "r.csv")
