"""What a loss says about itself, so that `UnifiedLoss`, the log and the evaluation need to know nothing else of it.

To add a loss: a module of this package with a class like `DPOLoss`, its keys in `LossConfig`, and a line in
`UnifiedLoss.__init__`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Mean(NamedTuple):
    """A value that evaluations average exactly, whatever the batches and ranks.

    Attributes:
        name: of the value among a term's loss and metrics; the evaluation logs it as `metrics/eval/{name}`.
        counted_by: what it is a mean over: a column of `losses.normalization.batch_counts`.
        higher_is_better: for `save_best_on`.
    """

    name: str
    counted_by: int
    higher_is_better: bool = False


class LossTerm(Protocol):
    """One term of the training loss; an `nn.Module`.

    Attributes:
        name: of its value in the log, such as "dpo_loss".
        means: the values that evaluations average.
    """

    name: str
    means: tuple[Mean, ...]

    def of_batch(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (), float32, and its metrics, each (); those whose name ends with "_loss" are logged as losses.

        Args:
            outputs, batch: as of `UnifiedLoss.forward`.
            labels: int64 (B, T, L), of the rows that count; -100 elsewhere.
        """

    def evaluation_weights(self) -> dict[str, float]:
        """How its loss is made of its `means` in an evaluation, {name: weight}; empty where it is not evaluated."""


class WeightedTerm(NamedTuple):
    weight: float
    term: Any  # a LossTerm
