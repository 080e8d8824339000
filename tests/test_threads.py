"""Work split over threads: every item once, and errors reach the caller."""

import threading

import pytest

import qatcore
from qatcore._threads import for_each


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_every_item_is_taken_once(threads, n):
    before = qatcore.get_num_threads()
    qatcore.set_num_threads(threads)
    try:
        taken = []
        for_each(list(range(n)), taken.append)
        assert sorted(taken) == list(range(n))
    finally:
        qatcore.set_num_threads(before)


def test_whoever_is_free_takes_the_next_item():
    """The first item waits for the last one: another thread has to have taken all the others."""
    before = qatcore.get_num_threads()
    qatcore.set_num_threads(2)
    last = threading.Event()

    def task(item):
        if item == 0:
            assert last.wait(30)
        elif item == 9:
            last.set()

    try:
        for_each(list(range(10)), task)
    finally:
        qatcore.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised(threads):
    before = qatcore.get_num_threads()
    qatcore.set_num_threads(threads)

    def task(item):
        if item == 3:
            raise ValueError("item 3")

    try:
        with pytest.raises(ValueError, match="item 3"):
            for_each(list(range(6)), task)
    finally:
        qatcore.set_num_threads(before)
