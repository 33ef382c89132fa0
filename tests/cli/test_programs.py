"""The programs as a user runs them: help, dry run, recommendations, and error messages.

Each is started once as a process; other tests call its `main` here, because a start takes seconds.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.shop import ROOT, stage_arguments
from ugt_composer import __version__
from ugt_composer.cli.main import main as ugt_main
from ugt_composer.config.load import load_config
from ugt_composer.data.history import encoder_lists
from ugt_composer.errors import UserError
from ugt_composer.training.dry_run import describe

UGT = Path(sys.executable).parent / "ugt"


def run(*command, stdin: str = "") -> subprocess.CompletedProcess:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, input=stdin, cwd=ROOT, timeout=120, check=False)


def train(*arguments) -> subprocess.CompletedProcess:
    return run(sys.executable, "train.py", *arguments)


def test_dry_run_says_what_would_run_and_writes_nothing(shop, tmp_path):
    result = train(*stage_arguments(shop, tmp_path / "run", 1), "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "lr: 0.01" in result.stdout
    assert "205 recommend rows" in result.stdout
    assert "the run          14 batches (2ep)" in result.stdout
    assert "warm-up          1 batch\n" in result.stdout
    assert not (tmp_path / "run").exists()


def test_dry_run_of_remote_data_that_was_never_fetched_says_so(stage_config, tmp_path):
    remote = (f"data.train.local={tmp_path / 'cache'}", "data.train.remote=s3://bucket/train")
    shown = describe(stage_config(tmp_path / "run", 1, None, *remote))
    assert "train  none on this machine" in shown
    assert "unknown: the shards are remote" in shown


def test_dry_run_counts_the_parameters_of_the_model(stage_config, tmp_path):
    from ugt_composer.model.build import build_model

    config = stage_config(tmp_path / "run")
    count = sum(p.numel() for p in build_model(config.model, 0).parameters())
    assert f"{count:,}" in describe(config)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss.dpo_betta=1"], ["loss.dpo_betta is unknown", "did you mean loss.dpo_beta?"]),
        (["data.train.local=nowhere"], ["nowhere: no such folder", "ugt convert"]),
        (["model.codebook_sizes=[24,39,72]"], ["--codebook-sizes 24 40 72", "[24, 39, 72]"]),
        (["model.max_seq_len=6"], ["a token at position", "model.max_seq_len is 6"]),
        (["data.catalogue=nowhere.jsonl"], ["nowhere.jsonl"]),
        (["init_from=nowhere"], ["init_from is nowhere; nowhere/model.safetensors: no such file"]),
        (["save_best_on=recal@10"], ["save_best_on is 'recal@10'", "did you mean recall@10?"]),
        (["precision=amp_fp16"], ["precision is amp_fp16", "no GPU", "amp_bf16"]),
        (["precision=amp_bf16", "parallelism.strategy=fsdp"], ["precision is amp_bf16", "fsdp", "strategy ddp"]),
        (["device_train_microbatch_size=auto"], ["device_train_microbatch_size is auto", "a number"]),
        (["parallelism.strategy=fsdp1"], ["FSDP1 needs a GPU", "expected fsdp"]),
        (["parallelism.strategy=zero2"], ["expected deepspeed with parallelism.deepspeed.zero_stage=2"]),
        (["checkpoint.sharded=true"], ["parallelism.strategy ddp", "expected fsdp or deepspeed"]),
        (["parallelism.shard_reference=true"], ["keeps a whole model on each rank", "fsdp"]),
        (["parallelism.strategy=fsdp", "optimizer.name=lamb"], ["optimizer.name is lamb", "adamw"]),
        (
            ["parallelism.strategy=deepspeed", "parallelism.deepspeed.config.gradient_clipping=3"],
            ["parallelism.deepspeed.config.gradient_clipping is 3", "max_grad_norm"],
        ),
        (
            ["parallelism.strategy=deepspeed", "parallelism.deepspeed.config.zero_optimization.stge=3"],
            ["zero_optimization.stge is unknown to DeepSpeed; did you mean stage?"],
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(shop, tmp_path, overrides, words):
    from ugt_composer.training.build import build_trainer

    path, *rest = stage_arguments(shop, tmp_path / "run", 1)
    with pytest.raises(UserError) as error:
        build_trainer(load_config(path, overrides=[*rest, *overrides]))
    assert all(word in str(error.value) for word in words), error.value
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("tracker", "key"), [("wandb", "project"), ("mlflow", "experiment_name")])
def test_a_tracker_that_is_not_installed_is_named(shop, tmp_path, monkeypatch, tracker, key):
    from ugt_composer.training.build import build_trainer

    monkeypatch.setitem(sys.modules, tracker, None)  # as if it were not installed
    path, *rest = stage_arguments(shop, tmp_path / "run", 1)
    with pytest.raises(UserError, match=rf"ugt-composer\[{tracker}\]"):
        build_trainer(load_config(path, overrides=[*rest, f"loggers.{tracker}.{key}=x"]))
    assert not (tmp_path / "run").exists()


def test_a_mistake_ends_with_one_sentence_and_status_2(shop, tmp_path):
    result = train(*stage_arguments(shop, tmp_path / "run", 1), "save_best_on=recal@10")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")] == [
        line for line in result.stderr.splitlines() if "did you mean recall@10?" in line
    ]


@pytest.mark.parametrize("damage", ["missing", "cut short"])
def test_a_corrupted_shard_is_named_before_training(shop, stage_config, ended, tmp_path, damage):
    shutil.copytree(shop / "train", tmp_path / "train")
    shard = next((tmp_path / "train").rglob("shard.*.mds"))
    shard.unlink() if damage == "missing" else shard.write_bytes(shard.read_bytes()[:-10])
    config = stage_config(tmp_path / "run", 1, None, f"data.train.local={tmp_path / 'train'}")
    result = ended(lambda: describe(config))
    assert result.returncode == 2
    assert str(shard) in result.stderr


@pytest.fixture
def recommend(stages, ended):
    """recommend(*arguments, checkpoint, stdin) → exit status and output of `ugt recommend`."""

    def ask(*arguments, checkpoint=stages / "stage1" / "best", stdin: str = "") -> subprocess.CompletedProcess:
        words = [str(word) for word in ("recommend", "--checkpoint", checkpoint, *arguments)]
        return ended(lambda: ugt_main(words), stdin)

    return ask


def test_recommend_reads_item_ids_and_names_unknown_ones(stages, tmp_path):
    (tmp_path / "user.json").write_text('{\n "user_id": "me",\n "items": ["item-3", "nothing", "item-5"]\n}\n')
    command = (UGT, "recommend", "--checkpoint", stages / "stage1" / "best")
    result = run(*command, "--history", tmp_path / "user.json", "-k", "5", "--json")
    assert result.returncode == 0, result.stderr
    user = json.loads(result.stdout)
    assert user["user_id"] == "me"
    assert [entry["rank"] for entry in user["recommendations"]] == [1, 2, 3, 4, 5]
    items = [entry["item_id"] for entry in user["recommendations"]]
    assert len(set(items)) == 5
    assert not {"item-3", "item-5"} & set(items)
    scores = [entry["log_prob"] for entry in user["recommendations"]]
    assert scores == sorted(scores, reverse=True)
    assert "not in the catalogue, left out: nothing" in result.stderr


def test_recommend_names_the_item_that_an_unknown_id_may_mean(recommend):
    result = recommend("--history", "-", stdin='{"items": ["ITEM-3", "item-5"]}')
    assert "left out: ITEM-3; ITEM-3 is perhaps item-3, so write item ids as in the catalogue" in result.stderr


def test_of_a_long_history_the_most_recent_count_and_none_is_recommended_again(recommend, shop):
    reads = 7  # the longest history of the training rows
    names = [json.loads(line)["item_id"] for line in (shop / "catalogue.jsonl").read_text().splitlines()]
    once = [name for name in names if name != names[3]]
    long = once + once[-1:] * reads  # the model sees one item, again and again
    histories = [{"items": long}, {"items": long[-reads:]}, {"items": ["nothing"]}, {"items": []}]
    lines = "\n".join(map(json.dumps, histories))
    result = recommend("--history", "-", "-k", "50", "--json", stdin=lines)
    assert result.returncode == 0, result.stderr
    cut, short, unknown, empty = (json.loads(line)["recommendations"] for line in result.stdout.splitlines())
    assert [entry["item_id"] for entry in cut] == [names[3]]
    same = next(entry for entry in short if entry["item_id"] == names[3])
    assert cut[0]["log_prob"] == pytest.approx(same["log_prob"], abs=1e-5)
    assert unknown == empty
    assert f"the model reads the {reads} most recent of {len(long)} items; the 59 earlier ones are" in result.stderr
    assert "line-1: 1 item can be recommended; the others are in the history (--include-seen" in result.stderr
    assert "line-2: 53" not in result.stderr
    for line in (3, 4):
        assert f"line-{line}: no item of the history is known, so the recommendations are the same" in result.stderr


def as_lists(items: list[str], shop: Path) -> dict:
    lines = map(json.loads, (shop / "catalogue.jsonl").read_text().splitlines())
    triples = {item["item_id"]: (item["l1_id"], item["l2_id"], item["l3_id"]) for item in lines}
    return encoder_lists([triples[item] for item in items])


@pytest.mark.parametrize("length", [7, 8, 45, 59])
def test_both_forms_of_a_history_exclude_every_item_and_report_true_numbers(recommend, shop, length):
    items = [f"item-{number}" for number in range(length)]
    padded = {key: [0, *values] for key, values in as_lists(items, shop).items()}  # a masked position in front
    users = [{"items": items}, as_lists(items, shop), padded, {"items": items[-1:]}]
    result = recommend("--history", "-", "-k", "60", "--json", stdin="\n".join(map(json.dumps, users)))
    assert result.returncode == 0, result.stderr
    named, lists, masked, _ = (json.loads(line)["recommendations"] for line in result.stdout.splitlines())
    assert named == lists == masked
    assert {entry["item_id"] for entry in named} == {f"item-{number}" for number in range(length, 60)}
    remarks = [line for line in result.stderr.splitlines() if "most recent" in line]
    assert len(remarks) == (0 if length == 7 else 3)
    for remark in remarks:
        assert f"reads the 7 most recent of {length} items; the " in remark
        assert (f"{length - 7} earlier ones" if length > 8 else "the earlier one is") in remark
        assert "not recommended either" in remark


def test_the_length_of_a_history_is_that_of_training_unless_an_option_changes_it(recommend, shop):
    items = [f"item-{number}" for number in range(0, 40, 2)]

    def ask(read, *options):
        line = json.dumps({"user_id": "u", "items": items[-read:]})
        return json.loads(recommend("--history", "-", "--json", "--include-seen", *options, stdin=line).stdout)

    assert ask(20) == ask(7) != ask(5)
    assert ask(20, "--max-history", "5") == ask(5)
    assert ask(20, "--max-history", "31") != ask(7)
    result = recommend("--history", "-", "--max-history", "32", stdin='{"items": []}')
    assert result.returncode == 2
    assert "--max-history is 32; expected at most 31" in result.stderr


def test_a_model_that_does_not_know_the_length_of_its_training_rows_reads_all_that_it_can(recommend, stages, tmp_path):
    from ugt_composer.checkpoint.portable import FINGERPRINT, load_portable, save_portable

    model, config, facts = load_portable(stages / "stage1" / "best")
    assert facts["longest_history"] == "7"
    save_portable(tmp_path / "model", model.state_dict(), config, {FINGERPRINT: facts[FINGERPRINT]})
    line = json.dumps({"items": ["item-3"] * 40})
    result = recommend("--history", "-", checkpoint=tmp_path / "model", stdin=line)
    assert "the model reads the 31 most recent of 40 items" in result.stderr


def test_recommend_reads_rows_of_the_training_format(recommend, shop):
    result = recommend("--history", shop / "eval.jsonl", "-k", "3", "--json", "--include-seen")
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 41
    table = recommend("--history", shop / "eval.jsonl", "-k", "3")
    assert "semantic ID" in table.stdout


def test_recommendations_of_a_batch_are_those_of_each_user_alone(recommend, shop):
    together = recommend("--history", shop / "eval.jsonl", "--json").stdout.splitlines()
    first = (shop / "eval.jsonl").read_text().splitlines()[7]
    alone = json.loads(recommend("--history", "-", "--json", stdin=first).stdout)
    batch = json.loads(together[7])
    assert [e["item_id"] for e in alone["recommendations"]] == [e["item_id"] for e in batch["recommendations"]]


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ('{"items": [1]}', ["-:1: items", "[1]", "in quotes"]),
        ('{"items": "item-3"}', ["-:1: items"]),
        ("", ["-: is empty"]),
        ("nonsense", ["-:1", "JSON"]),
        ('{"items": []}\n{"user_id": 5, "items": []}', ["-:2", "user_id"]),
        ('{"encoder_l1_ids": [5]}', ["-:1", "encoder_l2_ids"]),
        ('{"user_id": "u", "item": ["item-3"]}', ["-:1: no history: found user_id, item; expected `items`"]),
        ("{}", ["-:1: no history: found no key"]),
        ('{"items": [], "encoder_l1_ids": [5]}', ["-:1: found both `items` and encoder_l1_ids"]),
    ],
)
def test_a_bad_history_is_named(recommend, history, words):
    result = recommend("--history", "-", stdin=history)
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr


def test_more_recommendations_than_items_are_all_items(recommend):
    result = recommend("--history", "-", "-k", str(10**9), "--json", stdin='{"items": ["item-3"]}')
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["recommendations"]) == 59
    assert result.stderr.splitlines()[0] == "-k is 1,000,000,000, but the catalogue has only 60 items"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-k", "0"], ["-k is 0; expected at least 1"]),
        (["-k", "-1"], ["-k is -1; expected at least 1"]),
        (["--max-history", "0"], ["--max-history is 0; expected at least 1"]),
        (["--beam-width", "0"], ["--beam-width is 0; expected at least 1"]),
    ],
)
def test_a_bad_number_is_named(recommend, options, words):
    result = recommend("--history", "-", *options, stdin='{"items": []}')
    assert result.returncode == 2
    assert all(word in result.stderr for word in words), result.stderr


def test_without_a_catalogue_too_many_recommendations_are_refused(recommend, stages, tmp_path):
    from dataclasses import replace

    from ugt_composer.checkpoint.portable import load_portable, save_portable

    model, config, _ = load_portable(stages / "stage1" / "best")
    config = replace(config, data=replace(config.data, catalogue=None))
    save_portable(tmp_path / "model", model.state_dict(), config, {})
    line = json.dumps(encoder_lists([(5, 5, 5)]))
    result = recommend("--history", "-", "-k", str(10**9), checkpoint=tmp_path / "model", stdin=line)
    assert result.returncode == 2
    assert "-k 1,000,000,000 with --beam-width 1,000,000,000 takes about" in result.stderr
    assert "--catalogue" in result.stderr


def test_a_catalogue_of_other_meaning_is_refused(recommend, shop, tmp_path):
    lines = (shop / "catalogue.jsonl").read_text().replace("item-7", "other")
    (tmp_path / "catalogue.jsonl").write_text(lines)
    result = recommend("--history", shop / "eval.jsonl", "--catalogue", tmp_path / "catalogue.jsonl")
    assert result.returncode == 2
    assert "fingerprint" in result.stderr


def test_two_items_of_one_semantic_id_are_both_recommended(recommend, stages, shop, tmp_path):
    from ugt_composer.checkpoint.portable import load_portable, save_portable

    twin = json.dumps({"item_id": "twin", "l1_id": 5, "l2_id": 6, "l3_id": 9, "name": "Twin"})
    (tmp_path / "catalogue.jsonl").write_text((shop / "catalogue.jsonl").read_text() + twin + "\n")
    model, config, _ = load_portable(stages / "stage1" / "best")
    save_portable(tmp_path / "model", model.state_dict(), config, {})  # a model without a catalogue's fingerprint
    options = ("--catalogue", tmp_path / "catalogue.jsonl", "--history", "-", "-k", "61", "--json")
    result = recommend(*options, checkpoint=tmp_path / "model", stdin='{"items": []}')
    entries = {entry["item_id"]: entry for entry in json.loads(result.stdout)["recommendations"]}
    assert len(entries) == 61
    assert entries["twin"]["log_prob"] == entries["item-4"]["log_prob"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([sys.executable, "train.py", "--help"], ["composer train.py yamls/stage1.yaml", "--dry-run", "75"]),
        ([UGT, "--help"], ["recommend", "evaluate", "inspect", "export"]),
        ([UGT, "evaluate", "--help"], ["--checkpoint", "ugt evaluate --checkpoint", "--plot"]),
        ([UGT, "inspect", "--help"], ["ugt inspect checkpoints/stage1/best", "--rows"]),
        ([UGT, "export", "--help"], ["ugt export --checkpoint", "encoder.pt2"]),
        ([UGT, "recommend", "--help"], ["--checkpoint", "ugt recommend --checkpoint", "items"]),
        ([UGT, "train", "--help"], ["usage: ugt train", "composer -n 2 -c ugt train", "--dry-run", "75"]),
        ([UGT, "convert", "--help"], ["usage: ugt convert", "--kind", "--on-error", "--workers"]),
        ([UGT, "import", "--help"], ["usage: ugt import", "ugt import ratings.csv", "--items"]),
        ([UGT, "ids", "--help"], ["usage: ugt ids", "ugt ids --items", "--extend"]),
        ([UGT, "rounds", "--help"], ["usage: ugt rounds", "ugt rounds yamls/rounds.yaml", "75"]),
        ([UGT, "demo", "--help"], ["ugt demo --law signals", "--out"]),
        ([UGT, "demo-data", "--help"], ["ugt demo-data --out", "--seed"]),
        ([UGT, "init", "--help"], ["ugt init .", "--overwrite"]),
        ([UGT, "completion", "--help"], ["bash-completion/completions/ugt", "fpath"]),
        ([sys.executable, "convert/jsonl_to_mds.py", "--help"], ["usage: python convert/jsonl_to_mds.py", "--kind"]),
        ([sys.executable, "convert/make_demo_data.py", "--help"], ["usage: python convert/make_demo_data.py"]),
        ([sys.executable, "rounds.py", "--help"], ["usage: rounds.py", "75"]),
    ],
)
def test_help_tells_what_to_type(command, words):
    result = run(*command)
    assert result.returncode == 0
    assert all(word in result.stdout for word in words)


@pytest.mark.parametrize("command", [[sys.executable, "train.py"], [UGT]], ids=["train.py", "ugt"])
def test_programs_print_their_version(command):
    result = run(*command, "--version")
    assert (result.returncode, result.stdout) == (0, f"ugt_composer {__version__}\n")


def test_a_temporary_folder_too_deep_for_sockets_is_refused(stage_config, tmp_path, monkeypatch):
    from ugt_composer.training.preflight import LONGEST_TMPDIR, check_run

    config = stage_config(tmp_path / "run")
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * (LONGEST_TMPDIR - 1))
    check_run(config)
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * LONGEST_TMPDIR)
    with pytest.raises(UserError, match=f"TMPDIR is .* expected at most {LONGEST_TMPDIR}"):
        check_run(config)
