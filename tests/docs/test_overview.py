"""The README's picture."""

import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

DOCS = Path(__file__).parents[2] / "docs"
OVERVIEW = runpy.run_path(str(DOCS / "overview_picture.py"))


@pytest.mark.parametrize("name", OVERVIEW["LANGUAGES"])
def test_the_committed_picture_is_the_one_that_the_script_draws(name):
    committed = (DOCS / "images" / name).read_text(encoding="utf-8")
    assert committed == OVERVIEW["overview"](OVERVIEW["LANGUAGES"][name]), "run: python docs/overview_picture.py"
    ElementTree.fromstring(committed)
