"""The probability law of the demo's customers, stated so that the best possible recommendation can be computed.

A customer has a hidden type z, drawn once. A type has a taste for shelves and a style. Then

    P(first = i | z)          = taste_z(shelf of i) · choice_z(i)
    P(next = i | z, last = j) ∝ [stay · moves(shelf of j, shelf of i) + (1 - stay) · taste_z(shelf of i)] · choice_z(i)
                                for i ≠ j, 0 for i = j

`moves` is sparse: a shelf leads to itself, two neighbours of its category and two complements elsewhere. `choice_z`
is the probability of an item within its shelf: mildly skewed popularity, times e^style_lean for the type's style, times
e^(click_lean · satisfaction). Given the history, the best prediction is

    P(next | history) = Σ_z P(z | history) · P(next | z, last)

Preferences express satisfaction. The customer looks at one shelf, drawn by the law of the next item, sees two to four
of its items (never the last one taken), all equally likely, and picks i with probability ∝ e^utility_z(i), so that for
any two items shown (Bradley and Terry, 1952)

    P(i rather than j | z) = sigmoid(utility_z(i) - utility_z(j)),  utility_z(i) = satisfaction_z(i) / temperature

Satisfaction is a hidden quality of the item plus a bonus for the type's style. Clicks depend on it only slightly, so
that it has to be learnt from preferences. These only order items within a shelf, so learning them need not reduce the
accuracy of predicted clicks.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import softmax

from ugt_composer.demo.taxonomy import STYLES, Taxonomy

MAX_SHOWN = 4  # maximum number of items in an offer, one of which is chosen


@dataclass(frozen=True)
class Knobs:
    """Parameters of the law. By default the best possible recall@10 is about .5, and a small model comes near it."""

    user_types: int = 12
    type_skew: float = 0.3  # weight of type number n ∝ n^-type_skew
    category_concentration: float = 0.15  # of a Dirichlet: the smaller, the fewer categories a type likes
    shelf_concentration: float = 0.5  # the same for the shelves of a category
    stay: float = 0.65  # fraction of steps that follow `moves`; the others follow the taste
    stay_on_shelf: float = 0.75  # probability in `moves`: to the same shelf …
    neighbours: float = 0.1  # … to two of the same category; the rest to two complements elsewhere
    popularity_skew: float = 0.3  # weight of the n-th item of a shelf ∝ n^-popularity_skew
    style_lean: float = 0.5  # log-odds of a click for the type's style
    click_lean: float = 0.1  # log-odds of a click per unit of satisfaction
    style_bonus: float = 0.3  # satisfaction added for the type's style; an item's quality is in -1..1
    temperature: float = 0.32  # of the choice between items shown


@dataclass(frozen=True)
class Offers:
    """The items that N customers were shown. Columns beyond an offer's size hold -1.

    Attributes:
        items: int (N, MAX_SHOWN), the chosen item first.
        shown: bool (N, MAX_SHOWN), False in empty columns.
    """

    items: np.ndarray
    shown: np.ndarray


@dataclass(frozen=True)
class DemoProcess:
    """The law. Legend: Z user types, A shelves, V items, N customers, S history length.

    Attributes:
        shelf: int (V,), the shelf of each item.
        type_weights: (Z,), sums to 1.
        taste: (Z, A), rows sum to 1.
        choice: (Z, V), sums to 1 over each shelf.
        moves: (A, A), rows sum to 1.
        utility: (Z, V), satisfaction divided by the temperature.
        stay: fraction of steps that follow `moves`.
    """

    shelf: np.ndarray
    type_weights: np.ndarray
    taste: np.ndarray
    choice: np.ndarray
    moves: np.ndarray
    utility: np.ndarray
    stay: float

    @cached_property
    def first_law(self) -> np.ndarray:
        """P(first item | z): (Z, V)."""
        return self.taste[:, self.shelf] * self.choice

    @cached_property
    def _step(self) -> np.ndarray:
        """The law of the next item, by the last item's shelf, before the last item is excluded: (Z, A, V)."""
        shelves = self.stay * self.moves[None] + (1 - self.stay) * self.taste[:, None, :]
        return shelves[:, :, self.shelf] * self.choice[:, None, :]

    def next_law(self, types: np.ndarray | int, last: np.ndarray) -> np.ndarray:
        """P(next item | z, last): types int (N,) or one type for all rows, last int (N,) -> (N, V)."""
        law = self._step[types, self.shelf[last]]  # a copy
        law[np.arange(len(last)), last] = 0
        return law / law.sum(axis=1, keepdims=True)

    def next_probability(self, last: np.ndarray, item: np.ndarray) -> np.ndarray:
        """P(item | z, last) under every type: last int (N,), item int (N,) -> (N, Z)."""
        shelf = self.shelf[last]
        step = np.where(item == last, 0, self._step[:, shelf, item])  # (Z, N)
        return (step / (1 - self._step[:, shelf, last])).T

    def draw_types(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(N,) hidden types."""
        return draw(rng, np.broadcast_to(self.type_weights, (count, len(self.type_weights))))

    def draw_sequences(self, rng: np.random.Generator, types: np.ndarray, length: int) -> np.ndarray:
        """Types int (N,) -> items in order (N, length)."""
        sequences = np.empty((len(types), length), dtype=np.int64)
        sequences[:, 0] = draw(rng, self.first_law[types])
        for t in range(1, length):
            sequences[:, t] = draw(rng, self.next_law(types, sequences[:, t - 1]))
        return sequences

    def draw_offers(self, rng: np.random.Generator, types: np.ndarray, last: np.ndarray) -> Offers:
        """Types int (N,), last int (N,) -> one offer per customer, with the chosen item."""
        rows = np.arange(len(last))
        chosen_shelf = self.shelf[draw(rng, self.next_law(types, last))]
        eligible = self.shelf[None, :] == chosen_shelf[:, None]  # (N, V)
        eligible[rows, last] = False
        order = np.where(eligible, rng.random(eligible.shape), np.inf)
        items = np.argsort(order, axis=1, kind="stable")[:, :MAX_SHOWN]
        size = np.minimum(rng.integers(2, MAX_SHOWN + 1, len(last)), eligible.sum(axis=1))
        shown = np.arange(MAX_SHOWN) < size[:, None]
        # The largest of utility + Gumbel noise is item i with probability ∝ e^utility(i).
        score = np.where(shown, self.utility[types[:, None], items] + rng.gumbel(size=items.shape), -np.inf)
        best = score.argmax(axis=1)
        items[rows, best], items[:, 0] = items[:, 0].copy(), items[rows, best].copy()
        return Offers(items=np.where(shown, items, -1), shown=shown)

    def posterior(self, histories: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """P(z | history): histories int (N, S), the first `lengths` (N,) items of each -> (N, Z)."""
        with np.errstate(divide="ignore"):  # log 0: a history that a type cannot produce
            log_weight = np.log(self.type_weights)[None] + np.log(self.first_law[:, histories[:, 0]]).T
            for t in range(1, histories.shape[1]):
                running = np.flatnonzero(lengths > t)
                step = self.next_probability(histories[running, t - 1], histories[running, t])
                log_weight[running] += np.log(step)
        return softmax(log_weight, axis=1)

    def predictive(self, posterior: np.ndarray, last: np.ndarray) -> np.ndarray:
        """P(next item | history), the best possible prediction: posterior (N, Z), last int (N,) -> (N, V)."""
        law = np.zeros((len(last), len(self.shelf)))
        for z in range(posterior.shape[1]):
            law += posterior[:, z, None] * self.next_law(z, last)
        return law

    def posterior_after_offer(self, posterior: np.ndarray, last: np.ndarray, offers: Offers) -> np.ndarray:
        """P(z | history, shelf looked at): (N, Z). Which items of the shelf were shown does not depend on z."""
        on_shelf = self.shelf[None, :] == self.shelf[offers.items[:, 0]][:, None]  # (N, V)
        types = range(posterior.shape[1])
        shelf_law = np.stack([(self.next_law(z, last) * on_shelf).sum(axis=1) for z in types], axis=1)  # (N, Z)
        weight = posterior * shelf_law
        return weight / weight.sum(axis=1, keepdims=True)


def draw(rng: np.random.Generator, law: np.ndarray) -> np.ndarray:
    """Draws one index per row: law (N, V) with rows that sum to 1 -> int (N,)."""
    cumulative = np.cumsum(law, axis=1)
    point = rng.random(len(law)) * cumulative[:, -1]
    return (cumulative <= point[:, None]).sum(axis=1)


def make_process(rng: np.random.Generator, taxonomy: Taxonomy, knobs: Knobs) -> DemoProcess:
    """Draws tastes, moves, popularity and satisfaction. Type number z likes style z modulo the number of styles."""
    shelf, items = taxonomy.shelf, len(taxonomy.shelf)
    likes_style = taxonomy.style[None, :] == (np.arange(knobs.user_types) % len(STYLES))[:, None]  # (Z, V)
    popularity, quality = np.empty(items), np.empty(items)
    for a in range(len(taxonomy.category_of_shelf)):
        on_shelf = np.flatnonzero(shelf == a)
        popularity[on_shelf] = (1.0 + rng.permutation(len(on_shelf))) ** -knobs.popularity_skew
        quality[on_shelf] = rng.permutation(np.linspace(-1, 1, len(on_shelf)))
    satisfaction = quality[None, :] + knobs.style_bonus * likes_style
    weight = popularity * np.exp(knobs.style_lean * likes_style + knobs.click_lean * satisfaction)
    shelf_weight = np.stack([np.bincount(shelf, row) for row in weight])  # (Z, A)
    type_weights = np.arange(1, knobs.user_types + 1) ** -knobs.type_skew
    return DemoProcess(
        shelf=shelf,
        type_weights=type_weights / type_weights.sum(),
        taste=_draw_tastes(rng, taxonomy.category_of_shelf, knobs),
        choice=weight / shelf_weight[:, shelf],
        moves=_draw_moves(rng, taxonomy.category_of_shelf, knobs),
        utility=satisfaction / knobs.temperature,
        stay=knobs.stay,
    )


def _draw_tastes(rng: np.random.Generator, category: np.ndarray, knobs: Knobs) -> np.ndarray:
    """(Z, A): a Dirichlet draw over categories times one over the shelves of each category."""
    taste = np.empty((knobs.user_types, len(category)))
    for z in range(knobs.user_types):
        over_categories = rng.dirichlet(np.full(category.max() + 1, knobs.category_concentration))
        for c, probability in enumerate(over_categories):
            shelves = np.flatnonzero(category == c)
            taste[z, shelves] = probability * rng.dirichlet(np.full(len(shelves), knobs.shelf_concentration))
    return taste


def _draw_moves(rng: np.random.Generator, category: np.ndarray, knobs: Knobs) -> np.ndarray:
    """(A, A) transitions: to the same shelf, two neighbours in its category, two complements in other categories."""
    shelves = np.arange(len(category))
    moves = np.zeros((len(category), len(category)))
    for a in shelves:
        neighbours = rng.choice(shelves[(category == category[a]) & (shelves != a)], 2, replace=False)
        complements = rng.choice(shelves[category != category[a]], 2, replace=False)
        moves[a, a] = knobs.stay_on_shelf
        moves[a, neighbours] = knobs.neighbours / 2
        moves[a, complements] = (1 - knobs.stay_on_shelf - knobs.neighbours) / 2
    return moves
