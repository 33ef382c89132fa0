import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.errors import UserError
from ugt_composer.importing.levels import added_codes, compact_sizes, fitted, instance_codes, triples_of_codes

SIZES = (20, 30, 40)


def code_lists(shortest: int, longest: int):
    return st.lists(
        st.lists(st.integers(0, 9), min_size=shortest, max_size=longest).map(tuple), min_size=1, max_size=35
    )


@given(code_lists(3, 6))
def test_different_codes_have_different_ids_within_the_codebooks(codes):
    ids = triples_of_codes(codes, SIZES)
    assert len({tuple(row) for row in ids.tolist()}) == len(set(codes))
    assert (ids >= 5).all()
    assert (ids < np.array(SIZES)).all()
    assert ids[:, 0].tolist() == [code[0] + 5 for code in codes], "codes stay what they are, after the special ids"
    assert ids[:, 1].tolist() == [code[1] + 5 for code in codes]


@given(code_lists(4, 6))
def test_folding_into_a_third_level_with_less_room_than_there_are_tails(codes):
    in_one_prefix = max(len({code for code in codes if code[:2] == prefix}) for prefix in {c[:2] for c in codes})
    room = max(in_one_prefix, 1)
    ids = triples_of_codes(codes, (20, 30, room + 5))
    assert len({tuple(row) for row in ids.tolist()}) == len(set(codes))
    assert ids[:, 2].max() < room + 5


@given(st.integers(1, 2).flatmap(lambda levels: code_lists(levels, levels)))
def test_fewer_than_three_levels_are_filled_so_that_items_differ(codes):
    ids = triples_of_codes(codes, SIZES)
    assert len({tuple(row) for row in ids.tolist()}) == len(codes), "items with the same codes too"
    assert (ids >= 5).all()
    assert (ids < np.array(SIZES)).all()


def test_three_levels_that_fit_are_kept():
    assert triples_of_codes([(0, 1, 2), (3, 4, 34)], SIZES).tolist() == [[5, 6, 7], [8, 9, 39]]


def test_codes_too_large_for_a_codebook_are_renumbered_in_their_order():
    assert triples_of_codes([(700, 256, 512), (600, 256, 513)], SIZES)[:, 0].tolist() == [6, 5]


def test_different_lengths_below_three_are_refused():
    with pytest.raises(UserError, match="some items have 1 code, others 3"):
        triples_of_codes([(0,), (0, 1, 2)], SIZES)
    with pytest.raises(UserError, match="some items have 2 codes, others 3"):
        triples_of_codes([(1, 2), (1, 2, 3)], SIZES)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(0, 10))
def test_instances_differ_within_a_bucket_and_use_codes_evenly(buckets, more):
    room = max(buckets.count(bucket) for bucket in buckets) + more
    codes = instance_codes(np.array(buckets), room)
    assert len(set(zip(buckets, codes.tolist(), strict=True))) == len(buckets)
    counts = np.bincount(codes, minlength=room)
    assert counts.max() - counts.min() <= 1
    assert codes.max() < room


def test_too_little_room_is_an_error_that_says_how_much_is_needed():
    with pytest.raises(UserError, match=r"7 items share their first two levels, and the third has room for 6; .* 12"):
        instance_codes(np.zeros(7, int), 6)
    with pytest.raises(UserError, match="level 2 has 3 different codes and room for 2; give it at least 8"):
        fitted(np.array([1, 5, 9]), 2, 2)


def test_compact_sizes_are_rounded_up_within_the_limit():
    assert compact_sizes(np.array([[63, 64, 900]]), (1024, 1024, 901)) == [64, 128, 901]


def test_reserved_sizes_have_room_for_more_ids_or_say_what_they_need():
    ids = np.array([[63, 64, 904]])
    assert compact_sizes(ids, (1024, 1024, 4096), reserve=0.2) == [64, 128, 1088]
    assert compact_sizes(ids, (1024, 1024, 1085), reserve=0.2) == [64, 128, 1085], "900 ids, 180 more, 5 special ones"
    with pytest.raises(UserError, match=r"--reserve 0.2: the third level needs 1,085 ids, .* gives it 1,084"):
        compact_sizes(ids, (1024, 1024, 1084), reserve=0.2)


@given(st.data())
def test_added_codes_differ_within_a_bucket_and_take_unused_codes_first(data):
    buckets = st.lists(st.integers(0, 3), min_size=1, max_size=15)
    old, new = np.array(data.draw(buckets)), np.array(data.draw(buckets))
    old_codes = instance_codes(old, data.draw(st.integers(15, 20)))
    capacity = int(old_codes.max()) + 1 + data.draw(st.integers(0, 6))
    largest = max(capacity, 30) + data.draw(st.integers(0, 6))
    codes, own = added_codes(new, old, old_codes, capacity, largest)
    pairs = [*zip(old.tolist(), old_codes.tolist(), strict=True), *zip(new.tolist(), codes.tolist(), strict=True)]
    assert len(set(pairs)) == len(old) + len(new)
    assert codes.max() < largest
    assert own.sum() == min(len(new), largest - len(set(old_codes.tolist())))
    assert not set(codes[own].tolist()) & {*old_codes.tolist(), *codes[~own].tolist()} or not own.all()
    if own.sum() < len(new):
        assert len({*old_codes.tolist(), *codes.tolist()}) == largest, "every code is used before one is shared"
    else:
        beyond = codes[codes >= capacity]
        assert not len(beyond) or set(range(capacity)) <= {*old_codes.tolist(), *codes.tolist()}


def test_a_full_prefix_says_which_size_is_needed():
    bucket = np.zeros(6, int)
    codes, own = added_codes(np.zeros(2, int), bucket, np.arange(6), 6, 8)
    assert sorted(codes.tolist()) == [6, 7]
    assert own.all()
    with pytest.raises(UserError, match=r"9 items share their first two levels, .* room for 8; .* at least 14"):
        added_codes(np.zeros(3, int), bucket, np.arange(6), 6, 8)
