"""The grammar of `save_best_if`, and when a value fulfils it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.config.best_condition import BestCondition, parse_best_condition
from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("ndcg@10 >= 0.97 of the start", ("ndcg@10", True, 0.97, True)),
        (" ntp_loss<=1.02  of the start ", ("ntp_loss", False, 1.02, True)),
        ("recall@10 >= .05", ("recall@10", True, 0.05, False)),
        ("my_metric >= 3", ("my_metric", True, 3.0, False)),
    ],
)
def test_forms(text, condition):
    assert parse_best_condition(text) == BestCondition(text, *condition)


@pytest.mark.parametrize(
    "text",
    ["ndcg@10", "ndcg@10 > 0.97 of the start", "ndcg@10 >= 97 %", "ndcg@10 >= 0.97 of start", "ndcg@10 >= -1", ">= 1"],
)
def test_other_forms_are_refused_with_an_example(text):
    with pytest.raises(UserError, match=r"save_best_if is .*expected METRIC >= NUMBER"):
        load_config(overrides=["save_best_on=ndcg@10", f"save_best_if={text}"])


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 2))
def test_a_relative_limit_is_a_change_by_a_fraction_of_the_start(value, start, number):
    lower, upper = (BestCondition("", "m", is_lower, number, True) for is_lower in (True, False))
    change = (lower.limit(start) - start) / abs(start) if abs(start) > 1e-3 else number - 1
    assert change == pytest.approx(number - 1, abs=1e-9)
    assert lower.holds(value, start) == (value >= lower.limit(start))
    assert upper.holds(value, start) == (value <= upper.limit(start))
    assert number >= 1 or lower.holds(start, start)
    assert not lower.holds(math.nan, start)
    assert not upper.holds(value, math.nan)


def test_an_absolute_limit_does_not_depend_on_the_start():
    condition = parse_best_condition("ndcg@10 >= 0.3")
    assert condition.holds(0.3, math.nan)
    assert not condition.holds(0.29, 0.0)
