"""Shards are fetched in the order of their rows, at most `ahead` rows early, and only while the iteration runs."""

import threading
import time

import numpy as np
import pytest

from ugt_composer.data.fetch_ahead import FetchAhead
from ugt_composer.errors import UserError

SHARDS = np.repeat([3, 1, 3, 0, 2], 100)


def until(condition):
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def fetching(fetch, shards, ahead) -> FetchAhead:
    """A thread that knows of the rows in two parts."""
    thread = FetchAhead(fetch, ahead)
    for part in (shards[:300], shards[300:]):
        thread.add(part)
    return thread


def fetched_before(row: int, ahead: int) -> list[int]:
    """The shards that may have been fetched after `row` rows were read, in strides of `ahead` rows."""
    allowed = [at for at in range(len(SHARDS)) if (at // ahead) * ahead <= row + ahead]
    return list(dict.fromkeys(SHARDS[allowed].tolist()))


@pytest.mark.parametrize("ahead", [1, 7, 100, 150])
def test_shards_come_in_order_and_never_further_ahead_than_asked(ahead):
    fetched = []
    thread = fetching(fetched.append, SHARDS, ahead)
    for read in range(0, 500, 50):
        thread.has_read(read)
        wanted = fetched_before(read, ahead)
        assert until(lambda wanted=wanted: set(wanted) <= set(fetched))
        time.sleep(0.005)
        assert set(fetched) == set(wanted)
    thread.has_read(500)
    thread.end()
    assert list(dict.fromkeys(fetched)) == [3, 1, 0, 2]


def test_shards_already_read_are_not_fetched():
    first, fetched = threading.Event(), []

    def fetch(shard: int) -> None:
        fetched.append(shard)
        first.wait(20)

    thread = fetching(fetch, SHARDS, 50)
    assert until(lambda: fetched == [3])
    thread.has_read(350)  # in the row of shard 0
    first.set()
    assert until(lambda: 2 in fetched)
    thread.end()
    assert fetched == [3, *[0] * fetched.count(0), 2, *[2] * (fetched.count(2) - 1)]


@pytest.mark.parametrize("error", [UserError("shard 1 is gone"), KeyError("oh")])
def test_a_failure_is_raised_in_the_reader(error):
    def fetch(shard: int) -> None:
        if shard == 1:
            raise error

    thread = fetching(fetch, SHARDS, 500)
    assert until(lambda: thread.failure is not None)
    thread.end()
    if isinstance(error, UserError):
        assert thread.failure is error
    else:
        assert isinstance(thread.failure, RuntimeError)
        assert "KeyError: 'oh'" in str(thread.failure)


def test_an_abandoned_iteration_fetches_nothing_more():
    fetched = []
    thread = fetching(fetched.append, SHARDS, 10)
    assert until(lambda: fetched == [3] * len(fetched) != [])
    thread.leave()
    thread.has_read(400)
    thread.end()
    assert set(fetched) == {3}


def test_shards_of_rows_that_become_known_later_are_fetched():
    fetched = []
    thread = FetchAhead(fetched.append, 10)
    thread.add(np.array([3, 3]))
    assert until(lambda: fetched == [3])
    thread.add(np.array([1]))
    assert until(lambda: fetched == [3, 1])
    thread.end()
