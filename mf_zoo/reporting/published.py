"""Published test errors that readers will compare ours with."""

import dataclasses

from mf_zoo import applications

KINDS = ("paper", "public recipe", "best public")

# By how many points of error every mean-field ResNet and ResNeXt that they tried is below the same
# network trained by plain SGD, on both CIFARs: Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep
# ResNet and Beyond*, ICML 2020, arXiv 2003.05508.
CLAIM = (0.25, 0.55)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where figures stand, and what they are.

    Attributes:
        title: Authors and title, or the repository.
        note: Which runs, and which of their epochs, the figures are of; a sentence.
    """

    title: str
    note: str


@dataclasses.dataclass(frozen=True)
class Published:
    """A published top-1 test error, in percent.

    Attributes:
        model: Name of the plain network.
        dataset: Name of the dataset.
        kind: `"paper"`, `"public recipe"` (about 200 epochs) or `"best public"` weights.
        error: The error, in percent.
        source: Where it stands.
        note: What this figure is, where it is something else than the source's others; a sentence.
    """

    model: str
    dataset: str
    kind: str
    error: float
    source: Source
    note: str = ""


_HE = Source(
    "He et al., Deep Residual Learning, CVPR 2016, arXiv 1512.03385, table 6",
    "One run.",
)
_PREACT = Source(
    "He et al., Identity Mappings, ECCV 2016, arXiv 1603.05027, table 4",
    "The median of five runs.",
)
_RESNEXT = Source(
    "Xie et al., ResNeXt, CVPR 2017, arXiv 1611.05431, table 7",
    "The mean of ten runs.",
)
_CHENYAOFO = Source("chenyaofo/pytorch-cifar-models, README", "One run of 200 epochs.")
_BEARPAW = Source("bearpaw/pytorch-classification, README", "One run.")
_BEARPAW_110 = Source(
    "bearpaw/pytorch-classification, pull request 9",
    "One run. (The 6.11 and 28.86 that the README gives for ResNet-110 are of a bottleneck "
    "ResNet-164, see its issue 36.)",
)
_KUANGLIU = Source(
    "kuangliu/pytorch-cifar, README",
    "One run; its code keeps the best epoch on the test images.",
)
_IMGCLSMOB = Source("osmr/imgclsmob, README", "The best epoch on the test images.")

_BEST_OF_FIVE = "Of ResNet110 the best of five runs, whose mean is 6.61."

# Of both datasets: model, kind, error on CIFAR-10, error on CIFAR-100, source, note.
_FIGURES = (
    ("ResNet20", "paper", 8.75, None, _HE, ""),
    ("ResNet32", "paper", 7.51, None, _HE, ""),
    ("ResNet44", "paper", 7.17, None, _HE, ""),
    ("ResNet56", "paper", 6.97, None, _HE, ""),
    ("ResNet110", "paper", 6.43, None, _HE, _BEST_OF_FIVE),
    ("ResNet164", "paper", 5.46, 24.33, _PREACT, ""),
    ("ResNeXt29_8x64d", "paper", 3.65, 17.77, _RESNEXT, ""),
    ("ResNeXt29_16x64d", "paper", 3.58, 17.31, _RESNEXT, ""),
    ("ResNet20", "public recipe", 7.40, 31.17, _CHENYAOFO, ""),
    ("ResNet32", "public recipe", 6.47, 29.84, _CHENYAOFO, ""),
    ("ResNet44", "public recipe", 5.99, 28.37, _CHENYAOFO, ""),
    ("ResNet56", "public recipe", 5.63, 27.37, _CHENYAOFO, ""),
    ("ResNet110", "public recipe", 6.60, None, _BEARPAW_110, ""),
    ("ResNeXt29_8x64d", "public recipe", 3.69, 17.38, _BEARPAW, ""),
    ("ResNeXt29_16x64d", "public recipe", 3.53, 17.30, _BEARPAW, ""),
    ("ResNeXt29_32x4d", "public recipe", 5.27, None, _KUANGLIU, ""),
    ("ResNet20", "best public", 5.97, 29.64, _IMGCLSMOB, ""),
    ("ResNet56", "best public", 4.52, 24.88, _IMGCLSMOB, ""),
    ("ResNet110", "best public", 3.69, 22.80, _IMGCLSMOB, ""),
    ("ResNet164", "best public", 3.68, 20.44, _IMGCLSMOB, ""),
    ("ResNeXt29_32x4d", "best public", 3.15, 19.50, _IMGCLSMOB, ""),
    ("ResNeXt29_16x64d", "best public", 2.41, 16.93, _IMGCLSMOB, ""),
)
PUBLISHED = tuple(
    Published(model, dataset, kind, error, source, note)
    for model, kind, cifar10, cifar100, source, note in _FIGURES
    for dataset, error in (("cifar10", cifar10), ("cifar100", cifar100))
    if error is not None
)


def find(model: str, dataset: str, kind: str) -> Published | None:
    """The published error of a network or of its mean-field twin."""
    plain = applications.architecture(model).name
    for entry in PUBLISHED:
        if (entry.model, entry.dataset, entry.kind) == (plain, dataset, kind):
            return entry
    return None
