import math

import numpy as np
import pytest
import torch

from ugt_composer.catalogue.neighbour_file import save_neighbours
from ugt_composer.catalogue.neighbours import DECAY, RECENT, load_neighbours, recent_items
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.errors import UserError
from ugt_composer.generation.item_scores import ItemScores, NeighbourScores

IDS = np.array([[7, 5, 5], [5, 6, 5], [5, 5, 9], [9, 9, 9]])  # not in the order of the trie
ROWS = np.array([[1, 2], [0, -1], [3, 0], [-1, -1]])
VALUES = np.array([[0.5, 0.25], [0.75, 0.0], [0.5, 0.5], [0.0, 0.0]])
TRIE = ItemTrie.from_triples(IDS)


@pytest.fixture
def path(tmp_path):
    save_neighbours(tmp_path / "item_neighbours.npz", IDS, ROWS, VALUES)
    return str(tmp_path / "item_neighbours.npz")


def histories(*rows: list[int | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (B, S, 3) and mask (B, S) of histories of rows of IDS, None: a token that is no item; padded at the end."""
    longest = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), longest, 3, dtype=torch.int64), torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, items in enumerate(rows):
        for place, item in enumerate(items):
            ids[row, place] = torch.tensor([1, 1, 1] if item is None else IDS[item].tolist())
            mask[row, place] = True
    return ids, mask


def test_recent_items_are_the_newest_first_without_other_tokens():
    ids, mask = histories([None, 0, 2, None, 1], [None, 3], [None])
    found = TRIE.items[recent_items(ids, mask, TRIE).clamp(min=0)].numpy()
    counts = (recent_items(ids, mask, TRIE) >= 0).sum(dim=1)
    assert counts.tolist() == [3, 1, 0]
    assert found[0, :3].tolist() == IDS[[1, 2, 0]].tolist()
    assert found[1, 0].tolist() == IDS[3].tolist()


def test_only_the_most_recent_items_count():
    ids, mask = histories([0] * 3 + [1] * RECENT)
    recent = recent_items(ids, mask, TRIE)
    assert TRIE.items[recent].tolist() == [[IDS[1].tolist()] * RECENT]


def test_probabilities_are_the_weighted_mean_of_the_neighbours_of_recent_items(path):
    neighbours = load_neighbours(path, TRIE)
    rows: tuple[list[int | None], ...] = ([None, 0, 2, 1], [None, 3], [None])
    found = neighbours(recent_items(*histories(*rows), TRIE))
    for row, items in enumerate(rows):
        known = [item for item in items if item is not None][::-1]
        total = sum(DECAY**age for age in range(len(known)))
        expected = dict.fromkeys(range(len(IDS)), 0.0)
        for age, item in enumerate(known):
            for other, value in zip(ROWS[item], VALUES[item], strict=True):
                if other >= 0:
                    expected[int(other)] += DECAY**age / total * value
        for item, value in expected.items():
            place = TRIE.find(torch.from_numpy(IDS[item]))
            assert found[row, place].item() == pytest.approx(value)


def test_the_user_item_score_is_a_mixture_of_both_probabilities(path):
    neighbours, recent = load_neighbours(path, TRIE), recent_items(*histories([None, 0], [None]), TRIE)
    users, items = torch.randn(2, 3), torch.randn(len(IDS), 3)
    plain = ItemScores(users, items, 1.0, 1.0, "dot")(slice(None))
    mixed = ItemScores(users, items, 1.0, 2.0, "dot", NeighbourScores(neighbours, recent, 0.3))(slice(None))
    expected = 2 * (0.7 * plain.exp() + 0.3 * neighbours(recent)).log()
    torch.testing.assert_close(mixed, expected)
    # A history without a known item: the ranking is that of the vectors.
    torch.testing.assert_close(mixed[1], 2 * (plain[1] + math.log(0.7)))


def test_a_larger_catalogue_takes_the_neighbours_of_the_one_it_contains(path):
    larger = ItemTrie.from_triples(np.concatenate([IDS, [[5, 5, 5], [6, 6, 6]]]))
    neighbours = load_neighbours(path, larger)
    ids, mask = histories([0])
    found = neighbours(recent_items(ids, mask, larger))
    assert found[0, larger.find(torch.from_numpy(IDS[1]))].item() == pytest.approx(0.5)
    assert found.sum().item() == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such file"]),
        (b"text", ["cannot be read", "item_neighbours.npz"]),
        ({"ids": IDS}, ["cannot be read"]),
        ({"ids": IDS, "neighbours": ROWS[:2], "probabilities": VALUES}, ["do not fit"]),
        ({"ids": IDS, "neighbours": ROWS + 9, "probabilities": VALUES}, ["do not fit"]),
        ({"ids": IDS, "neighbours": ROWS, "probabilities": -VALUES}, ["negative"]),
        ({"ids": IDS + 1, "neighbours": ROWS, "probabilities": VALUES}, ["4 of its 4 items", "another import"]),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, content, words):
    path = tmp_path / "item_neighbours.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(UserError) as error:
        load_neighbours(str(path), TRIE)
    assert all(word in str(error.value) for word in (str(path), *words)), str(error.value)
