"""Lists without items that are withheld: those of all items, filtered; and how mistakes in the lists are named."""

import json

import numpy as np
import pytest

from tests.shop import SIZES, shop_item
from ugt_composer.checkpoint.portable import load_portable, save_portable
from ugt_composer.cli.main import main
from ugt_composer.data.history import decoder_lists, encoder_lists
from ugt_composer.errors import UserError

SHARED = [(5, 6 + number % 3, 9 + number % 7) for number in range(45)]  # 45 items of 21 semantic IDs
CATALOGUES = ("own", "shared")


def write_catalogue(path, triples, retired=()):
    keys = ("l1_id", "l2_id", "l3_id")
    lines = ({"item_id": f"item-{n}", **dict(zip(keys, ids, strict=True))} for n, ids in enumerate(triples))
    marked = (line | ({"retired": True} if line["item_id"] in retired else {}) for line in lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in marked))
    return path


class Market:
    """A model with one of the two catalogues, and users of it."""

    def __init__(self, folder, name, model, triples, capsys):
        self.folder, self.model, self.triples, self.capsys = folder, model, triples, capsys
        self.catalogue = write_catalogue(folder / "catalogue.jsonl", triples)
        self.names = [f"item-{number}" for number in range(len(triples))]
        random = np.random.default_rng(len(triples))
        self.histories = [[self.names[n] for n in random.integers(len(triples), size=4)] for _ in range(6)]
        self.random = random

    def draw(self, count):
        return [self.names[number] for number in self.random.permutation(len(self.names))[:count]]

    def recommend(self, users, *options, catalogue=None):
        """(lists of (item id, score), standard error)."""
        path = self.folder / "users.jsonl"
        path.write_text("".join(json.dumps(user) + "\n" for user in users))
        words = ["recommend", "--checkpoint", self.model, "--catalogue", catalogue or self.catalogue, "--history", path]
        self.capsys.readouterr()
        assert main([*map(str, [*words, "--json", "--beam-width", 60, *options])]) == 0
        shown = self.capsys.readouterr()
        found = [json.loads(line)["recommendations"] for line in shown.out.splitlines()]
        assert all([e["rank"] for e in entries] == [*range(1, len(entries) + 1)] for entries in found)
        return [[(entry["item_id"], entry["score"]) for entry in entries] for entries in found], shown.err

    def file(self, name, item_ids):
        (self.folder / name).write_text("".join(f"{item}\n" for item in item_ids))
        return self.folder / name


@pytest.fixture(params=CATALOGUES)
def market(request, stages, tmp_path, capsys):
    triples = [shop_item(number) for number in range(60)] if request.param == "own" else SHARED
    model, config, _ = load_portable(stages / "stage2" / "best")
    save_portable(tmp_path / "model", model.state_dict(), config, {})
    return Market(tmp_path, request.param, tmp_path / "model", triples, capsys)


def same(found, wanted):
    assert [[item for item, _ in entries] for entries in found] == [[item for item, _ in entries] for entries in wanted]
    for entries, others in zip(found, wanted, strict=True):
        assert [score for _, score in entries] == pytest.approx([score for _, score in others], abs=1e-5)


@pytest.mark.parametrize(("weight", "seen"), [(0, []), (2, ["--include-seen"]), (2, [])])
def test_a_list_is_the_list_of_all_items_without_those_that_are_withheld(market, weight, seen):
    options = ("--item-score-weight", weight, *seen)
    users = [{"items": items} for items in market.histories]
    whole, _ = market.recommend(users, "-k", 60, *options)
    only, exclude = market.draw(30), market.draw(15)
    files = "--only", market.file("only.txt", only), "--exclude", market.file("exclude.txt", exclude)
    mine, others = market.draw(12), market.draw(20)
    users[1] |= {"only": mine}
    users[2] |= {"exclude": others}
    users[3] |= {"only": mine, "exclude": others}
    users[4] |= {"only": []}
    allowed = [set(market.names) for _ in users]
    allowed[1] &= set(mine)
    allowed[2] -= set(others)
    allowed[3] = allowed[1] - set(others)
    allowed[4] = set()

    def filtered(among, k):
        lists = zip(whole, allowed, strict=True)
        return [[entry for entry in entries if entry[0] in mine & among][:k] for entries, mine in lists]

    same(market.recommend(users, "-k", 3, *options)[0], filtered(set(market.names), 3))
    same(market.recommend(users, "-k", 60, *files[:2], *options)[0], filtered(set(only), 60))
    same(market.recommend(users, "-k", 3, *files[2:], *options)[0], filtered(set(market.names) - set(exclude), 3))
    for k in (3, 60):
        found, remarks = market.recommend(users, "-k", k, *files, *options)
        same(found, filtered(set(only) - set(exclude), k))
    assert "line-5: 0 items can be recommended; the others are" in remarks
    assert "withheld by `only` or `exclude`" in remarks


def test_a_retired_item_is_read_in_histories_and_recommended_to_nobody(market):
    users = [{"items": items} for items in market.histories]
    retired = {market.histories[0][0], *market.draw(9)}
    marked = write_catalogue(market.folder / "retired.jsonl", market.triples, retired)
    for weight in (0, 2):
        options = ("-k", 60, "--item-score-weight", weight, "--include-seen")
        whole, _ = market.recommend(users, *options)
        found, remarks = market.recommend(users, *options, catalogue=marked)
        same(found, [[entry for entry in entries if entry[0] not in retired] for entries in whole])
        assert "left out" not in remarks
    assert f"only {len(market.names) - len(retired)} of the {len(market.names)} items may be recommended" in remarks


def test_a_catalogue_of_which_everything_is_withheld_gives_empty_lists(market):
    everything = market.file("exclude.txt", market.names)
    found, remarks = market.recommend([{"items": market.histories[0]}], "--exclude", everything)
    assert found == [[]]
    assert f"nothing can be recommended: all {len(market.names)} items are withheld" in remarks
    marked = write_catalogue(market.folder / "retired.jsonl", market.triples, market.names)
    assert market.recommend([{"items": market.histories[0]}], catalogue=marked)[0] == [[]]


@pytest.mark.parametrize("market", ["own"], indirect=True)
def test_lists_may_be_json_and_unknown_item_ids_are_counted_and_named(market):
    users = [{"items": ["item-1"], "only": ["item-2", "Item-3", "x"], "exclude": ["y"]}]
    (market.folder / "only.json").write_text(
        '\ufeff ["item-2", "item-2",\n "item-4", "item-5", "gone", "away"]', "utf-8"
    )
    found, remarks = market.recommend(users, "--only", market.folder / "only.json")
    assert [[item for item, _ in entries] for entries in found] == [["item-2"]]
    assert "only.json: 2 of 5 item ids are not in the catalogue, left out: gone, away" in remarks
    assert "line-1: `only`: not in the catalogue, left out: Item-3, x; Item-3 is perhaps item-3" in remarks
    assert "line-1: `exclude`: not in the catalogue, left out: y" in remarks
    lines = market.folder / "lines.txt"
    lines.write_bytes("\ufeff item-2 \r\n\r\nitem-4\r\n".encode())
    assert {item for item, _ in market.recommend([{"items": []}], "--only", lines)[0][0]} == {"item-2", "item-4"}
    assert len(market.recommend([{"items": []}], "-k", 60, "--exclude", market.file("none.txt", []))[0][0]) == 60


@pytest.mark.parametrize("market", ["own"], indirect=True)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item-1\nITEM-2\nx\ny\n", ["3 of 4 item ids", "ITEM-2 is perhaps item-2", "--max-unmatched 0.5", ".jsonl"]),
        ("", ["found no item id"]),
        ("[1, 2]", ["[1, 2]", "in quotes"]),
        ('["item-1"', ["begins with [", "not a JSON list"]),
        (f"{'x' * 100}\n", [f"left out: {'x' * 60}…; more than"]),
        (None, ["cannot be read", "one item id a line"]),
    ],
)
def test_a_mistake_in_a_file_is_named(market, text, words):
    path = market.folder / "only.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as error:
        market.recommend([{"items": []}], "--only", path)
    assert all(word in str(error.value) for word in ["--only", str(path), *words]), error.value
    if text and text.startswith("item"):
        market.recommend([{"items": []}], "--only", path, "--max-unmatched", 1)


@pytest.mark.parametrize("market", ["own"], indirect=True)
def test_max_unmatched_needs_a_file_and_a_fraction(market):
    with pytest.raises(UserError, match=r"--max-unmatched 0\.5 is given without --only or --exclude"):
        market.recommend([{"items": []}], "--max-unmatched", 0.5)
    with pytest.raises(UserError, match=r"--max-unmatched is 2; expected a fraction from 0 to 1"):
        market.recommend([{"items": []}], "--only", market.file("one.txt", ["item-1"]), "--max-unmatched", 2)


@pytest.mark.parametrize("market", ["own"], indirect=True)
@pytest.mark.parametrize(
    ("key", "value"), [("only", "item-1"), ("only", [1]), ("exclude", {"a": 1}), ("exclude", None)]
)
def test_a_list_of_a_history_that_is_not_one_is_named(market, key, value):
    with pytest.raises(UserError, match=rf"users.jsonl:2: {key}: found .*, expected a list of item ids in quotes"):
        market.recommend([{"items": []}, {"items": [], key: value}])


@pytest.mark.parametrize("market", ["own"], indirect=True)
def test_a_user_to_whom_nothing_may_be_recommended_gets_an_empty_list(market):
    users = [{"items": ["item-1"], "only": only} for only in ([], ["gone"])]
    for batch in (users, users[:1], [*users, {"items": ["item-1"]}]):
        found, remarks = market.recommend(batch, "-k", 3)
        assert found[: len(users)] == [[]] * min(len(batch), 2)
        assert "line-1: 0 items can be recommended" in remarks


@pytest.mark.parametrize("market", ["own"], indirect=True)
@pytest.mark.parametrize(
    ("key", "meant"), [("exlude", "exclude"), ("onyl", "only"), ("time", "times"), ("action", "actions")]
)
def test_a_misspelt_key_of_a_history_is_an_error(market, key, meant):
    with pytest.raises(UserError, match=rf"users.jsonl:1: {key} is unknown; did you mean {meant}\?"):
        market.recommend([{"items": ["item-1"], key: ["item-2"]}])
    assert market.recommend([{"items": ["item-1"], "name": "Anna", "timestamp": 3}])[0][0]


def test_item_ids_need_a_catalogue(stages, tmp_path):
    from dataclasses import replace

    model, config, _ = load_portable(stages / "stage1" / "best")
    save_portable(
        tmp_path / "model", model.state_dict(), replace(config, data=replace(config.data, catalogue=None)), {}
    )
    (tmp_path / "user.json").write_text(json.dumps(encoder_lists([(5, 5, 5)]) | {"exclude": ["a"]}))
    words = ["recommend", "--checkpoint", str(tmp_path / "model"), "--history", str(tmp_path / "user.json")]
    with pytest.raises(UserError, match="`exclude` names items of a catalogue; expected --catalogue"):
        main(words)
    with pytest.raises(UserError, match="--exclude names items of a catalogue; expected --catalogue"):
        main([*words, "--exclude", str(tmp_path / "user.json")])


@pytest.mark.parametrize("members", [False, True])
def test_an_evaluation_measures_the_lists_without_what_is_withheld(market, members):
    from convert.jsonl_to_mds import main as convert

    targets = market.draw(len(market.histories))
    order = sorted(range(len(market.names)), key=market.names.__getitem__)
    rows = []
    for user, (history, target) in enumerate(zip(market.histories, targets, strict=True)):
        triples = [market.triples[int(item.removeprefix("item-"))] for item in [*history, target]]
        row = {"user_id": f"u{user}", **encoder_lists(triples[:-1]), **decoder_lists(triples[-1:])}
        same_id = [market.names[n] for n in order if market.triples[n] == triples[-1]]
        rows.append(row | ({"target_members": [same_id.index(target)]} if members else {}))
    path = market.folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--codebook-sizes", *map(str, SIZES), "--max-positions", "32"]
    words = [str(path), "--kind", "recommend", "--out", str(market.folder / "rows"), *sizes]
    assert convert([*words, "--catalogue", str(market.catalogue)]) == 0
    exclude = {*targets[:2], *market.draw(12)} - {targets[3]}
    retired = write_catalogue(market.folder / "retired.jsonl", market.triples, exclude)
    same_id = {
        n: [m for m in market.names if market.triples[int(m[5:])] == market.triples[int(n[5:])]] for n in targets
    }
    users = [{"items": items} for items in market.histories]
    lists, _ = market.recommend(users, "-k", 10, "--include-seen", catalogue=retired)
    hits = [
        sum(item == target if members else item in same_id[target] for item, _ in entries)
        / (1 if members else len(same_id[target]))
        for entries, target in zip(lists, targets, strict=True)
    ]
    gone = [target in exclude if members else exclude.issuperset(same_id[target]) for target in targets]
    for catalogue, option in ((retired, []), (market.catalogue, ["--exclude", market.file("gone.txt", exclude)])):
        out = market.folder / "found.json"
        words = ["evaluate", "--checkpoint", market.model, "--data", market.folder / "rows", "--catalogue", catalogue]
        assert main([*map(str, [*words, "-k", 10, "--beam-width", 60, "--json", out, *option])]) == 0
        found = json.loads(out.read_text())
        assert found["metrics"]["recall@10"] == pytest.approx(np.mean(hits), abs=1e-6)
        covered = {item for entries in lists for item, _ in entries}
        left = len(market.names) - len(exclude)
        assert found["metrics"]["coverage@10"] == pytest.approx(len(covered) / left, abs=1e-6)
        assert found["catalogue"]["withheld_items"] == len(exclude)
        assert found["withheld_target_rows"] == sum(gone)
        others = [hit for hit, is_gone in zip(hits, gone, strict=True) if not is_gone]
        assert found["with_open_targets"]["rows"] == len(others)
        assert found["with_open_targets"]["recall@10"] == pytest.approx(np.mean(others), abs=1e-6)
        warning = f"{sum(gone)} of {len(targets)} ranked rows have a target that is withheld"
        assert any(warning in text for text in found["warnings"]) == any(gone)
    assert found["exclude"] == {"path": str(market.folder / "gone.txt"), "items": len(exclude), "unknown_items": 0}


@pytest.mark.parametrize("market", ["own"], indirect=True)
def test_an_evaluation_of_nothing_is_refused(market):
    words = ["evaluate", "--checkpoint", market.model, "--data", market.folder, "--catalogue", market.catalogue]
    with pytest.raises(UserError, match="all 60 items are withheld, so nothing can be recommended"):
        main([*map(str, [*words, "--exclude", market.file("all.txt", market.names)])])


def test_models_and_shards_of_a_catalogue_stay_valid_when_items_are_retired(shop, stages, stage_config, tmp_path):
    from ugt_composer.training.build import build_trainer

    retired = {f"item-{number}" for number in range(0, 60, 3)}
    marked = write_catalogue(tmp_path / "retired.jsonl", [shop_item(number) for number in range(60)], retired)
    best = stages / "stage2" / "best"
    trainer = build_trainer(stage_config(tmp_path / "run", 2, best, f"data.catalogue={marked}"))
    expected = {name.removeprefix("metrics/eval/"): value for name, value in trainer.evaluate().items()}
    trainer.close()
    words = ["evaluate", "--checkpoint", best, "--catalogue", marked, "--json", tmp_path / "found.json"]
    data = ["--data", shop / "eval", "--data", shop / "preference_eval"]
    assert main([*map(str, [*words, *data])]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["metrics"] == pytest.approx(expected, abs=1e-6)
    assert found["catalogue"]["withheld_items"] == 20
    assert main([*map(str, [*words, *data, "--catalogue", shop / "catalogue.jsonl"])]) == 0
    whole = json.loads((tmp_path / "found.json").read_text())
    assert whole["catalogue"]["withheld_items"] == 0
    assert whole["metrics"]["loss"] == pytest.approx(expected["loss"], abs=1e-6)  # a target may be retired
    assert whole["metrics"]["recall@50"] > expected["recall@50"]
