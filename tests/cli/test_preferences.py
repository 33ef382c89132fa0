"""`ugt preferences`, compared with sorting all items by their exact log p."""

import json
import sys

import pytest
import torch

from tests.shop import SIZES, stage_arguments
from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.checkpoint.portable import load_portable
from ugt_composer.cli.main import main as ugt
from ugt_composer.config.load import load_config
from ugt_composer.data.codec import IDS, LABELS, TOKEN_TYPE, decode_row
from ugt_composer.data.collate import PackedRow, collate
from ugt_composer.data.evaluation_dataset import RowFolder
from ugt_composer.data.history import decoder_lists, encoder_lists
from ugt_composer.data.manifest import read_manifest
from ugt_composer.errors import UserError
from ugt_composer.generation.item_log_probs import score_over_codebooks
from ugt_composer.vocabulary import ITEM

READING = {"all": [], "one": ["--max-history", "1"]}


def rows_of(folder):
    folder = RowFolder(str(folder), None)
    return [decode_row(folder[number]) for number in range(len(folder))]


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def make(shop, stages, tmp_path):
    """make(*options, data) → the folder of preference rows that stage 2's model makes."""

    def run(*options, data=("eval",), name="own"):
        folders = [word for part in data for word in ("--data", str(shop / part))]
        words = ["--checkpoint", str(stages / "stage2/best"), *folders, "--out", str(tmp_path / name), *options]
        assert ugt(["preferences", *words]) == 0
        return tmp_path / name

    return run


@pytest.fixture(scope="module")
def ranked_items(shop, stages):
    """ranked_items(number) → the items of the catalogue without the history and targets of a row of `eval`, by exact
    log p under stage 2's model."""
    model, *_ = load_portable(stages / "stage2/best")
    items = [item.triple for item in Catalogue.load(shop / "catalogue.jsonl").items]

    def rank(number):
        packed = RowFolder(str(shop / "eval"), None)[number]
        batch, row = collate([PackedRow(0, packed)]), decode_row(packed)
        with torch.no_grad():
            hidden = model.start_over(model.encode(batch), batch)
            scores = score_over_codebooks(model.level_log_probs, hidden, torch.tensor([items]))[0].tolist()
        seen = {*map(tuple, row.encoder[row.encoder[:, TOKEN_TYPE] == ITEM, IDS].tolist())}
        seen |= {*map(tuple, row.decoder[:, LABELS].tolist())}
        ranked = sorted(zip(scores, items, strict=True), key=lambda pair: -pair[0])
        return [item for _, item in ranked if item not in seen]

    return rank


def test_rejected_items_are_the_best_of_all_others_by_exact_log_p(shop, make, ranked_items):
    given, made = rows_of(shop / "eval"), rows_of(make("--rejected", "7", "--batch-size", "9"))
    assert len(made) == len(given) == 41
    for number, (row, own) in enumerate(zip(given, made, strict=True)):
        assert own.user_id == row.user_id
        assert own.encoder.tolist() == row.encoder.tolist()
        assert own.decoder[:, LABELS].tolist() == row.decoder[:1, LABELS].tolist()
        assert list(map(tuple, own.rejected.tolist())) == ranked_items(number)[:7]
        assert own.preference_score == 1.0


def test_few_items_give_shorter_lists_and_the_same_command_the_same_bytes(shop, make):
    out = make("--rejected", "500")
    given, made = rows_of(shop / "eval"), rows_of(out)
    for row, own in zip(given, made, strict=True):
        used = {*map(tuple, row.encoder[1:, IDS].tolist())} | {*map(tuple, row.decoder[:, LABELS].tolist())}
        assert len(own.rejected) == 60 - len(used)
    assert bytes_of(out) == bytes_of(make("--rejected", "500", name="again"))


def test_items_that_the_model_does_not_read_are_not_rejected_either(shop, make):
    full, cut = (rows_of(make("--rejected", "9", *options, name=name)) for name, options in READING.items())
    assert any(one.rejected.tolist() != other.rejected.tolist() for one, other in zip(full, cut, strict=True))
    for row in cut:
        assert not {*map(tuple, row.encoder[:, IDS].tolist())} & {*map(tuple, row.rejected.tolist())}


@pytest.fixture(scope="module")
def timed(shop, tmp_path_factory):
    """The rows of `eval` with actions and times."""
    from convert.jsonl_to_mds import main as convert

    folder, text = tmp_path_factory.mktemp("timed"), []
    for line in (shop / "eval.jsonl").read_text().splitlines():
        row = json.loads(line)
        tokens, targets = len(row["encoder_mask"]), len(row["decoder_mask"])
        row["encoder_actions"] = [0, *(1 + place % 2 for place in range(tokens - 1))]
        row["encoder_times"] = [1_000 * place for place in range(tokens)]
        row["decoder_times"] = [1_000 * (tokens + place) for place in range(targets)]
        text.append(json.dumps(row))
    (folder / "rows.jsonl").write_text("\n".join(text))
    (folder / "actions.json").write_text('["seen", "bought"]')
    sizes = [
        "--codebook-sizes",
        *map(str, SIZES),
        "--max-positions",
        "32",
        "--catalogue",
        str(shop / "catalogue.jsonl"),
    ]
    words = [str(folder / "rows.jsonl"), "--kind", "recommend", "--out", str(folder / "mds"), *sizes]
    assert convert(words) == 0
    return folder


@pytest.mark.parametrize("with_times", [False, True])
def test_the_json_lines_convert_to_the_same_shards(shop, timed, make, tmp_path, with_times):
    from convert.jsonl_to_mds import main as convert

    data = timed / "mds" if with_times else "eval"
    out = make("--rejected", "3", "--jsonl", str(tmp_path / "own.jsonl"), data=(data,))
    sizes = [
        "--codebook-sizes",
        *map(str, SIZES),
        "--max-positions",
        "32",
        "--catalogue",
        str(shop / "catalogue.jsonl"),
    ]
    words = [str(tmp_path / "own.jsonl"), "--kind", "preference", "--out", str(tmp_path / "converted"), *sizes]
    assert convert([*words, *(["--actions", str(timed / "actions.json")] if with_times else [])]) == 0
    ours, theirs = bytes_of(out), bytes_of(tmp_path / "converted")
    assert ours["shard.00000.mds"] == theirs["shard.00000.mds"]
    assert ours["index.json"] == theirs["index.json"]
    manifest, other = (json.loads(files["manifest.json"]) for files in (ours, theirs))
    assert ("inputs" in manifest) == with_times
    for key in other.keys() - {"input", "max_history", "max_target"}:
        assert manifest[key] == other[key], key
    read_manifest(out)


def test_stage_3_trains_on_them(shop, stages, make, tmp_path):
    from ugt_composer.training.build import build_trainer

    out = make("--rejected", "4", data=("train",))
    manifest = read_manifest(out)
    assert (manifest.kind, manifest.rows, manifest.longest[2]) == ("preference", 205, 4)
    path, *rest = stage_arguments(shop, tmp_path / "run", 3, stages / "stage2/best")
    streams = f"[{{local: {out}, proportion: 0.5}},{{local: {shop / 'train'}, proportion: 0.5}}]"
    overrides = [f"data.train.streams={streams}", "max_duration=2ba", "loss.dpo_loss_type=softmax"]
    trainer = build_trainer(load_config(path, overrides=[*rest, *overrides]))
    trainer.train()
    trainer.close()


def test_a_limit_draws_rows_in_their_order(shop, make):
    everyone = [row.user_id for row in [*rows_of(shop / "eval"), *rows_of(shop / "train")]]
    drawn = [
        [row.user_id for row in rows_of(make("--limit", "30", "--seed", seed, data=("eval", "train"), name=seed))]
        for seed in ("1", "2")
    ]
    assert drawn[0] != drawn[1]
    for users in drawn:
        places = iter(everyone)
        assert len(users) == 30
        assert all(user in places for user in users)  # a subsequence


def test_a_reward_picks_the_highest_as_chosen_and_the_lowest_as_rejected(shop, make, ranked_items, tmp_path):
    items = Catalogue.load(shop / "catalogue.jsonl").items
    values = {item.item_id: float(number * 7 % 20) for number, item in enumerate(items)}
    table = tmp_path / "rewards.csv"
    table.write_text("item_id,reward\n" + "".join(f"{item},{value}\n" for item, value in values.items()))
    by_triple = {item.triple: values[item.item_id] for item in items}
    made = rows_of(make("--reward", str(table), "--rejected", "3", "--candidates", "8", "--reward-scale", "5"))
    for number, (row, own) in enumerate(zip(rows_of(shop / "eval"), made, strict=True)):
        candidates = [tuple(row.decoder[0, LABELS]), *ranked_items(number)[:8]]
        best = max(by_triple[item] for item in candidates)
        chosen = next(item for item in candidates if by_triple[item] == best)
        lowest = sorted((item for item in candidates if by_triple[item] < best), key=lambda item: by_triple[item])[:3]
        assert tuple(own.decoder[0, LABELS]) == chosen
        assert list(map(tuple, own.rejected.tolist())) == lowest
        gap = best - sum(by_triple[item] for item in lowest) / 3
        assert own.preference_score == pytest.approx(torch.tensor(gap / 10).tanh().item(), rel=1e-5)


def test_a_reward_may_be_a_function_of_user_history_and_candidates(shop, make, module_in_cwd, tmp_path):
    module = module_in_cwd(
        "my_rewards",
        "calls = []\n"
        "def longest(user, history, candidates):\n"
        "    calls.append((user, history, candidates))\n"
        "    return [len(item) for item in candidates]\n"
        "def wrong(user, history, candidates):\n"
        "    return [1.0]\n"
        "def broken(user, history, candidates):\n"
        "    return history['no']\n",
    )
    made = rows_of(make("--reward", f"{module}:longest", "--rejected", "2"))
    assert made
    item_ids = {item.triple: item.item_id for item in Catalogue.load(shop / "catalogue.jsonl").items}
    for own in made:
        chosen, *rejected = (len(item_ids[tuple(ids)]) for ids in [own.decoder[0, LABELS], *own.rejected])
        assert all(chosen > length for length in rejected)
    user, history, candidates = sys.modules[module].calls[0]
    first = rows_of(shop / "eval")[0]
    assert user == first.user_id
    assert history == [item_ids[tuple(ids)] for ids in first.encoder[1:, IDS].tolist()]
    assert candidates[0] == item_ids[tuple(first.decoder[0, LABELS])]
    for name, words in (("wrong", "found 1 values"), ("broken", "TypeError"), ("longst", "did you mean longest?")):
        with pytest.raises(UserError, match=words):
            make("--reward", f"{module}:{name}", name=name)
        assert not (tmp_path / name).exists()


def test_rows_whose_target_the_catalogue_lacks_are_counted(stages, tmp_path, capsys):
    from convert.jsonl_to_mds import main as convert

    rows = [{"user_id": f"u{n}", **encoder_lists([(5, 5, 5)]), **decoder_lists([(5, 5, 6)])} for n in range(24)]
    rows[3] |= decoder_lists([(10, 20, 71)])
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sizes = ["--codebook-sizes", *map(str, SIZES), "--max-positions", "32"]
    assert convert([str(tmp_path / "rows.jsonl"), "--kind", "recommend", "--out", str(tmp_path / "mds"), *sizes]) == 0
    words = ["--checkpoint", str(stages / "stage2/best"), "--data", str(tmp_path / "mds")]
    assert ugt(["preferences", *words, "--out", str(tmp_path / "own")]) == 0
    assert "left out: 1 of 24 rows have a target that the catalogue lacks" in capsys.readouterr().err
    assert [row.user_id for row in rows_of(tmp_path / "own")] == [f"u{n}" for n in range(24) if n != 3]


def test_withheld_items_are_not_rejected(shop, make, ranked_items, tmp_path):
    lines = [json.loads(line) for line in (shop / "catalogue.jsonl").read_text().splitlines()]
    text = [json.dumps(line | {"retired": number % 2 == 0}) for number, line in enumerate(lines)]
    (tmp_path / "catalogue.jsonl").write_text("\n".join(text))
    (tmp_path / "stock.txt").write_text("\n".join(line["item_id"] for line in lines[:40]))
    words = ["--catalogue", str(tmp_path / "catalogue.jsonl"), "--only", str(tmp_path / "stock.txt")]
    open_ids = {tuple(line[f"l{level}_id"] for level in (1, 2, 3)) for line in lines[1:40:2]}
    for number, own in enumerate(rows_of(make("--rejected", "6", *words))):
        left = [item for item in ranked_items(number) if item in open_ids]
        assert list(map(tuple, own.rejected.tolist())) == left[:6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rejected", "0"], "--rejected is 0; expected at least 1"),
        (["--candidates", "5"], "--candidates is given without --reward"),
        (["--seed", "5"], "--seed is given without --limit"),
        (["--reward", "nowhere.csv"], "nowhere.csv: no such file"),
        (["--reward", "nowhere:f"], "nowhere cannot be imported"),
        (["--jsonl", "/nowhere/own.jsonl"], "--jsonl /nowhere/own.jsonl cannot be written"),
    ],
)
def test_wrong_options_are_named(make, options, words):
    with pytest.raises(UserError, match=words):
        make(*options)


def test_preference_rows_and_existing_folders_are_refused(make, tmp_path):
    with pytest.raises(UserError, match="holds preference rows; expected rows of --kind recommend"):
        make(data=("preference",))
    make("--limit", "2")
    with pytest.raises(UserError, match="--overwrite"):
        make("--limit", "2")
    assert len(rows_of(make("--limit", "3", "--overwrite"))) == 3


def test_reward_files_lacking_an_item_are_refused(make, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"item_id": "item-1", "reward": 1}\n')
    with pytest.raises(UserError, match=r"--reward: .*no reward for 59 of 60 items .*item-0"):
        make("--reward", str(tmp_path / "a.jsonl"))
