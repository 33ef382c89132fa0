"""Data that lacks what a model reads, or that names actions differently."""

from dataclasses import replace

import pytest

from ugt_composer.config.schema import ModelConfig
from ugt_composer.data.manifest import Manifest
from ugt_composer.data.model_inputs import (
    action_facts,
    actions_of_model,
    common_action_names,
    missing_inputs,
)
from ugt_composer.errors import UserError

PLAIN = Manifest("mds/a", "recommend", 9, (9, 9, 9), 7, (5, 2, 0), 2, "hash", None)
WITH_ALL = {"encoder_actions": 4, "encoder_times": 1, "decoder_times": 9}


@pytest.mark.parametrize(
    ("model", "rows_with", "missing"),
    [
        ({}, {}, []),
        ({"num_actions": 2}, {}, ["encoder_actions"]),
        ({"time_buckets": 8}, {}, ["encoder_times"]),
        ({"time_buckets": 8}, {"encoder_times": 1}, ["decoder_times"]),
        ({"num_actions": 2, "time_buckets": 8}, WITH_ALL, []),
        ({"num_actions": 2, "time_buckets": 8}, WITH_ALL | {"decoder_times": 0}, ["decoder_times"]),
    ],
)
def test_lists_that_the_model_reads_and_no_row_has_are_named(model, rows_with, missing):
    warnings = missing_inputs(ModelConfig(**model), "data.train", [PLAIN, replace(PLAIN, rows_with=rows_with)])
    assert [warning.split()[5].rstrip(",") for warning in warnings] == missing
    assert all(warning.startswith("no row of data.train has ") for warning in warnings)
    assert missing_inputs(ModelConfig(**model), "data.eval", []) == []


def test_names_must_agree_where_both_have_one():
    named = [("a", ()), ("b", ("view",)), ("c", ("view", "buy")), ("d", ("view",))]
    assert common_action_names(named) == ("view", "buy")
    assert common_action_names([("a", ())]) == ()
    with pytest.raises(UserError, match=r"action 2 is buy in c, but like in e; expected the same names"):
        common_action_names([*named, ("e", ("view", "like"))])


def test_a_model_keeps_the_names():
    assert actions_of_model(action_facts(("view", "búy"))) == ("view", "búy")
    assert action_facts(()) == {}
    assert actions_of_model({}) == ()
