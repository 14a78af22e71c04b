"""The Street View House Numbers, cropped to 32 pixels."""

from mf_zoo.data.datasets import Dataset

DATASET = Dataset(
    name="svhn_cropped",
    title="SVHN",
    # The label is the digit, as tensorflow-datasets stores it (the authors' files have 10 for 0).
    class_names=tuple("0123456789"),
    image_shape=(32, 32, 3),
    images={"train": 73_257, "test": 26_032},
    # Of the 73,257 training images, as widely published, for one in PatrickZH/DeepCore
    # (deepcore/datasets/svhn.py): (0.4377, 0.4438, 0.4728) and (0.1980, 0.2010, 0.1970) in 0..1.
    # They are not computed here; four digits are 0.013 in 0..255.
    mean=(111.614, 113.169, 120.564),
    std=(50.490, 51.255, 50.235),
    source="Netzer, Wang, Coates, Bissacco, Wu, Ng, *Reading Digits in Natural Images with "
    "Unsupervised Feature Learning*, NIPS Workshop 2011",
    order_feature="id",  # train_000000 ... number the official order
    server="http://ufldl.stanford.edu/housenumbers/",
)
