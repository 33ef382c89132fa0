"""The Python reference shows every public name, and each of them is documented."""

import griffe
import pytest

import ugt_composer
from docs.undocumented import package, shown_names, undocumented
from tests.docs.pages import pages, text_of

REFERENCE = [page for page in pages() if page.startswith("docs/api/")]


@pytest.mark.parametrize("page", REFERENCE)
def test_what_a_page_shows_is_documented(page):
    assert [path for name in shown_names(text_of(page)) for path in undocumented(name)] == []


def test_every_public_name_is_shown():
    shown = {name for page in REFERENCE for name in shown_names(text_of(page))}
    assert {f"ugt_composer.{name}" for name in ugt_composer.__all__} <= shown


def test_names_for_type_checkers_are_the_lazy_ones():
    imported = {name: member.target_path for name, member in package().members.items() if member.is_alias}
    lazy = {name: f"{module}.{name}" for name, module in ugt_composer._MODULES.items()}
    assert {name: imported[name] for name in imported if name in lazy} == lazy


def test_a_missing_docstring_is_found():
    with griffe.temporary_visited_module(
        '''
        """A module."""
        from dataclasses import dataclass

        @dataclass
        class Settings:
            """Some settings.

            Attributes:
                width: of a layer.
                low, high: bounds.
            """

            width: int
            low: int
            high: int
            depth: int

            def area(self): ...

            def _hidden(self): ...
        '''
    ) as module:
        from docs.undocumented import _undocumented

        assert [path.rpartition(".")[2] for path in _undocumented(module)] == ["low", "high", "depth", "area"]
