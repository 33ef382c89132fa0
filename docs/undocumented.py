"""Names of the Python reference without a docstring, which `make docs` refuses.

`::: ugt_composer.metrics.user_metrics` on a page of docs/api/ shows a name; what it shows has to be documented:
modules, classes, functions, methods and the fields of dataclasses.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parent.parent


def shown_names(markdown: str) -> list[str]:
    """The names that a page of the reference shows, such as "ugt_composer.UGT"."""
    return re.findall(r"^::: +([\w.]+)", markdown, re.M)


def undocumented(name: str) -> Iterator[str]:
    """The paths of a name and what is below it that have no docstring. KeyError: there is no such name."""
    found = package()[name.removeprefix("ugt_composer.")] if "." in name else package()
    yield from _undocumented(found.final_target if isinstance(found, griffe.Alias) else found)


@cache
def package() -> griffe.Object:
    """The package as its source says, without importing it."""
    loaded = griffe.load("ugt_composer", search_paths=[ROOT], docstring_parser="google")
    assert isinstance(loaded, griffe.Object)
    return loaded


def _undocumented(found: griffe.Object | griffe.Alias) -> Iterator[str]:
    if not found.has_docstring:
        yield found.path
    described = _described_fields(found)
    for name, member in found.members.items():
        if member.is_alias or name.startswith("_") or member.is_module:
            continue
        if member.is_class or member.is_function:
            yield from _undocumented(member)
        elif not member.has_docstring and name not in described and ("property" in member.labels or _has_fields(found)):
            yield member.path


def _has_fields(found: griffe.Object | griffe.Alias) -> bool:
    """Whether the attributes of a class are what it is created with."""
    bases = {str(base).rpartition(".")[2] for base in getattr(found, "bases", ())}
    return "dataclass" in found.labels or bool(bases & {"NamedTuple", "TypedDict", "Protocol"})


def _described_fields(found: griffe.Object | griffe.Alias) -> set[str]:
    """The attributes that the docstring describes, each in a line of its own."""
    sections = found.docstring.parse("google") if found.docstring is not None else []
    return {field.name for section in sections if section.kind.value == "attributes" for field in section.value}
