"""Work split over threads: every item once, and errors reach the caller."""

import gc
import threading
import time
import weakref

import pytest

import qatcore
from qatcore._base.threads import for_each

pytestmark = pytest.mark.usefixtures("_number_of_threads")


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_every_item_is_taken_once(threads, n):
    qatcore.set_num_threads(threads)
    taken = []
    for_each(list(range(n)), taken.append)
    assert sorted(taken) == list(range(n))


def test_whoever_is_free_takes_the_next_item():
    """The first item waits for the last one: another thread has to have taken all the others."""
    qatcore.set_num_threads(2)
    last = threading.Event()

    def task(item):
        if item == 0:
            assert last.wait(30)
        elif item == 9:
            last.set()

    for_each(list(range(10)), task)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_is_raised(threads):
    qatcore.set_num_threads(threads)

    def task(item):
        if item == 3:
            raise ValueError("item 3")

    with pytest.raises(ValueError, match="item 3"):
        for_each(list(range(6)), task)


class Value:
    """Something that can be known to be gone."""


def test_a_job_that_is_done_keeps_nothing_alive():
    """Even while it waits for a thread of the pool that gets no processor."""
    qatcore.set_num_threads(2)
    busy, free, found, taken = threading.Event(), threading.Event(), [], []

    def occupy(_):
        if threading.current_thread().name == "qatcore":
            busy.set()
            assert free.wait(30)
        else:
            assert busy.wait(30)

    occupier = threading.Thread(target=for_each, args=([0, 1], occupy))
    try:
        occupier.start()
        assert busy.wait(30)
        for _ in range(3):
            values = [Value(), Value()]
            found += [weakref.ref(value) for value in values]
            for_each(values, lambda value: taken.append(id(value)))
        del values
        assert len(taken) == 6
        assert [reference() for reference in found] == [None] * 6
    finally:
        free.set()
        occupier.join()


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_keeps_nothing_alive(threads):
    qatcore.set_num_threads(threads)

    def fail(value):
        raise ValueError(value)

    gc.disable()
    try:
        values = [Value(), Value()]
        found = [weakref.ref(value) for value in values]
        with pytest.raises(ValueError):
            for_each(values, fail)
        del values
        for _ in range(100):  # the other thread is on its way out of its item
            if all(reference() is None for reference in found):
                break
            time.sleep(0.01)
        assert [reference() for reference in found] == [None, None]
    finally:
        gc.enable()
