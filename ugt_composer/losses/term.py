"""The interface of a loss term: all that `UnifiedLoss`, logging and evaluation know about it.

To add a loss: a module of this package with a class like `DPOLoss`, its keys in `LossConfig`, and two lines in
`UnifiedLoss.__init__`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ugt_composer.losses.normalization import LABELS_L1, LABELS_L2, LABELS_L3


class Mean(NamedTuple):
    """A value that evaluations average exactly, whatever the batches and ranks.

    Attributes:
        name: of the value, in the term's loss and metrics; evaluations log it as `metrics/eval/{name}`.
        counted_by: what it is a mean over: a column of `losses.normalization.batch_counts` other than ROWS, which
            counts filler rows too.
        higher_is_better: for `save_best_on`.
        weight: of the value in the term's loss in evaluations, which is a weighted sum of its means.
    """

    name: str
    counted_by: int
    higher_is_better: bool = False
    weight: float = 0.0


def level_means(name: str, weights: Sequence[float]) -> tuple[Mean, ...]:
    """The means of a loss over the labels of each level, `NAME_l1_loss` to `NAME_l3_loss`, with their weights in it."""
    counts = (LABELS_L1, LABELS_L2, LABELS_L3)
    levels = enumerate(zip(counts, weights, strict=True), start=1)
    return tuple(Mean(f"{name}_l{level}_loss", count, weight=weight) for level, (count, weight) in levels)


class LossTerm(Protocol):
    """One term of the training loss; an `nn.Module`.

    Attributes:
        name: under which its value is logged, such as "dpo_loss".
        means: the values that evaluations average; none has a weight if the term is not part of their loss.
    """

    name: str
    means: tuple[Mean, ...]

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (), float32, and its metrics, each (); those whose name ends with "_loss" are logged as losses.

        Args:
            outputs: of the model, as in `UnifiedLoss.forward`.
            batch: as in `UnifiedLoss.forward`.
            labels: int64 (B, T, L); -100 is ignored, which all labels of filler rows are.
        """


class WeightedTerm(NamedTuple):
    """A term, its weight in the loss, and the key of `loss.*` that sets the weight; None: the weight is always 1."""

    weight: float
    term: Any  # a LossTerm
    key: str | None = None
