"""Searches for the best values of any keys with Optuna: one training per trial, each in its own folder."""

import argparse
import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from ugt_composer import __version__
from ugt_composer.checkpoint.resumable import config_differences
from ugt_composer.config.checks import is_within
from ugt_composer.config.load import config_yaml, load_config, type_of_key
from ugt_composer.config.schema import Config
from ugt_composer.errors import (
    EXIT_BAD_INPUT,
    EXIT_PREEMPTED,
    RunError,
    UserError,
    exit_on_user_error,
    first_line,
    nearest,
)
from ugt_composer.job.child import Children, Preempted
from ugt_composer.storage.file_lock import locked, locked_if_free

try:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import Trial, TrialState
    from sqlalchemy.exc import SQLAlchemyError
except ImportError:
    sys.exit("error: optuna is not installed; pip install 'ugt-composer[sweep]'")

EPILOG = """searched keys, in quotes because of the parentheses:
  'optimizer.lr=log(1e-5, 1e-3)'       between the two, evenly on a logarithmic scale
  'model.dropout=uniform(0, 0.3)'      between the two, evenly; a whole number if the key is one, both ends included
  'model.n_heads=choice(4, 8)'         one of these, which may be text, null or lists
All other key=value are the same in each trial.

example:
  python examples/sweep.py yamls/stage1.yaml max_duration=2ep 'optimizer.lr=log(1e-5, 1e-3)' --out sweeps/lr --trials 30

The same command resumes a sweep that was stopped, and the training that it was stopped in, until there are --trials
trials. Started several times, it runs several trials at once. Exit status: 0 done, 1 error, 2 bad config or input, 75
preempted: run again."""
COMPOSER = Path(sys.executable).parent / "composer"
TRAIN = ("-m", "ugt_composer.train")
STUDY, LOCK, LOG, METRICS = "study.db", ".lock", "log.txt", "metrics.jsonl"
NAMES = ("log", "uniform", "choice")
SET_BY_SWEEP = {"save_folder": "--out", "save_best_on": "--metric", "autoresume": "the sweep"}
# Keys that do not decide what a trial learns; the others stay the same in all trials of a study.
MAY_CHANGE = (
    "run_name",
    "save_folder",
    "save_interval",
    "save_num_checkpoints_to_keep",
    "log_interval",
    "dist_timeout",
    "dist_start_timeout",
    "device_train_microbatch_size",
    "device_eval_batch_size",
    "data.train.num_workers",
    "data.eval.num_workers",
    "parallelism",
    "checkpoint",
    "preemption",
    "loggers",
)


@dataclass(frozen=True)
class Search:
    """A key that is searched.

    Attributes:
        text: how it is searched, such as "log(1e-5, 1e-3)".
        values: as text, all choices or both ends, which are checked before the first trial.
    """

    key: str
    text: str
    values: tuple[str, ...]
    distribution: CategoricalDistribution | FloatDistribution | IntDistribution

    def draw(self, trial: Trial) -> None:
        """Draws the value of a trial; keeps one that was drawn before."""
        one = self.distribution
        if isinstance(one, CategoricalDistribution):
            trial.suggest_categorical(self.key, one.choices)
        elif isinstance(one, IntDistribution):
            trial.suggest_int(self.key, one.low, one.high, log=one.log)
        else:
            trial.suggest_float(self.key, one.low, one.high, log=one.log)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sweep.py", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="YAML|key=value", help="as of train.py, and the searched keys")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study: study.db, trial-0/, trial-1/ …")
    parser.add_argument("--trials", type=_positive, default=20, help="trials of the study in total (default 20)")
    parser.add_argument("--metric", default="ndcg@10", help="evaluation metric to optimise (default ndcg@10)")
    parser.add_argument(
        "--pruner",
        choices=("median", "hyperband", "none"),
        default="median",
        help="ends trials early that are worse than the median of the others after as many evaluations (default), by "
        "Hyperband, or none",
    )
    parser.add_argument(
        "--unpruned", type=_positive, default=5, metavar="N", help="median: N trials end before it begins (default 5)"
    )
    parser.add_argument(
        "--delete-pruned", action="store_true", help="delete the folders of trials that are ended early"
    )
    parser.add_argument("--composer", default="", metavar="OPTIONS", help='options of the launcher, such as "-n 2"')
    parser.add_argument("--version", action="version", version=f"ugt_composer {__version__}")
    options = parser.parse_intermixed_args(argv)
    options.yamls = [word for word in options.words if "=" not in word]
    settings = [word for word in options.words if "=" in word]
    options.searches = [search for word in settings if (search := parse_search(word))]
    options.fixed = [word for word in settings if parse_search(word) is None]
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse_search(word: str) -> Search | None:
    """Reads `key=log(1e-5, 1e-3)` and the like; None for a key with one value.

    Raises:
        UserError: the values do not fit, or the key's type.
    """
    key, _, text = word.partition("=")
    if (call := re.fullmatch(r"\s*([a-z]\w*)\s*\((.*)\)\s*", text)) is None:
        return None
    name, inside = call.groups()
    if name not in NAMES:
        raise UserError(f"{word}: {name}(…) is unknown; {nearest(name, list(NAMES))}")
    try:
        items = yaml.compose(f"[{inside}]").value
    except yaml.YAMLError:
        raise UserError(f"{word}: expected {name}(VALUE, VALUE), text with special characters in quotes") from None
    values = tuple(f"[{inside}]"[item.start_mark.index : item.end_mark.index] for item in items)
    if name == "choice":
        if len(set(values)) < max(2, len(values)):
            raise UserError(f"{word}: expected two or more different values")
        return Search(key, text, values, CategoricalDistribution(values))
    hint = type_of_key(key)
    kinds = (hint, *get_args(hint))
    if hint is not None and not {int, float, Any} & set(kinds):
        raise UserError(f"{word}: {key} is not a number; expected choice(VALUE, VALUE)")
    is_whole = float not in kinds and (int in kinds or all(value.lstrip("-").isdecimal() for value in values))
    try:
        low, high = (int(value) if is_whole else float(value) for value in values)
    except ValueError:
        numbers = "whole numbers" if is_whole else "numbers"
        raise UserError(
            f"{word}: expected two {numbers}, as in {key}={name}({'1, 8' if is_whole else '0.1, 1'})"
        ) from None
    if not (-math.inf < low < high < math.inf and (low > 0 or name == "uniform")):
        raise UserError(f"{word}: expected a lower and a higher number" + ", both above 0" * (name == "log"))
    if is_whole:
        return Search(key, text, values, IntDistribution(int(low), int(high), log=name == "log"))
    return Search(key, text, values, FloatDistribution(low, high, log=name == "log"))


def checked_config(options: argparse.Namespace) -> Config:
    """The config of a trial with valid values. UserError if a key, or one of its values, is valid in no trial."""
    searches: list[Search] = options.searches
    if not searches:
        raise UserError("no key is searched; expected at least one such as 'optimizer.lr=log(1e-5, 1e-3)'")
    keys = [word.partition("=")[0] for word in options.fixed] + [search.key for search in searches]
    for key in keys:
        if key in SET_BY_SWEEP:
            raise UserError(f"{key} is set by {SET_BY_SWEEP[key]}; leave it out")
        if keys.count(key) > 1:
            raise UserError(f"{key} is given {keys.count(key)} times; expected once")
    configs = []
    for search in searches:
        for value in search.values:
            # A value may be valid only with some values of the other keys: the first of them usually do.
            others = [one.values if one is not search else (value,) for one in searches]
            problems = []
            for combination in islice(product(*others), 50):
                values = {one.key: text for one, text in zip(searches, combination, strict=True)}
                try:
                    configs.append(load_config(*options.yamls, overrides=trial_overrides(0, values, options)))
                    break
                except UserError as error:
                    problems.append(error)
            else:
                raise problems[0]
    return configs[0]


def repeat_overrides(values: Mapping[str, str | int | float], options: argparse.Namespace) -> list[str]:
    """Those that repeat a trial with these values of the searched keys."""
    return [*options.fixed, *(f"{key}={value}" for key, value in values.items()), f"save_best_on={options.metric}"]


def trial_overrides(number: int, values: Mapping[str, str | int | float], options: argparse.Namespace) -> list[str]:
    """Those of a trial: the user's override the first one, the last ones override the YAML's."""
    own = [f"save_folder={options.out / f'trial-{number}'}", "autoresume=true"]
    return ["loggers.progress_bar=false", *repeat_overrides(values, options), *own]


def direction_of(config: Config, metric: str) -> Literal["maximize", "minimize"]:
    """What Optuna calls the better values of a metric. UserError if a run with this config would not begin.

    PyTorch is imported by another process: it would keep memory, also of the GPU, while the trials train.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return "maximize" if pool.submit(_check, config, metric).result() else "minimize"


def _check(config: Config, metric: str) -> bool:
    from ugt_composer.training.dry_run import describe, higher_is_better

    higher = higher_is_better(config, metric)
    describe(config)
    return higher


def open_study(options: argparse.Namespace, config: Config) -> optuna.Study:
    """Begins a study, or opens it again. UserError if it was begun with other settings."""
    path = options.out / STUDY
    settings = {"metric": options.metric, **{search.key: search.text for search in options.searches}}
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
        studies = optuna.get_all_study_summaries(storage)
    except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        raise UserError(f"{path}: is not a study ({first_line(error)}); name another folder by --out") from None
    if not studies or "settings" not in studies[0].user_attrs:
        direction = direction_of(config, options.metric)
        study = optuna.create_study(study_name="sweep", storage=storage, direction=direction, load_if_exists=True)
        study.set_user_attr("config", config_yaml(config))
        study.set_user_attr("settings", settings)
    pruner: optuna.pruners.BasePruner = {
        "median": optuna.pruners.MedianPruner(n_startup_trials=options.unpruned),
        "hyperband": optuna.pruners.HyperbandPruner(),
        "none": optuna.pruners.NopPruner(),
    }[options.pruner]
    study = optuna.load_study(study_name="sweep", storage=storage, pruner=pruner)
    before = study.user_attrs["settings"]
    changed = {key: (before.get(key), settings.get(key)) for key in {**before, **settings}}
    searched = tuple(search.key for search in options.searches)
    for key, values in config_differences(study.user_attrs["config"], config).items():
        if not is_within(key, (*MAY_CHANGE, *searched)):
            changed[key] = values
    for key, (old, new) in changed.items():
        if old != new:
            raise UserError(
                f"{path}: {key} was {old} when the sweep began, now it is {new}; set it back to resume the sweep, or "
                "use another --out"
            )
    return study


@contextmanager
def next_trial(study: optuna.Study, options: argparse.Namespace, seed: int) -> Iterator[Trial | None]:
    """The trial to run: one that a sweep was stopped in, or a new one; None if there are enough.

    Its lock keeps other sweeps of the study away; the system releases it when this process is killed.
    """

    def is_taken(number: int) -> bool:
        lock = options.out / f".trial-{number}.lock"
        lock.touch()
        return not stack.enter_context(locked_if_free(lock))

    def sampler(number: int) -> optuna.samplers.BaseSampler:
        # With a seed for each trial, a resumed sweep draws what an uninterrupted one would have drawn.
        return optuna.samplers.TPESampler(seed=seed + number, constant_liar=True)

    with ExitStack() as stack:
        with locked(options.out / LOCK):
            trial = None
            for running in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                # Its state is read again: the sweep that ran it may have ended it before its lock was free.
                if not is_taken(running.number) and study.trials[running.number].state is TrialState.RUNNING:
                    study.sampler = sampler(running.number)
                    trial = Trial(study, running._trial_id)  # as `ask` does
                    break
            else:
                begun = sum(one.state is not TrialState.WAITING for one in study.trials)  # waiting: by enqueue_trial
                if begun < options.trials:
                    study.sampler = sampler(begun)
                    trial = study.ask()
                    is_taken(trial.number)
            for search in options.searches if trial else ():
                search.draw(trial)
        yield trial


def run_trial(trial: Trial, study: optuna.Study, options: argparse.Namespace, children: Children) -> None:
    """Trains a trial, from its checkpoint if there is one, and records how it ended.

    Raises:
        Preempted: the same command resumes it.
        UserError: data or config of all trials are wrong.
    """
    name = f"trial-{trial.number}"
    folder = options.out / name
    shown = ", ".join(f"{key} {shown_value(value)}" for key, value in trial.params.items())
    print(f"{name}: {shown}", flush=True)

    def end(state: TrialState, value: float | None = None, note: str = "") -> None:
        trial.set_user_attr("note", note)
        study.tell(trial, value, state)
        print(f"{name}: {shown_state(state)} {note}".rstrip(), flush=True)

    overrides = trial_overrides(trial.number, trial.params, options)
    try:
        config = load_config(*options.yamls, overrides=overrides)
    except UserError as error:
        return end(TrialState.FAIL, note=f"these values do not go together: {error}")
    overrides.append(f"run_name={config.run_name}-{name}")
    if config.checkpoint.remote is not None:
        overrides.append(f"checkpoint.remote={config.checkpoint.remote.rstrip('/')}/{name}")
    values: list[float] = []
    is_pruned = False

    def report() -> bool:
        """Reports new evaluations. Returns whether the trial is to end early."""
        nonlocal is_pruned
        for value in evaluations(folder, options.metric)[len(values) :]:
            values.append(value)
            if len(values) not in known:
                print(f"{name}: {options.metric} {value:.4f} in evaluation {len(values)}", flush=True)
                trial.report(value, len(values))
                is_pruned = trial.should_prune()
        return is_pruned

    known = study.trials[trial.number].intermediate_values
    folder.mkdir(exist_ok=True)
    command = [str(COMPOSER), *shlex.split(options.composer), *TRAIN]
    with (folder / LOG).open("ab") as log:
        status = children.exit_status([*command, *options.yamls, *overrides], log, report)
    if status == 0:
        report()
        if not values:
            return end(TrialState.FAIL, note=f"has no {options.metric} in {folder / METRICS}")
        return end(TrialState.COMPLETE, (max if is_maximized(study) else min)(values))
    if is_pruned:
        end(TrialState.PRUNED)
        return shutil.rmtree(folder) if options.delete_pruned else None
    if status == EXIT_PREEMPTED:
        raise Preempted
    end(TrialState.FAIL, note=f"exit status {status}: {last_line(folder / LOG)}")
    if status == EXIT_BAD_INPUT and all(one.state is TrialState.FAIL for one in study.trials):
        raise UserError(f"{name} failed like every trial before it: {last_line(folder / LOG)}")


def evaluations(folder: Path, metric: str) -> list[float]:
    """The values of a metric in the evaluations of a run so far, without the one of the model that it starts from."""
    path = folder / METRICS
    # The last line may be incomplete.
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row[key] for row in rows if (key := f"metrics/eval/{metric}") in row and row["batch"] > 0]


def last_line(path: Path) -> str:
    """The last error message of a log, or its last line."""
    lines = [line for line in path.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return [f"see {path}", *lines, *errors][-1].strip()


def is_maximized(study: optuna.Study) -> bool:
    return study.direction is optuna.study.StudyDirection.MAXIMIZE


def shown_state(state: TrialState) -> str:
    names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed:"}
    return names.get(state, "running")


def shown_value(value: str | int | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def print_result(study: optuna.Study, options: argparse.Namespace) -> None:
    """The table of trials, and the best one. RunError if none is complete."""
    from rich.console import Console
    from rich.table import Table

    keys = [search.key for search in options.searches]
    table = Table("trial", options.metric, *keys, "evaluations", "state")
    for one in study.trials:
        value = "" if one.value is None else f"{one.value:.4f}"
        drawn = [shown_value(one.params.get(key, "")) for key in keys]
        state = f"{shown_state(one.state)} {one.user_attrs.get('note', '')}".rstrip()
        table.add_row(str(one.number), value, *drawn, str(len(one.intermediate_values)), state)
    Console().print(table)
    if all(one.state is not TrialState.COMPLETE for one in study.trials):
        raise RunError(f"no trial of {options.out} is complete; see its message above, or trial-*/{LOG}")
    best = study.best_trial
    command = ["composer", *shlex.split(options.composer), *TRAIN, *options.yamls]
    print(f"best trial: {best.number}, {options.metric} {best.value:.4f}, in {options.out}/trial-{best.number}/best")
    print(shlex.join([*command, *repeat_overrides(best.params, options)]))


def main() -> int:
    options = parse_arguments()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = checked_config(options)
    children = Children()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {options.out} cannot be made ({error.strerror}); name another folder") from None
    try:
        with locked(options.out / LOCK):
            study = open_study(options, config)
        is_left = True
        while is_left:
            with next_trial(study, options, config.seed) as trial:
                if is_left := trial is not None:
                    run_trial(trial, study, options, children)
    except Preempted:
        print(f"{options.out}: preempted; run the same command again to resume", file=sys.stderr)
        return EXIT_PREEMPTED
    print_result(study, options)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
