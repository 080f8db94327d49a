"""Where memory does not suffice for all, it is used for as much as it suffices for."""

import gc
import weakref

import pytest

from runs.fitting import made_to_fit, within_memory

SIZES = [3, 10, 20, 21, 22, 40]


class Made:
    """Stands in for what holds memory."""

    def __init__(self, size):
        self.size = size


@pytest.mark.parametrize("room", range(45))
def test_the_largest_that_fits_is_made(room):
    made, alive = [], []

    def make(size):
        gc.collect()
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


def test_of_nothing_nothing_is_made():
    assert made_to_fit([], Made) is None


def test_other_errors_stay():
    with pytest.raises(RuntimeError, match="something else"):
        within_memory(lambda: (_ for _ in ()).throw(RuntimeError("something else")))
