"""A law of customers in which what they did with an item, and how much time passed, decide what they take next.

Each event is an item, whether the customer liked it, and the time until the next event: minutes, days or months. Both
are drawn independently of everything before. The next item is one of the whole shop with probability `noise`;
otherwise it is one of the shelf that the last item's shelf leads to, by the action and the time:

    P(next = i | last = j, a, g) = noise · popularity(i) / A + (1 - noise) · [shelf of i = leads_to(shelf of j, a, g)]
                                   · popularity(i)

with A shelves, and popularity(i) the probability of an item within its shelf. So the last event and the time of the
prediction decide the best possible recommendation, and who does not see the action, the time or both can only average
over them:

    P(next | items) = Σ_a Σ_g P(a) P(g) P(next | last, a, g)

is exact, because no earlier or later item depends on the last event's action and time.
"""

from dataclasses import dataclass

import numpy as np

from ugt_composer.demo.process import draw
from ugt_composer.demo.taxonomy import Taxonomy

ACTIONS = ("liked", "disliked")
MINUTE, DAY = 60, 86_400
GAPS = ((MINUTE, 30 * MINUTE), (DAY, 6 * DAY), (30 * DAY, 180 * DAY))  # shortest and longest time of each kind
FIRST_TIME = 946_684_800, 1_104_537_600  # of a customer's first event, in seconds: 2000 to 2005


@dataclass(frozen=True)
class Knobs:
    """Parameters of the law."""

    action_weights: tuple[float, ...] = (0.6, 0.4)
    gap_weights: tuple[float, ...] = (0.4, 0.3, 0.3)
    noise: float = 0.1
    popularity_skew: float = 0.3  # weight of the n-th item of a shelf ∝ n^-popularity_skew


@dataclass(frozen=True)
class Events:
    """N customers, S events each.

    Attributes:
        items: int (N, S).
        actions: int (N, S), index into ACTIONS.
        gaps: int (N, S), the kind of time from an event to the next one, index into GAPS.
        times: int64 (N, S), seconds.
    """

    items: np.ndarray
    actions: np.ndarray
    gaps: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class SignalProcess:
    """The law. V items, A shelves.

    Attributes:
        shelf: int (V,), the shelf of each item.
        popularity: (V,), sums to 1 over each shelf.
        leads_to: int (A, actions, gaps), a shelf.
        knobs: the other parameters.
    """

    shelf: np.ndarray
    popularity: np.ndarray
    leads_to: np.ndarray
    knobs: Knobs

    def next_law(self, last: np.ndarray, actions: np.ndarray | int, gaps: np.ndarray | int) -> np.ndarray:
        """P(next item | last event): last, actions, gaps int (N,), or one action or gap for all → (N, V)."""
        led_to = self.leads_to[self.shelf[last], actions, gaps]
        anywhere = self.knobs.noise * self.popularity / len(self.leads_to)
        return anywhere + (1 - self.knobs.noise) * self.popularity * (self.shelf == led_to[:, None])

    def predictive(
        self, last: np.ndarray, actions: np.ndarray | None = None, gaps: np.ndarray | None = None
    ) -> np.ndarray:
        """The best possible prediction (N, V) for who sees the last items int (N,), and the actions and gaps given."""
        law = np.zeros((len(last), len(self.shelf)))
        for action, action_weight in enumerate(self.knobs.action_weights):
            for gap, gap_weight in enumerate(self.knobs.gap_weights):
                weight = np.where(actions is None, action_weight, actions == action)
                weight = weight * np.where(gaps is None, gap_weight, gaps == gap)
                law += weight.reshape(-1, 1) * self.next_law(last, action, gap)
        return law

    def draw_events(self, rng: np.random.Generator, count: int, length: int) -> Events:
        knobs, shape = self.knobs, (count, length)
        actions = rng.choice(len(ACTIONS), shape, p=knobs.action_weights)
        gaps = rng.choice(len(GAPS), shape, p=knobs.gap_weights)
        shortest, longest = np.log(np.array(GAPS, float)).T
        seconds = np.exp(rng.uniform(shortest[gaps], longest[gaps])).astype(np.int64)
        times = rng.integers(*FIRST_TIME, (count, 1)) + np.cumsum(seconds, axis=1) - seconds
        items = np.empty(shape, np.int64)
        items[:, 0] = draw(rng, np.broadcast_to(self.popularity / len(self.leads_to), (count, len(self.shelf))))
        for at in range(1, length):
            items[:, at] = draw(rng, self.next_law(items[:, at - 1], actions[:, at - 1], gaps[:, at - 1]))
        return Events(items, actions, gaps, times)


def make_signal_process(rng: np.random.Generator, taxonomy: Taxonomy, knobs: Knobs) -> SignalProcess:
    """Draws popularity, and for each shelf a different one for every action and kind of time."""
    popularity = np.empty(len(taxonomy.shelf))
    shelves = len(taxonomy.category_of_shelf)
    leads_to = np.empty((shelves, len(ACTIONS), len(GAPS)), np.int64)
    for shelf in range(shelves):
        on_shelf = np.flatnonzero(taxonomy.shelf == shelf)
        weight = (1.0 + rng.permutation(len(on_shelf))) ** -knobs.popularity_skew
        popularity[on_shelf] = weight / weight.sum()
        leads_to[shelf] = rng.choice(shelves, leads_to[shelf].shape, replace=False)
    return SignalProcess(taxonomy.shelf, popularity, leads_to, knobs)
