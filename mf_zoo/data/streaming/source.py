"""What a stream is, whichever engine reads it."""

import math
from typing import Any

import numpy as np

from mf_zoo.data.epochs import EpochDataset

_CROP, _ORDER = 2, 3  # streams of random numbers of an epoch, and of all epochs


class Stream(EpochDataset):
    """What is random in a stream, whichever engine reads it, and the number of its epoch."""

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        image_shape: tuple[int, int, int],
        crop: str | None,
        shard: tuple[int, int],
        **settings: Any,
    ):
        super().__init__(count, batch_size, **settings)
        self.image_shape = image_shape
        self.crop = crop
        self.shard = shard

    def order_seed(self) -> int:
        """A seed for an engine whose seeds lie side by side: grain adds the epoch to it."""
        return int(self.generator(0, _ORDER).integers(1, 2**31 - 1))

    def box(self, epoch: int, position: int, height: int, width: int) -> tuple[int, int, int, int]:
        """`(top, left, height, width)` of the part of an image to be scaled."""
        rows, columns = self.image_shape[:2]
        if self.crop == "center":
            scale = min(height / rows, width / columns)
            part = max(round(rows * scale), 1), max(round(columns * scale), 1)
            return (height - part[0]) // 2, (width - part[1]) // 2, *part
        rng = self.generator(epoch, _CROP, position + self.count * self.shard[0])
        side = math.sqrt(height * width * rng.uniform(0.08, 1))
        root = math.exp(rng.uniform(-1, 1) * math.log(4 / 3) / 2)  # of the proportions
        part = min(max(round(side / root), 1), height), min(max(round(side * root), 1), width)
        top, left = rng.integers(0, (height - part[0], width - part[1]), endpoint=True)
        return int(top), int(left), *part

    def finish(
        self, epoch: int, index: int, images: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The batch augmented; processes draw differently."""
        number = index * self.shard[1] + self.shard[0]
        draw = self.draw_augmentation(epoch, number, len(images), images.shape[1:])
        return self.augmented(images, labels, draw)
