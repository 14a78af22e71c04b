"""CIFAR-10."""

from mf_zoo.data.datasets import Dataset

_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"

DATASET = Dataset(
    name="cifar10",
    title="CIFAR-10",
    class_names=tuple(_CLASSES.split()),
    image_shape=(32, 32, 3),
    images={"train": 50_000, "test": 10_000},
    # Of the 50,000 training images, by `python -m mf_zoo.data.statistics`.
    mean=(125.307, 122.950, 113.865),
    std=(62.993, 62.089, 66.705),
    source="A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009",
    sample_sha256="8454cdf9a8095e9e06efd1c82bdeab5fb60f79c96969a0ce83cb89f70a49a9e3",
    order_feature="id",  # train_00000 ... number the official order
    server="https://www.cs.toronto.edu/~kriz/",
    corrupted="cifar10_corrupted",
)
