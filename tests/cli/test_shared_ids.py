"""Where items share semantic IDs, `ugt evaluate` measures the lists of items that `ugt recommend` prints."""

import json

import pytest

from tests.shop import SIZES
from ugt_composer.checkpoint.portable import load_portable, save_portable
from ugt_composer.cli.main import main
from ugt_composer.data.history import decoder_lists, encoder_lists

ITEMS = [(5, 6 + number % 3, 9) for number in range(30)]  # thirty items of three semantic IDs
HISTORIES = [[number, (7 * number) % 30, (11 * number) % 30] for number in range(30)]
NEXT = [(13 * number + 4) % 30 for number in range(30)]
CUTS = (1, 5, 12, 30)


@pytest.fixture(scope="module")
def shared(stages, tmp_path_factory):
    """A folder with a catalogue, shards, the same rows as JSON Lines, and a model that knows no catalogue."""
    from convert.jsonl_to_mds import main as convert

    folder = tmp_path_factory.mktemp("shared")
    keys = ("l1_id", "l2_id", "l3_id")
    items = ({"item_id": f"item-{n}", **dict(zip(keys, ids, strict=True))} for n, ids in enumerate(ITEMS))
    (folder / "catalogue.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    rows = (
        {
            "user_id": f"u{user}",
            **encoder_lists([ITEMS[item] for item in history]),
            **decoder_lists([ITEMS[target]]),
        }
        for user, (history, target) in enumerate(zip(HISTORIES, NEXT, strict=True))
    )
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--codebook-sizes", *map(str, SIZES), "--max-positions", "32"]
    words = [str(folder / "rows.jsonl"), "--kind", "recommend", "--out", str(folder / "rows"), *sizes]
    assert convert(words) == 0
    model, config, _ = load_portable(stages / "stage1" / "best")
    save_portable(folder / "model", model.state_dict(), config, {})
    return folder


def run(shared, command, *options):
    words = ["--checkpoint", shared / "model", "--catalogue", shared / "catalogue.jsonl", *options]
    assert main([command, *map(str, words)]) == 0


def test_recall_is_the_fraction_of_users_whose_next_item_is_in_their_list(shared, capsys):
    run(shared, "recommend", "--history", shared / "rows.jsonl", "-k", "30", "--json", "--include-seen")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    lists = [[entry["item_id"] for entry in line["recommendations"]] for line in lines]
    run(shared, "evaluate", "--data", shared / "rows", "-k", *CUTS, "--json", shared / "found.json", "--include-seen")
    metrics = json.loads((shared / "found.json").read_text())["metrics"]
    shown = capsys.readouterr()
    assert "id_recall" in shown.out
    assert "30 items share 3 semantic IDs: recall, ndcg, hit_rate and mrr are those of the lists of items" in shown.err
    for k in CUTS:
        # The rows name the next item by its semantic ID: each of the ten items that share it is equally likely.
        hits = [
            sum(ITEMS[int(item.removeprefix("item-"))] == ITEMS[target] for item in items[:k]) / 10
            for items, target in zip(lists, NEXT, strict=True)
        ]
        assert metrics[f"recall@{k}"] == pytest.approx(sum(hits) / len(hits), abs=1e-6)
        covered = {item for items in lists for item in items[:k]}
        assert metrics[f"coverage@{k}"] == pytest.approx(len(covered) / 30, abs=1e-6)
    assert metrics["id_recall@5"] == 1
    assert metrics["recall@5"] < 0.5
    assert metrics["recall@30"] == pytest.approx(1)


def test_recall_counts_the_very_items_if_the_rows_name_them(shared, capsys):
    from convert.jsonl_to_mds import main as convert

    order = sorted(range(30), key=lambda item: f"item-{item}")
    member = {n: [o for o in order if ITEMS[o] == ITEMS[n]].index(n) for n in range(30)}
    lines = [json.loads(line) for line in (shared / "rows.jsonl").read_text().splitlines()]
    known = [line | {"target_members": [member[target]]} for line, target in zip(lines, NEXT, strict=True)]
    (shared / "known.jsonl").write_text("".join(json.dumps(line) + "\n" for line in known))
    sizes = ["--codebook-sizes", *map(str, SIZES), "--max-positions", "32", "--out", str(shared / "known")]
    assert convert([str(shared / "known.jsonl"), "--kind", "recommend", *sizes]) == 0
    capsys.readouterr()
    run(shared, "recommend", "--history", shared / "known.jsonl", "-k", "30", "--json", "--include-seen")
    lists = [json.loads(line)["recommendations"] for line in capsys.readouterr().out.splitlines()]
    run(shared, "evaluate", "--data", shared / "known", "-k", *CUTS, "--json", shared / "found.json", "--include-seen")
    metrics = json.loads((shared / "found.json").read_text())["metrics"]
    ranks = [
        [entry["item_id"] for entry in entries].index(f"item-{target}") + 1
        for entries, target in zip(lists, NEXT, strict=True)
    ]
    for k in CUTS:
        assert metrics[f"recall@{k}"] == pytest.approx(sum(rank <= k for rank in ranks) / 30, abs=1e-6)
    assert metrics["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / 30, abs=1e-6)


def test_a_catalogue_without_shared_ids_has_no_metrics_of_ids(shop, stages, tmp_path, capsys):
    words = ["--checkpoint", stages / "stage1" / "best", "--data", shop / "eval", "--json", tmp_path / "found.json"]
    assert main(["evaluate", *map(str, words)]) == 0
    assert not [name for name in json.loads((tmp_path / "found.json").read_text())["metrics"] if "id_" in name]
