"""The sweep with a simulated training: what is drawn, resumed, pruned, recorded. `test_sweep_kills` runs real ones."""

import json
import signal
import sys

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from examples import sweep
from tests.docs import shell
from tests.docs.pages import blocks
from tests.shop import ROOT, SMALL
from ugt_composer.config.load import load_config
from ugt_composer.errors import EXIT_PREEMPTED, RunError, UserError, exit_on_user_error
from ugt_composer.job import child
from ugt_composer.job.signals import SIGNALS

STAGE, DEMO = str(ROOT / "yamls/stage1.yaml"), str(ROOT / "yamls/demo.yaml")
# Evaluates five times; the values are those of the file PLAN for the trial's optimizer.lr. A value "exit N" ends it.
TRAINING = """
import json, pathlib, sys, time
settings = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
folder = pathlib.Path(settings["save_folder"])
plan = json.loads(pathlib.Path(PLAN).read_text())[settings["optimizer.lr"]]
file = folder / "metrics.jsonl"
begun = file.read_text().count("\\n") if file.exists() else 0
print("error: first message", "begins at", begun, settings["run_name"], flush=True)
for batch, value in enumerate(plan[begun:], begun):
    if value == "preempted once":
        marker = folder / "preempted"
        if not marker.exists():
            marker.touch()
            sys.exit(75)
        value = 0.5
    if isinstance(value, str):
        print("error: the GPU's memory is full")
        print("launcher: rank 0 crashed")
        sys.exit(int(value.removeprefix("exit ")))
    with file.open("a") as lines:
        lines.write(json.dumps({"batch": batch, "loss/train/total": 1.0, "metrics/eval/ndcg@10": value}) + "\\n")
    if value < 0:
        time.sleep(60)
"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(plan, *words) → exit status and output of a sweep whose training evaluates as planned."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    plan = tmp_path / "plan.json"
    (tmp_path / "train.py").write_text(TRAINING.replace("PLAN", repr(str(plan))))
    monkeypatch.setattr(sweep, "COMPOSER", sys.executable)
    monkeypatch.setattr(sweep, "TRAIN", (str(tmp_path / "train.py"),))
    monkeypatch.setattr(sweep, "direction_of", lambda config, metric: "maximize")
    monkeypatch.setattr(child, "INTERVAL", 0.05)

    def start(values, *words):
        plan.write_text(json.dumps(values))
        monkeypatch.setattr(sys, "argv", ["sweep.py", DEMO, *words, f"--out={tmp_path / 'sweep'}"])
        with pytest.raises(SystemExit) as end:
            exit_on_user_error(sweep.main)
        return end.value.code, capsys.readouterr()

    yield start
    for number, handler in before.items():
        signal.signal(number, handler)


def choice(*learning_rates):
    return f"optimizer.lr=choice({', '.join(learning_rates)})"


def begin(tmp_path, *learning_rates):
    """A study whose first trials have these learning rates."""
    out = tmp_path / "sweep"
    out.mkdir()
    study = optuna.create_study(study_name="sweep", storage=f"sqlite:///{out / 'study.db'}", direction="maximize")
    for learning_rate in learning_rates:
        study.enqueue_trial({"optimizer.lr": learning_rate})


def trials(tmp_path):
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'sweep/study.db'}").trials


def parsed(*words):
    return sweep.parse_arguments([DEMO, "--out=sweeps/x", *words])


@given(
    low=st.floats(1e-8, 1e3),
    factor=st.floats(1.001, 1e6),
    name=st.sampled_from(["log", "uniform"]),
)
def test_bounds_of_a_number_are_read_exactly(low, factor, name):
    found = sweep.parse_search(f"optimizer.lr={name}({low!r}, {low * factor!r})").distribution
    assert isinstance(found, optuna.distributions.FloatDistribution)
    assert (found.low, found.high, found.log) == (low, low * factor, name == "log")


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=3).map(str), st.integers(1, 99))
def test_choices_may_be_lists_numbers_and_text(values, number):
    found = sweep.parse_search(f"callbacks.x.y=choice({values}, {number}, null, 'a, b')")
    assert found.values == (values, str(number), "null", "'a, b'")


def test_whole_numbers_are_drawn_for_keys_that_are_whole():
    found = {word: sweep.parse_search(word).distribution for word in ("model.d_ff=log(32, 512)", "seed=uniform(1, 3)")}
    assert all(isinstance(one, optuna.distributions.IntDistribution) for one in found.values())
    assert isinstance(
        sweep.parse_search("model.dropout=uniform(0, 1)").distribution, optuna.distributions.FloatDistribution
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["optimizer.lr=1e-3"], "no key is searched"),
        (["optimizer.lr=lin(1, 2)"], "lin(…) is unknown; valid here: choice, log, uniform"),
        (["optimizer.lr=logs(1, 2)"], "logs(…) is unknown; did you mean log?"),
        (["optimizer.lr=log(0, 1)"], "expected a lower and a higher number, both above 0"),
        (["optimizer.lr=uniform(1, 1)"], "expected a lower and a higher number"),
        (["optimizer.lr=uniform(1)"], "expected two numbers, as in optimizer.lr=uniform(0.1, 1)"),
        (["model.n_heads=uniform(1.5, 8)"], "expected two whole numbers, as in model.n_heads=uniform(1, 8)"),
        (["optimizer.lr=choice(1)"], "expected two or more different values"),
        (["optimizer.lr=choice([1, 2)"], "expected choice(VALUE, VALUE)"),
        (["optimizer.name=uniform(1, 2)"], "optimizer.name is not a number; expected choice(VALUE, VALUE)"),
        (["optimizer.lrr=uniform(1, 2)"], "optimizer.lrr is unknown; did you mean optimizer.lr?"),
        (["model.n_heads=choice(4, 5)"], "override model.n_heads=5"),
        (["model.dropout=uniform(0, 1.5)"], "override model.dropout=1.5"),
        (["optimizer.name=choice(adamw, lam)"], "did you mean lamb?"),
        (["optimizer.lr=log(1, 2)", "optimizer.lr=3"], "optimizer.lr is given 2 times"),
        (["optimizer.lr=log(1, 2)", "save_folder=x"], "save_folder is set by --out"),
        (["optimizer.lr=log(1, 2)", "seeds=3"], "did you mean seed?"),
    ],
)
def test_a_mistake_is_found_before_the_first_trial(words, problem):
    with pytest.raises(UserError) as error:
        sweep.checked_config(parsed(*words))
    assert problem in str(error.value)


def test_a_value_that_is_valid_only_with_some_values_of_other_keys_is_accepted():
    config = sweep.checked_config(parsed("model.d_model=choice(90, 96)", "model.n_heads=choice(5, 6)"))
    assert (config.model.d_model, config.model.n_heads) == (90, 5)


def test_a_finished_sweep_prints_the_command_that_repeats_the_best_trial(run, tmp_path):
    plan = {"1e-3": [0.9, 0.1, 0.2], "1e-4": [0.0, 0.1, 0.4, 0.3]}  # the first value is the start's
    begin(tmp_path, "1e-3", "1e-4")
    status, output = run(plan, choice(*plan), "seed=7", "--trials=2", "--pruner=none", "--composer=-u")
    assert status == 0, output
    assert [(one.state, one.value) for one in trials(tmp_path)] == [
        (TrialState.COMPLETE, value) for value in (0.2, 0.4)
    ]
    assert "best trial: 1, ndcg@10 0.4000" in output.out
    words = output.out.splitlines()[-1].split()
    assert words[:2] == ["composer", "-u"]
    repeated = load_config(DEMO, overrides=[word for word in words if "=" in word])
    assert (repeated.optimizer.lr, repeated.seed, repeated.save_best_on) == (1e-4, 7, "ndcg@10")
    assert repeated.save_folder == load_config(DEMO).save_folder
    assert "-trial-1" in (tmp_path / "sweep/trial-1/log.txt").read_text()


@pytest.mark.parametrize("keep", [True, False])
def test_a_trial_below_the_median_is_ended_early(run, tmp_path, keep):
    plan = {"1e-3": [0.0, 0.5, 0.6], "1e-4": [0.0, -0.1, 0.9]}  # it waits after a negative value
    begin(tmp_path, *plan)
    status, output = run(plan, choice(*plan), "--trials=2", "--unpruned=1", *[] if keep else ["--delete-pruned"])
    assert status == 0, output
    assert [one.state for one in trials(tmp_path)] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert "trial-1: pruned" in output.out
    assert (tmp_path / "sweep/trial-1").exists() == keep


def test_failed_trials_are_recorded_and_do_not_end_the_sweep(run, tmp_path):
    plan = {"1e-3": [0.0, "exit 1"], "1e-4": [0.0, 0.3], "1e-5": [], "1e-6": [0.1, "exit 2"]}
    begin(tmp_path, *plan)
    status, output = run(plan, choice(*plan), "--trials=4", "--pruner=none")
    assert status == 0, output
    failed, complete, without_value, bad = trials(tmp_path)
    assert complete.state is TrialState.COMPLETE
    assert {one.state for one in (failed, without_value, bad)} == {TrialState.FAIL}
    assert failed.user_attrs["note"] == "exit status 1: error: the GPU's memory is full"
    assert "has no ndcg@10" in without_value.user_attrs["note"]
    assert "best trial: 1" in output.out


def test_if_every_trial_failed_there_is_no_best_one(run, tmp_path):
    plan = {"1e-3": ["exit 1"], "1e-4": ["exit 1"]}
    status, output = run(plan, choice(*plan), "--trials=2", "--pruner=hyperband")
    assert status == 1
    assert "no trial of" in output.err
    with pytest.raises(RunError):
        sweep.print_result(optuna.create_study(), parsed(choice("1", "2")))


def test_bad_input_in_the_first_trial_ends_the_sweep(run, tmp_path):
    plan = {"1e-3": ["exit 2"], "1e-4": ["exit 2"]}
    status, output = run(plan, choice(*plan), "--trials=9")
    assert (status, len(trials(tmp_path))) == (2, 1)
    assert "trial-0 failed like every trial before it: error: the GPU's memory is full" in output.err


def test_a_preempted_trial_ends_the_sweep_and_is_resumed_by_the_same_command(run, tmp_path):
    plan = {"1e-3": [0.0, 0.4], "1e-4": [0.0, 0.1, "preempted once", 0.2]}
    begin(tmp_path, *plan)
    words = (choice(*plan), "--trials=3", "--pruner=none")
    status, output = run(plan, *words)
    assert status == EXIT_PREEMPTED
    assert "preempted; run the same command again to resume" in output.err
    assert [one.state for one in trials(tmp_path)] == [TrialState.COMPLETE, TrialState.RUNNING]
    status, output = run(plan, *words)
    assert status == 0, output
    assert "trial-0" not in output.out
    assert [one.state for one in trials(tmp_path)] == [TrialState.COMPLETE] * 3
    assert trials(tmp_path)[1].intermediate_values == {1: 0.1, 2: 0.5, 3: 0.2}
    assert [line.split()[5] for line in (tmp_path / "sweep/trial-1/log.txt").read_text().splitlines()] == ["0", "2"]


def test_a_sweep_that_is_killed_draws_the_same_values_as_an_uninterrupted_one(run, tmp_path, monkeypatch):
    words = ("optimizer.lr=log(1e-5, 1e-1)", "model.n_heads=choice(2, 4)", "--trials=4")
    drawn = {}
    for kill_in in (None, 2):

        def exit_status(self, command, output, is_enough, kill_in=kill_in):
            if f"trial-{kill_in}" in " ".join(command):
                raise KeyboardInterrupt
            folder = next(word for word in command if word.startswith("save_folder=")).partition("=")[2]
            line = {"batch": 1, "metrics/eval/ndcg@10": 0.1}
            (tmp_path / folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")
            return 0

        monkeypatch.setattr(child.Children, "exit_status", exit_status)
        status, _ = run({}, *words)
        if kill_in is not None:
            assert status == 128 + signal.SIGINT
            kill_in = None
            monkeypatch.setattr(child.Children, "exit_status", lambda *words: exit_status(*words, kill_in=None))
            assert run({}, *words)[0] == 0
        drawn[len(drawn)] = [one.params for one in trials(tmp_path)]
        (tmp_path / "sweep").rename(tmp_path / f"sweep-{len(drawn)}")
    assert drawn[0] == drawn[1]
    assert len({str(params) for params in drawn[0]}) == 4


def test_two_sweeps_of_a_study_do_not_run_the_same_trial(run, tmp_path):
    plan = {"1e-3": [0.0, 0.4], "1e-4": [0.0, 0.1]}
    run(plan, choice(*plan), "--trials=1")
    options = parsed(choice(*plan), "--trials=3", f"--out={tmp_path / 'sweep'}")
    study = sweep.open_study(options, sweep.checked_config(options))
    with sweep.next_trial(study, options, 1) as one, sweep.next_trial(study, options, 1) as other:
        assert (one.number, other.number) == (1, 2)
        with sweep.next_trial(study, options, 1) as third:
            assert third is None
    with sweep.next_trial(study, options, 1) as again:
        assert again.number == 1
        assert again.params == study.trials[1].params


def test_other_settings_do_not_resume_a_sweep(run):
    plan = {"1e-3": [0.0, 0.4], "1e-4": [0.0, 0.1]}
    assert run(plan, choice(*plan), "--trials=1")[0] == 0
    assert run(plan, choice(*plan), "--trials=1", "save_interval=9ba")[0] == 0
    for words, problem in (
        ((choice("1e-3", "1e-5"),), "optimizer.lr was choice(1e-3, 1e-4) when the sweep began, now it is"),
        ((choice(*plan), "max_duration=9ep"), "max_duration was 5ep when the sweep began, now it is 9ep"),
        ((choice(*plan), "--metric=loss"), "metric was ndcg@10 when the sweep began, now it is loss"),
    ):
        status, output = run(plan, *words, "--trials=2")
        assert status == 2
        assert problem in output.err


def test_a_file_that_is_no_study_is_named(run, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep/study.db").write_text("something else, long enough to be read as a header" * 9)
    status, output = run({}, choice("1", "2"))
    assert status == 2
    assert "study.db: is not a study" in output.err


def test_the_first_check_is_a_dry_run_which_knows_which_values_are_better(shop, tmp_path):
    overrides = [*SMALL, f"data.catalogue={shop / 'catalogue.jsonl'}", f"data.train.local={shop / 'train'}"]
    overrides += [f"data.eval.local={shop / 'eval'}", f"save_folder={tmp_path}"]
    config = load_config(STAGE, overrides=overrides)
    assert [sweep._check(config, metric) for metric in ("ndcg@10", "loss", "gini@10")] == [True, False, False]
    with pytest.raises(UserError, match="ndgc@10"):
        sweep._check(config, "ndgc@10")
    with pytest.raises(UserError, match=r"data\.eval is empty"):
        sweep._check(load_config(STAGE, overrides=[*overrides, "data.eval.local=null"]), "ndcg@10")


def test_commands_of_the_page_are_valid(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = "\n".join(block.text for block in blocks("docs/sweeps.md") if block.language == "bash")
    commands = {tuple(words[2:]) for _, words in shell.commands(text) if "examples/sweep.py" in words}
    assert len(commands) == 3
    for words in commands:
        assert sweep.checked_config(sweep.parse_arguments(words)).save_folder.endswith("/trial-0")
