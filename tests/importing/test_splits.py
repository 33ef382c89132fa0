import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.errors import UserError
from ugt_composer.importing.draws import Draws, draw_places
from ugt_composer.importing.splits import (
    TEST,
    TRAIN,
    VALIDATION,
    by_time,
    held_out_targets,
    leave_one_out,
    training_targets,
    user_offsets,
)

lengths = st.lists(st.integers(0, 12), min_size=1, max_size=8).filter(any)


def users_of(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    user = np.repeat(np.arange(len(counts)), counts)
    return user, user_offsets(user, len(counts))


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(lengths, st.integers(3, 6))
def test_leave_one_out_equals_a_plain_loop(counts, fewest):
    user, offsets = users_of(counts)
    expected = []
    for count in counts:
        expected += [TRAIN] * (count - 2) + [VALIDATION, TEST] if count >= fewest else [TRAIN] * count
    assert leave_one_out(user, offsets, fewest).tolist() == expected


@given(lengths, st.integers(1, 5))
def test_training_targets_with_all_cuts_equal_a_plain_loop(counts, targets):
    user, offsets = users_of(counts)
    part = leave_one_out(user, offsets, 3)
    rows = training_targets(part == TRAIN, offsets, None, targets, Draws(0))
    expected = []
    for number, count in enumerate(counts):
        first, trained = int(offsets[number]), count - 2 if count >= 3 else count
        for cut in range(1, trained):
            expected.append((number, first + cut, min(first + cut + targets, first + trained)))
    assert list(zip(rows.user, rows.start, rows.stop, strict=True)) == expected


@given(lengths, st.integers(0, 100), st.sampled_from([None, 1, 2, 5]), st.booleans())
def test_nothing_held_out_is_in_a_training_row(counts, seed, cuts, in_time):
    user, offsets = users_of(counts)
    if in_time:
        time = np.concatenate([np.sort(random(seed + at).integers(0, 100, count)) for at, count in enumerate(counts)])
        part = by_time(time, 60, 80)
    else:
        part = leave_one_out(user, offsets, 3)
    rows = training_targets(part == TRAIN, offsets, cuts, 3, Draws(seed))
    for owner, start, stop in zip(rows.user, rows.start, rows.stop, strict=True):
        assert offsets[owner] < start < stop
        assert (part[offsets[owner] : stop] == TRAIN).all()
        assert (user[start:stop] == owner).all()


@given(lengths)
def test_every_interaction_is_accounted_for(counts):
    user, offsets = users_of(counts)
    part = leave_one_out(user, offsets, 3)
    train = training_targets(part == TRAIN, offsets, None, 1, Draws(0))
    held_out = [held_out_targets(part, wanted, user, offsets, True) for wanted in (VALIDATION, TEST)]
    targets = np.concatenate([rows.start for rows in (train, *held_out)])
    first = offsets[:-1][np.diff(offsets) > 0]  # without history: the only item that is no target
    assert sorted([*targets.tolist(), *first.tolist()]) == list(range(len(user)))


@given(lengths)
def test_held_out_targets_are_the_last_items(counts):
    user, offsets = users_of(counts)
    part = leave_one_out(user, offsets, 3)
    for wanted, missing in ((VALIDATION, 2), (TEST, 1)):
        rows = held_out_targets(part, wanted, user, offsets, True)
        for owner, start, stop in zip(rows.user, rows.start, rows.stop, strict=True):
            assert start == offsets[owner + 1] - missing
            assert stop == start + 1


def test_by_time_the_first_or_every_held_out_item_is_a_row():
    user, offsets = users_of([5, 2, 1])
    time = np.array([1, 60, 70, 80, 90, 60, 61, 95])
    part = by_time(time, 60, 80)
    first = held_out_targets(part, VALIDATION, user, offsets, only_first=True)
    every = held_out_targets(part, VALIDATION, user, offsets, only_first=False)
    assert first.start.tolist() == [1, 6], "the second user's first one has no history"
    assert every.start.tolist() == [1, 2, 6]
    assert held_out_targets(part, TEST, user, offsets, only_first=True).start.tolist() == [3]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 8), st.integers(0, 9))
def test_drawn_places_are_different_spread_and_repeatable(counts, most, seed):
    counts = np.array(counts)
    owner, place = draw_places(counts, most, Draws(seed))
    again = draw_places(counts, most, Draws(seed))
    assert (owner == again[0]).all()
    assert (place == again[1]).all()
    for number, count in enumerate(counts):
        places = place[owner == number]
        assert len(places) == len(set(places)) == min(count, most)
        assert ((places >= 0) & (places < count)).all()
        stretches = places * len(places) // max(count, 1) if len(places) else places
        assert len(places) < 2 or np.diff(places).min() > 0
        assert len(places) == 0 or abs(stretches - np.arange(len(places))).max() <= 1


def test_too_small_a_minimum_is_refused():
    with pytest.raises(UserError, match="--min-interactions 2"):
        leave_one_out(*users_of([5]), 2)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=20),
    st.integers(0, 20),
    st.integers(1, 4),
    st.sampled_from([None, 0, 1]),
)
def test_owners_in_two_parts_draw_as_all_together(counts, cut, most, stream):
    counts, cut = np.array(counts), min(cut, len(counts))
    owner, place = draw_places(counts, most, Draws(3, stream=stream))
    first = Draws(3, stream=stream)
    parts = [draw_places(counts[:cut], most, first)]
    parts.append(draw_places(counts[cut:], most, Draws(3, first.count, stream)))
    assert np.concatenate([parts[0][0], parts[1][0] + cut]).tolist() == owner.tolist()
    assert np.concatenate([parts[0][1], parts[1][1]]).tolist() == place.tolist()
