"""The largest object for which memory suffices is made, and only one at a time."""

import weakref

import pytest

from runs.fitting import made_to_fit, within_memory

SIZES = [3, 10, 20, 21, 22, 40]


class Made:
    """Stands in for an object that holds memory."""

    def __init__(self, size):
        self.size = size


@pytest.mark.parametrize("room", [0, 2, 3, 9, 10, 15, 20, 21, 22, 39, 40, 44])
def test_the_largest_that_fits_is_made(room):
    made, alive = [], []

    def make(size):
        assert not [one for one in alive if one() is not None]  # two would not fit together
        made.append(size)
        if size > room:
            raise MemoryError
        alive.append(weakref.ref(one := Made(size)))
        return one

    found = made_to_fit(SIZES, make)
    fitting = [size for size in SIZES if size <= room]
    assert (found and found.size) == (fitting[-1] if fitting else None)
    assert len(made) == 1 if room >= 40 else len(made) <= 5


def test_nothing_is_made_of_nothing():
    assert made_to_fit([], Made) is None


def test_other_errors_stay():
    with pytest.raises(RuntimeError, match="something else"):
        within_memory(lambda: (_ for _ in ()).throw(RuntimeError("something else")))
