import threading
import time

import pytest

from ugt_composer.storage.at_once import AT_ONCE, for_each, mapped


def test_each_item_is_worked_on_once_and_only_so_many_at_the_same_time():
    running, most, done = 0, 0, []
    lock = threading.Lock()

    def work(item: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
            done.append(item)

    for_each(range(5 * AT_ONCE), work)
    assert sorted(done) == list(range(5 * AT_ONCE))
    assert 1 < most <= AT_ONCE


def test_after_an_error_nothing_new_begins_and_the_error_is_raised():
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.01)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item"):
        for_each(range(1000), work)
    assert len(begun) <= AT_ONCE
    for_each([], work)


def test_results_are_in_order_and_so_is_the_error():
    def work(item: int) -> int:
        time.sleep(0.02 if item == 1 else 0.0)
        if item in (1, 2):
            raise ValueError(f"item {item}")
        return item * item

    assert mapped(range(5, 40), work) == [item * item for item in range(5, 40)]
    with pytest.raises(ValueError, match="item 1"):
        mapped(range(8), work)
