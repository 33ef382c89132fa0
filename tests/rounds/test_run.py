"""Rounds whose commands are simulated: what is kept, what is linked, what a resumed run does again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.shop import ROOT, SMALL
from ugt_composer.config.load import load_config
from ugt_composer.errors import UserError
from ugt_composer.rounds.commands import Commands
from ugt_composer.rounds.run import kept_model, run_rounds
from ugt_composer.rounds.settings import PreferencesSettings, RoundsSettings
from ugt_composer.rounds.state import only_here


@pytest.fixture
def settings(shop, tmp_path):
    return RoundsSettings(
        save_folder=str(tmp_path / "rounds"),
        init_from=str(tmp_path / "stage2/best"),
        data=[str(shop / "train")],
        validation=[str(shop / "eval")],
        stage=[str(ROOT / "yamls/stage3.yaml")],
        overrides=[*SMALL, f"data.catalogue={shop / 'catalogue.jsonl'}"],
    )


class Simulated:
    """Runs commands without models: each evaluation gets the next of the planned values.

    Attributes:
        ran: the names of the steps that ran, and their commands.
        fails_at: the step that raises KeyboardInterrupt half-way.
    """

    def __init__(self, *values, fails_at=None):
        self.values, self.fails_at = (
            dict(zip(("start", "round-1", "round-2", "round-3"), values, strict=False)),
            fails_at,
        )
        self.ran: dict[str, list[str]] = {}

    def __call__(self, step, command):
        if step == self.fails_at:
            raise KeyboardInterrupt
        self.ran[step] = command
        name, kind = step.split("/")
        if kind == "preferences":
            out = Path(command[command.index("--out") + 1])
            out.mkdir(parents=True)
            (out / "manifest.json").write_text(json.dumps({"lengths": {"rejected": {"2": 3, "4": 5}}}))
        elif kind == "run":
            (out_of(command) / "best").mkdir(parents=True)
        else:
            report = Path(command[command.index("--json") + 1])
            report.write_text(json.dumps({"metrics": {"ndcg@10": self.values[name], "recall@10": 0.5}}))


def out_of(command):
    return Path(next(word for word in command if word.startswith("save_folder=")).partition("=")[2])


def best_of(settings):
    return (Path(settings.save_folder) / "best").resolve()


def test_a_round_that_lowers_the_metric_is_not_kept_and_ends_the_rounds(settings):
    run = Simulated(0.2, 0.3, 0.29, 0.9)
    rounds = run_rounds(settings, Commands(settings), run)
    assert [(one.number, one.kept, one.pairs) for one in rounds] == [(0, True, 0), (1, True, 26), (2, False, 26)]
    assert best_of(settings) == Path(settings.save_folder) / "round-1/run/best"
    assert kept_model(rounds) == str(best_of(settings))
    table = json.loads((Path(settings.save_folder) / "rounds.json").read_text())
    assert [one["metrics"]["ndcg@10"] for one in table] == [0.2, 0.3, 0.29]


def test_if_no_round_is_kept_the_best_model_is_the_start(settings):
    run_rounds(settings, Commands(settings), Simulated(0.2, 0.1))
    assert best_of(settings) == Path(settings.init_from)


def test_a_round_that_ends_with_the_model_it_began_with_is_the_last(settings):
    rounds = run_rounds(settings, Commands(settings), Simulated(0.2, 0.3, 0.3))
    assert [one.kept for one in rounds] == [True, True, False]


def test_each_round_begins_with_the_best_model_which_is_also_its_reference(settings):
    run = Simulated(0.2, 0.25, 0.3, 0.4)
    assert [one.kept for one in run_rounds(settings, Commands(settings), run)] == [True] * 4
    for number, model in ((1, settings.init_from), (2, f"{settings.save_folder}/round-1/run/best")):
        command = run.ran[f"round-{number}/run"]
        config = load_config(ROOT / "yamls/stage3.yaml", overrides=command[command.index(settings.stage[0]) + 1 :])
        assert (config.init_from, config.loss.reference_from, config.save_best_on) == (model, model, "ndcg@10")
        pairs, rows = config.data.train.streams
        assert (pairs.local, pairs.proportion) == (f"{settings.save_folder}/round-{number}/preferences", 0.5)
        assert (rows.local, rows.proportion) == (settings.data[0], 0.5)
        assert [stream.local for stream in config.data.eval.streams] == settings.validation
        words = run.ran[f"round-{number}/preferences"]
        assert words[words.index("--checkpoint") + 1] == model


def test_every_model_is_evaluated_with_the_options_of_the_stage(settings):
    settings = replace(settings, overrides=[*settings.overrides, "evaluation.exclude_seen=true"])
    run = Simulated(0.2, 0.1)
    run_rounds(settings, Commands(settings), run)
    start, after = run.ran["start/evaluation"], run.ran["round-1/evaluation"]
    differing = [(one, other) for one, other in zip(start, after, strict=True) if one != other]
    assert [one for one, _ in differing] == [settings.init_from, f"{settings.save_folder}/start/evaluation.json"]
    assert "--exclude-seen" in start


@pytest.mark.parametrize("fails_at", ["start/evaluation", "round-1/preferences", "round-1/run", "round-2/evaluation"])
def test_a_stopped_run_resumes_without_repeating_what_is_finished(settings, fails_at):
    first, second = Simulated(0.2, 0.3, 0.4, 0.1, fails_at=fails_at), Simulated(0.2, 0.3, 0.4, 0.1)
    with pytest.raises(KeyboardInterrupt):
        run_rounds(settings, Commands(settings), first)
    rounds = run_rounds(settings, Commands(settings), second)
    assert not first.ran.keys() & second.ran.keys()
    assert next(iter(second.ran)) == fails_at
    assert [one.kept for one in rounds] == [True, True, True, False]
    again = Simulated()
    assert run_rounds(settings, Commands(settings), again) == rounds
    assert not again.ran


def test_more_rounds_continue_and_other_settings_are_refused(settings):
    run_rounds(replace(settings, rounds=1), Commands(settings), Simulated(0.2, 0.3))
    run = Simulated(0.2, 0.3, 0.4)
    assert len(run_rounds(replace(settings, rounds=2), Commands(settings), run)) == 3
    assert next(iter(run.ran)) == "round-2/preferences"
    changed = replace(settings, preferences=PreferencesSettings(rejected=3))
    with pytest.raises(UserError, match=r"preferences\.rejected was 20 when these rounds began, now it is 3"):
        run_rounds(changed, Commands(changed), Simulated())


def edited(settings, folder, old, new):
    """The settings with a copy of the stage's YAML in which a text is replaced."""
    text = Path(settings.stage[0]).read_text()
    assert old in text
    (folder / "edited.yaml").write_text(text.replace(old, new))
    return replace(settings, stage=[str(folder / "edited.yaml")])


@pytest.mark.parametrize(
    ("overrides", "edit", "words"),
    [
        (["optimizer.lr=2e-5"], None, r"optimizer\.lr of the stage was 0\.01 when these rounds began, now it is 2e-05"),
        ([], ("dpo_beta: 0.1", "dpo_beta: 0.3"), r"loss\.dpo_beta of the stage was 0\.1 .* now it is 0\.3"),
        ([], ("exclude_seen: false", "exclude_seen: true"), r"evaluation\.exclude_seen of the stage was False"),
        (["evaluation.item_score_weight=0.5"], None, r"evaluation\.item_score_weight of the stage was 0\.0 .* 0\.5"),
    ],
)
def test_rounds_do_not_resume_with_another_stage(settings, tmp_path, overrides, edit, words):
    run_rounds(replace(settings, rounds=1), Commands(settings), Simulated(0.2, 0.3))
    changed = replace(settings, overrides=[*settings.overrides, *overrides])
    changed = edited(changed, tmp_path, *edit) if edit else changed
    with pytest.raises(UserError, match=words + ".*; set it back to resume them, or use another save_folder"):
        run_rounds(changed, Commands(changed), Simulated())


def test_rounds_resume_with_keys_that_are_free_and_with_the_same_stage_in_other_words(settings, tmp_path):
    run_rounds(replace(settings, rounds=1), Commands(settings), Simulated(0.2, 0.3))
    changed = edited(settings, tmp_path, "\n  dpo_beta: 0.1", "\n  dpo_beta: 0.5")
    free = ["device_train_microbatch_size=64", "data.train.num_workers=0", "save_interval=7ba", "precision=fp32"]
    same = ["loss.dpo_beta=0.1", "loss.lambda_anchor=0.4"]  # what null stands for
    preferences = PreferencesSettings(batch_size=8)
    changed = replace(changed, overrides=[*same, *free, *changed.overrides], preferences=preferences, rounds=2)
    run = Simulated(0.2, 0.3, 0.4)
    assert len(run_rounds(changed, Commands(changed), run)) == 3
    assert list(run.ran) == ["round-2/preferences", "round-2/run", "round-2/evaluation"]


@pytest.mark.parametrize(
    ("override", "key", "instead"),
    [
        ("init_from=null", "init_from", "init_from"),
        ("save_folder=out", "save_folder", "save_folder"),
        ("loss={reference_from: other, dpo_beta: 0.2}", r"loss\.reference_from", "init_from"),
        ("data.train.local=mds/other", r"data\.train\.local", "data"),
        ("data.train.remote=s3://bucket/rows", r"data\.train\.remote", "data"),
        ("data={train: {streams: [{local: mds/other}]}}", r"data\.train\.streams", "data and proportion"),
    ],
)
def test_an_override_that_each_round_replaces_is_refused(settings, override, key, instead):
    with pytest.raises(
        UserError, match=rf"each round sets {key} itself; leave it out, and set {instead} of the rounds"
    ):
        Commands(replace(settings, overrides=[*settings.overrides, override]))


def test_a_stage_that_reads_from_a_store_trains_on_the_rows_of_the_rounds(settings, tmp_path):
    (tmp_path / "store.yaml").write_text(
        "data: {train: {local: a, remote: s3://b/a, streams: []}, eval: {local: c, remote: s3://b/c, streams: []}}"
    )
    config = Commands(replace(settings, stage=[*settings.stage, str(tmp_path / "store.yaml")])).config
    assert (config.data.train.remote, config.data.eval.remote) == (None, None)
    assert [stream.local for stream in config.data.eval.streams] == settings.validation


def test_each_round_draws_another_sample(settings, tmp_path):
    rewards = tmp_path / "r.csv"
    rewards.write_text("item_id,reward\n" + "".join(f"item-{number},1\n" for number in range(60)))
    options = PreferencesSettings(limit=9, reward=str(rewards), reward_scale=0.5)
    settings = replace(settings, preferences=options, seed=7)
    run = Simulated(0.2, 0.3, 0.2)
    run_rounds(settings, Commands(settings), run)
    for number in (1, 2):
        words = " ".join(run.ran[f"round-{number}/preferences"])
        assert f"--limit 9 --reward {rewards} --reward-scale 0.5 --seed {7 + number}" in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"metric": "ndcg@11"}, "metric is ndcg@11; did you mean ndcg@10"),
        ({"validation": ["nowhere"]}, "nowhere: no such folder"),
        ({"stage": [str(ROOT / "yamls/stage2.yaml")]}, "loss.lambda_preference is 0"),
        ({"overrides": ["optimizer.lrr=1"]}, "optimizer.lrr is unknown; did you mean optimizer.lr"),
        ({"overrides": ["data.catalogue=null"]}, "data.catalogue is missing"),
        ({"overrides": ["data.catalogue=nowhere"]}, r"data.catalogue is nowhere .*: no such file .*stage=\["),
        ({"validation": ["a", "a"]}, "validation names a twice; expected each folder once"),
        ({"data": ["a", "b", "b/../a"]}, "data names b/../a twice; expected each folder once"),
        ({"data": ["a", "b"], "validation": ["./b"]}, "validation names ./b, which data names too"),
        ({"preferences": PreferencesSettings(reward="nowhere.csv")}, "--reward nowhere.csv: no such file"),
    ],
)
def test_what_cannot_work_is_named_before_the_first_step(settings, changes, words):
    with pytest.raises(UserError, match=words):
        Commands(replace(settings, **changes))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["loss.preference_objective=group", "model.level_softmax=catalogue"], "objective is group, .* expected dpo"),
        (["loss.reference_log_probs=data"], "reference_log_probs is data, which new pairs do not have; expected model"),
    ],
)
def test_a_stage_that_cannot_use_new_pairs_is_refused(settings, overrides, words):
    with pytest.raises(UserError, match=words):
        Commands(replace(settings, overrides=[*settings.overrides, *overrides]))


def test_folders_may_have_any_name(settings, tmp_path):
    folder = tmp_path / 'it\'s a "shop", {täglich}'
    folder.symlink_to(settings.data[0])
    settings = replace(settings, data=[str(folder)])
    command = Commands(settings).training(Path("model"), Path("pairs"), Path("out"))
    config = load_config(ROOT / "yamls/stage3.yaml", overrides=command[command.index(settings.stage[0]) + 1 :])
    assert [stream.local for stream in config.data.train.streams] == ["pairs", str(folder)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"settings": 1, "config": "", "finished": []}',
        '{"settings": {}, "config": "a: [", "finished": []}',
    ],
)
def test_a_state_that_cannot_be_read_is_an_error(settings, text):
    Path(settings.save_folder).mkdir()
    (Path(settings.save_folder) / "state.json").write_text(text)
    with pytest.raises(
        UserError, match=r"state\.json: cannot be read .*; use another save_folder, or delete /.*/rounds "
    ):
        run_rounds(settings, Commands(settings), Simulated())


def test_a_state_of_an_earlier_version_names_the_missing_key_and_the_way_out(settings):
    run_rounds(replace(settings, rounds=1), Commands(settings), Simulated(0.2, 0.3))
    state = Path(settings.save_folder) / "state.json"
    content = json.loads(state.read_text())
    del content["config"]  # which the first version did not write
    state.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        run_rounds(settings, Commands(settings), Simulated())
    assert str(error.value) == (
        f"{state}: has no key 'config': an earlier version began these rounds, or the file was edited; they cannot be "
        f"resumed: use another save_folder, or delete {state.parent} to begin again"
    )


def test_pairs_are_refused_as_data_and_accepted_beside_rows_of_the_validation(settings, shop):
    pairs = str(shop / "preference")
    with pytest.raises(UserError, match=r"data names .*, which holds preference rows; expected rows of --kind rec"):
        Commands(replace(settings, data=[*settings.data, pairs]))
    with pytest.raises(UserError, match=r"validation names .*, without rows of --kind recommend"):
        Commands(replace(settings, validation=[pairs]))
    Commands(replace(settings, validation=[*settings.validation, pairs]))


def test_a_folder_has_one_process(tmp_path):
    with only_here(tmp_path), pytest.raises(UserError, match="is in use by another process"), only_here(tmp_path):
        pass
