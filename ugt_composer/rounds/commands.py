"""The commands of a round: those that a user would type."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.command import program
from ugt_composer.config.load import keys_of_override, load_config
from ugt_composer.config.schema import Config
from ugt_composer.data.manifest import Manifest, read_manifest
from ugt_composer.errors import UserError, nearest, where_searched
from ugt_composer.inference.rewards import read_rewards
from ugt_composer.jsonl.schema import RECOMMEND
from ugt_composer.rounds.settings import RoundsSettings

TRAIN = ("-m", "ugt_composer.train")
SET_BY_ROUNDS = {
    "data.train.local": "data",
    "data.train.remote": "data",
    "data.train.streams": "data and proportion",
    "init_from": "init_from",
    "loss.reference_from": "init_from",
    "save_folder": "save_folder",
}  # keys of each training, and the key of the rounds that a user sets instead
METRICS = ("recall", "ndcg", "hit_rate")  # of `ugt evaluate`, at a cut-off; all are better when higher


class Commands:
    """Makes the commands, and checks at once all that can be checked before the first of them runs.

    Raises:
        UserError: the preference stage or the metric is not valid, an override has no effect, or a folder of rows is
            missing or holds other rows.
    """

    def __init__(self, settings: RoundsSettings):
        self.settings = settings
        for override in settings.overrides:
            _check_override(override)
        _check_folders(settings)
        manifests = [read_manifest(folder) for folder in settings.data]
        self.rows = [manifest.rows for manifest in manifests]
        streams = self._streams(Path("preferences"))
        self.config = load_config(*settings.stage, overrides=self._overrides(Path("round"), Path("start"), streams))
        _check_kinds(manifests, [read_manifest(folder) for folder in settings.validation])
        _check(settings, self.config)
        if settings.preferences.reward is not None:
            read_rewards(settings.preferences.reward, Catalogue.load(str(self.config.data.catalogue)))

    def preferences(self, model: Path, out: Path, number: int) -> list[str]:
        """Args: number: of the round, from 1; each round draws another sample."""
        options = self.settings.preferences
        command = [*self._ugt("preferences", model), *_each("--data", self.settings.data), "--out", str(out)]
        command += ["--overwrite", "--rejected", str(options.rejected), "--batch-size", str(options.batch_size)]
        for name in ("limit", "reward", "candidates", "reward_scale"):
            if (value := vars(options)[name]) is not None:
                command += [f"--{name.replace('_', '-')}", str(value)]
        if options.limit is not None:
            command += ["--seed", str(self.settings.seed + number)]
        return command

    def training(self, model: Path, preferences: Path, out: Path) -> list[str]:
        overrides = self._overrides(out, model, self._streams(preferences))
        return [program("composer"), *self.settings.composer, *TRAIN, *self.settings.stage, *overrides]

    def _streams(self, preferences: Path) -> list[str]:
        """Those of `data.train`, as YAML: the preference rows, and the rows that they are made of."""
        left = 1 - self.settings.proportion
        streams = [(str(preferences), self.settings.proportion)]
        if left > 0:
            total = sum(self.rows)
            streams += [(d, left * rows / total) for d, rows in zip(self.settings.data, self.rows, strict=True)]
        return [f"{{local: {_quoted(folder)}, proportion: {proportion:.6g}}}" for folder, proportion in streams]

    def evaluation(self, model: Path, report: Path) -> list[str]:
        """The same options for every model, so that their metrics can be compared."""
        evaluation = self.config.evaluation
        seen = "--exclude-seen" if evaluation.exclude_seen else "--include-seen"
        command = [*self._ugt("evaluate", model), *_each("--data", self.settings.validation), "--json", str(report)]
        command += ["-k", *map(str, evaluation.k_values), "--beam-width", str(evaluation.beam_width), seen]
        return command

    def _ugt(self, command: str, model: Path) -> list[str]:
        evaluation, catalogue = self.config.evaluation, str(self.config.data.catalogue)
        words = [program("ugt"), command, "--checkpoint", str(model), "--catalogue", catalogue]
        words += ["--item-score-weight", str(evaluation.item_score_weight)]
        if evaluation.item_neighbours is not None:
            words += ["--item-neighbours", evaluation.item_neighbours]
        words += ["--neighbour-weight", str(evaluation.neighbour_weight)]
        return [*words, *(["--max-history", str(evaluation.max_history)] if evaluation.max_history else [])]

    def _overrides(self, run: Path, model: Path, streams: Sequence[str]) -> list[str]:
        """Those of the training: the user's override the first ones, the last ones override the user's.

        Args:
            streams: see `_streams`.
        """
        held_out = ",".join(f"{{local: {_quoted(folder)}}}" for folder in self.settings.validation)
        return [
            "data.eval.local=null",
            "data.eval.remote=null",
            f"data.eval.streams=[{held_out}]",
            f"save_best_on={self.settings.metric}",
            *self.settings.overrides,
            "data.train.local=null",
            "data.train.remote=null",
            f"data.train.streams=[{','.join(streams)}]",
            f"init_from={model}",
            f"loss.reference_from={model}",
            f"save_folder={run}",
        ]


def _each(option: str, values: Sequence[str]) -> Iterator[str]:
    for value in values:
        yield from (option, value)


def _quoted(text: str) -> str:
    """As YAML reads it."""
    return json.dumps(text, ensure_ascii=False)


def _check_folders(settings: RoundsSettings) -> None:
    data, validation = ([Path(f).resolve() for f in folders] for folders in (settings.data, settings.validation))
    for name, folders, resolved in (("data", settings.data, data), ("validation", settings.validation, validation)):
        for place, folder in enumerate(folders):
            if resolved[place] in resolved[:place]:
                raise UserError(f"{name} names {folder} twice; expected each folder once")
            if name == "validation" and resolved[place] in data:
                raise UserError(
                    f"validation names {folder}, which data names too; expected rows that no model is trained on"
                )


def _check_override(text: str) -> None:
    for key in keys_of_override(text, Config):
        if key in SET_BY_ROUNDS:
            raise UserError(
                f"overrides has {text}, but each round sets {key} itself; leave it out, and set {SET_BY_ROUNDS[key]} "
                "of the rounds instead"
            )


def _check_kinds(data: Sequence[Manifest], validation: Sequence[Manifest]) -> None:
    for manifest in data:
        if manifest.kind != RECOMMEND:
            raise UserError(
                f"data names {manifest.folder}, which holds {manifest.kind} rows; expected rows of --kind {RECOMMEND}"
            )
    if all(manifest.kind != RECOMMEND for manifest in validation):
        folders = ", ".join(manifest.folder for manifest in validation)
        raise UserError(f"validation names {folders}, without rows of --kind {RECOMMEND}; expected a folder of them")


def _check(settings: RoundsSettings, config: Config) -> None:
    known = [f"{name}@{k}" for name in METRICS for k in config.evaluation.k_values]
    if settings.metric not in known:
        raise UserError(f"metric is {settings.metric}; {nearest(settings.metric, known)}")
    if config.data.catalogue is None:
        raise UserError("data.catalogue is missing in the stage's YAML files and overrides; expected the items' file")
    if not Path(config.data.catalogue).is_file():
        raise UserError(
            f"data.catalogue is {config.data.catalogue} in the stage's YAML files and overrides: no such file"
            f"{where_searched(config.data.catalogue)}; expected the items' file, which the data.yaml of an import "
            f"names: stage=[{','.join(settings.stage)},data/mine/data.yaml]"
        )
    if config.loss.lambda_preference == 0:
        raise UserError(
            f"loss.lambda_preference is 0 in {' + '.join(settings.stage)}; expected a stage with a preference loss"
        )
    for key, found, expected, why in (
        ("preference_objective", config.loss.preference_objective, "dpo", "does not read the pairs that rounds make"),
        ("reference_log_probs", config.loss.reference_log_probs, "model", "new pairs do not have"),
    ):
        if found != expected:
            raise UserError(f"loss.{key} is {found}, which {why}; expected {expected}")
