"""ComposerUGT: joins model, losses and metrics for Composer's Trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torchmetrics import Metric

from ugt_composer.catalogue.neighbours import ItemNeighbours
from ugt_composer.catalogue.trie import ItemTrie
from ugt_composer.data.batch import Batch
from ugt_composer.data.recent_history import with_recent_history
from ugt_composer.generation.beam_search import Recommendations, beam_search
from ugt_composer.generation.item_scores import ItemScores, NeighbourScores
from ugt_composer.losses.level_distillation import level_targets
from ugt_composer.losses.normalization import ROWS, batch_counts
from ugt_composer.losses.unified import UnifiedLoss
from ugt_composer.metrics.batch import EvaluationBatch, compare_pairs, rank_batch
from ugt_composer.metrics.torch_metrics import EvaluationMetric, evaluation_metrics
from ugt_composer.model.ugt import UGT
from ugt_composer.parallelism.precision import cpu_autocast
from ugt_composer.row_random import RowNoise
from ugt_composer.vocabulary import IGNORE_INDEX


class ComposerUGT(ComposerModel):
    """UGT with its loss and its evaluation.

    Args:
        model: the model.
        loss: the stage's loss.
        reference: computes the log-probabilities that the preference loss compares with (`Reference`, or
            `GroupReference` for a loss with a group). None: they come with the batch, or none are needed. It is not a
            submodule, so that no checkpoint and no optimizer has it.
        trie: the catalogue, on the device of the batches; with None, any triple of ids may be recommended.
        k_values: cut-offs of the ranking metrics.
        beam_width: beams per row, at least the largest cut-off.
        exclude_seen: in evaluation, items of the history are not recommended.
        max_history: in evaluation, items of a history that the model reads, besides the user's token; None: all.
        item_score_weight: weight of the user-item score (`ItemScores`) in the ranking; above 0 it needs a trie.
        user_metrics: the user's own metrics of the evaluation, by name; see `metrics/user_metrics.py`.
        neighbours: of the items of the trie, and their fraction of the user-item score in the ranking; None: that score
            is the similarity of vectors alone.
        item_rewards: float32 (n,), what a loss with a group adds to the reward of each item of the trie; None: 0.
        seed: of the run, for the items of a group.
        half_on_cpu: compute model and loss under bfloat16 autocast on a CPU. On a GPU, Trainer and strategy do that.
    """

    def __init__(
        self,
        model: UGT,
        loss: UnifiedLoss,
        reference: nn.Module | None,
        trie: ItemTrie | None,
        k_values: Sequence[int],
        beam_width: int,
        exclude_seen: bool,
        item_score_weight: float = 0.0,
        user_metrics: Mapping[str, Metric] | None = None,
        half_on_cpu: bool = False,
        max_history: int | None = None,
        item_rewards: Tensor | None = None,
        seed: int = 0,
        neighbours: tuple[ItemNeighbours, float] | None = None,
    ):
        super().__init__()
        self.half_on_cpu = half_on_cpu
        self.model = model
        self.unified_loss = loss
        self._reference = (reference,)  # a tuple hides it from nn.Module
        self.trie = trie
        self.k_values = tuple(k_values)
        self.beam_width = beam_width
        self.exclude_seen = exclude_seen
        self.max_history = max_history
        self.item_score_weight = item_score_weight
        self.item_rewards = item_rewards
        self.seed = seed
        self.neighbours = neighbours
        self._user_metrics = dict(user_metrics or {})
        # Sums over the rows of the current step; `TrainingMetrics` reads and clears them.
        self.step_metrics: dict[str, Tensor] = {}
        self.step_rows = 0

    @property
    def reference(self) -> nn.Module | None:
        """The reference model of the preference loss."""
        return self._reference[0]

    def set_reference(self, reference: nn.Module) -> None:
        """Replaces the reference model, by one that a strategy shards for example."""
        self._reference = (reference,)

    def forward(self, batch: Batch, recommend: bool = False) -> dict[str, Any]:
        """UGT's outputs; with `recommend`, of histories cut to `max_history`, also the ranked `recommended` items.

        Everything that needs weights is done in here, where a strategy that shards them has gathered them.
        """
        with cpu_autocast(self.half_on_cpu):
            return self._forward(batch, recommend)

    def _forward(self, batch: Batch, recommend: bool) -> dict[str, Any]:
        seen = batch["encoder_ids"] if recommend and self.exclude_seen else None
        if recommend and self.max_history is not None:
            batch = with_recent_history(batch, 1 + self.max_history)
        with_item_vectors = self.unified_loss.has_catalogue_negatives or (recommend and self.item_score_weight > 0)
        size = self.unified_loss.group_size
        noise = RowNoise(batch["row_ids"], self._step_of(batch), self.seed) if size else None
        # The anchor compares with the reference's softmaxes piece by piece, so the reference comes first.
        reference: dict[str, Any] = {}
        if self.unified_loss.has_anchor and not self.model.is_over_catalogue:
            reference = self._reference_outputs(batch)
        anchors = reference.pop("reference_softmaxes", None)
        outputs: dict[str, Any] = self.model(batch, self.trie, with_item_vectors, size, noise, anchors=anchors)
        if self.unified_loss.has_catalogue_negatives:
            assert self.trie is not None
            outputs["item_rows"] = self.trie.find(batch["labels"][:, 0])
        if self.unified_loss.has_level_targets:
            assert self.trie is not None
            outputs |= level_targets(self._item_scores(outputs, 1.0), batch["labels"][:, 0], self.trie)
        if size:
            self._judge_group(batch, outputs)
        elif reference:
            outputs |= reference
        elif "rejected_logps" in outputs or self.unified_loss.has_anchor:
            outputs |= self._reference_outputs(batch)
        if recommend:
            outputs["recommended"] = self._recommend(seen, outputs, batch)
        return outputs

    def _judge_group(self, batch: Batch, outputs: dict[str, Any]) -> None:
        """Adds what the loss compares the group with: the reference's distributions, and the items' rewards."""
        if self.reference is not None:
            outputs |= self._ask_reference(batch, outputs["group_ids"])
        if self.item_rewards is not None:
            target = outputs["group_target_items"]
            outputs["group_values"] = self.item_rewards[outputs["group_items"]]
            outputs["group_target_values"] = torch.where(target >= 0, self.item_rewards[target.clamp(min=0)], 0.0)

    def _reference_outputs(self, batch: Batch) -> dict[str, Any]:
        """What pairs and the anchor compare with; nothing without a reference."""
        if self.reference is not None:
            outputs = self._ask_reference(batch)
        else:
            outputs = {"reference_logps": batch["reference_logps"]} if "reference_logps" in batch else {}
        if (logps := outputs.pop("reference_logps", None)) is not None:
            outputs |= {"reference_chosen_logps": logps[:, 0], "reference_rejected_logps": logps[:, 1:]}
        return outputs

    def _ask_reference(self, batch: Batch, *group: Tensor) -> dict[str, Any]:
        """The reference's outputs under the names of `UnifiedLoss.forward`."""
        assert self.reference is not None
        if self.reference.training != self.training:
            self.reference.train(self.training)  # experts have a capacity in training only
        scores = self.reference(batch, self.trie, *group, for_anchor=self.unified_loss.has_anchor)
        return {f"reference_{name}": value for name, value in scores.items()}

    def _step_of(self, batch: Batch) -> Tensor:
        """The step that a group is drawn for: (); 0 in evaluation, where all draws are the same each time."""
        step = batch.get("step") if self.training else None
        return batch["row_ids"].new_zeros(()) if step is None else step

    def _recommend(self, seen: Tensor | None, outputs: dict[str, Any], batch: Batch) -> Recommendations:
        scores = None
        if self.item_score_weight > 0:
            scores = self._item_scores(outputs, self.item_score_weight)
            if self.neighbours is not None:
                assert self.trie is not None
                scores = replace(scores, neighbours=NeighbourScores.of(batch, self.trie, *self.neighbours))
        k, width = max(self.k_values), self.beam_width
        heads, over_catalogue = self.model.level_logits, self.model.is_over_catalogue
        hidden, biases = outputs["bos_hidden"], outputs.get("bos_biases")
        return beam_search(heads, hidden, self.trie, k, width, seen, scores, over_catalogue, biases=biases)

    def _item_scores(self, outputs: dict[str, Any], weight: float) -> ItemScores:
        loss = self.unified_loss.contrastive
        return ItemScores(
            outputs["user_repr"],
            outputs["catalogue_repr"],
            loss.temperature,
            weight,
            loss.similarity,
            repeats=outputs.get("seen_items"),
        )

    def loss(self, outputs: dict[str, Tensor], batch: Batch, *args, **kwargs) -> dict[str, Tensor]:  # type: ignore[override]
        """The stage's loss as `total`, and its parts for the log."""
        losses = self._losses(outputs, batch)
        rows = len(batch["row_ids"])
        for name, value in losses.pop("metrics").items():
            self.step_metrics[name] = self.step_metrics.get(name, 0) + value * rows
        self.step_rows += rows
        return {"total": losses.pop("total_loss"), **losses}

    def _losses(self, outputs: dict[str, Tensor], batch: Mapping[str, Any]) -> dict[str, Any]:
        with cpu_autocast(self.half_on_cpu):
            return self.unified_loss(outputs, batch)

    def eval_forward(self, batch: Batch, outputs: Any = None) -> dict[str, Any]:
        """The outputs, with what the batch adds to the metrics under `evaluation`."""
        outputs = self(batch, recommend=True)
        members = self.trie.members if self.trie is not None and self.trie.has_shared_ids else None
        open_nodes = None if self.trie is None else self.trie.open
        ranked = rank_batch(outputs["recommended"], *_targets(batch), members, batch.get("label_members"), open_nodes)
        if "rejected_logps" in outputs:
            pairs = compare_pairs(outputs["chosen_logps"], outputs["rejected_logps"], batch["rejected_mask"])
        else:
            pairs = torch.zeros(2, dtype=torch.float64, device=batch["labels"].device)
        return {**outputs, "evaluation": EvaluationBatch(ranked, *self._evaluation_sums(outputs, batch), pairs)}

    def _evaluation_sums(self, outputs: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """(sums, counts), each in the order of `unified_loss.means`; means are exact whatever the sizes of batches."""
        means, totals = self.unified_loss.means, batch_counts(batch)
        ones = torch.ones_like(totals)  # the mean over a count of one is the sum
        ones[ROWS].fill_(len(batch["row_ids"]))  # an assignment would copy from the CPU and wait
        losses = self._losses(outputs, {**batch, "batch_totals": ones})
        values = losses | losses["metrics"]
        sums = torch.stack([values.get(mean.name, totals.new_zeros(())) for mean in means])
        return sums, torch.stack([totals[mean.counted_by] for mean in means])

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """The metrics of an evaluation by name, new ones at each call; none of training, which come with the losses."""
        if is_train:
            return {}
        loss, items = self.unified_loss, None if self.trie is None else self.trie.recommendable
        shared = self.trie is not None and self.trie.has_shared_ids
        metrics = evaluation_metrics(loss.means, loss.evaluation_losses(), self.k_values, items, shared)
        return metrics | self._user_metrics

    def update_metric(self, batch: Batch, outputs: dict[str, Any], metric: Metric) -> None:
        """Adds the rows of a batch, of which `eval_forward` returned the outputs, to a metric."""
        if isinstance(metric, EvaluationMetric):
            metric.update(outputs["evaluation"])
        else:  # a user's own
            metric.update(outputs["recommended"].ids, *_targets(batch))


def _targets(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """What recommendations are compared with: the targets int64 (B, T, 3), which of them exist bool (B, T), and which
    rows count bool (B,)."""
    labels = batch["labels"]
    # A pair's chosen item answers another question than «what came next», so its row is not ranked.
    return labels, (labels != IGNORE_INDEX).all(-1), batch["row_mask"] & ~batch["rejected_mask"].any(-1)
