from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ugt_composer.importing import order_statistics
from ugt_composer.importing.order_statistics import nth_smallest, quantile_rank
from ugt_composer.importing.partitions import InMemory


@dataclass(frozen=True)
class Column:
    numbers: np.ndarray


def numbers_of(column: Column) -> np.ndarray:
    return column.numbers


columns = st.sampled_from([np.int64, np.float64]).flatmap(
    lambda dtype: st.lists(
        arrays.arrays(
            dtype,
            st.integers(0, 12),
            elements=st.floats(-1e18, 1e18) if dtype == np.float64 else st.integers(-(2**62), 2**62 - 1),
        ),
        min_size=1,
        max_size=4,
    )
)


@given(columns.filter(lambda parts: sum(map(len, parts)) > 0), st.data())
def test_values_are_those_of_the_sorted_column(parts, data):
    everything = np.sort(np.concatenate(parts))
    rank = data.draw(st.integers(0, len(everything) - 1))
    partitions = InMemory(*map(Column, parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_statistics, "CELLS", data.draw(st.sampled_from([2, 3, 1 << 16])))
        patch.setattr(order_statistics, "MOST_VALUES", data.draw(st.sampled_from([1, 3, 100])))
        assert nth_smallest(partitions, numbers_of, lambda count: [rank, 0, count - 1]) == [
            *everything[[rank, 0]],
            everything[-1],
        ]


@given(st.integers(1, 5000), st.floats(0.001, 0.999))
def test_the_rank_of_a_quantile_is_numpys(count, fraction):
    assert quantile_rank(count, fraction) == np.quantile(np.arange(count), fraction, method="higher")
