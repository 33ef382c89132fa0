import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugt_composer.catalogue.id_set import SemanticIdSet

LARGEST = 2**31 - 1


@pytest.mark.parametrize("largest", [6, 60, 70_000, LARGEST])
@given(data=st.data())
def test_contains_answers_like_a_set_of_tuples(data, largest):
    triples = st.tuples(*[st.integers(0, largest)] * 3)
    members = data.draw(st.lists(triples, min_size=1, max_size=30))
    others = data.draw(st.lists(triples, max_size=30))
    near = [tuple(min(level + at, LARGEST) for level in triple) for triple in members for at in (0, 1)]
    known = SemanticIdSet(np.array(members, np.int64))
    asked = [*members, *others, *near]
    assert known.contains(np.array(asked, np.int64)).tolist() == [triple in set(members) for triple in asked]
    assert len(known) == len(set(members))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_many_ids_of_any_integer_type(dtype):
    random = np.random.default_rng(0)
    members = random.integers(5, 1000, (20_000, 3))
    asked = np.concatenate([members[:1000], random.integers(5, 1024, (1000, 3))])
    wanted = set(map(tuple, members.tolist()))
    assert SemanticIdSet(members).contains(asked.astype(dtype)).tolist() == [
        tuple(triple) in wanted for triple in asked.tolist()
    ]


def test_an_empty_question_has_an_empty_answer():
    assert SemanticIdSet(np.array([[5, 5, 5]])).contains(np.empty((0, 3), np.uint16)).tolist() == []
