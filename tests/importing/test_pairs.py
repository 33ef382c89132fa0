"""Preference pairs compared with a brute-force implementation without arrays."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ugt_composer.importing.draws import Draws
from ugt_composer.importing.pairs import (
    NEVER,
    REPEATS,
    Log,
    PairLimits,
    Pairs,
    find_pairs,
    levels_of_ratings,
    make_pairs,
    parts_of_log,
    two_levels,
)
from ugt_composer.importing.splits import TEST, TRAIN, VALIDATION, leave_one_out, user_offsets


@st.composite
def logs(draw) -> Log:
    counts = draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    size = sum(counts)
    user = np.repeat(np.arange(len(counts)), counts)
    kind = np.array(draw(st.lists(st.sampled_from("cprn"), min_size=size, max_size=size)))
    items = np.array(draw(st.lists(st.integers(0, 9), min_size=size, max_size=size)))
    positive = (kind == "c") | (kind == "p")
    if not positive.any():
        positive[0] = True
    part = leave_one_out(user[positive], user_offsets(user[positive], len(counts)), 3)
    if draw(st.booleans()):
        levels = two_levels(kind == "c", kind == "r")
    else:
        levels = of_ratings(np.array(draw(ratings(size)), np.float32), draw(st.sampled_from([0.5, 1, 2.5])))
    return Log(user, items, parts_of_log(user, positive, part), positive, *levels)


def ratings(size: int):
    return st.lists(st.sampled_from([0.5, 1, 2, 2.5, 4, 4.5, 5, np.nan]), min_size=size, max_size=size)


def twin(log: Log, may_choose, may_reject, window: int, most: int) -> list[tuple[int, list[int], int]]:
    """[(chosen, rejected, the earliest of them)]."""
    size, found = len(log.user), []
    for i in range(size):
        if not (log.chosen[i] >= 0 and may_choose[i]):
            continue
        liked = {
            int(log.meaning[j])
            for j in range(size)
            if log.user[j] == log.user[i] and log.chosen[j] >= log.chosen[i] and (may_choose[j] or may_reject[j])
        }
        usable = [
            j
            for j in range(size)
            if log.user[j] == log.user[i]
            and log.rejected[j] <= log.chosen[i]
            and may_reject[j]
            and log.meaning[j] not in liked
            and any(log.positive[k] and log.user[k] == log.user[i] for k in range(j))
        ]
        if not any(log.positive[k] and log.user[k] == log.user[i] for k in range(i)):
            continue
        looked_at = [j for j in usable if j < i][-most - REPEATS :] + [j for j in usable if j > i][: most + REPEATS]
        rejected: list[int] = []
        for j in sorted(looked_at, key=lambda j: (abs(j - i), j)):
            if abs(j - i) <= window and log.meaning[j] not in [log.meaning[k] for k in rejected]:
                rejected.append(j)
        if rejected:
            kept = rejected[:most]
            found.append((i, kept, min(i, *kept)))
    return found


def listed(pairs: Pairs) -> list[tuple[int, list[int], int]]:
    rejected = [[int(j) for j in row if j >= 0] for row in pairs.rejected]
    return list(zip(pairs.chosen.tolist(), rejected, pairs.earliest.tolist(), strict=True))


def of_ratings(rating: np.ndarray, gap: float) -> tuple[np.ndarray, np.ndarray]:
    return levels_of_ratings(rating, np.unique(rating[~np.isnan(rating)]), gap)


def limits(window: int, most: int, per_user: int | None = None, by_held_out_users: bool = False) -> PairLimits:
    return PairLimits(window, most, per_user, by_held_out_users)


def made(log: Log, held_out: np.ndarray, pair_limits: PairLimits) -> tuple[Pairs, Pairs]:
    by_users = replace(pair_limits, by_held_out_users=bool(held_out.any()))
    return make_pairs(log, held_out, by_users, Draws(0, stream=0), Draws(0, stream=1))


@settings(max_examples=300)
@given(logs(), st.integers(1, 6), st.integers(1, 3), st.booleans())
def test_pairs_are_those_of_the_twin(log, window, most, all_parts):
    may = np.ones(len(log.user), bool) if all_parts else log.part == TRAIN
    assert listed(find_pairs(log, may, may, limits(window, most), Draws(0))) == twin(log, may, may, window, most)


@settings(max_examples=200)
@given(logs(), st.integers(1, 6), st.integers(1, 3))
def test_nothing_held_out_is_in_a_training_pair_and_no_test_item_in_any(log, window, most):
    nobody = np.zeros(log.user.max() + 1, bool)
    training, validation = made(log, nobody, limits(window, most))
    rejected_later = set()
    for chosen, rejected, _ in listed(validation):
        assert log.part[chosen] == VALIDATION
        assert all(log.part[j] != TEST for j in rejected)
        rejected_later |= {(log.user[j], log.meaning[j]) for j in rejected}
    for chosen, rejected, _ in listed(training):
        assert log.part[chosen] == TRAIN
        assert all(log.part[j] == TRAIN for j in rejected)
        assert not rejected_later & {(log.user[j], log.meaning[j]) for j in rejected}


@settings(max_examples=200)
@given(logs(), st.integers(1, 6))
def test_every_pair_has_a_history_before_all_of_it(log, window):
    nobody = np.zeros(log.user.max() + 1, bool)
    for pairs in made(log, nobody, limits(window, 3)):
        for chosen, rejected, earliest in listed(pairs):
            assert earliest == min(chosen, *rejected)
            before = log.positive[:earliest] & (log.user[:earliest] == log.user[chosen])
            assert before.any(), "at least one item of the same user"
            assert all(log.user[j] == log.user[chosen] for j in rejected)
            assert all(abs(j - chosen) <= window for j in rejected)
            assert log.meaning[chosen] not in [log.meaning[j] for j in rejected]


@settings(max_examples=100)
@given(logs())
def test_held_out_users_validate_and_never_train(log):
    apart = np.arange(log.user.max() + 1) % 2 == 0
    training, validation = made(log, apart, limits(5, 3))
    assert not apart[log.user[training.chosen]].any()
    assert apart[log.user[validation.chosen]].all()
    assert (log.part[training.chosen] == TRAIN).all()
    assert (log.part[validation.chosen] != TEST).all()


@settings(max_examples=100)
@given(logs())
def test_training_pairs_do_not_depend_on_what_users_chose_who_are_held_out(log):
    apart = np.arange(log.user.max() + 1) % 2 == 0
    others = replace(log, chosen=np.where(apart[log.user], -1 - log.chosen, log.chosen).astype(np.int16))
    pairs = [listed(made(each, apart, limits(5, 3, 1))[0]) for each in (log, others)]
    assert pairs[0] == pairs[1]


@given(logs(), st.integers(1, 3))
def test_no_more_pairs_of_a_user_than_asked_for_and_the_same_each_time(log, most):
    may = np.ones(len(log.user), bool)
    pairs = find_pairs(log, may, may, limits(5, 2, most), Draws(0))
    assert np.bincount(log.user[pairs.chosen], minlength=1).max() <= most
    assert listed(pairs) == listed(find_pairs(log, may, may, limits(5, 2, most), Draws(0)))
    everything = listed(find_pairs(log, may, may, limits(5, 2), Draws(0)))
    assert all(pair in everything for pair in listed(pairs))


def test_items_rejected_after_the_validation_item_are_not_trained_on():
    user = np.zeros(7, int)
    positive = np.array([True, False, True, True, False, True, False])
    part = leave_one_out(user[positive], user_offsets(user[positive], 1), 3)
    assert parts_of_log(user, positive, part).tolist() == [TRAIN] * 3 + [VALIDATION] * 2 + [TEST] * 2


@given(st.integers(1, 12).flatmap(ratings), st.sampled_from([0.5, 1, 1.5, 3, 9]))
def test_an_item_is_chosen_over_those_rated_lower_by_the_gap(values, gap):
    chosen, rejected = of_ratings(np.array(values, np.float32), gap)
    for i, high in enumerate(values):
        for j, low in enumerate(values):
            preferred = chosen[i] >= 0 and rejected[j] <= chosen[i]
            assert preferred == (high - low >= gap), "never with a missing rating"


def test_a_gap_between_ratings_with_decimals_is_compared_as_written():
    chosen, rejected = of_ratings(np.array([4.0, 4.1, 4.3], np.float32), 0.1)
    assert (chosen.tolist(), rejected.tolist()) == ([0, 1, 2], [1, 2, NEVER])
