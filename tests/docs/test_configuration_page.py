"""docs/configuration.md is what its script writes, and what it says of bounds is true."""

import math
from dataclasses import MISSING
from typing import get_args, get_origin

import pytest

from docs.configuration_page import PAGE, ROUNDS, STAGES, comments, explanation, keys_of, page
from ugt_composer.config.checks import on_resume_of_keys
from ugt_composer.config.keys import BOUNDS, Duration
from ugt_composer.config.schema import Config
from ugt_composer.rounds.settings import RoundsSettings

KEYS = [(schema, key) for schema in (Config, RoundsSettings) for key in keys_of(schema)]
WITH_BOUNDS = [
    pytest.param(key, id=f"{key.owner.__name__}.{key.field.name}") for _, key in KEYS if key.field.metadata.get(BOUNDS)
]


def test_the_committed_page_is_what_the_script_writes():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python docs/configuration_page.py"


def test_every_key_is_on_the_page_and_explained():
    text = page()
    found = [comments(path) for path in STAGES]
    for schema, key in KEYS:
        of_yamls = found if schema is Config else [comments(ROUNDS)]
        assert explanation(key, of_yamls, ["a", "b", "c"][: len(of_yamls)]), f"{key.name} has no comment in yamls/"
        assert f"### `{key.name}`\n" in text
        assert key.default is not MISSING
    assert set(on_resume_of_keys(Config)) <= {key.name for _, key in KEYS}


@pytest.mark.parametrize("key", WITH_BOUNDS)
def test_bounds_on_the_page_are_those_that_are_checked(key):
    """Values just outside are refused with the bounds in the message, those just inside are not."""
    bounds = key.field.metadata[BOUNDS]
    inside, outside = _at_the_bounds(bounds, int in (key.hint, *get_args(key.hint)))
    for value in outside:
        assert str(bounds) in (_problem(key, value) or ""), value
    for value in inside:
        assert str(bounds) not in (_problem(key, value) or ""), value


def _at_the_bounds(bounds, is_whole):
    if isinstance(bounds, Duration):
        percents = ["5%", "0.5%", "100%"]
        inside, outside = ["1ba", "20ep"], ["0ba", "1.5ep", "12", "101%", "-1ba"]
        return (inside + percents, outside) if bounds.percent else (inside, outside + percents)

    def step(value, direction):
        return value + direction if is_whole else math.nextafter(value, direction * math.inf)

    inside, outside = [], [] if is_whole else [math.nan, math.inf]
    for bound, direction in ((bounds.above, 1), (bounds.below, -1)):
        if math.isfinite(bound):
            inside.append(step(bound, direction))
            outside.append(bound)
    for bound, direction in ((bounds.least, 1), (bounds.most, -1)):
        if math.isfinite(bound):
            inside.append(bound)
            outside.append(step(bound, -direction))
    assert inside
    return inside, outside


def _problem(key, value) -> str | None:
    """The message about a value; None if it is accepted."""
    if get_origin(key.hint) is tuple:
        count = len(get_args(key.hint)) if Ellipsis not in get_args(key.hint) else 1
        value = (value,) * count
    try:
        key.owner(**{key.field.name: value})
    except ValueError as error:
        return str(error)
    return None
