"""Commands in blocks of shell code, split as a shell does, without running anything."""

import re
import shlex
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""(?P<space>[ \t]+|\\\n)
    |(?P<comment>\#[^\n]*)
    |(?P<redirection>(?:\d|&)?>>?(?:&\d)?|<(?!<))
    |(?P<end>\n|;|&&|\|\||\||&|[()](?!\w*\)))
    |(?P<word>(?:"(?:\\.|[^"\\])*"|'[^']*'|\\.|\$\((?:[^()]|\([^()]*\))*\)|[^\s;&|()<>"'\\])+)""",
    re.X | re.S,
)
_VARIABLE = re.compile(r"\$\((?:[^()]|\([^()]*\))*\)|\$\{[^}]*\}|\$\w+|\$[?@*#]")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_BEFORE_COMMANDS = {"do", "then", "else", "elif", "if", "while", "until", "!", "{", "exec", "time", "nohup", "env"}


def commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """The commands of a script: lines, from 0, and words without quotes. Variables have the value 1.

    Raises:
        ValueError: it has a here-document or a quote that is not closed.
    """
    words, first, place, skips = list[str](), 0, 0, False
    while place < len(text):
        token = _TOKEN.match(text, place)
        if token is None:
            problem = "a here-document; show the file in a block with title" if text[place] == "<" else "an open quote"
            raise ValueError(f"line {text[:place].count(chr(10)) + 1} has {problem}")
        if token["word"] and not skips:
            if not words:
                first = text[:place].count("\n")
            words.append(_unquoted(token["word"]))
        elif token["end"] and words:
            if command := _without_prefixes(words):
                yield first, command
            words = []
        if token["word"] or token["redirection"]:
            skips = bool(token["redirection"]) and "&" not in token["redirection"][1:]  # its file is the next word
        place = token.end()
    if command := _without_prefixes(words):
        yield first, command


def _unquoted(word: str) -> str:
    return "".join(shlex.split(word if word.startswith("'") else _VARIABLE.sub("1", word)))


def _without_prefixes(words: list[str]) -> list[str]:
    """The command itself, after keywords of the shell and assignments."""
    place = 0
    while place < len(words) and (words[place] in _BEFORE_COMMANDS or _ASSIGNMENT.match(words[place])):
        place += 1
    return words[place:]
