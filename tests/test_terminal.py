import os
import sys

import pytest

from tests.pseudo_terminal import pseudo_terminal, screen
from ugt_composer import terminal
from ugt_composer.terminal import ProgressBar, duration, live_line, print_line


def test_a_bar_is_one_line_that_is_updated_and_removed(monkeypatch):
    monkeypatch.setattr(terminal, "REDRAW_SECONDS", 0)
    with pseudo_terminal(monkeypatch) as read:
        with ProgressBar("evaluating", 4000, "rows") as bar:
            bar.update(1000)
            bar.update_to(3000)
            written = read()
            print_line("a warning")
            after = read()
        end = read()
    (line,) = screen(written)
    assert line.startswith("evaluating: 3,000 of 4,000 rows |█")
    assert line.endswith(" left")
    blocks = line.partition("|")[2].partition("|")[0]
    assert blocks.count("█") == int(0.75 * len(blocks))
    assert len(line) < 100
    shown = screen(written + after)
    assert shown == ["a warning", line]
    assert screen(written + after + end) == ["a warning", ""]


def test_a_line_that_is_too_long_is_cut_and_not_wrapped(monkeypatch):
    with pseudo_terminal(monkeypatch) as read:
        line = live_line()
        line.show("x" * 300, 0.5, "y", at_once=True)
        assert screen(read()) == ["x" * 99]


def test_a_bar_writes_a_line_a_minute_where_stderr_is_no_terminal(capsys, monkeypatch):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with ProgressBar("recommending", 100, "users", initial=10) as bar:
        for _ in range(9):
            bar.update(10)
    assert capsys.readouterr().err.splitlines() == [
        "recommending: 30 of 100 users, 0 users/s, 3:30 left",
        "recommending: 60 of 100 users, 0 users/s, 1:36 left",
        "recommending: 90 of 100 users, 0 users/s, 0:22 left",
    ]
    with ProgressBar("recommending", 100, "users", is_hidden=True) as bar:
        bar.update(100)
    assert capsys.readouterr().err == ""


def test_nobody_who_reads_stderr_is_no_error(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stderr", stream)
    print_line("text")
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 61, 3599.6, 90061)] == ["0:00", "1:01", "1:00:00", "25:01:01"]
