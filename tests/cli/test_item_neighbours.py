"""Counted neighbours in the ranking of the commands and of a run's evaluation."""

import json

import numpy as np
import pytest

from tests.shop import shop_item
from ugt_composer.catalogue.neighbour_file import save_neighbours
from ugt_composer.checkpoint.portable import load_portable, save_portable
from ugt_composer.cli.main import main
from ugt_composer.errors import UserError

ITEMS = 40


@pytest.fixture
def model(stages, tmp_path):
    weights, config, _ = load_portable(stages / "stage2" / "best")
    save_portable(tmp_path / "model", weights.state_dict(), config, {})
    ids = np.array([shop_item(number) for number in range(ITEMS)])
    keys = ("l1_id", "l2_id", "l3_id")
    lines = ({"item_id": f"item-{n}", **dict(zip(keys, row, strict=True))} for n, row in enumerate(ids.tolist()))
    (tmp_path / "catalogue.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = np.arange(1, ITEMS + 1)[:, None] % ITEMS  # item n is followed by item n + 1
    save_neighbours(tmp_path / "item_neighbours.npz", ids, rows, np.full((ITEMS, 1), 1.0))
    return tmp_path / "model"


def recommended(model, capsys, *options):
    (model.parent / "user.json").write_text(json.dumps({"items": ["item-3", "item-20"]}))
    words = ["--checkpoint", model, "--catalogue", model.parent / "catalogue.jsonl"]
    capsys.readouterr()
    command = ["recommend", *words, "--history", model.parent / "user.json", "--json", "-k", 3, *options]
    assert main([*map(str, command)]) == 0
    return [entry["item_id"] for entry in json.loads(capsys.readouterr().out)["recommendations"]]


def test_what_followed_the_newest_item_comes_first_if_neighbours_weigh_much(model, capsys):
    options = ("--item-score-weight", 100, "--item-neighbours", model.parent / "item_neighbours.npz")
    assert recommended(model, capsys, *options, "--neighbour-weight", 0.999)[:2] == ["item-21", "item-4"]
    plain = recommended(model, capsys, "--item-score-weight", 100)
    assert recommended(model, capsys, *options, "--neighbour-weight", 0) == plain
    assert plain[:2] != ["item-21", "item-4"]


def test_a_weight_without_a_file_or_a_score_is_an_error(model, capsys):
    with pytest.raises(UserError, match=r"^--neighbour-weight 0\.5: .* with item_neighbours null"):
        recommended(model, capsys, "--neighbour-weight", 0.5)
