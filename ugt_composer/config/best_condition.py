"""`save_best_if`: the condition that an evaluation has to fulfil for its model to become `best/`.

ndcg@10 >= 0.97 of the start     at most 3 % below the value of the model that the run starts from
ntp_loss <= 1.02 of the start
recall@10 >= 0.05
"""

import re
from dataclasses import dataclass

_FORM = re.compile(r"(\S+)\s*(>=|<=)\s*(\d+(?:\.\d+)?|\.\d+)(\s+of\s+the\s+start)?")


@dataclass(frozen=True)
class BestCondition:
    """
    Attributes:
        text: as in the YAML.
        metric: of the evaluation.
        is_lower_bound: whether the metric has to be at least, or at most, the limit.
        number: the limit, or the factor of the start's value that is the limit.
        is_relative: whether it is a factor.
    """

    text: str
    metric: str
    is_lower_bound: bool
    number: float
    is_relative: bool

    def limit(self, start: float) -> float:
        """The limit, given the metric's value at the start of the run.

        The distance from a negative start is a fraction of its absolute value, so that 0.97 is below it.
        """
        return start + (self.number - 1) * abs(start) if self.is_relative else self.number

    def holds(self, value: float, start: float) -> bool:
        """Whether a value fulfils the condition; NaN never does."""
        return value >= self.limit(start) if self.is_lower_bound else value <= self.limit(start)

    @property
    def limit_in_words(self) -> str:
        return f"limit {100 * (self.number - 1):+.3g} %" if self.is_relative else f"limit {self.number:.4g}"


def parse_best_condition(text: str) -> BestCondition:
    """Raises ValueError, without the name of the key, if the text has another form."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f'is {text!r}; expected METRIC >= NUMBER or METRIC <= NUMBER, such as "ndcg@10 >= 0.05" or, for a fraction '
            'of the value before the first batch, "ndcg@10 >= 0.97 of the start"'
        )
    metric, sign, number, relative = match.groups()
    return BestCondition(text, metric, sign == ">=", float(number), relative is not None)
