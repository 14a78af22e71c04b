"""Fashion-MNIST."""

from mf_zoo.data.datasets import Dataset

DATASET = Dataset(
    name="fashion_mnist",
    title="Fashion-MNIST",
    # As in the authors' README, and tensorflow-datasets.
    class_names=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    image_shape=(28, 28, 1),
    images={"train": 60_000, "test": 10_000},
    # Of the 60,000 training images, as widely published: 0.2860 and 0.3530 in 0..1
    # (PatrickZH/DeepCore, deepcore/datasets/fashionmnist.py, has 0.2861 and 0.3530). They are not
    # computed here; four digits are 0.013 in 0..255.
    mean=(72.930,),
    std=(90.015,),
    source="Xiao, Rasul, Vollgraf, *Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine "
    "Learning Algorithms*, 2017 (arXiv 1708.07747)",
    server="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
