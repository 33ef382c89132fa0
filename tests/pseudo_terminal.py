"""What a person would see of a program's stderr."""

import fcntl
import os
import pty
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ugt_composer.terminal import end_live_line


def screen(written: bytes) -> list[str]:
    """The lines that a terminal shows: it returns at \\r and erases to the end of the line at ESC [ K."""
    lines, column = [""], 0
    text = written.decode()
    while text:
        if text.startswith("\x1b[K"):
            lines[-1] = lines[-1][:column]
            text = text[3:]
            continue
        if text[0] == "\n":
            lines.append("")
        if text[0] in "\r\n":
            column = 0
        else:
            lines[-1] = lines[-1][:column] + text[0] + lines[-1][column + 1 :]
            column += 1
        text = text[1:]
    return [line.rstrip() for line in lines]


@contextmanager
def pseudo_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bytes]]:
    """Makes stderr a pseudo terminal of 100 columns. read() → what was written to it since the last call."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    stream = os.fdopen(writer, "w", encoding="utf-8")
    os.set_blocking(reader, False)

    def read() -> bytes:
        written = b""
        try:
            while piece := os.read(reader, 65536):
                written += piece
        except BlockingIOError:
            pass
        return written

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        patch.setenv("TERM", "xterm")
        yield read
        end_live_line()
    stream.close()
    os.close(reader)
