import numpy as np
import pytest

from ugt_composer.catalogue.catalogue import Catalogue, Item
from ugt_composer.catalogue.item_rewards import read_item_rewards
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.errors import UserError

CATALOGUE = Catalogue([Item("c", 6, 5, 6), Item("a", 5, 5, 5), Item("b", 6, 5, 6)], "shop.jsonl")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.jsonl", '{"item_id": "a", "reward": 1}\n\n{"item_id": "b", "reward": -2.5}\n'),
        ("r.csv", "reward,item_id,name\n1,a,\n-2.5,b,x\n"),
        ("r.tsv", "item_id\treward\na\t1\nb\t-2.5\n"),
    ],
)
def test_rewards_are_in_the_order_of_the_catalogue(tmp_path, name, text):
    more = {"r.jsonl": '{"item_id": "z", "reward": 9}\n{"item_id": "c", "reward": "4"}\n', "r.csv": "4,c,\n9,z,\n"}
    (tmp_path / name).write_text(text + more.get(name, "z\t9\nc\t4\n"))
    assert read_item_rewards("loss.reward_file", str(tmp_path / name), CATALOGUE).tolist() == [4.0, 1.0, -2.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"item_id": "a", "reward": 1}\n', "no reward for 2 of 3 items of shop.jsonl, such as .*c"),
        ('{"item_id": "a", "reward": true}\n', ":1: reward: found true, expected a finite number"),
        ('{"item_id": "a", "reward": NaN}\n', ":1: reward: found .*NaN, expected a finite number"),
        ('{"item_id": 1, "reward": 1}\n', ":1: item_id: found 1, expected text"),
        ("a,1\n", ":1: found .*a,1.*, expected"),
        ('{"item_id": "a", "reward": 1}\n' * 2, ":2: item_id: found .*a.* a second time"),
    ],
)
def test_a_wrong_file_is_named_with_the_option_and_line(tmp_path, text, words):
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"^loss.reward_file: .*r.jsonl.*{words}"):
        read_item_rewards("loss.reward_file", str(tmp_path / "r.jsonl"), CATALOGUE)


def test_a_file_that_is_not_there_or_not_text_is_an_error(tmp_path):
    (tmp_path / "r.csv").write_bytes(b"\xff\xfe\x00")
    for name, words in (("nowhere.csv", "no such file"), ("r.csv", "is not text in UTF-8")):
        with pytest.raises(UserError, match=words):
            read_item_rewards("--reward", str(tmp_path / name), CATALOGUE)


def test_items_that_share_a_semantic_id_have_the_mean_of_their_rewards():
    trie = ItemTrie.from_triples(CATALOGUE.triples)
    assert trie.items.tolist() == [[5, 5, 5], [6, 5, 6]]
    assert trie.means(np.array([4.0, 1.0, -2.5]), CATALOGUE.triples).tolist() == [1.0, 0.75]
    assert trie.means(np.array([-2.5]), CATALOGUE.triples[2:]).tolist() == [0.0, -2.5]
