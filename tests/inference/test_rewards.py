import pytest

from ugt_composer.catalogue.catalogue import Catalogue, Item
from ugt_composer.errors import UserError
from ugt_composer.inference.rewards import ItemRewards

CATALOGUE = Catalogue([Item("a", 5, 5, 5), Item("c", 5, 5, 6), Item("b", 5, 5, 6)])


def test_the_reward_of_a_shared_semantic_id_is_the_mean_over_its_items():
    calls = []

    def reward(user_id, history, candidates):
        calls.append((user_id, history, candidates))
        return [{"a": 1.0, "b": 2.0, "c": 6.0}[item] for item in candidates]

    values = ItemRewards(reward, "mine", CATALOGUE).of("u", [(5, 5, 6), (9, 9, 9)], [(5, 5, 6), (5, 5, 5)])
    assert values == [4.0, 1.0]
    assert calls == [("u", ["b"], ["b", "c", "a"])]


def test_withheld_items_count_only_where_all_that_share_the_id_are_withheld():
    def reward(user_id, history, candidates):
        return [{"a": 1.0, "b": 2.0, "c": 6.0}[item] for item in candidates]

    rewards = ItemRewards(reward, "mine", CATALOGUE.withholding(exclude=["a", "b"]))
    assert rewards.of("u", [], [(5, 5, 6), (5, 5, 5)]) == [6.0, 1.0]


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="--reward mine: found a value that is not a finite number for user u"):
        ItemRewards(lambda *_: [float("nan")], "mine", CATALOGUE).of("u", [], [(5, 5, 5)])
