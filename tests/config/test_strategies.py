"""The strategies' names, in the three places that have to agree."""

from typing import get_args, get_type_hints

from ugt_composer.config.schema import ParallelismConfig
from ugt_composer.config.strategies import STRATEGIES
from ugt_composer.parallelism.build import CLASSES


def test_the_strategies_are_named_once():
    assert set(get_args(get_type_hints(ParallelismConfig)["strategy"])) == set(STRATEGIES) == set(CLASSES)
