"""Results by popularity and lists of users, compared with counting by hand. The model has random weights."""

import json
from collections import Counter

import pytest

from tests.report.made_runs import made_run
from tests.shop import stage_arguments
from ugt_composer.config.load import load_config
from ugt_composer.config.schema import StreamConfig
from ugt_composer.errors import UserError
from ugt_composer.report import evaluated
from ugt_composer.report.evaluated import evaluate_run
from ugt_composer.report.popularity import GROUPS, ItemKeys, count_targets, recommend_folders
from ugt_composer.report.results import read_result
from ugt_composer.report.run_folder import read_runs
from ugt_composer.report.semantic_ids import catalogue_of

EVAL_ROWS, K = 41, 10


@pytest.fixture(scope="module")
def folder(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "run"
    path, *rest = stage_arguments(shop, folder, 1)
    return made_run(load_config(path, overrides=rest), folder)


def evaluate(folder, rows=1000, seed=0, data=()):
    (run,) = read_runs([str(folder)])
    return evaluate_run(run, catalogue_of(run), data, rows, seed)


@pytest.fixture
def all_users(monkeypatch):
    monkeypatch.setattr(evaluated, "USERS", 1000)


def test_results_by_popularity_are_those_of_the_lists(folder, shop, all_users):
    result = evaluate(folder)
    (run,) = read_runs([str(folder)])
    keys = ItemKeys(run.config.model.codebook_sizes)
    streams = recommend_folders([StreamConfig(local=str(shop / "train"))])
    popular = count_targets(streams, keys, keys.of(catalogue_of(run).triples))

    def group_of(item) -> int:
        l1, l2, l3 = map(int, item.semantic_id.split("/"))
        _, second, third = run.config.model.codebook_sizes
        key = (l1 * second + l2) * third + l3
        return int(popular.groups[popular.keys.tolist().index(key)])

    assert len(result.users) == result.rows == EVAL_ROWS
    targets, shown, rows, recall = Counter(), Counter(), Counter(), Counter()
    for user in result.users:
        assert len(user.recommended) == K
        found = {item.semantic_id for item in user.recommended}
        shown.update(map(group_of, user.recommended))
        targets.update(map(group_of, user.targets))
        for group in {group_of(item) for item in user.targets}:
            wanted = {item.semantic_id for item in user.targets if group_of(item) == group}
            rows[group] += 1
            recall[group] += len(wanted & found) / len(wanted)
    for number, group in enumerate(result.popularity.groups):
        assert (group.targets, group.shown, group.rows) == (targets[number], shown[number], rows[number])
        if rows[number]:
            assert group.recall == pytest.approx(recall[number] / rows[number])
    assert sum(group.shown for group in result.popularity.groups) == EVAL_ROWS * K
    assert len(result.popularity.groups) == GROUPS + 1


def test_users_are_those_of_the_rows(folder, shop, all_users):
    rows = {}
    for line in (shop / "eval.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows[row["user_id"]] = row
    for user in evaluate(folder).users:
        row = rows[user.user_id]
        history = list(zip(*(row[f"encoder_l{level}_ids"] for level in (1, 2, 3)), strict=True))[1:]  # but the user
        assert [item.semantic_id for item in user.history] == ["/".join(map(str, ids)) for ids in history]
        assert user.earlier == 0
        wanted = {item.semantic_id for item in user.targets}
        assert [item.is_target for item in user.recommended] == [
            item.semantic_id in wanted for item in user.recommended
        ]
        assert all(item.name.startswith("item-") for item in (*user.history, *user.targets, *user.recommended))


def test_the_seed_draws_rows_and_users(folder):
    first, again, other = evaluate(folder, 15), evaluate(folder, 15), evaluate(folder, 15, seed=1)
    assert first.rows == 15
    assert first == again
    assert [user.user_id for user in first.users] != [user.user_id for user in other.users]
    assert "15 rows, drawn at random (seed 0), of the 41 rows" in first.about


def test_all_rows_give_the_metrics_of_ugt_evaluate(folder, shop, tmp_path):
    from ugt_composer.cli.main import main

    file = tmp_path / "results.json"
    options = ["--checkpoint", str(folder / "best"), "--data", str(shop / "eval"), "--json", str(file)]
    assert main(["evaluate", *options]) == 0
    model, expected = read_result(str(file))
    result = evaluate(folder)
    assert model.parent == folder
    assert expected.metrics.items() <= result.metrics.items()
    assert expected.by_length == result.by_length


def test_what_is_missing_is_an_error_in_a_sentence(folder, shop, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        evaluate(folder, data=[str(tmp_path / "none")])
    with pytest.raises(UserError, match="no recommend rows"):
        evaluate(folder, data=[str(shop / "preference_eval")])
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/metrics.jsonl").write_text("")
    (empty,) = read_runs([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="no model in best or latest/ yet"):
        evaluate_run(empty, None, [], 10, 0)


def test_without_the_training_data_the_popularity_is_missing(folder, shop, tmp_path):
    path = folder / "best/config.yaml"
    text = path.read_text()
    (folder / "best/record.json").unlink()
    path.write_text(text.replace(f"local: {shop / 'train'}", f"local: {tmp_path / 'gone'}"))
    try:
        result = evaluate(folder)
    finally:
        path.write_text(text)
    assert result.popularity is None
    assert "gone) is not on this machine" in result.no_popularity
    assert len(result.users) == evaluated.USERS
