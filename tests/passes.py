"""Passes over datasets, and comparing them."""

import numpy as np


def arrays_of(dataset):
    """One pass over a dataset of either kind, as NumPy arrays."""
    return [(np.asarray(x), np.asarray(y)) for x, y in dataset]


def pass_of(source):
    """One pass over a `Batches` as `fit` makes it."""
    source.on_epoch_begin()
    result = arrays_of(source)
    source.on_epoch_end()
    return result


def assert_equal_batches(some, others):
    for (x, y), (other_x, other_y) in zip(some, others, strict=True):
        assert (x.dtype, y.dtype) == (other_x.dtype, other_y.dtype)
        np.testing.assert_array_equal(x, other_x)
        np.testing.assert_array_equal(y, other_y)
