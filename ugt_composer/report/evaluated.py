"""Evaluates a run's model for the report: the metrics of `ugt evaluate`, also by popularity, and lists of ten users.

Shapes: B rows of a batch, T targets, K recommendations, 3 levels.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.checkpoint.portable import load_portable
from ugt_composer.checkpoint.save_folder import PORTABLE, WEIGHTS
from ugt_composer.config.schema import Config, StreamConfig
from ugt_composer.data.batch import Batch
from ugt_composer.data.codec import IDS, LABELS, TOKEN_TYPE, decode_row
from ugt_composer.data.evaluation_dataset import EvaluationDataset
from ugt_composer.data.manifest import Manifest, read_manifest, streams_of
from ugt_composer.errors import UserError
from ugt_composer.inference.evaluation import evaluate, evaluation_config
from ugt_composer.inference.history_length import history_length
from ugt_composer.job.ranks import joined_ranks
from ugt_composer.jsonl.schema import RECOMMEND
from ugt_composer.metrics.batch import rank_batch
from ugt_composer.report.popularity import (
    GROUPS,
    ItemKeys,
    Popularity,
    concentration,
    count_targets,
    recommend_folders,
)
from ugt_composer.report.results import RANKED_K, ByPopularity, GroupResult, Listed, Result, User
from ugt_composer.report.run_folder import Run
from ugt_composer.report.semantic_ids import names_of
from ugt_composer.terminal import ProgressBar
from ugt_composer.training.composer_model import ComposerUGT
from ugt_composer.vocabulary import IGNORE_INDEX, ITEM

K_VALUES = (1, 2, 3, 5, 10, 20, 50)  # besides those of the config, up to the largest of these
USERS = 10
CANDIDATES = 20 * USERS  # rows whose lists are kept, in case that some are not ranked
SHOWN_HISTORY = 12
BATCH_SIZE = 64


def evaluate_run(
    run: Run,
    catalogue: Catalogue | None,
    folders: Sequence[str],
    most_rows: int,
    seed: int,
) -> Result:
    """Evaluates `best/` of a run, or `latest/` if there is no best one, and shows its progress on stderr.

    Args:
        catalogue: of the run; None: any combination of ids may be recommended.
        folders: of rows; empty: the run's data.eval. Rows with a rejected item are not ranked, and left out.
        most_rows: of all folders together, drawn at random.
        seed: which rows and users are drawn.

    Raises:
        UserError: there is no model or no data, or these do not fit.
    """
    model_folder = next((run.folder / name for name in PORTABLE if (run.folder / name / WEIGHTS).exists()), None)
    if model_folder is None:
        raise UserError(f"{run.folder} has no model in {' or '.join(PORTABLE)}/ yet")
    model, config, facts = load_portable(model_folder)
    data = _recommend_rows(config, folders)
    config = evaluation_config(config, [manifest.folder for manifest in data], BATCH_SIZE, k_values=_k_values(config))
    if catalogue is not None:
        catalogue.check(config.model.codebook_sizes)
    total = sum(manifest.rows for manifest in data)
    row_ids = _drawn(total, most_rows, seed)
    popular, no_popularity = _training_popularity(config, catalogue)
    observer = _Observer(config, popular, row_ids, seed)
    with joined_ranks() as ranks, ProgressBar(f"evaluating {run.name}", len(row_ids), "rows") as bar:
        evaluation = evaluate(
            model,
            config,
            catalogue,
            ranks,
            bar.update_to,
            history_length(config, facts),
            row_ids.tolist(),
            observer,
        )
    drawn = "all" if len(row_ids) == total else f"{len(row_ids):,} rows, drawn at random (seed {seed}), of the"
    where = ", ".join(manifest.folder for manifest in data)
    return Result(
        str(model_folder),
        f"{drawn} {total:,} rows of {where}",
        tuple(manifest.folder for manifest in data),
        evaluation.ranked_rows,
        list(config.evaluation.k_values),
        evaluation.metrics,
        evaluation.by_length,
        observer.by_popularity() if evaluation.ranked_rows else None,
        no_popularity if evaluation.ranked_rows else "no row has a target",
        observer.users(data, catalogue, evaluation.max_history),
        "" if evaluation.ranked_rows else "no row has a target",
        evaluation.warnings,
    )


def _recommend_rows(config: Config, folders: Sequence[str]) -> list[Manifest]:
    if not folders and not config.data.eval.is_given:
        raise UserError("the run has no evaluation data (data.eval); give a folder of rows by --data")
    names = folders or [str(stream.local) for stream in streams_of("data.eval", config.data.eval)]
    manifests = [read_manifest(folder) for folder in names]
    data = [manifest for manifest in manifests if manifest.kind == RECOMMEND]
    if not any(manifest.rows for manifest in data):
        raise UserError(f"{', '.join(names)}: no recommend rows, so nothing can be ranked")
    return data


def _k_values(config: Config) -> tuple[int, ...]:
    most = max(config.evaluation.k_values)
    return tuple(sorted({k for k in K_VALUES if k <= most} | set(config.evaluation.k_values)))


def _drawn(rows: int, most: int, seed: int) -> np.ndarray:
    """Numbers of at most `most` rows, ascending."""
    if rows <= most:
        return np.arange(rows)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))


def _training_popularity(config: Config, catalogue: Catalogue | None) -> tuple[Popularity | None, str]:
    """The popularity of items in data.train, or why it is not known."""
    try:
        folders = [StreamConfig(stream.local, stream.remote) for stream in streams_of("data.train", config.data.train)]
        here = tuple(folder for folder in folders if Path(str(folder.local)).is_dir())
        if not here:
            gone = ", ".join(str(folder.local) for folder in folders)
            return (
                None,
                f"the training data ({gone}) is not on this machine, so it is not known which items are popular",
            )
        return _counted(recommend_folders(here), ItemKeys(config.model.codebook_sizes), catalogue), ""
    except UserError as error:
        return None, str(error)


@lru_cache(maxsize=1)  # the stages of a model have the same data
def _counted(streams: tuple[StreamConfig, ...], keys: ItemKeys, catalogue: Catalogue | None) -> Popularity:
    ids = np.empty((0, 3), np.int64) if catalogue is None else np.unique(catalogue.triples, axis=0)
    return count_targets(streams, keys, keys.of(ids))


class _Observer:
    """Adds up what the metrics of an evaluation do not keep: results by popularity, and single lists.

    Args:
        config: with which the model is evaluated.
        popular: None: nothing is added up by popularity.
        row_ids: the rows that are evaluated.
    """

    def __init__(self, config: Config, popular: Popularity | None, row_ids: np.ndarray, seed: int):
        self.keys = ItemKeys(config.model.codebook_sizes)
        self.k = min(RANKED_K, max(config.evaluation.k_values))
        self.popular = popular
        self.config = config
        self.order = np.random.default_rng(seed).permutation(row_ids)[:CANDIDATES].tolist()
        self.lists: dict[int, np.ndarray] = {}  # int64 (k', 3) of the candidates that were ranked
        self.sums = np.zeros((GROUPS + 1, 4))  # targets, rows, and the sums of recall and ndcg over these rows
        self.shown: Counter[int] = Counter()
        self.asked: Counter[int] = Counter()

    def __call__(self, model: ComposerUGT, batch: Batch, outputs: dict[str, Any]) -> None:
        recommended, counted = outputs["recommended"], outputs["evaluation"].ranked.counted
        ids, exists = recommended.ids[:, : self.k], recommended.item_index[:, : self.k] >= 0
        wanted = set(self.order)
        for at, row in enumerate(batch["row_ids"].tolist()):
            if row in wanted and counted[at]:
                self.lists[row] = ids[at][exists[at]].cpu().numpy()
        if self.popular is None:
            return
        mask = (batch["labels"] != IGNORE_INDEX).all(-1) & counted.unsqueeze(1)  # (B, T)
        target_keys = self.keys.of(batch["labels"].cpu().numpy())
        self.shown.update(self.keys.of(ids[exists & counted.unsqueeze(1)].cpu().numpy()).tolist())
        self.asked.update(target_keys[mask.cpu().numpy()].tolist())
        groups = torch.from_numpy(self.popular.group_of(target_keys)).to(mask.device)
        trie: ItemTrie | None = model.trie
        members = trie.members if trie is not None and trie.has_shared_ids else None
        for group in range(GROUPS + 1):
            of_group = mask & (groups == group)
            ranked = rank_batch(
                recommended,
                batch["labels"],
                of_group,
                counted,
                members,
                batch.get("label_members"),
                None if trie is None else trie.open,
            )
            values = [ranked.row_values[name][:, self.k - 1][ranked.counted].sum() for name in ("recall", "ndcg")]
            self.sums[group] += [int(of_group.sum()), int(ranked.rows), *map(float, values)]

    def by_popularity(self) -> ByPopularity | None:
        popular = self.popular
        if popular is None:
            return None
        shown, asked = self._counts(self.shown), self._counts(self.asked)
        shown_of = np.bincount(popular.groups, shown, GROUPS + 1)
        shown_of[GROUPS] += sum(self.shown.values()) - shown.sum()  # items that are neither here nor there
        groups = []
        for group, (targets, rows, recall, ndcg) in enumerate(self.sums):
            groups.append(
                GroupResult(
                    _label(group),
                    int(popular.items[group]),
                    int(popular.targets[group]),
                    int(targets),
                    int(rows),
                    recall / rows if rows else None,
                    ndcg / rows if rows else None,
                    int(shown_of[group]),
                )
            )
        read = f"{popular.rows_read:,} of {popular.rows:,}" if popular.rows_read < popular.rows else f"{popular.rows:,}"
        curves = {"training targets": popular.counts, "evaluation targets": asked, "recommendations": shown}
        return ByPopularity(
            self.k,
            f"popularity: targets in {read} training rows",
            groups,
            {name: concentration(popular.counts, counts) for name, counts in curves.items()},
        )

    def _counts(self, counter: Counter[int]) -> np.ndarray:
        assert self.popular is not None
        return np.array([counter[key] for key in self.popular.keys.tolist()], dtype=np.int64)

    def users(self, data: Sequence[Manifest], catalogue: Catalogue | None, max_history: int | None) -> list[User]:
        """The first USERS of the drawn order that were ranked."""
        rows = EvaluationDataset([StreamConfig(local=manifest.folder) for manifest in data], 0, 1)
        ranked = [row for row in self.order if row in self.lists][:USERS]
        return [self._user(row, rows, data, catalogue, max_history) for row in ranked]

    def _user(
        self,
        number: int,
        rows: EvaluationDataset,
        data: Sequence[Manifest],
        catalogue: Catalogue | None,
        max_history: int | None,
    ) -> User:
        row = decode_row(rows.packed_row(number))
        history = row.encoder[row.encoder[:, TOKEN_TYPE] == ITEM, IDS]
        read = history if max_history is None else history[-max_history:]
        labels = row.decoder[:, LABELS]
        targets = labels[(labels != IGNORE_INDEX).all(1)]
        wanted = set(map(tuple, targets.tolist()))

        def listed(ids: np.ndarray) -> list[Listed]:
            return [
                Listed(names_of(catalogue, one), "/".join(map(str, one)), tuple(one) in wanted) for one in ids.tolist()
            ]

        folder = int(np.searchsorted(rows.ends, number, side="right"))
        place = (str(Path(data[folder].folder)), number - (int(rows.ends[folder - 1]) if folder else 0))
        return User(
            place,
            row.user_id,
            listed(read[-SHOWN_HISTORY:]),
            len(history) - len(read[-SHOWN_HISTORY:]),
            listed(targets),
            listed(self.lists[number]),
        )


def _label(group: int) -> str:
    if group == GROUPS:
        return "no training target"
    return {0: "most popular", GROUPS - 1: "long tail"}.get(group, f"{group + 1}")
