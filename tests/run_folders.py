"""What run folders hold, and whether two hold the same run."""

import itertools

import h5py
import numpy as np

from mf_zoo import files


def arrays(path):
    """The arrays of an HDF5 file by name."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def assert_same_run(first, second):
    """The same weights to the bit and the same history, apart from the time it took."""
    one, two = (arrays(folder / "final.weights.h5") for folder in (first, second))
    assert one.keys() == two.keys() and len(one) > 10
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)
    histories = [files.read_rows(folder / "history.csv") for folder in (first, second)]
    for row in itertools.chain(*histories):
        del row["seconds"], row["images_per_second"]
    assert histories[0] == histories[1] and histories[0]
    assert (first / "times.csv").read_text() == (second / "times.csv").read_text()


def small_search():
    """Settings of a search of two trials of an epoch."""
    from mf_zoo.training import RECIPES
    from mf_zoo.tuning import SearchSettings

    return SearchSettings(
        "Tiny",
        recipe=RECIPES["quick"].replace(epochs=1, warmup_epochs=0.0, batch_size=16),
        tuner="random",
        max_trials=2,
        seed=5,
        holdout=16,
        limit=32,
        search=["momentum"],
    )
